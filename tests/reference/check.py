"""Check our modules against numbers that the published implementations computed.

    python tests/reference/check.py FILE [FILE ...]

A file is JSON named ``spark_*`` or ``stunet_*``. It gives closed formulas for the weights and the input, and what the
original made of them. Exits non-zero, naming the quantity, when ours differs by more than 1e-4 relative.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_pretrain.functional.geometry import as_triple
from ssl_pretrain.functional.losses import cell_errors, masked_mean
from ssl_pretrain.functional.patches import to_cells
from ssl_pretrain.methods.spark_network import SparKNetwork
from ssl_pretrain.networks import FeatureMap, StagedEncoder
from ssl_pretrain.networks.masked import encode_masked, whole
from ssl_pretrain.networks.stunet import STUNet

TOLERANCE = 1e-4
ZERO = 1e-6
"""A gradient that vanishes in exact arithmetic (a bias before a norm) must stay below this share of its weight's."""

NUMBER = r"([\d.]+)"
INPUT_FORMULA = re.compile(rf"x\[i\] = sin\({NUMBER}\*i\) \+ {NUMBER}\*cos\(\({NUMBER}\*i\*i\) mod {NUMBER}\)")
PARAMETER_FORMULA = re.compile(rf"v = {NUMBER}\*sin\({NUMBER}\*\(p\+1\) \+ {NUMBER}\*i\)")
BIAS_BEFORE_NORM = re.compile(r"conv_blocks_\w+\.\d+\.\d+\.conv[12]\.bias$")


class Difference(NamedTuple):
    """One quantity: its name, the relative difference, and how much is allowed."""

    quantity: str
    difference: float
    allowed: float = TOLERANCE

    @property
    def fails(self) -> bool:
        return not self.difference <= self.allowed


def check(file: Path) -> list[Difference]:
    """Every quantity in a reference file beside what our modules give."""
    reference = json.loads(file.read_text(encoding="utf-8"))
    kind = file.name.partition("_")[0]
    checks = {"spark": check_spark, "stunet": check_stunet}
    if kind not in checks:
        raise ValueError(f"{file.name}: the name must begin with one of {', '.join(checks)}.")
    return list(checks[kind](reference))


def check_stunet(reference: dict[str, Any]) -> Iterator[Difference]:
    """Outputs of the segmentation network."""
    net = reference["network"]
    model = STUNet(
        net["input_channels"],
        net["num_classes"],
        deep_supervision=True,
        **_stage_kwargs(net, net["strides"], len(net["dims"])),
    )
    keys = [entry["key"] for entry in reference["state"]]
    yield Difference("names of parameters", float(keys != list(model.state_dict())), 0.0)
    model.load_state_dict(_closed_form_state(reference))
    with torch.no_grad():
        outputs = model(_closed_form_input(reference))
    for i, (ours, theirs) in enumerate(zip(outputs, reference["outputs_fine_to_coarse"], strict=True)):
        yield from _compare_tensor(f"output {i}", ours, theirs, "first8")


def check_spark(reference: dict[str, Any]) -> Iterator[Difference]:
    """Feature maps, reconstruction, loss per cell and gradients of SparK, with masked and with packed stages."""
    for packed_stages in (0, reference["network"]["stages_used"]):
        yield from check_spark_backend(reference, packed_stages)


def check_spark_backend(reference: dict[str, Any], packed_stages: int) -> Iterator[Difference]:
    """The same with so many stages that compute visible cells only."""
    network, names = _build_spark(reference)
    network.packed_stages = packed_stages
    image = _closed_form_input(reference)
    cell = as_triple(reference["network"]["mask_cell"], "mask_cell")
    mask = torch.ones(1, int(np.prod(reference["grid"])), dtype=torch.bool)
    mask[:, reference["visible_cells"]] = False
    grid_mask = mask.view(1, *reference["grid"])

    with network.mask.visible(~grid_mask):
        sparse_maps = encode_masked(network.encoder, image, network.mask, packed_stages)
        maps = [whole(m, network.mask) for m in sparse_maps]
    for i, (ours, theirs) in enumerate(zip(maps, reference["feature_maps"], strict=True)):
        yield from _compare_tensor(f"feature map {i}", ours, theirs, "first8_nonzero")

    network.load_state_dict(network.state_dict() | _spark_state(reference, names))  # running statistics start afresh
    prediction = to_cells(network(image, grid_mask), cell)
    yield from _compare_tensor("reconstruction", prediction, reference["reconstruction_patches"], "cell0_first8")
    errors = cell_errors(prediction, to_cells(image, cell))
    yield Difference("loss per cell", _relative(errors[0] * mask[0], reference["per_cell_loss"]))
    loss = masked_mean(errors, mask)
    yield Difference("loss", _relative(loss, reference["loss"]))
    loss.backward()
    yield from _compare_gradients(network, names, reference["gradient_l2_norms"])


def _build_spark(reference: dict[str, Any]) -> tuple[SparKNetwork, dict[str, str]]:
    """The network of the file with its closed-form weights, and published name -> our name."""
    net = reference["network"]
    used = net["stages_used"]
    kwargs = _stage_kwargs(net, net["strides_between_stages"], len(net["dims"]))
    stunet = STUNet(net["input_channels"], 2, **kwargs)
    strides = np.cumprod(np.array(kwargs["strides"]), axis=0)[:used]
    maps = tuple(FeatureMap(c, as_triple(s.tolist(), "stride")) for c, s in zip(net["dims"], strides, strict=False))
    norm = "batch" if "batch" in net["decoder_norm"].lower() else "instance"
    network = SparKNetwork(
        StagedEncoder(list(stunet.conv_blocks_context)[:used]),
        maps,
        as_triple(net["mask_cell"], "mask_cell"),
        net["input_channels"],
        width=net["decoder_width"],
        norm=norm,
    ).train()
    names = {entry["key"]: _our_name(entry["key"]) for entry in reference["state"]}
    state = _spark_state(reference, names)
    ours = network.state_dict()
    missing = sorted(set(ours) - set(state))
    if missing:
        raise ValueError(f"The reference has no value for {missing}.")
    network.load_state_dict(state)
    return network, names


