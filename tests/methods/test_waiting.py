"""A step never waits for the GPU: otherwise the next one could not be prepared while this one is computed.

Without a GPU, steps run on PyTorch's ``meta`` device, whose tensors have shapes and nothing in them: to ask what is in
them is an error. Copies between that device and the host are watched on top of it.
"""

import pytest
import torch
from cells import batch_for, build, cells
from made_data import made_crop
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_pretrain.data.batches import assemble, finish
from ssl_pretrain.functional.seeding import host_twin
from ssl_pretrain.functional.views import overlaps
from ssl_pretrain.methods import METHODS
from ssl_pretrain.methods.sparse_method import SparseMethod

META = torch.device("meta")
CASES = [
    (m, n, s) for m, n in cells() for s in (("masked", "blocks") if hasattr(METHODS[m].Config, "sparse") else (None,))
]


class MetaGenerator(torch.Generator):
    """Says that it is on the device that has no generators."""

    def __new__(cls, *_):
        return super().__new__(cls)

    @property
    def device(self):
        return META


class NoWaiting(TorchDispatchMode):
    """Refuses the copies that ``torch.cuda.set_sync_debug_mode`` refuses on a GPU: those that the host waits for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            places = [leaf.device for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            queued = (kwargs or {}).get("non_blocking", len(args) > 2 and args[2])
            if META in places and len(set(places)) > 1 and not queued:
                raise RuntimeError(f"the host waits for a copy: {places}")
        return result


def prepared(method, network, sparse):
    """The method, set up as for a run, and a batch of its."""
    made = build(method, network, **({"sparse": sparse} if sparse else {})).train()
    if isinstance(made, SparseMethod):
        made.tune()
    return made, batch_for(made)


@pytest.mark.parametrize(("method", "network", "sparse"), CASES)
def test_a_step_asks_the_device_nothing(method, network, sparse, monkeypatch):
    made, batch = prepared(method, network, sparse)
    made.to(META)
    for key in ("image", "affine"):
        batch[key] = batch[key].to(META)
    if network == "plans":
        batch["ignored"] = torch.zeros(len(batch["image"]), 1, *made.patch, dtype=torch.bool, device=META)
    monkeypatch.setattr(torch, "Generator", MetaGenerator)
    with NoWaiting():
        loss = made(batch, torch.Generator().manual_seed(0)).loss
        loss.backward()
        made.update_teachers()
    assert loss.device == META


def test_finishing_crops_and_finding_what_they_share_asks_the_device_nothing():
    moved = [made_crop(torch.zeros(1, 9, 9, 9), number)._replace(box=(0, 0, number)) for number in range(3)]
    batch = assemble([[*moved, made_crop(torch.zeros(1, 8, 8, 8), 3)]])
    on_device = {key: value.to(META) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    with NoWaiting():
        finished = finish(on_device, (8, 8, 8))
        shares = overlaps(finished["affine"].unflatten(0, (1, 4)), (8, 8, 8))
    assert finished["image"].shape == (4, 1, 8, 8, 8)
    assert (shares.device, shares.shape) == (META, (1, 4, 4))


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.item(),
        lambda t: bool(t),
        lambda t: t.cpu(),
        lambda t: t.tolist(),
        lambda t: torch.nonzero(t),
        lambda t: torch.zeros(1).to(META),
        lambda t: torch.tensor([1.0]).to(META, torch.float64),
    ],
    ids=["item", "bool", "cpu", "tolist", "nonzero", "to the device", "to the device and another type"],
)
def test_who_asks_is_caught(ask):
    with pytest.raises((RuntimeError, NotImplementedError)), NoWaiting():
        ask(torch.zeros((), device=META))


def test_what_the_device_may_be_sent_is_let_through():
    with NoWaiting():
        assert torch.zeros(1).to(META, non_blocking=True).device == META


def test_a_host_twin_depends_on_the_seed_alone_and_leaves_the_generator_as_it_is():
    generator = torch.Generator().manual_seed(7)
    state = generator.get_state()
    first = host_twin(generator).random(4)
    assert torch.equal(generator.get_state(), state)
    torch.rand(3, generator=generator)
    assert (host_twin(generator).random(4) == first).all()
    assert (host_twin(torch.Generator().manual_seed(8)).random(4) != first).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("method", "network", "sparse"), CASES)
def test_a_step_never_waits_for_the_gpu(method, network, sparse):
    made, batch = prepared(method, network, sparse)
    made.cuda()
    batch["image"] = batch["image"].cuda()
    optimizer = made.configure_optimizers()["optimizer"]
    for mode in ("default", "error"):
        generator = torch.Generator("cuda").manual_seed(0)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = made(batch, generator).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(made.trained.parameters(), 12.0)
            optimizer.step()
            made.update_teachers()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
