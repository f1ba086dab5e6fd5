"""``hf://ORG/REPO[@REVISION][/FILE]``: weights on the Hugging Face Hub, through ``huggingface_hub`` and its cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

SCHEME = re.compile(r"hf:/{1,2}(?=[^/])")
"""With one slash as well: that is what is left of two in a ``pathlib.Path``."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".model", ".ckpt", ".bin")
"""Of files that may hold weights."""

PREFERRED = ("model.safetensors", "checkpoint_final.pth")
"""Where a repository has several files of weights, the first of these that is there is meant."""

HOW = "Write hf://ORG/REPO, hf://ORG/REPO/FILE or hf://ORG/REPO@REVISION/FILE."


@dataclass(frozen=True)
class Reference:
    """A place on the Hub.

    Attributes:
        source: as it was written, with both slashes.
        repository: ``ORG/REPO``.
        file: its path in the repository; None for the one file of weights.
        revision: branch, tag or commit; None for the main branch.
    """

    source: str
    repository: str
    file: str | None = None
    revision: str | None = None

    def at(self, file: str) -> str:
        """The reference to a file of the same repository."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}{revision}/{file}"


def is_reference(source: str | Path) -> bool:
    """Whether this is a place on the Hub, not a file."""
    return SCHEME.match(str(source)) is not None


def parse(source: str | Path) -> Reference:
    """Take a reference apart.

    Args:
        source: the revision may stand behind the repository, as the Hub writes it, or at the end.

    Raises:
        ValueError: names no repository; says how to write one.
    """
    text = str(source)
    parts = SCHEME.sub("", text).rstrip("/").split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise ValueError(f"{text} names no repository on the Hugging Face Hub. {HOW}")
    organisation, name, file = (*parts, "")[:3]
    if "@" in name:
        name, _, revision = name.partition("@")
    else:
        file, _, revision = file.partition("@")
    if not name or ("@" in text and not revision):
        raise ValueError(f"{text} has an @ without a repository before it or a revision behind it. {HOW}")
    return Reference(f"hf://{SCHEME.sub('', text)}", f"{organisation}/{name}", file or None, revision or None)


def fetch(source: str | Path) -> Path:
    """Return the local path of weights on the Hub, downloaded unless they are in the cache.

    Raises:
        ValueError: no such reference, the package is missing, or the repository has no one file of weights.
        FileNotFoundError: there is no such thing on the Hub, or no way to it; says what to do instead.
    """
    reference = parse(source)
    hub = _library(reference)
    name = reference.file or _only_weights(hub, reference)
    try:
        return Path(hub.hf_hub_download(reference.repository, name, revision=reference.revision))
    except Exception as error:  # of the HTTP library as well, which is another one in every other version
        raise _explained(hub, reference, error) from error


def _only_weights(hub: Any, reference: Reference) -> str:
    """The file of weights in a repository whose reference names none."""
    names = _listed(hub, reference)
    weights = sorted(name for name in names if name.endswith(SUFFIXES))
    chosen = [name for name in PREFERRED if name in weights] or weights
    if not chosen:
        raise ValueError(
            f"{reference.source} holds no weights: none of its {len(names)} files ends in {', '.join(SUFFIXES)}."
        )
    if len(weights) > 1 and chosen[0] not in PREFERRED:
        raise ValueError(
            f"{reference.source} holds {len(weights)} files that may be weights. Name one of them: "
            f"{', '.join(map(reference.at, weights))}."
        )
    return chosen[0]


def _listed(hub: Any, reference: Reference) -> list[str]:
    """Names of the files of a repository: on the Hub or, without a way to it, in the cache."""
    try:
        return list(hub.HfApi().list_repo_files(reference.repository, revision=reference.revision))
    except Exception as error:  # see fetch
        cached = [] if isinstance(error, _absent(hub)) else _cached(hub, reference)
        if not cached:
            raise _explained(hub, reference, error) from error
        return cached


def _cached(hub: Any, reference: Reference) -> list[str]:
    try:
        repositories: Iterable[Any] = hub.scan_cache_dir(hub.constants.HF_HUB_CACHE).repos
    except hub.errors.CacheNotFound:
        return []
    revision = reference.revision or "main"
    return [
        file.file_path.relative_to(snapshot.snapshot_path).as_posix()
        for repository in repositories
        if repository.repo_id == reference.repository and repository.repo_type == "model"
        for snapshot in repository.revisions
        if revision in snapshot.refs or revision == snapshot.commit_hash
        for file in snapshot.files
    ]


def _absent(hub: Any) -> tuple[type[Exception], ...]:
    """What the Hub answers if there is no such thing, or none that may be read."""
    errors = hub.errors
    return (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)


def _explained(hub: Any, reference: Reference, error: Exception) -> Exception:
    source, errors = reference.source, hub.errors
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{source} is no name of a repository on the Hugging Face Hub. {HOW}")
    missing = isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)
    if isinstance(error, _absent(hub)) or missing:
        return FileNotFoundError(
            f"{source} does not exist on the Hugging Face Hub, or you may not read it. Check the name; for a private "
            "or gated repository log in with: hf auth login."
        )
    cache = hub.constants.HF_HUB_CACHE
    what = f"{reference.repository} {reference.file or ''}".strip()
    what += f" --revision {reference.revision}" if reference.revision else ""
    folder = f"models--{reference.repository.replace('/', '--')}"
    return FileNotFoundError(
        f"{source} is not in the cache {cache}, and the Hugging Face Hub cannot be reached ({type(error).__name__}). "
        f"Where there is a network run: hf download {what}. Then name the file that it fetched, or copy {folder} from "
        "the cache there to the cache here (HF_HOME says where that is; HF_HUB_OFFLINE=1 keeps from asking the Hub)."
    )


def _library(reference: Reference) -> Any:
    try:
        for part in ("constants", "errors"):
            import_module(f"huggingface_hub.{part}")
        return import_module("huggingface_hub")
    except ImportError as error:
        raise ValueError(
            f"{reference.source} needs the package huggingface_hub, which is not installed: "
            "pip install huggingface_hub. Or download the file and name it."
        ) from error
