"""Which parameters are the encoder, and freezing them."""

import architectures
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_pretrain.finetuning.parts import freeze, not_pretrained, parts_of
from ssl_pretrain.networks import build_backbone
from ssl_pretrain.transfer.report import Report, TensorEntry

SMALL = {"width": 24, "depth": 4, "heads": 2}
NETWORKS = {
    "plain": ("plans", {}, "anisotropic"),
    "residual": ("plans", {}, "isotropic"),
    "STUNet_small": ("STUNet_small", {}, "anisotropic"),
    "ResEncL": ("ResEncL", {"width": 4, "widest": 8, "depth": 1}, "isotropic"),
    "PrimusM": ("PrimusM", SMALL, "isotropic"),
    "ViT_B16": ("ViT_B16", SMALL, "isotropic"),
    "SwinUNETR": ("SwinUNETR", {"feature_size": 4, "depths": 1, "heads": 1, "window": 4}, "isotropic"),
}
DEPTHS = {"plain": 3, "residual": 4, "STUNet_small": 6, "ResEncL": 7, "PrimusM": 5, "ViT_B16": 5, "SwinUNETR": 5}


@pytest.fixture(scope="module", params=NETWORKS)
def built(request):
    """Name of a network, and its backbone."""
    if request.param in ("ViT_B16", "SwinUNETR"):
        pytest.importorskip("monai")
    name, settings, strides = NETWORKS[request.param]
    kind = "residual" if request.param == "residual" else "plain"
    entry = architectures.architecture(kind, architectures.STRIDES[strides])
    sizes = {"input_channels": 1, "num_classes": 3, "patch": (32, 32, 32)}
    return request.param, build_backbone(name, architecture=entry, settings=settings, **sizes)


def test_every_parameter_is_in_one_place(built):
    _, backbone = built
    parts = parts_of(backbone.network)
    names = [*parts.encoder, *parts.decoder]
    assert sorted(names) == sorted(name for name, _ in backbone.network.named_parameters())


def test_the_encoder_is_the_one_that_was_pretrained_and_the_decoder_has_the_heads(built):
    _, backbone = built
    parts = parts_of(backbone.network)
    trained = set(parts.encoder)
    assert trained == {name for name, _ in backbone.network.named_parameters()} & set(backbone.encoder_keys)
    assert set(backbone.decoder_keys) & {name for name, _ in backbone.network.named_parameters()} <= set(parts.decoder)
    named = dict(backbone.network.named_parameters())
    heads = {id(p) for p in backbone.segmentation_head.parameters()}
    assert heads <= {id(named[name]) for name in parts.decoder}


def test_layers_go_from_the_image_to_the_deepest(built):
    name, backbone = built
    parts = parts_of(backbone.network)
    assert len(parts.layers) == DEPTHS[name]
    assert set(backbone.position_keys) <= set(parts.layers[0])
    projections = [f"{key}.weight" for key in backbone.input_projection_keys]
    assert set(projections) & set(parts.layers[0])
    tokens = name in ("PrimusM", "ViT_B16")
    assert bool(parts.between) == tokens
    assert all(".norm." in between for between in parts.between)
    if tokens:
        assert all(f"blocks.{depth}." in key for depth, layer in enumerate(parts.layers[1:]) for key in layer)
    elif name == "SwinUNETR":
        assert all(f".layers{stage}." in key for stage in (1, 2, 3, 4) for key in parts.layers[stage])
    else:
        features = [map_.channels for map_ in backbone.feature_maps]
        widths = [len(dict(backbone.network.named_parameters())[layer[-1]]) for layer in parts.layers]
        assert widths[-len(features) :] == features


def test_wrappers_change_nothing(built):
    _, backbone = built
    compiled = torch.compile(backbone.network, backend="eager")
    assert parts_of(compiled) == parts_of(backbone.network)


def test_a_network_that_does_not_say_where_its_encoder_is_is_refused():
    with pytest.raises(ValueError, match=r"Linear does not say where its encoder is.*key_to_encoder and key_to_stem"):
        parts_of(nn.Linear(2, 2))


