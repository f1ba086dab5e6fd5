import copy

import pytest
import torch
from architectures import STRIDES, backbone

from ssl_pretrain.functional.masking import random_mask, repeat_to
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.methods import METHODS, MethodSetup, RunLength, SparK, SparKConfig, build_method
from ssl_pretrain.methods.light_decoder import LightDecoder, decoder_strides, decoder_widths

PATCH = (16, 16, 16)


def setup(batch_size: int = 2, epochs: int = 4, **network) -> MethodSetup:
    torch.manual_seed(0)
    return MethodSetup(backbone=backbone(**network), patch=PATCH, length=RunLength(epochs, 5, batch_size), seed=3)


def spark(batch_size: int = 2, network: dict | None = None, **config) -> SparK:
    return SparK(SparKConfig(**config), setup(batch_size, **(network or {})))


def batch(size: int = 2, channels: int = 1, seed: int = 0) -> dict:
    image = torch.randn(size, channels, *PATCH, generator=torch.Generator().manual_seed(seed))
    return {"image": image, "case": ["a"] * size, "index": list(range(size))}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("name", "kind"), [("plans", "plain"), ("plans", "residual"), ("STUNet_small", "plain")])
@pytest.mark.parametrize("method", ["SparK", "AnatoMask"])
def test_every_method_trains_every_network(method, name, kind, strides, channels):
    cls = METHODS[method]
    made = build_method(
        method, cls.Config(), setup(name=name, kind=kind, strides=strides, input_channels=channels)
    ).train()
    output = made(batch(channels=channels), generator())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert output.log["masked_fraction"] == pytest.approx(0.6, abs=0.07)
    without = [n for n, p in made.trained.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "every parameter of the optimiser takes part: DDP must not wait for one"
    ids = {id(p) for p in made.trained.parameters()}
    outside = [n for n, p in made.backbone.network.named_parameters() if id(p) not in ids and p.requires_grad]
    assert outside == []


def test_the_loss_does_not_depend_on_the_visible_target_or_leak_the_hidden_input():
    made = spark().eval()
    data = batch()
    mask = made.choose(data, generator()).mask
    hidden = repeat_to(mask, PATCH).unsqueeze(1)
    other = torch.where(hidden, torch.randn_like(data["image"]), data["image"])
    with torch.no_grad():
        torch.testing.assert_close(made.student(data["image"], mask), made.student(other, mask))


def test_the_loss_is_the_mean_over_masked_cells_of_the_normalised_error():
    made = spark().eval()
    data = batch()
    with torch.no_grad():
        loss = made(data, generator()).loss
        mask = made.choose(data, generator()).mask
        predicted = to_cells(made.student(data["image"], mask), made.cell)
    cells = to_cells(data["image"], made.cell)
    target = (cells - cells.mean(2, keepdim=True)) / (cells.var(2, keepdim=True) + 1e-6).sqrt()
    expected = (predicted - target).square().mean(2)[mask.flatten(1)].mean()
    torch.testing.assert_close(loss, expected)


def test_samples_do_not_influence_each_other_with_instance_norm():
    made = spark(decoder_norm="instance")
    data = batch(3)
    mask = random_mask(3, made.grid, made.masked, generator())
    with torch.no_grad():
        together = made.student(data["image"], mask)
        alone = made.student(data["image"][1:2], mask[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_training_lowers_the_loss():
    made = spark(lr=2e-3)
    optimizer = torch.optim.AdamW(made.trained.parameters(), lr=2e-3)
    data = batch()
    losses = []
    for _ in range(30):
        loss = made(data, generator()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_only_weights_are_decayed():
    made = spark()
    groups = made.configure_optimizers()["optimizer"].param_groups
    decayed, others = ({id(p) for p in g["params"]} for g in groups)
    for name, parameter in made.trained.named_parameters():
        group = decayed if parameter.ndim >= 2 else others
        assert id(parameter) in group, name
    tokens = [p for n, p in made.trained.named_parameters() if n.endswith("token")]
    assert tokens
    assert all(id(t) in others for t in tokens)
    assert groups[0]["weight_decay"] == 1e-5
    assert groups[1]["weight_decay"] == 0.0


def test_a_warm_up_that_was_asked_for_is_not_shortened():
    made = build_method("SparK", SparKConfig(warmup_epochs=8), setup(epochs=10))
    assert made.recipe.warmup_epochs == 8
    with pytest.raises(ValueError, match=r"warmup_epochs is 10.5, but the run has 10 epochs \(-epochs\)"):
        build_method("SparK", SparKConfig(warmup_epochs=10.5), setup(epochs=10))


def test_one_backbone_serves_one_method():
    shared = setup()
    SparK(SparKConfig(), shared)
    with pytest.raises(TypeError, match="already follow the mask of another method"):
        SparK(SparKConfig(), shared)


def test_strides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) does not divide \(3, 3, 3\)"):
        decoder_strides([(2, 2, 2), (3, 3, 3)])


def test_warm_up_is_capped_at_a_tenth_of_a_short_run():
    made = build_method("SparK", SparKConfig(), setup(epochs=20))
    configured = made.configure_optimizers()
    schedule = configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(20 * 5):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-6)
    assert rates[10] == max(rates) == pytest.approx(2e-4)
    assert rates[-1] < 1e-6


@pytest.mark.parametrize(("size", "kind"), [(1, "InstanceNorm3d"), (3, "InstanceNorm3d"), (4, "BatchNorm3d")])
def test_the_decoder_norm_follows_the_batch_size(size, kind):
    made = spark(size)
    assert {type(m).__name__ for m in made.student.decoder.modules() if "Norm" in type(m).__name__} == {kind}
    forced = spark(size, decoder_norm="batch")
    assert "BatchNorm3d" in {type(m).__name__ for m in forced.student.decoder.modules()}


def test_the_finest_map_is_not_densified_and_a_map_coarser_than_the_cell_has_no_token():
    assert len(spark().student.densify) == 2
    fine = spark(mask_cell=(2, 2, 2))
    assert [d.token is None for d in fine.student.densify] == [True, False]
    fine(batch(), generator()).loss.backward()


def test_decoder_geometry():
    strides = decoder_strides([(1, 1, 1), (2, 2, 2), (4, 4, 4), (4, 8, 8), (4, 8, 8)])
    assert strides == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert decoder_widths(64, strides) == [64, 64, 32, 16, 8]
    # A first map of stride 4, as in a ResNet: two more blocks lead back to the image.
    assert decoder_strides([(4, 4, 4), (8, 8, 8)]) == [(2, 2, 2), (2, 2, 2), (2, 2, 2)]
    decoder = LightDecoder(8, strides, 1, "instance")
    maps = [torch.zeros(1, w, 2, *n) for w, n in zip([8, 8], [(2, 2), (2, 2)], strict=True)]
    assert decoder(maps)[0].shape == (1, 1, 8, 16, 16)


def test_published_decoder_shapes():
    """SparK-B of AnatoMask: kernels 4, widths 512 to 32."""
    decoder = LightDecoder(512, [(2, 2, 2)] * 4, 1, "batch")
    assert [tuple(b.up_sample.weight.shape) for b in decoder.blocks] == [(w, w, 4, 4, 4) for w in (512, 256, 128, 64)]
    assert sum(p.numel() for p in decoder.parameters()) == pytest.approx(36.39e6, rel=1e-3)


def test_fewer_stages_leave_the_rest_of_the_encoder_alone():
    made = spark(stages=2)
    made(batch(), generator()).loss.backward()
    deepest = made.backbone.network.encoder.stages[2]
    assert all(p.grad is None and not p.requires_grad for p in deepest.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mask_ratio": 0.0}, "strictly between 0 and 1"),
        ({"mask_ratio": 1.0}, "strictly between 0 and 1"),
        ({"mask_ratio": -0.2}, "strictly between 0 and 1"),
        ({"mask_ratio": 0.999}, "leaves no cell visible"),
        ({"mask_cell": (5, 8, 8)}, r"Mask cell \(5, 8, 8\) does not fit .* Cells that work: D: 1, 2, 4, 8, 16"),
        ({"lr": 0.0}, "lr must be greater than 0"),
        ({"stages": 1}, "stages=1 is not possible"),
        ({"mask_cell": (1, 1, 1)}, "is a single number, which has no variance"),
    ],
)
def test_impossible_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        spark(**config)


def test_a_patch_the_network_cannot_halve_is_refused():
    with pytest.raises(ValueError, match=r"Patch size \(16, 18, 16\) is not divisible .* \(16, 20, 16\)"):
        SparK(SparKConfig(), MethodSetup(backbone=backbone(), patch=(16, 18, 16)))


def test_more_stages_than_a_network_has_are_all_of_them():
    assert [m.channels for m in spark(stages=9).student.maps] == [m.channels for m in spark().student.maps]


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown method 'BEiT'. Choose from AnatoMask, SparK, MAE, .*\(-m\)"):
        build_method("BEiT", SparKConfig(), setup())


def test_a_picture_shows_the_input_where_visible():
    made = spark().eval()
    with torch.no_grad():
        seen, masked, made_of_it, error = made.panels(batch(), generator())
    hidden = repeat_to(masked.tinted[None], PATCH)[0]
    assert torch.equal(made_of_it.dimmed, ~masked.tinted)
    assert torch.equal(masked.values[:, ~hidden], seen.values[:, ~hidden])
    assert torch.equal(made_of_it.values[:, ~hidden], seen.values[:, ~hidden])
    assert masked.values[:, hidden].abs().max() == 0
    assert torch.equal(error.values.isnan(), ~hidden.expand_as(error.values))
    torch.testing.assert_close(error.values[:, hidden], (made_of_it.values - seen.values)[:, hidden].abs())


def test_the_method_can_be_copied_and_trained_apart():
    made = spark()
    twin = copy.deepcopy(made)
    loss = made(batch(), generator()).loss
    torch.testing.assert_close(twin(batch(), generator()).loss, loss)
