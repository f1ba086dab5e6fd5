"""The encoder of a file, for features: what it is, what it takes, what is refused."""

import copy
import sys

import pytest
import torch
from architectures import backbone
from made_data import plans
from methods.cells import CHANNELS
from pretrained import content_of, image_for, own_features, pretrain, same, save

from ssl_pretrain.methods import MethodSetup, SparK, SparKConfig
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.registry import NETWORKS
from ssl_pretrain.transfer.blueprint import blueprint_of
from ssl_pretrain.transfer.encoder import load_encoder
from ssl_pretrain.transfer.load import load_pretrained

CONVOLUTIONAL, TRANSFORMERS = ("plans", "ResEncM"), ("PrimusS", "ViT_B16", "SwinUNETR")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function: network -> its method after pretraining, the content of its file, and the file."""
    found = {}

    def make(network):
        if network in ("ViT_B16", "SwinUNETR"):
            pytest.importorskip("monai", reason="MONAI is an extra: pip install anatomask[monai]")
        if network not in found:
            method = pretrain(network)
            content = content_of(method, network)
            found[network] = method, content, save(content, tmp_path_factory.mktemp("pretrained"))
        return found[network]

    return make


def encoder_of(made, network, **options):
    return load_encoder(made(network)[2], **options)


# ---------------------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("network", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_it_says_what_it_is(made, network):
    method, content, file = made(network)
    encoder = load_encoder(file)
    tokens = network in TRANSFORMERS
    # The image that a UNETR's decoder sees is no feature map.
    maps = tuple(entry for entry in method.backbone.feature_maps if not tokens or entry.stride != (1, 1, 1))
    assert encoder.feature_maps == maps
    assert encoder.embedding_size == maps[-1].channels
    assert (encoder.input_channels, encoder.patch_size) == (CHANNELS, method.patch)
    assert (encoder.spacing, encoder.normalization) == ((1.0, 1.0, 1.0), ("ZScoreNormalization",))
    assert encoder.about["method"] == "ModelsGenesis"
    assert encoder.about["plans"] == content["pretraining"]["plans"]
    assert not encoder.training
    with torch.no_grad():
        features = encoder(image_for(network))
    for entry, found in zip(maps, features.maps, strict=True):
        grid = tuple(n // s for n, s in zip(method.patch, entry.stride, strict=True))
        assert found.shape == (2, entry.channels, *grid)
    assert features.pooled.shape == (2, encoder.embedding_size)


@pytest.mark.parametrize("network", ["plans", "PrimusS"])
def test_nothing_of_the_decoder_is_left(made, network):
    method, _, file = made(network)
    count = sum(p.numel() for p in load_encoder(file).parameters())
    assert count == sum(p.numel() for p in method.backbone.encoder.parameters())
    assert count < sum(p.numel() for p in method.backbone.network.parameters())


@pytest.mark.parametrize("network", ["plans", "ViT_B16"])
def test_all_maps_can_be_pooled(made, network):
    encoder, image = encoder_of(made, network, pool="all"), image_for(network)
    with torch.no_grad():
        maps, pooled = encoder(image)
    assert encoder.embedding_size == sum(entry.channels for entry in encoder.feature_maps) == pooled.shape[1]
    assert torch.equal(pooled, torch.cat([one.flatten(2).mean(2) for one in maps], 1))


def test_the_images_of_a_batch_do_not_touch(made):
    encoder, image = encoder_of(made, "ResEncM"), image_for("ResEncM")
    with torch.no_grad():
        torch.testing.assert_close(encoder(image).pooled[1:], encoder(image[1:]).pooled)


def test_it_can_be_trained(made):
    """Positions of another patch size get their gradient through the interpolation."""
    encoder = encoder_of(made, "PrimusS").train()
    encoder(torch.randn(1, CHANNELS, 24, 24, 24)).pooled.square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_random_numbers_elsewhere_stay_as_they_were(made):
    file = made("plans")[2]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_encoder(file)
    assert torch.equal(torch.rand(3), expected)


def test_stages_that_were_not_pretrained_are_left_out(tmp_path):
    setup = MethodSetup(backbone=backbone(), patch=(16, 16, 16))
    method = SparK(SparKConfig(stages=2), setup)
    encoder = load_encoder(save(content_of(method, "plans", config={}, plans=plans()), tmp_path))
    assert encoder.feature_maps == setup.backbone.feature_maps[:2]
    assert len(encoder(torch.randn(1, 1, 16, 16, 16)).maps) == 2


# ---------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_a_unet_takes_any_size(made, network):
    """Total stride 2 x 4 x 4; a ResEnc by itself takes multiples only."""
    method, _, file = made(network)
    encoder, image = load_encoder(file), image_for(network, (8, 20, 12))
    with torch.no_grad():
        assert same(encoder(image).maps, own_features(method.backbone.network, image))
        odd = encoder(image[:, :, :7, :17, :10]).maps
        padded = torch.zeros_like(image)
        padded[:, :, :7, :17, :10] = image[:, :, :7, :17, :10]
        assert same(odd, encoder(padded).maps)


@pytest.mark.parametrize("network", ["PrimusS", "ViT_B16"])
def test_a_transformer_of_another_size_is_the_network_that_is_built_for_it(made, network):
    method, _, file = made(network)
    encoder, first = load_encoder(file), image_for(network)
    before = own_features(method.backbone.network, first)
    settings = blueprint_of(made(network)[1], file).settings
    for patch in ((32, 16, 32), (48, 32, 16), (16, 48, 32)):
        torch.manual_seed(7)
        target = build_backbone(
            network, architecture={}, input_channels=CHANNELS, num_classes=4, patch=patch, settings=settings
        ).network
        assert load_pretrained(target, file).adapted
        image = image_for(network, patch)
        with torch.no_grad():
            found = encoder(image).maps
            assert same(found, own_features(target, image))
            odd = encoder(image[:, :, 1:, :-2, 3:]).maps
        assert [one.shape for one in odd] == [one.shape for one in found]
    with torch.no_grad():
        assert same(encoder(first).maps, before), "the network is left as it was"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 24, 32), r"Images must be \(B, 2, D, H, W\): .* 2 channels\. Got \(2, 16, 24, 32\)\."),
        ((1, 3, 16, 24, 32), r"with 2 channels\. Got \(1, 3, 16, 24, 32\)\."),
        ((1, 2, 2, 3, 4), r"\(2, 3, 4\) voxels is too small: .* stride \(2, 4, 4\), would be a single voxel.* Pad it"),
    ],
)
def test_images_that_do_not_fit_are_refused(made, shape, message):
    with pytest.raises(ValueError, match=message):
        encoder_of(made, "plans")(torch.zeros(shape))


# ---------------------------------------------------------------------------------------------- other files


OWN = """
from torch import nn

