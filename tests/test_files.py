"""JSON that others write: one line that names the file and the place, whatever is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ssl_pretrain.files import DEEPEST_JSON, read_json


class Made(BaseModel):
    name: str
    spacing: tuple[float, float, float]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "made.json"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte_order_mark"])
def test_utf8_is_read_with_and_without_a_byte_order_mark(file: Path, mark: bytes) -> None:
    file.write_bytes(mark + json.dumps({"site": "Köln"}, ensure_ascii=False).encode())
    assert read_json(file) == {"site": "Köln"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({"a": 1}).encode("utf-16"), "is encoded in UTF-16"),
        ('{"a": "Köln"}'.encode("latin-1"), "is not text in UTF-8 (byte 8)"),
        (b"", "is not valid JSON: Expecting value"),
        (b"[1", "is not valid JSON: Expecting ',' delimiter"),
        (b"\x00" * 4096, "is not valid JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * (DEEPEST_JSON + 1) + b"1" + b"}" * (DEEPEST_JSON + 1), "nested too deep"),
        (b'{"a": NaN}', "the number NaN is not finite"),
        (b'{"a": -Infinity}', "the number -Infinity is not finite"),
        (b'{"a": 1e999}', "the number 1e999 is not finite"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "the number 999999999999999999999999… is too large"),
        (b'{"a": 9223372036854775808}', "the number 9223372036854775808 is too large"),
        (b"[1, 2]", "the whole file: Input should be a valid dictionary, got [1, 2]"),
        (b"null", "the whole file: Input should be a valid dictionary, got None"),
    ],
)
def test_what_is_no_object_of_json_is_one_line_with_the_file(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"\.json") as caught:
        read_json(file, remedy="Make it again.")
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(file))
    assert message.endswith("Make it again.")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"spacing": [1, 1, 1]}, "made.json: name: Field required"),
        ({"name": None, "spacing": [1, 1, 1]}, "made.json: name: Input should be a valid string, got None"),
        ({"name": "a", "spacing": 3}, "made.json: spacing: Input should be a valid tuple, got 3"),
        ({"name": "a", "spacing": [1, "b", "c"]}, "got 'b' (and 1 more)."),
    ],
)
def test_a_wrong_field_is_named_by_its_place(file: Path, content: dict[str, Any], words: str) -> None:
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"made\.json") as caught:
        read_json(file, Made)
    assert words in str(caught.value)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"made\.json does not exist\. Make it again\."):
        read_json(file, remedy="Make it again.")


def test_numbers_that_are_not_finite_are_read_where_they_are_meant(file: Path) -> None:
    file.write_text('{"a": NaN, "b": -Infinity}')
    read = read_json(file, not_finite=True)
    assert math.isnan(read["a"])
    assert read["b"] == -math.inf