class Tiny(nn.Module):
    """A network with the facts that a schedule needs."""

    key_to_encoder, key_to_stem, keys_to_in_proj = "encoder", "encoder.0", ("encoder.0",)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(2, 3, 1), nn.Conv3d(3, 3, 1))
        self.head = nn.Conv3d(3, 2, 1)
        self.alias = self.encoder[1]

    def forward(self, x):
        return self.head(self.encoder(x))


def report(adapted=(), fresh=()):
    tables = [tuple(TensorEntry(name, None, (1,), "") for name in names) for names in (adapted, fresh)]
    return Report("file", (), *tables, ())


@pytest.mark.parametrize(
    ("adapted", "fresh", "names"),
    [
        ((), ("head.weight", "head.bias"), []),
        (("encoder.0.weight",), (), ["encoder.0.weight", "encoder.0.bias"]),
        (("encoder.1.weight",), (), []),
        ((), ("alias.weight", "a.buffer"), ["encoder.1.weight"]),
    ],
)
def test_what_the_file_did_not_have_is_not_called_pretrained(adapted, fresh, names):
    assert not_pretrained(Tiny(), report(adapted, fresh)) == names


def step(network, optimizer):
    optimizer.zero_grad(set_to_none=True)
    network(torch.ones(1, 2, 2, 2, 2)).square().sum().backward()
    optimizer.step()


def optimizers(network):
    yield torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=0.1)
    yield torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.1)


@pytest.mark.parametrize("which", [0, 1])
def test_frozen_parameters_do_not_move_by_momentum_or_decay_and_get_no_state(which):
    network = Tiny()
    optimizer = list(optimizers(network))[which]
    step(network, optimizer)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    state = {name: len(optimizer.state[p]) for name, p in network.named_parameters()}
    assert all(state.values())
    names = parts_of(network).encoder
    assert freeze(network, network.parameters(), names) is network
    step(network, optimizer)
    same = {name for name, p in network.named_parameters() if torch.equal(p, before[name])}
    assert same == set(names)
    freeze(network, network.parameters(), ())
    step(network, optimizer)
    assert not [name for name, p in network.named_parameters() if torch.equal(p, before[name])]


def test_parameters_that_are_nobodys_to_train_stay_as_they_are():
    network = Tiny()
    network.encoder[1].bias.requires_grad_(False)
    own = [p for p in network.parameters() if p.requires_grad]
    freeze(network, own, parts_of(network).encoder)
    freeze(network, own, ())
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == {"encoder.1.bias"}


@pytest.fixture
def group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_training_on_several_gpus_waits_for_no_gradient_of_a_frozen_parameter(group):
    """The wrapper raises in the step after one in which a parameter that it knows got no gradient."""
    torch.manual_seed(0)
    plain, inner = Tiny(), Tiny()
    inner.load_state_dict(plain.state_dict())
    wrapped = DistributedDataParallel(inner)
    for frozen in (parts_of(wrapped).encoder, (), ("encoder.0.bias",)):
        freeze(plain, plain.parameters(), frozen)
        again = freeze(wrapped, wrapped.parameters(), frozen)
        assert again is not wrapped
        assert again.module is inner
        wrapped = again
        assert freeze(wrapped, wrapped.parameters(), frozen) is wrapped
        for network in (plain, wrapped):
            optimizer = torch.optim.SGD(network.parameters(), 1e-3)
            for _ in range(3):
                step(network, optimizer)
        pairs = zip(plain.parameters(), inner.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_without_rewrapping_it_would_wait(group):
    wrapped = DistributedDataParallel(Tiny())
    for parameter in wrapped.module.encoder.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(wrapped.parameters(), 1e-3)
    step(wrapped, optimizer)
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        step(wrapped, optimizer)


def test_a_compiled_network_is_frozen_as_well():
    network = Tiny()
    compiled = torch.compile(network, backend="eager")
    freeze(compiled, compiled.parameters(), parts_of(compiled).encoder)
    compiled(torch.ones(1, 2, 2, 2, 2)).sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}
    freeze(compiled, compiled.parameters(), ())
    compiled(torch.ones(1, 2, 2, 2, 2)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