print("THIS RAN")


class Own(nn.Module):
    def __init__(self, input_channels):
        super().__init__()
        self.one = nn.Conv3d(input_channels, 3, 3, 1, 1)
        self.two = nn.Conv3d(3, 5, 3, 2, 1)
        self.classifier = nn.Linear(5, 2)

    def get_downsample_ratio(self):
        return 2

    def get_feature_map_channels(self):
        return [3, 5]

    def forward(self, x, hierarchical=False):
        first = self.one(x)
        return [first, self.two(first)]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The file of a network of somebody's own, whose module was not imported yet."""
    (tmp_path / "own_encoder_of_a_test.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_encoder_of_a_test:Own"
    torch.manual_seed(0)
    network = build_backbone(name, architecture={}, input_channels=2, num_classes=3, patch=(16, 16, 16))
    method = SparK(SparKConfig(), MethodSetup(backbone=network, patch=(16, 16, 16)))
    file = save(content_of(method, name, plans={"configurations": {"3d_fullres": {}}}), tmp_path)
    sys.modules.pop("own_encoder_of_a_test")
    yield file, method
    sys.modules.pop("own_encoder_of_a_test", None)


def test_an_own_network_is_imported_only_if_that_is_wanted(own, capsys):
    file, method = own
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"own_encoder_of_a_test:Own, .* runs the code .*trust_code=True.*PYTHONPATH"):
        load_encoder(file)
    assert "THIS RAN" not in capsys.readouterr().out
    encoder = load_encoder(file, trust_code=True)
    assert "THIS RAN" in capsys.readouterr().out
    assert [entry.channels for entry in encoder.feature_maps] == [3, 5]
    assert encoder.spacing is None
    weight = dict(encoder.named_parameters())["encoder.network.two.weight"]
    assert torch.equal(weight, method.backbone.network.state_dict()["two.weight"])
    with torch.no_grad():
        assert encoder(torch.randn(1, 2, 7, 8, 8)).maps[1].shape == (1, 5, 4, 4, 4)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("network_class_name", "subprocess.Popen"),
        ("network_class_name", "dynamic_network_architectures.architectures.unet.nn.os.system"),
        ("nonlin", "os.system"),
        ("nonlin", "torch.nn.modules.module.warnings.sys.modules"),
        ("norm_op", "torch.nn.init.kaiming_normal_"),
    ],
)
def test_code_that_is_named_in_the_plans_is_refused(made, tmp_path, entry, value):
    content = copy.deepcopy(made("plans")[1])
    architecture = content["pretraining"]["plans"]["configurations"]["3d_fullres"]["architecture"]
    (architecture if entry in architecture else architecture["arch_kwargs"])[entry] = value
    with pytest.raises(ValueError, match=rf"names code that we do not know: {value}\. .*trust_code=True"):
        load_encoder(save(content, tmp_path))


