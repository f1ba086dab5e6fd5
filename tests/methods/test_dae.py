"""Disruptive Autoencoders: what the network sees, what it is asked for, and the contrast of modalities."""

import pytest
import torch
from cells import backbone_of, batch_for, build, families, generator, goes_together
from torch.nn.functional import normalize

from ssl_pretrain.functional.contrast import supervised_contrast
from ssl_pretrain.methods import MethodSetup
from ssl_pretrain.methods.dae import DAE, DAEConfig

NETWORKS_OF_DAE = [network for network in families() if goes_together("DAE", network)]
DISRUPTIONS = ("denoise", "superres", "local", "all")


def made_for(shown: set[tuple[int, ...]], **config) -> DAE:
    """On cases that show these modalities."""
    torch.manual_seed(0)
    setup = MethodSetup(backbone=backbone_of("plans"), patch=(16, 24, 32), shown=frozenset(shown))
    return DAE(DAEConfig(**config), setup)


def with_modalities(made: DAE, size: int, modalities: list[list[int]]):
    """A batch whose crops show these modalities, and a method that knows that there are several."""
    made.contrasts = True
    return {**batch_for(made, size), "modality": torch.tensor(modalities), "seeds": list(range(size))}


@pytest.mark.parametrize("disruption", DISRUPTIONS)
def test_the_target_is_the_clean_crop_and_all_voxels_that_count(disruption):
    made = build("DAE", "plans", disruption=disruption).eval()
    batch = batch_for(made)
    batch["ignored"] = torch.rand(2, 1, *made.patch, generator=generator(3)) < 0.2
    with torch.no_grad():
        loss = made(batch, generator()).loss
        seen = made.disrupt(batch["image"], made.sample_generators(batch, generator()), generator())
        restored = made.network(seen.image, seen.kept)[0]
    errors = [(restored[i] - batch["image"][i]).abs()[(~batch["ignored"][i]).expand_as(restored[i])] for i in range(2)]
    assert float(loss) == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)
    assert torch.equal(seen.image, batch["image"]) == (disruption == "local")


@pytest.mark.parametrize("network", NETWORKS_OF_DAE)
def test_nothing_of_the_image_goes_round_an_embedding_that_has_lost_its_channels(network):
    """The published decoder sees the clean image through its first skip."""
    made = build("DAE", network, disruption="local").eval()
    image = batch_for(made)["image"]
    nothing = torch.zeros(2, made.width, dtype=torch.bool)
    with torch.no_grad():
        restored, other = (made.network(one, nothing)[0] for one in (image, image.flip(0) ** 2))
        everything = made.network(image, ~nothing)[0]
        whole = made.network(image)[0]
    assert torch.equal(restored, other)
    assert not torch.allclose(everything, restored)
    torch.testing.assert_close(everything, whole)


@pytest.mark.parametrize("network", NETWORKS_OF_DAE)
def test_the_network_sees_the_disrupted_crop_alone(network):
    made = build("DAE", network).eval()
    batch = {**batch_for(made), "seeds": [5, 6]}
    seen = made.disrupt(batch["image"], made.sample_generators(batch, generator()), generator())
    given = []
    handle = made.network.register_forward_pre_hook(lambda _module, inputs: given.append(inputs))
    made(batch, generator())
    handle.remove()
    ((image, kept),) = given
    assert torch.equal(image, seen.image) and torch.equal(kept, seen.kept)


def test_channels_are_lost_by_each_sample_or_by_the_whole_batch():
    batch = {**batch_for(build("DAE", "plans")), "seeds": [5, 6]}
    for local, same in (("sample", False), ("published", True)):
        made = build("DAE", "plans", disruption="local", local=local).eval()
        seen = made.disrupt(batch["image"], made.sample_generators(batch, generator()), generator())
        lost = int(0.6 * made.width)
        assert (~seen.kept).sum(1).tolist() == [lost, lost]
        assert torch.equal(seen.kept[0], seen.kept[1]) == same
        assert seen.mask is None
    made = build("DAE", "plans", disruption="local", local="cells").eval()
    seen = made.disrupt(batch["image"], made.sample_generators(batch, generator()), generator())
    assert seen.kept is None and seen.mask.flatten(1).sum(1).tolist() == [made.masked] * 2
    assert float((seen.image == 0).float().mean()) == pytest.approx(float(seen.mask.float().mean()), abs=1e-3)


