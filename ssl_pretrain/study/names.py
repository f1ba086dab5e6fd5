"""What the arms of a study are called: the method that made the weights, and what tells its files apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ssl_pretrain.study.design import slug

USUAL_NAMES = re.compile(r"(checkpoint|model|weights)(_(final|best|latest|last))?")
"""Names of files that are called the same in every folder."""

LONGEST = 80
"""Characters; names are folders, too."""


def name_arms(files: Mapping[str, str | None], known: Mapping[str, str | None], taken: Iterable[str]) -> dict[str, str]:
    """A name for each of the files, unique on every disk.

    It is the method, or for a file that names none its own name. Several files of one method are told apart by the
    first of these that differ: folder, file, the folders above. A folder that begins with the method is the whole name.

    Args:
        files: file or ``hf://`` address -> method that made it; those to be named.
        known: the same for arms that have their names.
        taken: these names, and all others.
    """
    names: dict[str, str] = {}
    used = list(taken)
    bases = {source: method or name_of(source) for source, method in {**known, **files}.items()}
    for source in files:
        base = bases[source]
        siblings = [other for other, theirs in bases.items() if theirs == base]
        part = telling_part(source, siblings)
        if part.lower().startswith(base.lower()):
            name = part
        else:
            name = f"{base} {part}" if len(siblings) > 1 else base
        names[source] = unique(name, used)
        used.append(names[source])
    return names


def name_of(source: str) -> str:
    """Of a file that names no method: the repository on the Hub, the file, or its folder if all files are called so."""
    place, file, *_ = _parts(source)
    return place if not file or USUAL_NAMES.fullmatch(file) else file


def telling_part(source: str, siblings: Sequence[str]) -> str:
    """What of a file's address is not the same in all of its siblings; of a file without any its folder.

    Args:
        source: one of the siblings.
        siblings: addresses, all different.
    """
    addresses = {other: _parts(other) for other in siblings}
    depth = max(map(len, addresses.values()))
    levels: list[int] = []
    for i in range(depth):
        if len({_at(address, i) for address in addresses.values()}) > 1:
            levels.append(i)
        if len({tuple(_at(address, j) for j in levels) for address in addresses.values()}) == len(siblings):
            break
    mine = addresses[source]
    return " ".join(mine[i] for i in levels or [0] if i < len(mine))


def unique(name: str, taken: Iterable[str]) -> str:
    """The name, shortened if need be, or that with a number: one that none of the others shares a folder with."""
    folders = {slug(other).lower() for other in taken}
    name = name[:LONGEST].strip()
    candidates = [name, *(f"{name} {i}" for i in range(2, len(folders) + 3))]
    return next(candidate for candidate in candidates if slug(candidate).lower() not in folders)


def _at(address: Sequence[str], level: int) -> str:
    """A part of an address as a folder's name, in small letters; empty beyond its end."""
    return slug(address[level]).lower() if level < len(address) else ""


def _parts(source: str) -> list[str]:
    """Of an address what tells most first: folder, file without its ending, the folders above from the nearest on."""
    from ssl_pretrain.transfer.sources.hub import is_reference, parse

    if is_reference(source):
        found = parse(source)
        organisation, repository = found.repository.split("/")
        return [repository, Path(found.file or "").stem, found.revision or "", organisation]
    file = Path(source)
    return [file.parent.name, file.stem, *(folder.name for folder in file.parent.parents)]
