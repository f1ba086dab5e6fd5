"""Primus, token by token, against the class of dynamic-network-architectures."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from ssl_pretrain.networks import build_backbone
from ssl_pretrain.networks.anatomy import anatomy_of
from ssl_pretrain.networks.primus import (
    KWARGS,
    MODULE,
    PRIMUS_SIZES,
    PrimusBackbone,
    PrimusSize,
    primus_architecture,
    primus_size,
)
from ssl_pretrain.networks.tokens import (
    DropPath,
    drop_path_rates,
    place_tokens,
    resize_positions,
    take_tokens,
)

PATCH, GRID, TOKENS = (16, 24, 32), (2, 3, 4), 24
TINY = {"width": 24, "depth": 3, "heads": 2}


def build(channels=2, classes=3, patch=PATCH, name="PrimusM", **settings):
    torch.manual_seed(1)
    made = build_backbone(
        name, architecture={}, input_channels=channels, num_classes=classes, patch=patch, settings={**TINY, **settings}
    )
    with torch.no_grad():
        # As initialised, positions and residual branches change little: make every part count.
        made.network.eva.pos_embed.normal_()
        for name, parameter in made.network.named_parameters():
            if "gamma" in name:
                parameter.fill_(1.0)
    return made.eval()


@pytest.fixture
def backbone():
    return build()


@pytest.fixture
def image():
    return torch.randn(2, 2, *PATCH, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def keep():
    """Six of the tokens of two samples, in no order."""
    generator = torch.Generator().manual_seed(3)
    return torch.stack([torch.randperm(TOKENS, generator=generator)[:6] for _ in range(2)])


def seen_by_the_decoder(network, image):
    """What the class itself hands from its encoder to its decoder."""
    seen = []
    handle = network.up_projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(image)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("patch", [PATCH, (32, 16, 24), (8, 8, 16)])
def test_features_are_those_of_the_class_on_patches_that_are_no_cubes(patch):
    made, image = build(patch=patch), torch.randn(2, 2, *patch)
    (features,) = made.encode(image)
    assert torch.equal(features, seen_by_the_decoder(made.network, image))
    assert tuple(features.shape[2:]) == tuple(n // 8 for n in patch) == made.token_grid
    assert [(m.channels, m.stride) for m in made.feature_maps] == [(24, (8, 8, 8))]


def test_tokens_positions_and_rotation_have_one_order(backbone):
    """C-order over (D, H, W): a token's number, its absolute position, and the angles by which it is turned."""
    indices = torch.arange(TOKENS).reshape(GRID)
    cells = torch.zeros(1, 2, *PATCH)
    cells[..., 8:16, 16:24, 8:16] = 1.0  # cell (1, 2, 1)
    bare = backbone.embed(cells) - backbone.embed(torch.zeros_like(cells))
    assert bare.abs().sum(-1).nonzero()[:, 1].tolist() == [int(indices[1, 2, 1])]
    table = backbone.network.eva.rope.get_embed()
    sines = table[:, : table.shape[1] // 2].reshape(*GRID, 3, -1)
    for axis in range(3):
        others = [0 if a != axis else slice(None) for a in range(3)]
        line = sines[tuple(others)][:, axis, 0]
        torch.testing.assert_close(line, torch.sin(torch.arange(GRID[axis]).float()))
        # The angles of an axis do not depend on the other two coordinates.
        assert (sines[..., axis, :].movedim(axis, 0).flatten(1, 2).std(1) < 1e-6).all()
    assert backbone.tokens_to_map(indices.reshape(1, -1, 1).float())[0, 0].equal(indices.float())


def encoded_alone(made, image, numbers):
    """One sample's tokens through the transformer's own blocks, in a sequence that holds nothing else."""
    eva = made.network.eva
    x = (made.embed(image)[:, numbers] + eva.pos_embed[:, numbers]).contiguous()
    for block in eva.blocks:
        x = block(x, rope=eva.rope.get_embed()[numbers])
    return eva.norm(x)


def test_kept_tokens_have_the_features_of_a_network_given_only_them(backbone, image, keep):
    kept = backbone.encode_tokens(backbone.embed(image), keep)
    assert kept.shape == (2, 6, 24)
    for sample, numbers in enumerate(keep):
        alone = encoded_alone(backbone, image[sample : sample + 1], numbers)
        torch.testing.assert_close(kept[sample : sample + 1], alone, rtol=1e-5, atol=1e-6)
    # They are not what they would be among all tokens, nor at other places.
    tokens = backbone.embed(image)
    assert not torch.allclose(kept, take_tokens(backbone.encode_tokens(tokens), keep), atol=1e-2)
    elsewhere = backbone.encode_tokens(tokens.roll(1, dims=1), (keep + 1) % TOKENS)
    assert not torch.allclose(kept, elsewhere, atol=1e-2)


def test_a_smaller_network_made_of_a_corner_gives_the_same(image):
    """A network built for one cell less per axis knows the same positions of the corner by other numbers."""
    whole, corner = build(), build(patch=(8, 16, 24))
    own = {k: v for k, v in whole.network.state_dict().items() if k != "eva.pos_embed"}
    corner.network.load_state_dict(own, strict=False)
    numbers = torch.arange(TOKENS).reshape(GRID)[:1, :2, :3].reshape(-1)
    with torch.no_grad():
        corner.network.eva.pos_embed.copy_(whole.network.eva.pos_embed[:, numbers])
    kept = whole.encode_tokens(whole.embed(image), numbers.expand(2, -1))
    torch.testing.assert_close(
        whole.network.eva.rope.get_embed()[numbers], corner.network.eva.rope.get_embed(), rtol=0, atol=0
    )
    (features,) = corner.encode(image[..., :8, :16, :24])
    torch.testing.assert_close(corner.tokens_to_map(kept), features, rtol=1e-5, atol=1e-6)


def test_the_order_of_kept_tokens_does_not_matter(backbone, image, keep):
    tokens = backbone.embed(image)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = backbone.encode_tokens(tokens, keep[:, order])
    torch.testing.assert_close(shuffled, backbone.encode_tokens(tokens, keep)[:, order], rtol=1e-5, atol=1e-6)


def test_keeping_all_is_keeping_no_list(backbone, image):
    tokens = backbone.embed(image)
    everything = torch.arange(TOKENS).expand(2, -1)
    assert torch.equal(backbone.encode_tokens(tokens, everything), backbone.encode_tokens(tokens))


def test_what_is_not_kept_is_not_seen(backbone, image, keep):
    tokens = backbone.embed(image)
    kept = torch.zeros(2, TOKENS, dtype=torch.bool).scatter(1, keep, True)
    other = torch.where(kept[..., None], tokens, torch.full_like(tokens, float("nan")))
    assert torch.equal(backbone.encode_tokens(other, keep), backbone.encode_tokens(tokens, keep))


def test_positions_are_added_after_tokens_were_replaced(backbone):
    same = torch.ones(1, TOKENS, 24)
    assert backbone.encode_tokens(same).std(dim=1).min() > 1e-2


def test_one_token_order_from_taking_to_placing(keep):
    tokens, filler = torch.randn(2, TOKENS, 5), torch.zeros(1, 1, 5)
    placed = place_tokens(take_tokens(tokens, keep), keep, filler, TOKENS)
    kept = torch.zeros(2, TOKENS, dtype=torch.bool).scatter(1, keep, True)
    assert torch.equal(placed, torch.where(kept[..., None], tokens, torch.zeros(())))


def test_gradients_reach_every_parameter_of_the_encoder(image, keep):
    made = build().train()
    made.encode_tokens(made.embed(image), keep).square().sum().backward()
    of_the_encoder = set(made.encoder_keys)
    for name, parameter in made.network.named_parameters():
        assert (parameter.grad is not None) == (name in of_the_encoder), name


def test_the_exported_state_is_the_networks_own(backbone):
    from dynamic_network_architectures.architectures.primus import Primus

    theirs = Primus(2, 24, (8, 8, 8), 3, 3, 2, PATCH, init_values=0.1, scale_attn_inner=True)
    ours = backbone.network.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    backbone.set_drop_path(0.2)
    assert list(backbone.network.state_dict()) == list(ours)


def test_published_sizes_are_those_of_the_library():
    from dynamic_network_architectures.architectures.primus import _PRIMUS_CONFIGS

    assert {letter: primus_architecture(size) for letter, size in PRIMUS_SIZES.items()} == {
        letter: {"network_class_name": f"{MODULE}.Primus{letter}", "arch_kwargs": {}, "_kw_requires_import": []}
        for letter in _PRIMUS_CONFIGS
    }
    assert {letter: {KWARGS[k]: v for k, v in asdict(size).items()} for letter, size in PRIMUS_SIZES.items()} == (
        _PRIMUS_CONFIGS
    )


def test_the_network_is_the_one_nnunet_builds_initialisation_included():
    from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import nnUNet_Primus_S_Trainer
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    configuration = ConfigurationManager({"patch_size": [16, 16, 24], "architecture": {}})
    torch.manual_seed(5)
    theirs = nnUNet_Primus_S_Trainer.build_network_architecture(None, configuration, 1, 3).state_dict()
    torch.manual_seed(5)
    ours = build_backbone("PrimusS", architecture={}, input_channels=1, num_classes=3, patch=(16, 16, 24))
    assert all(torch.equal(ours.network.state_dict()[k], v) for k, v in theirs.items())
    assert ours.network.state_dict().keys() == theirs.keys()


def test_keys_name_what_they_say(backbone):
    state = backbone.network.state_dict()
    assert isinstance(backbone, PrimusBackbone)
    assert backbone.position_keys == ("eva.pos_embed",)
    assert state["eva.pos_embed"].shape == (1, TOKENS, 24)
    assert backbone.input_projection_keys == ("down_projection.proj",)
    assert backbone.network.get_submodule("down_projection.proj").weight.shape[1] == 2
    assert (backbone.encoder_key, backbone.stem_key) == ("eva", "down_projection")
    parts = (*backbone.encoder_keys, *backbone.decoder_keys)
    head = {f"up_projection.decode.2.{t}" for t in ("weight", "bias")}
    assert set(state) == {*parts, *head, "mask_token"}
    assert len(parts) == len(set(parts))
    assert backbone.anatomy.positions.grid == GRID


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ((16, 20, 32), r"along H\. Nearest patch sizes that work: \(16, 16, 32\) and \(16, 24, 32\)"),
        ((16, 24, 4), r"along W\. Nearest patch sizes that work: \(16, 24, 8\) \(-patch_size"),
        ((12, 20, 4), r"along D, H, W\. Nearest patch sizes that work: \(8, 16, 8\) and \(16, 24, 8\)"),
    ],
)
def test_a_patch_that_is_no_multiple_of_8_names_the_nearest(patch, message):
    with pytest.raises(ValueError, match=message):
        build(patch=patch)


