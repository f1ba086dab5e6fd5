"""Plans may name layers of well-known packages, and nothing else is imported or called."""

import sys

import pytest
from architectures import architecture

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.trust import refuse_foreign_code

OLD_PLACE = "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"
"""What nnU-Net 2.5 and later call the residual network of older plans, and where it is not."""


def plans_naming(entry: str, path: object, kind: str = "plain", **kwargs) -> dict:
    made = architecture(kind)
    where = made if entry == "network_class_name" else made["arch_kwargs"]
    where[entry] = path
    made["arch_kwargs"] |= kwargs
    return made


def build(made: dict, **options):
    return build_backbone("plans", architecture=made, input_channels=1, num_classes=2, patch=(16, 16, 16), **options)


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A module that leaves a trace when it is imported."""
    (tmp_path / "strange_layers.py").write_text(
        f"from pathlib import Path\nfrom torch import nn\nPath({str(tmp_path / 'imported')!r}).touch()\n"
        "class Act(nn.LeakyReLU):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("strange_layers", None)


@pytest.mark.parametrize("entry", ["network_class_name", "conv_op", "norm_op", "dropout_op", "nonlin"])
def test_code_of_other_packages_is_refused_before_it_is_imported(strange, entry):
    with pytest.raises(ValueError, match=rf"name code that we do not know: {entry} 'strange_layers.Act'.*-trust_plans"):
        build(plans_naming(entry, "strange_layers.Act"))
    assert not strange.exists()


def test_a_command_as_nonlinearity_is_not_run(tmp_path):
    made = plans_naming("nonlin", "os.system", nonlin_kwargs={"command": f"touch {tmp_path / 'run'}"})
    with pytest.raises(ValueError, match=r"code that we do not know: nonlin 'os\.system'"):
        build(made)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "path",
    [
        "torch.nn.modules.module.torch.os.system",
        "torch.nn.modules.module.torch.os.ReLU",
        "torch.nn.functional.relu",
        "torch.nn.Parameter",
        "torch.nn.Gone",
        "torch.nn.",
        "monai.networks.utils.torch.hub.load",
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.os.system",
        "ssl_pretrain.files.os.system",
        "dynamic_network_architectures.architectures.unet.np.load",
    ],
)
def test_what_is_no_layer_of_a_known_package_is_refused(path):
    for entry in ("network_class_name", "nonlin"):
        with pytest.raises(ValueError, match=r"is no class of layers in the packages that are installed"):
            refuse_foreign_code(plans_naming(entry, path))


@pytest.mark.parametrize("path", ["torch.nn", "torch.nnx.ReLU", "torch.hub.load", "monai.bundle.run", "torch", "", 3])
def test_names_that_only_begin_like_a_known_package_are_refused(path):
    with pytest.raises(ValueError, match="code that we do not know: nonlin"):
        refuse_foreign_code(plans_naming("nonlin", path))


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ("nonlin", "torch.nn.modules.activation.SiLU"),
        ("nonlin", None),
        ("dropout_op", "torch.nn.Dropout3d"),
        ("network_class_name", "ssl_pretrain.networks.stunet.STUNet"),
        ("network_class_name", OLD_PLACE),
    ],
)
def test_layers_of_known_packages_pass(entry, path):
    refuse_foreign_code(plans_naming(entry, path))


def test_a_network_that_has_moved_is_built_as_nnunet_finds_it():
    moved = build(plans_naming("network_class_name", OLD_PLACE, "residual"))
    assert type(moved.network).__name__ == "ResidualEncoderUNet"


def test_plans_that_are_trusted_may_name_any_code(strange):
    made = build(plans_naming("nonlin", "strange_layers.Act"), trust_plans=True)
    assert "Act" in {type(module).__name__ for module in made.network.modules()}
    assert strange.exists()
