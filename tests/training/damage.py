"""Ways in which a file that ``torch.save`` wrote is damaged on a disk or on its way."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path


def damaged(file: Path, records: int = 16) -> Iterator[tuple[str, bytes]]:
    """Name of a damage, and the bytes of the file with it.

    A flipped bit in the middle of records, 4 KiB of zeros in those that hold as many, one letter of a tensor's name
    changed, and the file cut off at several places.

    Args:
        file: that is whole.
        records: about how many tensors are damaged, evenly spread; of the records that are no tensors all are.
    """
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        tensors = [entry for entry in entries if "/data/" in entry.filename]
        spared = set(tensors) - set(tensors[:: max(1, len(tensors) // records)])
        for entry in (entry for entry in entries if entry not in spared):
            with archive.open(entry) as record:
                start = record._orig_compress_start  # type: ignore[attr-defined]
            middle = start + entry.file_size // 2
            yield f"bit of {entry.filename}", _replaced(whole, middle, bytes([whole[middle] ^ 0x10]))
            if entry.file_size >= 8192:
                yield f"zeros in {entry.filename}", _replaced(whole, middle, bytes(4096))
    place = whole.index(b"encoder.") + 2
    yield "letter of a name", _replaced(whole, place, b"C" if whole[place : place + 1] == b"c" else b"c")
    for share in (0.0, 0.001, 0.3, 0.9, 0.9999):
        yield f"cut off after {share:.2%}", whole[: int(share * len(whole))]


def _replaced(whole: bytes, place: int, by: bytes) -> bytes:
    return whole[:place] + by + whole[place + len(by) :]
