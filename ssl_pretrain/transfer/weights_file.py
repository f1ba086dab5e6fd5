"""Opening files of weights that somebody else made, without running what is in them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.transfer.images import Images, images_of_file
from ssl_pretrain.transfer.safetensors_file import SUFFIX, load_safetensors
from ssl_pretrain.transfer.sources import (
    anatomask,
    dae,
    hub,
    monai_swin,
    nnssl,
    nnunet_v1,
    nnunet_v2,
    ours,
    plain,
    simmim3d,
    stunet,
)
from ssl_pretrain.transfer.sources.base import (
    CONTAINERS,
    Opened,
    Reading,
    WeightsFormat,
    not_finite,
    odd_tensors_of,
    plain_name,
    tensors_of,
)
from ssl_pretrain.transfer.sources.bounds import check_tensors
from ssl_pretrain.transfer.sources.nnssl_axes import are_exchanged, with_axes_in_order
from ssl_pretrain.transfer.sources.pickles import first_line, open_pickle

__all__ = ["SOURCES", "WeightsFile", "plain_name", "read_weights"]

logger = logging.getLogger("ssl_pretrain")

SOURCES: tuple[WeightsFormat, ...] = (
    ours,
    anatomask,
    nnssl,
    stunet,
    nnunet_v1,
    nnunet_v2,
    dae,
    monai_swin,
    simmim3d,
    plain,
)
"""Readers of all formats; the first one that recognises a file reads it."""


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a file.

    Attributes:
        file: where they come from; for weights on the Hub, where they lie in its cache.
        tensors: by the names of the network that they were made for, without those of wrappers; on the CPU. For a file
            of ours only what was pretrained.
        ours: whether the file says itself which of its tensors are pretrained.
        patch: voxels of the patch that the weights were trained with; None where the file does not say.
        origin: short name of the format.
        metadata: what the file says besides its tensors. Of our files and those of nnssl the entries of a checkpoint,
            ``pretraining`` and ``nnssl_adaptation_plan`` among them; of others what there is.
        left_out: tensors of the file that are not handed on, by their names in the file, with the reason.
        images: what the weights were trained on, as far as the file says it.
    """

    file: Path
    tensors: dict[str, Tensor]
    ours: bool
    patch: Triple | None = None
    origin: str = plain.ORIGIN
    metadata: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    images: Images = field(default_factory=Images)


def read_weights(source: str | Path, *, fix_nnssl_axes: bool = False) -> WeightsFile:
    """Read the tensors of a file of weights; nothing in it is executed.

    Reads our ``checkpoint_final.pth`` and our safetensors, checkpoints of nnU-Net v1 and v2, STU-Net, nnssl (OpenMind),
    the published AnatoMask, DAE and MONAI's pretrained Swin, and any file with tensors at its top level or under
    ``network_weights``, ``state_dict`` or ``model`` (``documentation/how-to/weights-from-elsewhere.md``).

    Args:
        source: a file, or ``hf://ORG/REPO[@REVISION][/FILE]`` on the Hugging Face Hub.
        fix_nnssl_axes: put the position embeddings of a Primus of nnssl, which has two axes exchanged, in order.

    Raises:
        FileNotFoundError: no such file, or none that can be reached.
        ValueError: needs arbitrary code to be opened (refused), is no checkpoint, is truncated or damaged, holds no
            tensors or some that are not finite, or ``fix_nnssl_axes`` for a file that has its axes in order.
    """
    file = hub.fetch(source) if hub.is_reference(source) else _existing(Path(source))
    content = load_safetensors(file) if file.suffix == SUFFIX else open_pickle(file)
    reading = _understood(file, content, fix_nnssl_axes)
    _log(reading, file)
    return WeightsFile(
        file,
        reading.tensors,
        reading.ours,
        reading.patch,
        reading.origin,
        reading.metadata,
        reading.left_out,
        reading.images or images_of_file(reading.metadata),
    )


def _understood(file: Path, content: Any, fix_nnssl_axes: bool) -> Reading:
    """What a reader makes of a file, whose entries may be of any type: nobody has checked them yet."""
    name = "none that is known"
    try:
        opened = Opened(file, content, tensors_of(content))
        odd = odd_tensors_of(content)
        _check_tensors(opened, odd)
        for source in SOURCES:
            name = source.ORIGIN
            if source.recognise(opened):
                break
        reading = source.read(opened)
        reading = replace(reading, left_out={**odd, **reading.left_out})
        return with_axes_in_order(reading, file) if fix_nnssl_axes else reading
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f"{file} (format: {name}) is damaged: {error} Copy or download it again.") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, SystemError) as error:
        raise ValueError(
            f"{file} (format: {name}) is damaged, or of another format: an entry is not what it should be "
            f"({first_line(error)}). Copy or download it again, or load it yourself and save its tensors alone: "
            "torch.save({'network_weights': network.state_dict()}, FILE)."
        ) from error


def _check_tensors(opened: Opened, odd: Mapping[str, str]) -> None:
    if not opened.tensors and odd:
        name, reason = next(iter(odd.items()))
        raise ValueError(
            f"{opened.file} holds no weights that can be used: all of its {len(odd)} tensors are left out; {name} is "
            f"{reason}."
        )
    if not opened.tensors:
        raise ValueError(
            f"{opened.file} holds no weights: there are no tensors at its top level nor under {', '.join(CONTAINERS)}."
        )
    check_tensors(opened.file, opened.tensors)
    diverged = not_finite(opened.tensors)
    if diverged:
        more = f" and {len(diverged) - 3} more" if len(diverged) > 3 else ""
        raise ValueError(
            f"{opened.file} holds NaN or infinity in {', '.join(diverged[:3])}{more}: the training that wrote it "
            "diverged. Take an earlier checkpoint of it, or another file."
        )


def _existing(file: Path) -> Path:
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The file of pretrained weights {file} {what}. Name a file such as …/checkpoint_final.pth, or "
            "hf://ORG/REPO on the Hugging Face Hub."
        )
    return file


def _log(reading: Reading, file: Path) -> None:
    for reason in dict.fromkeys(reading.left_out.values()):
        names = [name for name, why in reading.left_out.items() if why == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        logger.info("%s: %s%s left out: %s", file, names[0], more, reason)
    if are_exchanged(reading):
        logger.warning(
            "%s: this trainer of nnssl exchanges two axes of its position embeddings. fix_nnssl_axes=True "
            "(-fix_nnssl_axes of nnUNetv2_adapt_weights and nnUNetv2_pretrain) puts them in order.",
            file,
        )
