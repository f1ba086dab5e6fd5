"""``modality=T1w,T2w``, ``quality<=3``: which cases are taken, by what is known about them."""

from __future__ import annotations

import logging
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ssl_pretrain.data.case_info import CaseInfo

TEXT_FIELDS = ("modality", "dataset", "subject", "session")
NUMBER_FIELDS = ("quality",)
ORDERED: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
EQUAL, UNEQUAL = "=", "!="

_EXAMPLES = "Examples: modality=T1w,T2w and 'quality<=3', quoted because a shell takes < and > for redirections."
_MOST_SHOWN = 10

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filter:
    """One condition.

    Attributes:
        text: as the user wrote it.
        field: attribute of :class:`CaseInfo`.
        operator: ``=``, ``!=``, and for numbers ``<``, ``<=``, ``>``, ``>=``.
        values: what to compare with, any of them.
    """

    text: str
    field: str
    operator: str
    values: tuple[str, ...] | tuple[float, ...]

    def keeps(self, info: CaseInfo) -> bool:
        """Whether a case is taken. One of which the field is not known is not, whatever the operator."""
        known = getattr(info, self.field)
        if known is None:
            return False
        if self.operator in ORDERED:
            return any(ORDERED[self.operator](known, value) for value in self.values if isinstance(value, float))
        return any(self._equal(known, value) for value in self.values) == (self.operator == EQUAL)

    def _equal(self, known: str | float, value: str | float) -> bool:
        if known == value:
            return True
        # A subject is known by its full name, collection__dataset__subject; its own name will do.
        return self.field == "subject" and str(known).split("__", 2)[-1] == value


def parse_filters(texts: Sequence[str]) -> list[Filter]:
    """Conditions as a user writes them; a case must meet all of them.

    Raises:
        ValueError: not a condition, an unknown field or operator, or a value that does not fit; says what there is.
    """
    return [_parse(text) for text in texts]


def keep(filters: Sequence[Filter], items: Sequence[Item], info_of: Callable[[Item], CaseInfo]) -> list[Item]:
    """The items that meet all conditions; each condition logs what it left out.

    Args:
        filters: conditions, applied in their order.
        items: cases of any kind.
        info_of: what is known about an item.

    Raises:
        ValueError: nothing is left; names what each condition left out.
    """
    left, removed = list(items), []
    for condition in filters:
        known = [getattr(info_of(item), condition.field) for item in left]
        taken = [item for item in left if condition.keeps(info_of(item))]
        nothing_known = sum(value is None for value in known)
        note = f"{condition.text} left out {len(left) - len(taken)} of {len(left)} images"
        if nothing_known:
            note += f" ({nothing_known} of them without a {condition.field})"
        logger.info("Filter %s", note)
        if not taken and condition.field in TEXT_FIELDS:
            note += f", there: {_values(known)}"
        removed.append(note)
        if not taken:
            raise ValueError(f"No image left after the filters: {'; '.join(removed)}. Relax one of them (-filter).")
        left = taken
    return left


def _parse(text: str) -> Filter:
    match = re.fullmatch(r"\s*(\w+)\s*([=!<>~]+)\s*(.*?)\s*", text)
    if match is None:
        raise ValueError(f"A filter is FIELD, an operator and a value, got {text!r}. {_EXAMPLES}")
    name, sign, rest = match.groups()
    if name not in (*TEXT_FIELDS, *NUMBER_FIELDS):
        raise ValueError(
            f"Filter {text!r}: there is no field {name!r}. Choose from {', '.join((*TEXT_FIELDS, *NUMBER_FIELDS))}. "
            f"{_EXAMPLES}"
        )
    if sign not in (EQUAL, UNEQUAL, *ORDERED):
        raise ValueError(
            f"Filter {text!r}: there is no operator {sign!r}. Choose from {' '.join((EQUAL, UNEQUAL, *ORDERED))}. "
            f"{_EXAMPLES}"
        )
    if name in TEXT_FIELDS and sign in ORDERED:
        raise ValueError(f"Filter {text!r}: {name} is a text, which can only be compared with = and !=. {_EXAMPLES}")
    values = [value.strip() for value in rest.split(",")]
    if not all(values):
        raise ValueError(f"Filter {text!r} has an empty value. {_EXAMPLES}")
    if name in TEXT_FIELDS:
        return Filter(text, name, sign, tuple(values))
    if sign in ORDERED and len(values) > 1:
        raise ValueError(f"Filter {text!r}: {sign} takes one number. {_EXAMPLES}")
    return Filter(text, name, sign, tuple(_number(value, text) for value in values))


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"Filter {text!r}: {value!r} is not a number. {_EXAMPLES}")
    return number


def _values(known: Sequence[str | None]) -> str:
    """What the field is in the images there are, the most frequent first."""
    counts = Counter(value for value in known if value is not None)
    shown = [value for value, _ in counts.most_common(_MOST_SHOWN)]
    return ", ".join(shown) + (", …" if len(counts) > len(shown) else "") or "none"
