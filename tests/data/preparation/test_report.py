"""``failed.json``: always whole, one per part, gone when nothing fails."""

import json
from pathlib import Path

import pytest

from ssl_pretrain.data.preparation.image_case import ImageCase
from ssl_pretrain.data.preparation.parallel import Failure
from ssl_pretrain.data.preparation.report import Failures


def add(failures, *names):
    for name in names:
        failures.add(ImageCase(identifier=name, images=(Path(f"{name}_0000.mha"),)), Failure(f"{name} is bad."))


def test_a_failure_is_in_the_file_at_once_with_all_its_files(tmp_path):
    failures = Failures(tmp_path / "made")
    case = ImageCase(identifier="a", images=(Path("t1.mha"), Path("t2.mha")), anatomy_mask=Path("body.mha"))
    failures.add(case, Failure("bad."))
    expected = [{"identifier": "a", "files": ["t1.mha", "t2.mha", "body.mha"], "reason": "bad."}]
    assert json.loads((tmp_path / "made" / "failed.json").read_text()) == expected
    add(failures, "b")
    assert len(json.loads(failures.file.read_text())) == 2
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["failed.json"]


def test_parts_have_files_of_their_own(tmp_path):
    parts = [Failures(tmp_path, part, 3) for part in range(3)]
    assert [part.file.name for part in parts] == ["failed_0_of_3.json", "failed_1_of_3.json", "failed_2_of_3.json"]
    add(parts[1], "a")
    for part in parts:
        part.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["failed_1_of_3.json"]


def test_what_an_earlier_run_left_is_removed_or_replaced(tmp_path):
    add(Failures(tmp_path), "a", "b")
    again = Failures(tmp_path)
    add(again, "b")
    again.finish()
    assert [entry["identifier"] for entry in json.loads(again.file.read_text())] == ["b"]
    Failures(tmp_path).finish()
    assert list(tmp_path.iterdir()) == []
    Failures(tmp_path / "nothing").finish()


def test_thousands_of_failures_are_not_written_thousands_of_times(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "ssl_pretrain.data.preparation.report.write_json", lambda content, _: written.append(len(content))
    )
    failures = Failures(tmp_path)
    add(failures, *map(str, range(3000)))
    assert written[:100] == list(range(1, 101))
    assert len(written) < 200
    failures.finish()
    assert written[-1] == 3000


def test_a_report_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "failed.json").mkdir()
    with pytest.raises(OSError, match="Could not write"):
        add(Failures(tmp_path), "a")
