"""The pretraining of Swin UNETR: its views, and each of its losses against a slow form."""

from math import exp, log

import numpy as np
import pytest
import torch
from cells import batch_for, build, families, generator

from ssl_pretrain.functional.cutout import draw_boxes, fill_, noise_like
from ssl_pretrain.functional.geometry import check_square
from ssl_pretrain.methods import MethodSetup, SwinUNETRPretraining, SwinUNETRPretrainingConfig
from ssl_pretrain.methods.heads import UpsamplingDecoder
from ssl_pretrain.networks.base import FeatureMap

NAME = "SwinUNETRPretraining"
PATCH = (16, 20, 24)
SIDES = (0.05, 0.25)


def slow_losses(made, batch, drawn, said):
    """Cross-entropy, NT-Xent and mean absolute error, crop after crop and voxel after voxel."""
    rotation = []
    for logits, turn in zip(said.rotation.double(), drawn.turns.tolist(), strict=True):
        rotation.append(-log(exp(logits[turn]) / sum(exp(value) for value in logits)))
    unit = [one / one.norm() for one in said.embedding.double()]
    contrast = []
    for i, one in enumerate(unit):
        others = [exp(float(one @ other) / made.config.temperature) for j, other in enumerate(unit) if j != i]
        pair = exp(float(one @ unit[i ^ 1]) / made.config.temperature)
        contrast.append(-log(pair / sum(others)))
    errors, voxels = 0.0, 0
    for i, reconstruction in enumerate(said.reconstruction.double()):
        crop = batch["image"][i // 2].double()
        hidden = batch["ignored"][i // 2][0]
        for _ in range(int(drawn.turns[i])):
            # A quarter turn: what was in column x is in row W - 1 - x.
            crop, hidden = crop.transpose(-2, -1).flip(-2), hidden.transpose(-2, -1).flip(-2)
        for channel, target in zip(reconstruction, crop, strict=True):
            errors += float((channel - target).abs()[~hidden].sum())
            voxels += int((~hidden).sum())
    return sum(rotation) / len(rotation), sum(contrast) / len(contrast), errors / voxels


@pytest.mark.parametrize("network", ["plans", "PrimusS"])
def test_the_losses_are_those_of_slow_loops(network):
    made = build(NAME, network, rotation_weight=0.5, contrast_weight=2.0, reconstruction_weight=3.0).eval()
    batch = batch_for(made)
    batch["ignored"] = torch.rand(4, 1, *made.patch, generator=generator(3)) < 0.2
    with torch.no_grad():
        output = made(batch, generator())
        drawn = made.draw(batch, generator())
        said = made.network(drawn.views)
    rotation, contrast, reconstruction = slow_losses(made, batch, drawn, said)
    logged = {name: float(value) for name, value in output.log.items()}
    assert logged["rotation"] == pytest.approx(rotation, rel=1e-5)
    assert logged["contrast"] == pytest.approx(contrast, rel=1e-5)
    assert logged["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    right = (said.rotation.argmax(1) == drawn.turns).float().mean()
    assert logged["rotation_right"] == pytest.approx(float(right))
    assert float(output.loss) == pytest.approx(0.5 * rotation + 2.0 * contrast + 3.0 * reconstruction, rel=1e-5)


@pytest.mark.parametrize("network", families())
def test_the_heads_see_the_mean_of_the_whole_bottleneck(network):
    """In the published code they saw its first and its second voxel."""
    made = build(NAME, network).eval()
    image = batch_for(made)["image"]
    with torch.no_grad():
        pooled = made.backbone.encode(image)[-1].mean((2, 3, 4))
        said = made.network(image)
    # The norm over views does nothing yet but to divide by √(1 + 1e-5).
    torch.testing.assert_close(said.rotation, made.network.rotation(pooled), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(said.embedding, made.network.contrast(pooled), rtol=1e-4, atol=1e-5)
    assert said.embedding.shape == (len(image), 512)


def test_a_view_is_its_turned_crop_but_for_noise_and_the_other_crop():
    made = build(NAME, "plans", other_p=1.0).eval()
    batch = batch_for(made)
    drawn = made.draw(batch, generator())
    assert drawn.views.shape == drawn.target.shape == (8, *batch["image"].shape[1:])
    low, high = batch["image"].amin((2, 3, 4)), batch["image"].amax((2, 3, 4))
    cut = []
    for i, (view, target) in enumerate(zip(drawn.views, drawn.target, strict=True)):
        crop, other = batch["image"][i // 2], batch["image"][(i // 2) ^ 1]
        assert torch.equal(target, crop.rot90(int(drawn.turns[i]), (-2, -1)))
        changed = (view != target).any(0)
        cut.append(float(changed.float().mean()))
        swapped = (view == other).all(0) & changed
        noisy = changed & ~swapped
        for channel in range(len(view)):
            inside = view[channel][noisy]
            assert ((inside >= low[i // 2, channel]) & (inside <= high[i // 2, channel])).all()
    assert max(cut) > 0.05
    assert max(cut) < 0.7
    assert len(set(drawn.turns.tolist())) > 1


def test_views_do_not_depend_on_the_rest_of_the_batch():
    made = build(NAME, "plans").eval()
    batch = {**batch_for(made), "seeds": [5, 6]}
    second = {"image": batch["image"][2:], "seeds": [6]}
    both, alone = made.draw(batch, generator()), made.draw(second, generator(9))
    assert torch.equal(both.views[4:], alone.views)
    assert torch.equal(both.turns[4:], alone.turns)


def test_mirrored_crops_are_turned_from_how_they_lay():
    """A crop mirrored along H and W would look as if it were turned by 180°, and nobody could tell."""
    made = build(NAME, "plans").eval()
    batch = {**batch_for(made), "seeds": [5, 6]}
    affine = batch["affine"].clone()
    affine[1, 1, 1] = affine[1, 2, 2] = affine[2, 2, 2] = -1
    image = batch["image"].clone()
    image[1], image[2] = image[1].flip(-2, -1), image[2].flip(-1)
    mirrored = made.draw({**batch, "image": image, "affine": affine}, generator())
    assert torch.equal(mirrored.target, made.draw(batch, generator()).target)


def test_boxes_cover_the_share_and_little_more():
    own = np.random.default_rng(0)
    assert draw_boxes(PATCH, 0.0, SIDES, own) == ()
    for share in (0.05, 0.2, 0.5):
        boxes = draw_boxes(PATCH, share, SIDES, own)
        covered, before = torch.zeros(PATCH), torch.zeros(PATCH)
        for number, box in enumerate(boxes):
            covered[box] = 1
            if number < len(boxes) - 1:
                before[box] = 1
            for side, size in zip(box, PATCH, strict=True):
                assert 0 <= side.start < side.stop <= size
                assert side.stop - side.start <= size / 4
        assert before.mean() < share <= covered.mean()


def test_what_fills_a_box_is_of_the_same_place():
    crop, other = torch.zeros(2, *PATCH), torch.arange(2.0 * 16 * 20 * 24).view(2, *PATCH)
    box = (slice(2, 5), slice(0, 20), slice(7, 9))
    filled = fill_(crop, [box], other)
    assert filled is crop
    assert torch.equal(crop[(slice(None), *box)], other[(slice(None), *box)])
    assert int((crop != 0).sum()) <= 2 * 3 * 20 * 2
    noise = noise_like(other, 4)
    assert torch.equal(noise, noise_like(other, 4))
    for channel in (0, 1):
        assert noise[channel].min() >= other[channel].min()
        assert noise[channel].max() <= other[channel].max()
        assert noise[channel].std() > 0.2 * (other[channel].max() - other[channel].min())


def test_the_light_decoder_mirrors_the_maps_and_goes_on_to_the_image():
    maps = [FeatureMap(6, (1, 2, 2)), FeatureMap(10, (2, 4, 4)), FeatureMap(16, (4, 8, 8))]
    decoder = UpsamplingDecoder(maps, 3)
    widths = [module.out_channels for module in decoder.modules() if isinstance(module, torch.nn.Conv3d)]
    assert widths == [10, 6, 3, 3]
    assert decoder(torch.randn(1, 16, 4, 2, 2)).shape == (1, 3, 16, 16, 16)


@pytest.mark.parametrize("network", ["plans", "PrimusS"])
def test_light_leaves_the_networks_own_decoder_alone(network):
    made = build(NAME, network, decoder="light")
    assert made.exports == "encoder"
    made(batch_for(made), generator()).loss.backward()
    named = dict(made.backbone.network.named_parameters(remove_duplicate=False))
    assert all(named[key].grad is None for key in made.backbone.decoder_keys if key in named)
    assert build(NAME, network).exports == "network"


def test_a_crop_that_is_not_square_says_what_works():
    backbone = build(NAME, "plans").backbone
    with pytest.raises(ValueError, match=r"\(16, 24, 32\).* as long along .*: \(16, 24, 24\), \(16, 32, 32\)"):
        SwinUNETRPretraining(SwinUNETRPretrainingConfig(), MethodSetup(backbone=backbone, patch=(16, 24, 32)))


def test_a_size_that_leaves_a_single_voxel_is_not_proposed():
    with pytest.raises(ValueError, match=r"Sizes that work: \(32, 64, 64\) \(-patch_size"):
        check_square((32, 64, 32), (32, 32, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrast_weight": -1.0}, r"contrast_weight must not be negative, and finite, got -1\.0"),
        ({"temperature": 0.0}, r"temperature must be greater than 0, got 0\.0"),
        ({"embedding": 0}, "embedding must be at least 1, got 0"),
        ({"cutout": 1.5}, r"cutout must lie between 0 and 1, got 1\.5"),
        ({"other_p": -0.5}, r"other_p must lie between 0 and 1, got -0\.5"),
        ({"cutout_sides": (0.3, 0.2)}, r"cutout_sides must be two numbers, .*got 0\.3 and 0\.2"),
        ({"decoder": "heavy"}, "decoder must be one of auto, own, light, got 'heavy'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        SwinUNETRPretrainingConfig(**settings)
