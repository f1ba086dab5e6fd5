"""Reading a JSON object entry by entry: what is missing or wrong is named with its place in the document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What an entry may be.

    Attributes:
        name: in an error.
        types: of Python that the JSON reader gives.
    """

    name: str
    types: tuple[type, ...]


TEXT = Kind("text", (str,))
LABEL = Kind("text or a whole number", (str, int))
NUMBER = Kind("a number", (int, float))
OBJECT = Kind("an object {…}", (dict,))
LIST = Kind("a list […]", (list,))


class Entries:
    """The entries of one JSON object.

    Args:
        content: what stands in the document.
        where: its place there, such as ``datasets.ds1.subjects.sub-01``; empty for the document itself.

    Attributes:
        absent: optional entries that were asked for and are not there, as opposed to there and null.

    Raises:
        ValueError: not an object.
    """

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, Mapping):
            raise ValueError(f"{where or 'the document'} must be {OBJECT.name}, got {shown(content)}")
        self.content: Mapping[str, Any] = content
        self.where = where
        self.absent: set[str] = set()
        self._asked: set[str] = set()

    def place(self, name: str) -> str:
        """Where an entry stands in the document."""
        return f"{self.where}.{name}" if self.where else name

    def required(self, name: str, kind: Kind) -> Any:
        """An entry that must be there.

        Raises:
            ValueError: it is not, or is of another kind.
        """
        self._asked.add(name)
        if name not in self.content:
            raise ValueError(f"{self.place(name)} is missing; it must be {kind.name}")
        return self._checked(name, kind)

    def optional(self, name: str, kind: Kind) -> Any:
        """An entry that may be null or not there; None then.

        Raises:
            ValueError: it is of another kind.
        """
        self._asked.add(name)
        if name not in self.content:
            self.absent.add(name)
            return None
        return None if unknown(self.content[name]) else self._checked(name, kind)

    def nullable(self, name: str, kind: Kind) -> Any:
        """An entry that must be there and may be null; None then.

        Raises:
            ValueError: it is not there, or is of another kind.
        """
        if name not in self.content:
            raise ValueError(f"{self.place(name)} is missing; it must be {kind.name}, or null where there is none")
        return self.optional(name, kind)

    def rest(self) -> dict[str, Any]:
        """The entries that nobody asked for."""
        return {name: value for name, value in self.content.items() if name not in self._asked}

    def _checked(self, name: str, kind: Kind) -> Any:
        value = self.content[name]
        # To Python, true is a number.
        if not isinstance(value, kind.types) or isinstance(value, bool):
            raise ValueError(f"{self.place(name)} must be {kind.name}, got {shown(value)}")
        return value


def unknown(value: object) -> bool:
    """Null, or the NaN that pandas writes where a table has no value."""
    return value is None or (isinstance(value, float) and value != value)


def shown(value: object) -> str:
    """A value in an error message: short, and as JSON calls it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