def test_an_image_of_another_size_than_the_patch_is_refused(backbone):
    with pytest.raises(ValueError, match=r"built for patches of \(16, 24, 32\) voxels and cannot look at \(16, 24, 24"):
        backbone.encode(torch.zeros(1, 2, 16, 24, 24))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 26}, "width 26 of a Primus with 2 heads must be a multiple of 12"),
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"depht": 2}, r"Network PrimusM has no setting 'depht'\. It has width, depth, heads\."),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_networks_that_are_named_whole_have_no_settings():
    with pytest.raises(ValueError, match=r"Network plans has no setting 'depth'\. It has none"):
        build_backbone(
            "plans", architecture={}, input_channels=1, num_classes=2, patch=(8, 8, 8), settings={"depth": 1}
        )


@pytest.mark.parametrize("settings", [{}, {"width": 396, "depth": 12, "heads": 6}], ids=["tiny", "as published"])
def test_plans_that_name_it_give_it_back(settings):
    """What ``-p nnUNetPlans_PrimusM`` gives, for a published size and for another one."""
    made = build(**settings)
    arch = {"network_class_name": made.architecture, "arch_kwargs": made.architecture_kwargs or {}}
    expected = "PrimusS" if settings else "Primus"
    assert arch["network_class_name"] == f"dynamic_network_architectures.architectures.primus.{expected}"
    assert (made.architecture_kwargs is None) == bool(settings)
    again = build_backbone("plans", architecture=arch, input_channels=2, num_classes=3, patch=PATCH)
    shapes = {k: v.shape for k, v in made.network.state_dict().items()}
    assert {k: v.shape for k, v in again.network.state_dict().items()} == shapes


