"""JSON that others write: one line that names the file and the place, whatever is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ssl_pretrain.files import DEEPEST_JSON, LONGEST_NAME, check_case_names, check_name, check_plan_names, read_json


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


@pytest.mark.parametrize(
    "name", ["nnUNetPlans_3d_fullres", "..hidden", "a b", "Köln", "12:30", "CONtrol", "x" * LONGEST_NAME]
)
def test_plain_names_pass_as_they_are(name: str) -> None:
    assert check_name(name, "plans") == name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("..", "is no name of a file or folder"),
        (".", "is no name of a file or folder"),
        ("", "is no name of a file or folder"),
        ("../x", "leads to another folder"),
        ("a/../../x", "leads to another folder"),
        ("/etc/x", "leads to another folder"),
        ("a\\b", "leads to another folder"),
        ("C:x", "leads to another folder"),
        ("a\0b", "has characters that no name of a file can have"),
        ("a\nb", "has characters that no name of a file can have"),
        ("\ud800", "has characters that no name of a file can have"),
        ("x" * (LONGEST_NAME + 1), "is longer than 250 bytes"),
        ("nul.txt", "is a device on Windows"),
        (3, "is no text"),
        (None, "is no text"),
    ],
)
def test_names_that_lead_elsewhere_are_refused_with_the_file(file: Path, name: Any, fault: str) -> None:
    with pytest.raises(
        ValueError, match=f"{file}: plans .* {fault}, and it becomes a part of paths. Give a plain name"
    ):
        check_name(name, "plans", file)
    with pytest.raises(ValueError, match=fault):
        check_case_names(["case_00", name], file)


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("dataset_name", {"dataset_name": "../x"}),
        ("plans_name", {"plans_name": "../x"}),
        ("configuration", {"configurations": {"../x": {}}}),
        ("configurations.a.data_identifier", {"configurations": {"a": {"data_identifier": "../x"}}}),
        ("configurations.a.previous_stage", {"configurations": {"a": {"previous_stage": "../x"}}}),
        ("configurations.a.next_stage", {"configurations": {"a": {"next_stage": "../x"}}}),
        ("configurations.a.next_stage", {"configurations": {"a": {"next_stage": ["b", "../x"]}}}),
    ],
)
def test_every_name_of_plans_that_nnunet_makes_a_path_of_is_looked_at(file: Path, place: str, content: Any) -> None:
    with pytest.raises(ValueError, match=rf"made.json: {place} '\.\./x' leads to another folder"):
        check_plan_names(content, file)


@pytest.mark.parametrize("content", [{}, {"configurations": []}, {"configurations": {"a": None}}])
def test_plans_of_a_wrong_shape_are_left_to_others(file: Path, content: Any) -> None:
    check_plan_names(content, file)
