"""Small networks after a few steps of pretraining, in the file that a run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from made_data import plans
from methods.cells import CHANNELS, batch_for, build, generator, patch_of
from torch import Tensor, nn

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.methods import Method
from ssl_pretrain.methods.recipe import build_optimizer
from ssl_pretrain.networks import NETWORKS
from ssl_pretrain.networks.vit import UNETR
from ssl_pretrain.transfer.checkpoint import Provenance, build_checkpoint

CONFIGURATION, STRIDES = "3d_fullres", "anisotropic"
STEPS = 2


def pretrain(network: str, method: str = "ModelsGenesis", **config: Any) -> Method:
    """A method after a few steps; every one of them changes its network."""
    made = build(method, network, strides=STRIDES, **{"optimizer": "adamw", "lr": 3e-3, **config})
    made.train()
    optimizer, batch = build_optimizer(made.recipe, made.trained.parameters(), fused=False), batch_for(made)
    for step in range(STEPS):
        optimizer.zero_grad()
        made(batch, generator(step)).loss.backward()
        optimizer.step()
    return made.eval()


def content_of(method: Method, network: str, **changes: Any) -> dict[str, Any]:
    """What ``checkpoint_final.pth`` holds; ``changes`` are fields of its provenance."""
    settings = dict(NETWORKS[network].tiny) if network in NETWORKS else {}
    made = {
        "method": type(method).__name__,
        "network": network,
        "config": {"network_settings": settings},
        "plans": plans(method.patch, STRIDES),
        "configuration": CONFIGURATION,
        "patch": method.patch,
        "citations": (),
        "epoch": 1,
        "seed": 0,
    }
    trained = {id(tensor) for tensor in (*method.trained.parameters(), *method.trained.buffers())}
    return build_checkpoint(method.backbone, trained, Provenance(**{**made, **changes}))


def save(content: dict[str, Any], folder: Path, name: str = "checkpoint_final.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def write_plans(folder: Path, patch: Triple) -> Path:
    """The plans of a U-Net by which these networks were built."""
    file = folder / "nnUNetPlans.json"
    file.write_text(json.dumps(plans(patch, STRIDES)), encoding="utf-8")
    return file


def image_for(network: str, size: Triple | None = None, seed: int = 5) -> Tensor:
    """Two images of the size of the patch, or of another."""
    return torch.randn(2, CHANNELS, *(size or patch_of(network)), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def own_features(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Feature maps by the network's own forward pass, without any view of ours; fine to coarse."""
    network.eval()
    if isinstance(network, UNETR) or hasattr(network, "feat_size"):  # the latter is MONAI's
        tokens, hidden = network.vit(image)
        taps = network.taps if isinstance(network, UNETR) else (3, 6, 9)
        return [_to_map(state, image, 16) for state in (*(hidden[tap] for tap in taps), tokens)]
    if hasattr(network, "swinViT"):
        return list(network.swinViT(image, network.normalize))
    if hasattr(network, "eva"):
        tokens, _ = network.eva(network.down_projection(image).flatten(2).transpose(1, 2))
        return [_to_map(tokens, image, 8)]
    # STU-Net's, or the encoder of dynamic-network-architectures, which returns all skips.
    return list(network.encode(image) if hasattr(network, "encode") else network.encoder(image))


def _to_map(tokens: Tensor, image: Tensor, token: int) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *(n // token for n in image.shape[2:]))


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two lists of maps agree to the last bit."""
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