def test_plans_of_a_primus_without_its_size_are_refused():
    arch = {"network_class_name": "dynamic_network_architectures.architectures.primus.PrimusV2", "arch_kwargs": {}}
    with pytest.raises(ValueError, match=r"The plans name PrimusV2 with \[\]\. A Primus is known by its name"):
        primus_size(arch)
    assert primus_size({"network_class_name": "other.Net"}) is None
    assert primus_size({**arch, "network_class_name": arch["network_class_name"][:-2] + "L"}) == PRIMUS_SIZES["L"]


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 3, 2))
    values = out.flatten(1)
    assert set(values.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert (values == values[:, :1]).all()
    assert abs(float(out.mean()) - 1.0) < 0.05
    assert torch.equal(drop.eval()(torch.ones(5, 3, 2)), torch.ones(5, 3, 2))
    with pytest.raises(ValueError, match=r"drop_path must lie in \[0, 1\), got 1.0"):
        DropPath(1.0)


def test_drop_path_rises_with_depth_and_acts_in_training_alone(image):
    made = build()
    before = made.encode(image)[0]
    made.set_drop_path(0.9)
    blocks = made.network.eva.blocks
    assert [block.drop_path2.rate for block in blocks] == drop_path_rates(0.9, 3) == [0.0, 0.45, 0.9]
    assert torch.equal(made.encode(image)[0], before)
    torch.manual_seed(0)
    assert not torch.equal(made.train().encode(image)[0], before)


def test_a_fresh_transformer_for_a_decoder_has_weights_and_positions_of_its_own(backbone, image):
    decoder = backbone.new_transformer(2, drop_path=0.1).eval()
    assert not {id(p) for p in decoder.parameters()} & {id(p) for p in backbone.parameters()}
    assert decoder(backbone.embed(image)).shape == (2, TOKENS, 24)
    assert len(decoder.eva.blocks) == 2


def test_positions_are_resized_as_a_volume():
    """A plane of a linear function stays one, and the axes keep their order."""
    d, h, w = torch.meshgrid(*(torch.arange(n).float() for n in GRID), indexing="ij")
    embedding = torch.stack([d, h, w], dim=-1).reshape(1, TOKENS, 3)
    assert resize_positions(embedding, GRID, GRID) is embedding
    resized = resize_positions(embedding, GRID, (4, 6, 8)).reshape(4, 6, 8, 3)
    for axis, fine in enumerate((4, 6, 8)):
        centres = ((torch.arange(fine) + 0.5) / 2 - 0.5).clamp(0, GRID[axis] - 1)
        line = resized[..., axis].movedim(axis, 0).flatten(1)
        torch.testing.assert_close(line, centres[:, None].expand_as(line))
    with pytest.raises(ValueError, match=r"A position embedding of 24 tokens cannot be one of a grid of \(2, 2, 2\)"):
        resize_positions(embedding, (2, 2, 2), GRID)


def test_networks_without_positions_have_no_grid():
    assert anatomy_of(nn.Conv3d(1, 1, 1)).positions is None


def test_sizes_are_checked_as_the_class_would_check_them():
    with pytest.raises(ValueError, match="heads must be a whole number"):
        PrimusSize(12, 1, 0)