def _our_name(key: str) -> str:
    """Published name of a SparK tensor -> our name (which need not exist: the published finest map is never used)."""
    for pattern, replacement in (
        (r"^sparse_encoder\.sp_cnn\.conv_blocks_context\.", "encoder.stages."),
        (r"^dense_decoder\.dec\.", "decoder.blocks."),
        (r"^dense_decoder\.proj\.", "decoder.head."),
        (r"^densify_norms\.(\d+)\.", r"densify.\1.norm."),
        (r"^densify_projs\.(\d+)\.", r"densify.\1.projection."),
        (r"^mask_tokens\.(\d+)$", r"densify.\1.token"),
    ):
        key = re.sub(pattern, replacement, key)
    return key


def _spark_state(reference: dict[str, Any], names: dict[str, str]) -> dict[str, Tensor]:
    count = len(reference["network"]["dims"][: reference["network"]["stages_used"]]) - 1
    state = {names[key]: value for key, value in _closed_form_state(reference).items()}
    state = {key: value for key, value in state.items() if not key.startswith(f"densify.{count}.")}
    return {key: value.flatten() if key.endswith(".token") else value for key, value in state.items()}


def _stage_kwargs(net: dict[str, Any], strides: list[list[int]], stages: int) -> dict[str, Any]:
    return {
        "n_stages": stages,
        "features_per_stage": net["dims"],
        "n_blocks_per_stage": net["depth"],
        "strides": [[1, 1, 1], *strides],
        "kernel_sizes": [as_triple(net["kernel"], "kernel")] * stages,
    }


def _closed_form_input(reference: dict[str, Any]) -> Tensor:
    match = INPUT_FORMULA.search(reference["input_formula"])
    if match is None:
        raise ValueError(f"Unknown input formula: {reference['input_formula']}")
    a, b, c, m = map(float, match.groups())
    shape = reference["input_shape"]
    i = np.arange(np.prod(shape), dtype=np.float64)
    return torch.from_numpy((np.sin(a * i) + b * np.cos((c * i * i) % m)).astype(np.float32)).view(*shape)


def _closed_form_state(reference: dict[str, Any]) -> dict[str, Tensor]:
    match = PARAMETER_FORMULA.search(reference["parameter_formula"])
    if match is None:
        raise ValueError(f"Unknown parameter formula: {reference['parameter_formula']}")
    a, b, c = map(float, match.groups())
    state = {}
    for p, entry in enumerate(reference["state"]):
        key, shape = entry["key"], entry["shape"]
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.long)
        elif key.endswith(("running_mean", "running_var")):
            state[key] = torch.full(shape, float(key.endswith("running_var")))
        else:
            v = a * np.sin(b * (p + 1) + c * np.arange(np.prod(shape), dtype=np.float64))
            one = entry.get("kind") == "norm_weight" or (
                "kind" not in entry and len(shape) == 1 and key.endswith("weight")
            )
            state[key] = torch.from_numpy((v + float(one)).astype(np.float32)).view(*shape)
    return state


def _compare_tensor(name: str, ours: Tensor, theirs: dict[str, Any], head: str) -> Iterator[Difference]:
    yield Difference(f"{name}: shape", float(list(ours.shape) != theirs["shape"]), 0.0)
    ours = ours.detach().double().flatten()
    # A sum may cancel; the sum of magnitudes is its scale.
    yield Difference(f"{name}: sum", abs(float(ours.sum()) - theirs["sum"]) / theirs["abs_sum"])
    yield Difference(f"{name}: sum of magnitudes", _relative(ours.abs().sum(), theirs["abs_sum"]))
    values = ours[ours != 0] if head.endswith("nonzero") else ours
    count = len(theirs[head])
    yield Difference(f"{name}: first {count} values", _relative(values[:count], theirs[head]))


def _compare_gradients(
    network: SparKNetwork, names: dict[str, str], norms: dict[str, float | None]
) -> Iterator[Difference]:
    parameters = dict(network.named_parameters())
    for key, theirs in norms.items():
        parameter = parameters.get(names[key])
        if theirs is None:
            yield Difference(f"gradient of {key}: should not exist", float(parameter is not None), 0.0)
            continue
        assert parameter is not None and parameter.grad is not None, key
        ours = float(parameter.grad.double().norm())
        if BIAS_BEFORE_NORM.search(key):
            scale = norms[key.replace("bias", "weight")]
            yield Difference(f"gradient of {key}: should vanish", ours / float(scale or 1), ZERO)
        else:
            yield Difference(f"gradient of {key}", _relative(ours, theirs))


def _relative(ours: Any, theirs: Any) -> float:
    """Largest difference relative to the largest reference value."""
    a, b = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())


def main(files: list[str]) -> int:
    """Check the files; print one line for each; 1 if any quantity differs."""
    if not files:
        print(__doc__)
        return 2
    failed = False
    for file in map(Path, files):
        differences = check(file)
        wrong = [d for d in differences if d.fails]
        worst = max((d for d in differences if d.allowed == TOLERANCE), key=lambda d: d.difference)
        print(
            f"{file.name}: {len(differences)} quantities, {len(wrong)} differ; "
            f"largest {worst.difference:.1e} ({worst.quantity})"
        )
        for d in wrong:
            print(f"  {d.quantity}: relative difference {d.difference:.2e}, allowed {d.allowed:.0e}")
        failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
