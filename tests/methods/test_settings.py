"""Settings of the methods that the matrix leaves at their defaults, and what is refused with which words."""

import pytest
import torch
from cells import batch_for, build, generator

from ssl_pretrain.methods import MAEConfig, S3DConfig, SimMIMConfig, VolumeFusionConfig


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (MAEConfig, {"mask_ratio": 1.0}, "mask_ratio must lie strictly between 0 and 1, got 1.0"),
        (MAEConfig, {"decoder_depth": 0}, "decoder_depth must be at least 1, got 0"),
        (MAEConfig, {"target": "pixels"}, "target must be one of voxels, cells, got 'pixels'"),
        (MAEConfig, {"optimizer": "lamb"}, "optimizer must be one of auto, adamw, sgd, got 'lamb'"),
        (MAEConfig, {"momentum": 1.0}, "momentum must lie between 0 and 1"),
        (MAEConfig, {"lr": 0.0}, "lr must be greater than 0 and finite, got 0.0"),
        (MAEConfig, {"lr": float("inf")}, "lr must be greater than 0 and finite, got inf"),
        (MAEConfig, {"betas": (0.9, 2.0)}, r"betas must lie between 0 and 1 \(excluded\), got \(0.9, 2.0\)"),
        (VolumeFusionConfig, {"classes": 40000}, "classes must be at most 1000, got 40000"),
        (SimMIMConfig, {"mask_ratio": 0.0}, "mask_ratio must lie strictly between 0 and 1, got 0.0"),
        (S3DConfig, {"mask_ratio": (0.9, 0.6)}, "0 < smallest <= largest < 1, got 0.9 and 0.6"),
        (S3DConfig, {"compile": True}, "compile=true is not possible with S3D"),
        (VolumeFusionConfig, {"classes": 1}, "classes must be at least 2, got 1"),
        (VolumeFusionConfig, {"side_max": 1.5}, "a box must fit into it"),
    ],
)
def test_impossible_settings_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        ("plans", {"mask_cell": (1, 1, 1), "target": "cells", "mask_channels": "each"}, "single number, which has no"),
        ("plans", {"mask_cell": (5, 8, 8)}, r"Mask cell \(5, 8, 8\) does not fit patch"),
        ("PrimusS", {"mask_cell": (4, 8, 8)}, r"in this network a cell is a token of \(8, 8, 8\) voxels"),
        ("PrimusS", {"mask_channels": "each"}, "mask_channels=each is not possible with a transformer"),
        # What does not go together is said before what is wrong with the mask.
        (
            "ViT_B16",
            {"mask_ratio": 0.01},
            "MAE needs .*kept tokens; UNETR has .* Use -network .*PrimusS.B.M.L",
        ),
    ],
)
def test_what_mae_cannot_do_with_a_network_is_said(network, settings, message):
    with pytest.raises(ValueError, match=message):
        build("MAE", network, **settings)


@pytest.mark.parametrize("target", ["voxels", "cells"])
def test_every_channel_can_have_a_mask_of_its_own(target):
    made = build("MAE", "plans", mask_channels="each", target=target).eval()
    batch = batch_for(made)
    mask = made.choose(batch, generator()).mask.view(2, 2, *made.grid)
    assert mask.flatten(2).sum(2).unique().tolist() == [made.masked]
    assert not torch.equal(mask[:, 0], mask[:, 1])
    assert torch.isfinite(made(batch, generator()).loss)
    with torch.no_grad():
        shown = {column.heading: column for column in made.panels(batch, generator())}
    # One mask is drawn, so one channel is: that whose mask it is.
    assert shown["reconstruction"].values.shape == (1, *batch["image"].shape[2:])
    (d, h, w), (a, b, c) = made.grid, made.cell
    hidden = (shown["masked input"].values[0] == 0).view(d, a, h, b, w, c).all(5).all(3).all(1)
    assert torch.equal(hidden, shown["masked input"].tinted)


def test_patterns_that_would_fill_the_memory_are_refused_before_training():
    with pytest.raises(ValueError, match="choose a smaller shuffle_side or fewer shuffle_patterns"):
        build("ModelsGenesis", "plans", shuffle_side=1.0, shuffle_patterns=100_000)


@pytest.mark.parametrize(
    ("network", "settings", "expected"),
    [
        ("plans", {}, ("sgd", "poly", 1e-2, 3e-5, 12.0)),
        ("PrimusS", {}, ("adamw", "poly", 3e-4, 5e-2, 1.0)),
        ("plans", {"optimizer": "adamw"}, ("adamw", "poly", 3e-4, 3e-5, 12.0)),
        ("PrimusS", {"optimizer": "sgd", "schedule": "cosine"}, ("sgd", "cosine", 1e-2, 5e-2, 1.0)),
        ("plans", {"lr": 0.3, "clip": 2.0}, ("sgd", "poly", 0.3, 3e-5, 2.0)),
    ],
)
def test_what_is_left_open_is_the_published_choice_for_the_kind_of_network(network, settings, expected):
    recipe = build("MAE", network, **settings).recipe
    assert (recipe.optimizer, recipe.schedule, recipe.lr, recipe.weight_decay, recipe.clip) == expected


def test_s3d_draws_a_ratio_for_every_batch_within_its_limits():
    made = build("S3D", "plans")
    counts = {made.draw_count(generator(seed)) for seed in range(40)}
    assert len(counts) > 1
    assert made.masked <= min(counts)
    assert max(counts) <= made.most_masked
    assert made.draw_count(generator(3)) == made.draw_count(generator(3))


def test_simmim_is_optimised_as_its_networks_were():
    """OpenMind's recipe with Primus, SimMIM3D's with ViT, and what is said wins over both."""
    primus, vit = build("SimMIM", "PrimusS").recipe, build("SimMIM", "ViT_B16").recipe
    assert (primus.schedule, primus.lr, primus.weight_decay, primus.betas) == ("poly", 3e-4, 0.05, (0.9, 0.98))
    assert (vit.schedule, vit.lr, vit.weight_decay, vit.betas) == ("cosine", 5e-4, 5e-3, (0.9, 0.999))
    assert (vit.optimizer, vit.warmup_epochs, vit.clip) == ("adamw", 1.0, 1.0)
    said = build("SimMIM", "ViT_B16", lr=1e-4, betas=(0.8, 0.9), warmup_epochs=3).recipe
    assert (said.lr, said.betas, said.warmup_epochs, said.weight_decay) == (1e-4, (0.8, 0.9), 3, 5e-3)
