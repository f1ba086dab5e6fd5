"""Checkpoints of nnssl and OpenMind, and the axes that its masked autoencoder of a Primus exchanges."""

import logging

import pytest
import torch
from architectures import architecture
from made_weights import nnssl, primus, save

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.weights_file import read_weights

PATCH = (16, 16, 24)
SIZE = {"embed_dim": 36, "eva_depth": 2, "eva_numheads": 2}
IMAGE = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(1))


def resenc(classes):
    kinds = {"architecture": architecture("resenc"), "input_channels": 1, "num_classes": classes}
    return build_backbone("plans", patch=(16, 16, 16), **kinds).network


def pretext(network):
    """What nnssl has around a Primus while it pretrains, and leaves in its checkpoint."""
    state = dict(network.state_dict())
    last = [name for name in state if name.startswith("up_projection")][-1]
    state[last] = state[last][:1]
    return {**state, "decoder.pos_embed": torch.ones(1, 12, 36), "mask_token": torch.ones(1, 1, 36)}


def mae(network, patch=PATCH, trainer="BaseEvaMAETrainer_BS8", kwargs=SIZE):
    return nnssl(pretext(network), "Primus", trainer, patch, kwargs)


@torch.no_grad()
def in_pretraining(network):
    """Features as nnssl's masked autoencoder computes them: tokens are numbered (second, first, third axis)."""
    cells = network.down_projection(IMAGE).transpose(2, 3)
    tokens, _ = network.eva(cells.flatten(2).transpose(1, 2))
    return tokens.transpose(1, 2).reshape(cells.shape).transpose(2, 3)


@torch.no_grad()
def in_fine_tuning(network):
    """Features as Primus computes them."""
    cells = network.down_projection(IMAGE)
    tokens, _ = network.eva(cells.flatten(2).transpose(1, 2))
    return tokens.transpose(1, 2).reshape(cells.shape)


# ----------------------------------------------------------------------------------------------------------- U-Nets


def test_a_resenc_gives_encoder_and_decoder_and_says_its_patch(tmp_path):
    donor, network = resenc(classes=1), resenc(classes=3)
    file = save(nnssl(donor.state_dict(), "ResEncL", "BaseMAETrainer_BS8"), tmp_path / "checkpoint_final.pth")
    weights = read_weights(file)
    assert (weights.origin, weights.ours, weights.patch) == ("nnssl", False, (160, 160, 160))
    assert weights.metadata["trainer_name"] == "BaseMAETrainer_BS8"
    assert weights.metadata["nnssl_adaptation_plan"]["key_to_encoder"] == "encoder.stages"
    load_pretrained(network, file)
    ours, theirs = network.state_dict(), donor.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "seg_layers" not in name)


def test_a_checkpoint_of_spark_without_a_plan_is_known_by_its_other_weights(tmp_path):
    donor = resenc(classes=1)
    content = nnssl(donor.state_dict(), "ResEncL", "SparkMAETrainer") | {"spark_weights": {"mask_token": torch.ones(3)}}
    del content["nnssl_adaptation_plan"]
    weights = read_weights(save(content, tmp_path / "spark.pth"))
    assert (weights.origin, weights.patch) == ("nnssl", None)
    assert set(weights.tensors) == set(donor.state_dict())


# ----------------------------------------------------------------------------------------------------------- Primus


def test_a_primus_gives_encoder_and_stem_and_says_what_it_leaves_out(tmp_path, caplog):
    donor = primus()
    with caplog.at_level(logging.INFO, logger="ssl_pretrain"):
        weights = read_weights(save(mae(donor), tmp_path / "mae.pth"))
    assert {name.split(".")[0] for name in weights.tensors} == {"eva", "down_projection"}
    assert set(weights.left_out) == set(pretext(donor)) - set(weights.tensors)
    assert {"decoder.pos_embed", "mask_token"} < set(weights.left_out)
    assert any("left out: part of the pretext task" in line for line in caplog.messages)
    assert any("exchanges two axes" in line and "-fix_nnssl_axes" in line for line in caplog.messages)


def test_a_contrastive_primus_is_taken_out_of_its_wrapper(tmp_path):
    state = {f"encoder.{name}": value for name, value in primus().state_dict().items()}
    content = nnssl(
        state | {"projector.0.weight": torch.ones(2)}, "Primus", "VoCoEvaTrainer", PATCH, SIZE, "encoder.eva"
    )
    weights = read_weights(save(content, tmp_path / "voco.pth"), fix_nnssl_axes=True)
    assert {name.split(".")[0] for name in weights.tensors} == {"eva", "down_projection"}
    assert "projector.0.weight" in weights.left_out