def test_a_sample_is_disrupted_alike_whatever_else_is_in_the_batch():
    made = build("DAE", "plans").eval()
    image, seeds = batch_for(made)["image"], [5, 6]
    both = made.disrupt(image, made.sample_generators({"image": image, "seeds": seeds}, generator()), generator())
    alone = {"image": image[1:], "seeds": seeds[1:]}
    second = made.disrupt(alone["image"], made.sample_generators(alone, generator(9)), generator(9))
    assert torch.equal(both.image[1], second.image[0]) and torch.equal(both.kept[1], second.kept[0])


def test_each_channel_may_be_a_sample_that_all_inputs_see():
    made = made_for({(0, 1)}, channels="each", disruption="denoise", variance=0.0).eval()
    batch = with_modalities(made, 2, [[0, 1], [0, 1]])
    with torch.no_grad():
        output = made(batch, generator())
        image = torch.stack([one.expand(2, -1, -1, -1) for crop in batch["image"] for one in crop[:, None]])
        restored, pooled = made.network(image)
    reconstruction = float((restored - image).abs().mean())
    vectors = normalize(made.network.norm(pooled), dim=1)
    contrast = supervised_contrast(vectors, vectors, 0, torch.tensor([[0], [1], [0], [1]]), 0.5)
    assert float(output.loss) == pytest.approx(reconstruction + 0.03 * float(contrast), rel=1e-5)
    assert float(output.log["contrast"]) == pytest.approx(float(contrast), rel=1e-5)
    assert float(contrast) > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modalities", [[[0, 0], [1, 1]], [[0, 0], [0, 0]], [[1, 1]], [[0, 0], [1, 1], [0, 0]]])
def test_loss_and_gradient_are_finite_whatever_a_batch_shows(modalities, kind):
    made = build("DAE", "plans").train()
    batch = with_modalities(made, len(modalities), modalities)
    with torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
        output = made(batch, generator())
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.trained.parameters())
    # A class of two and one of another: only then is there something to be alike and something to be told from.
    assert (float(output.log["contrast"]) > 0) == (len(modalities) == 3)


def test_one_modality_has_no_contrast_and_the_dry_run_says_so():
    one, two = made_for({(0, 1)}), made_for({(0, 0), (1, 1)})
    assert "contrast of modalities: none: all cases show the same" in one.describe()
    assert "contrast of modalities: of weight 0.03" in two.describe()
    assert "contrast of modalities: of weight 0.03" in made_for({(0, 1)}, channels="each").describe()
    assert "contrast of modalities: none (mm_con=0)" in made_for({(0, 0), (1, 1)}, mm_con=0.0).describe()
    assert "noise of variance 0.1, resolution lower by 4 x 4 x 4" in one.describe()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_frozen_part_gets_no_gradient(part):
    made = build("DAE", "plans", freeze=part).train()
    made(batch_for(made), generator()).loss.backward()
    keys = {"encoder": made.backbone.encoder_keys, "decoder": made.backbone.decoder_keys}
    gradients = {name for name, p in made.backbone.network.named_parameters() if p.grad is not None}
    assert not gradients & set(keys[part])
    assert gradients & set(keys["decoder" if part == "encoder" else "encoder"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mm_con": -1.0}, "mm_con must not be negative, and finite, got -1.0"),
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        ({"choice": "mae"}, "choice must be one of all, denoise, superres, LD, got 'mae'"),
        ({"freeze": "all"}, "freeze must be one of encoder, decoder, got 'all'"),
    ],
)
def test_bad_settings_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        DAEConfig(**settings)


def test_a_network_that_does_not_say_where_its_stem_is_keeps_its_channels():
    made = build("DAE", "plans")
    made.backbone.stem_key = ""
    with pytest.raises(ValueError, match=r"does not say which part .* \(key_to_stem\).* Use -set local=cells, or disr"):
        _ = made.network.embedding