def test_plans_without_an_architecture_have_it_in_nnssls_entry(made, tmp_path):
    """As those of nnU-Net before 2.5."""
    method, content, _ = made("plans")
    content, image = copy.deepcopy(content), image_for("plans")
    del content["pretraining"]["plans"]["configurations"]["3d_fullres"]["architecture"]
    with torch.no_grad():
        found = load_encoder(save(content, tmp_path))(image).maps
    assert same(found, own_features(method.backbone.network, image))


def adaptation_plan(name, **changes):
    configuration = {"spacing": [1, 1, 1.5], "patch_size": [160, 160, 96], "normalization_schemes": ["ZScore"]}
    return {
        "architecture_plans": {"arch_class_name": name, "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"configurations": {"onemmiso": {**configuration, **changes}}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [64, 64, 64],
    }


@pytest.mark.parametrize(
    ("name", "network"), [("ResEncL", "ResEncL"), ("NoSkipResEncL", "ResEncL"), ("PrimusM", "PrimusM")]
)
def test_networks_of_nnssl_go_by_their_names(tmp_path, name, network):
    plan = adaptation_plan(name)
    found = blueprint_of({"nnssl_adaptation_plan": plan}, tmp_path)
    assert (found.network, found.input_channels, found.patch) == (network, 1, (160, 160, 96))
    assert (found.spacing, found.normalization, found.about) == ((1.0, 1.0, 1.5), ("ZScore",), plan)


def test_images_may_have_kept_their_own_spacing(tmp_path):
    plan = adaptation_plan("PrimusS", spacing=[None, None, None], patch_size=None)
    found = blueprint_of({"nnssl_adaptation_plan": plan}, tmp_path)
    assert (found.spacing, found.patch) == (None, (64, 64, 64))


def without(content, *path):
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: {"network_weights": content["network_weights"]},
            r"does not say which network its weights are of: .*'pretraining'.*'nnssl_adaptation_plan'.*load_pretrained",
        ),
        (
            lambda content: without(content, "pretraining", "input_channels"),
            r"incompletely \(KeyError: 'input_channels'\)\. .* load_pretrained\(network, file\)",
        ),
        (
            lambda content: {**content, "pretraining": {}, "nnssl_adaptation_plan": adaptation_plan("SwinX")},
            rf"network 'SwinX', which we cannot build\. Known: PlainConvUNet, .*{list(NETWORKS)[-1]}.*\. Build it",
        ),
        (
            lambda content: {
                **content,
                "pretraining": {
                    **content["pretraining"],
                    "pretrained_keys": [key for key in content["network_weights"] if "decoder.stages" in key],
                },
            },
            r"does not give the whole encoder: \d+ of its tensors are not in it or not pretrained \(.*stages\.0.*Use a",
        ),
    ],
    ids=["silent", "incomplete", "unknown", "decoder only"],
)
def test_files_without_an_encoder_that_could_be_built_are_refused(made, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(save(change(made("plans")[1]), tmp_path))


def test_other_bad_input(made, tmp_path):
    with pytest.raises(ValueError, match=r"pool must be one of coarsest, all, got 'max'\."):
        encoder_of(made, "plans", pool="max")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_encoder(tmp_path / "absent.pth")