def test_a_plan_of_another_network_is_refused(tmp_path):
    file = save(nnssl(resenc(1).state_dict(), "PrimusM", "BaseEvaMAETrainer"), tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth has a plan that calls its encoder 'eva'.*damaged"):
        read_weights(file)


# ------------------------------------------------------------------------------------------------------------- axes


def test_with_its_axes_in_order_a_primus_has_exactly_the_features_of_pretraining(tmp_path):
    donor, fixed, as_it_is = primus(), primus(seed=1), primus(seed=2)
    file = save(mae(donor), tmp_path / "mae.pth")
    assert "axes put in order" in read_weights(file, fix_nnssl_axes=True).origin
    report = load_pretrained(fixed, file, fix_nnssl_axes=True)
    load_pretrained(as_it_is, file)
    expected = in_pretraining(donor)
    torch.testing.assert_close(in_fine_tuning(fixed), expected, rtol=1e-4, atol=1e-4)
    assert (in_fine_tuning(as_it_is) - expected).abs().max() > 0.1
    assert {entry.name.split(".")[0] for entry in report.loaded} == {"eva", "down_projection"}


def test_the_learned_positions_alone_would_not_be_enough(tmp_path):
    donor, half = primus(), primus(seed=1)
    file = save(mae(donor), tmp_path / "mae.pth")
    load_pretrained(half, file)
    with torch.no_grad():
        half.eva.pos_embed.copy_(read_weights(file, fix_nnssl_axes=True).tensors["eva.pos_embed"])
    assert (in_fine_tuning(half) - in_pretraining(donor)).abs().max() > 0.02


def test_a_file_written_with_its_axes_in_order_is_not_treated_again(tmp_path, caplog):
    first = read_weights(save(mae(primus()), tmp_path / "mae.pth"), fix_nnssl_axes=True)
    file = save({"network_weights": first.tensors, **first.metadata}, tmp_path / "in_order.pth")
    with caplog.at_level(logging.WARNING, logger="ssl_pretrain"):
        second = read_weights(file)
    assert caplog.messages == []
    assert all(torch.equal(second.tensors[name], first.tensors[name]) for name in first.tensors)
    with pytest.raises(ValueError, match=r"in_order\.pth out of order: they were put in order before\. Leave it out"):
        read_weights(file, fix_nnssl_axes=True)


def test_putting_axes_in_order_twice_gives_the_file_back(tmp_path):
    donor = primus()
    once = read_weights(save(mae(donor), tmp_path / "a.pth"), fix_nnssl_axes=True).tensors
    donor.load_state_dict(once, strict=False)
    twice = read_weights(save(mae(donor), tmp_path / "b.pth"), fix_nnssl_axes=True).tensors
    original = primus().state_dict()
    assert any(not torch.equal(once[name], original[name]) for name in once)
    assert all(torch.equal(twice[name], original[name]) for name in twice)


def test_a_published_size_is_known_by_its_name(tmp_path):
    """PrimusS has 6 heads of 66 channels: 22 for each axis."""
    query = torch.arange(396.0).repeat(396, 1).T.contiguous()
    state = {"eva.pos_embed": torch.zeros(1, 8000, 396), "eva.blocks.0.attn.q_proj.weight": query}
    file = save(nnssl(state, "PrimusS", "BaseEvaMAETrainer_BS8"), tmp_path / "s.pth")
    rows = read_weights(file, fix_nnssl_axes=True).tensors["eva.blocks.0.attn.q_proj.weight"][:, 0].tolist()
    assert rows[:66] == [*range(22, 44), *range(22), *range(44, 66)]
    assert rows[66] == 88


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: nnssl(resenc(1).state_dict(), "ResEncL", "BaseMAETrainer"), r"is none \(nnssl, ResEncL\)\. Leave it"),
        (lambda: resenc(1).state_dict(), r"is none \(state_dict\)"),
        (lambda: mae(primus(), trainer="SimMIMEvaTrainer_BS8"), r"SimMIMEvaTrainer_BS8 has them right\. Leave it out"),
        (
            lambda: mae(primus((16, 24, 16)), (16, 24, 16)),
            r"12 tokens of a patch of \(16, 24, 16\)\. The first two axes",
        ),
        (lambda: mae(primus(), None), "it has no patch_size in its plan"),
        (lambda: mae(primus(), (32, 32, 32)), r"12 tokens of a patch of \(32, 32, 32\)"),
        (lambda: mae(primus(), kwargs={**SIZE, "embed_dim": 72}), "is no Primus, as its plan says it is"),
    ],
)
def test_what_cannot_or_need_not_be_put_in_order_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_weights(save(content(), tmp_path / "file.pth"), fix_nnssl_axes=True)
    assert read_weights(tmp_path / "file.pth").tensors


def test_ours_has_its_axes_in_order(tmp_path):
    state = primus().state_dict()
    content = mae(primus()) | {"network_weights": state, "pretraining": {"pretrained_keys": list(state)}}
    with pytest.raises(ValueError, match=r"is none \(anatomask, Primus\)"):
        read_weights(save(content, tmp_path / "ours.pth"), fix_nnssl_axes=True)
