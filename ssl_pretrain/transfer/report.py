"""What became of every tensor when weights were loaded: a table for people, JSON for programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ssl_pretrain.files import write_json
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.transfer.images import Images
from ssl_pretrain.transfer.matching import part_of

Shape = tuple[int, ...]

KINDS = ("loaded", "adapted", "fresh", "unused")
HEADERS = ("", "tensor", "in the file", "in the network", "% of network", "why")


class TensorEntry(NamedTuple):
    """One tensor of the network, of the file, or of both.

    Attributes:
        name: in the network; in the file, where the network has no such tensor.
        file_shape: its shape in the file; None where the file has nothing for it, or its reader leaves it out.
        network_shape: its shape in the network; None where the network has no such tensor.
        reason: how it was adapted, or why it was not taken; empty where there is nothing to say.
    """

    name: str
    file_shape: Shape | None
    network_shape: Shape | None
    reason: str

    @property
    def numbers(self) -> int:
        """How many numbers it has in the network; 0 where it is not in it."""
        return prod(self.network_shape) if self.network_shape is not None else 0


@dataclass(frozen=True)
class Report:
    """What became of every tensor, of the file and of the network. Each is in one of the four tuples.

    Attributes:
        file: where the weights come from.
        loaded: copied as they are.
        adapted: made to fit before they were copied; the reason says how.
        fresh: tensors of the network that stay as they were initialised; the reason says why. Those for which the file
            had something that does not fit have its shape in ``file_shape``.
        unused: tensors of the file for which the network has no place.
        images: what the weights were trained on, as far as the file says it.
        warnings: what of the network's images is not as in the pretraining, a line each; none where one of both is not
            known.
    """

    file: Path
    loaded: tuple[TensorEntry, ...]
    adapted: tuple[TensorEntry, ...]
    fresh: tuple[TensorEntry, ...]
    unused: tuple[TensorEntry, ...]
    images: Images = field(default_factory=Images)
    warnings: tuple[str, ...] = ()

    @property
    def fraction(self) -> float:
        """Share of the network's numbers that now come from the file, 0 to 1."""
        return self.share("loaded") + self.share("adapted")

    def share(self, kind: str) -> float:
        """Share of the network's numbers that are in tensors of a kind, 0 to 1.

        Args:
            kind: one of ``loaded``, ``adapted`` and ``fresh``, which add up to 1; ``unused`` is 0.
        """
        return self._numbers(kind) / self._total

    @property
    def summary(self) -> str:
        """The file, how much of the network comes from it, and tensors and numbers of each kind."""
        tensors = ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in KINDS)
        numbers = ", ".join(f"{100 * self.share(kind):.1f} % {kind}" for kind in KINDS[:3])
        return (
            f"Pretrained weights from {self.file}: {100 * self.fraction:.1f} % of the network. Tensors: {tensors}. "
            f"Parameters: {numbers}."
        )

    def __str__(self) -> str:
        """Return the summary, then a table with a line per tensor; the unused ones of a part are one line."""
        return f"{self.summary}\n{format_table(HEADERS, [*self._rows(KINDS[:3]), *self._unused_parts()])}"

    @property
    def complete(self) -> str:
        """The summary, then a table with a line per tensor."""
        return f"{self.summary}\n{format_table(HEADERS, list(self._rows(KINDS)))}"

    def to_json(self) -> dict[str, Any]:
        """The report in plain containers: ``file``, ``fraction``, ``warnings``, ``totals`` and ``tensors``."""
        totals = {
            kind: {
                "tensors": len(getattr(self, kind)),
                "parameters": self._numbers(kind),
                "share": self.share(kind),
            }
            for kind in KINDS
        }
        tensors = [
            {
                "kind": kind,
                "name": entry.name,
                "file_shape": _listed(entry.file_shape),
                "network_shape": _listed(entry.network_shape),
                "share": entry.numbers / self._total,
                "reason": entry.reason,
            }
            for kind in KINDS
            for entry in getattr(self, kind)
        ]
        return {
            "file": str(self.file),
            "fraction": self.fraction,
            "warnings": list(self.warnings),
            "totals": totals,
            "tensors": tensors,
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to a file; raises OSError where that is not possible."""
        write_json(self.to_json(), Path(path))

    @property
    def _total(self) -> int:
        return max(1, sum(self._numbers(kind) for kind in KINDS))

    def _numbers(self, kind: str) -> int:
        entries: tuple[TensorEntry, ...] = getattr(self, kind)
        return sum(entry.numbers for entry in entries)

    def _unused_parts(self) -> Iterator[tuple[str, ...]]:
        """A network of fewer stages leaves hundreds of tensors, each under several names."""
        parts: dict[tuple[str, str], list[TensorEntry]] = defaultdict(list)
        for entry in self.unused:
            parts[part_of(entry.name), entry.reason].append(entry)
        for (part, reason), entries in parts.items():
            alone = len(entries) == 1
            name = entries[0].name if alone else f"{part}: {len(entries)} tensors"
            yield "unused", name, shown(entries[0].file_shape if alone else None), "-", "     -", reason

    def _rows(self, kinds: Sequence[str]) -> Iterator[tuple[str, ...]]:
        for kind in kinds:
            for entry in getattr(self, kind):
                share = f"{100 * entry.numbers / self._total:6.2f}" if entry.network_shape is not None else "     -"
                yield kind, entry.name, shown(entry.file_shape), shown(entry.network_shape), share, entry.reason


def shown(shape: Shape | None) -> str:
    """A shape as tables show it: ``8x4x3x3x3``, ``scalar``, or a dash where there is none."""
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"


def _listed(shape: Shape | None) -> list[int] | None:
    return None if shape is None else list(shape)
