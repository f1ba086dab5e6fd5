"""Collections and fingerprints, damaged in every place: a result, or one line that names the file; never a traceback.

Each key that is read is deleted, renamed, null, and of every wrong type in turn.
"""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from made_plans import empty_home, made_cases, plan

from ssl_pretrain.data.collection.flatten import image_cases
from ssl_pretrain.data.collection.model import read_collection

COLLECTION = {
    "collection_index": 745,
    "collection_name": "Dataset745_Study",
    "inverted_masks": ["anatomy_mask"],
    "datasets": {
        "ds1": {
            "dataset_index": "ds1",
            "name": "One",
            "dataset_info": {
                "image_quality_score": [{"modality": "T1w", "derived_from": "dwi", "image_quality_score": 2.5}]
            },
            "inverted_masks": [],
            "subjects": {
                "sub-01": {
                    "subject_id": "sub-01",
                    "subject_info": {"age": 26.0},
                    "sessions": {
                        "ses-1": {
                            "session_id": 0,
                            "session_info": {},
                            "images": [
                                {
                                    "name": "a.nii.gz",
                                    "image_path": "a.nii.gz",
                                    "modality": "T1w",
                                    "image_info": {"derived_from": "dwi"},
                                    "associated_masks": {"anonymization_mask": "b.nii.gz", "anatomy_mask": "c.nii.gz"},
                                    "channel_paths": ["d.nii.gz"],
                                }
                            ],
                        }
                    },
                }
            },
        }
    },
}

WRONG = [
    None,
    True,
    0,
    -1,
    1e300,
    math.nan,
    math.inf,
    10**30,
    "",
    "x",
    "../x",
    "$NOWHERE/x",
    [],
    [1],
    [None],
    {},
    {"x": 1},
]


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and every entry of a list, at any depth."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutations(content: Any) -> Iterator[tuple[str, Any]]:
    """What was done, and the content after it."""
    for value in WRONG:
        yield f"all of it is {value!r}", value
    for path in places(content):
        for what in ("deleted", "renamed", *WRONG):
            changed = copy.deepcopy(content)
            place = changed
            for step in path[:-1]:
                place = place[step]
            if what not in ("deleted", "renamed"):
                place[path[-1]] = copy.deepcopy(what)
            elif what == "deleted" or isinstance(place, list):
                del place[path[-1]]
            else:
                place[f"{path[-1]}_"] = place.pop(path[-1])
            yield f"{'.'.join(map(str, path))}: {what!r}", changed


DAMAGED = [
    *(b"", b"{", b'{"a": 1,}', b"[" * 100_000, b"\xff\xfe{\x00}\x00", b"\x1f\x8b\xff\x00", b"\xef\xbb\xbf{", b"null"),
    b'{"a": ' + b"9" * 5000 + b"}",
]


def not_named(read, file, contents) -> list[str]:
    """What ends in another way than with a result or a one-line error that names the file."""
    wrong = []
    for what, content in contents:
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        try:
            read()
        except (ValueError, OSError) as error:
            if str(file) not in str(error) or "\n" in str(error):
                wrong.append(f"{what}: {error}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    return wrong


def test_no_mutation_of_a_collection_is_a_traceback(tmp_path):
    file = tmp_path / "pretrain_data.json"
    contents = [*mutations(COLLECTION), *((repr(damage[:20]), damage) for damage in DAMAGED)]
    assert len(contents) > 400
    assert not_named(lambda: image_cases(read_collection(file)), file, contents) == []


@pytest.fixture
def planned(tmp_path, monkeypatch):
    home = empty_home(tmp_path, monkeypatch)
    cases = made_cases(tmp_path / "images", count=2)
    plan(cases)
    return home.folder, cases


def test_no_mutation_of_a_fingerprint_is_a_traceback(planned):
    """What passes the check goes to nnU-Net's planner."""
    folder, cases = planned
    file = folder / "dataset_fingerprint.json"
    contents = [*mutations(json.loads(file.read_text())), *((repr(damage[:20]), damage) for damage in DAMAGED)]
    assert len(contents) > 300

    def read():
        (folder / "Other.json").unlink(missing_ok=True)
        plan(cases, plans="Other")

    assert not_named(read, file, contents) == []


def test_damaged_files_are_made_anew_when_asked(planned):
    folder, cases = planned
    file = folder / "dataset_fingerprint.json"
    sound = file.read_bytes()
    for damage in (b"{", b"[]", b"{}", sound.replace(b"spacings", b"spacing")):
        file.write_bytes(damage)
        plan(cases, overwrite=True)
        assert file.read_bytes() == sound
    (folder / "nnUNetPlans.json").write_text("{}")
    with pytest.raises(ValueError, match=r"nnUNetPlans.json: configurations: .*Delete it to plan anew"):
        plan(cases, overwrite=True)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"configurations": []}, False),
        ({"configurations": {"3d_fullres": None}}, False),
        ({"plans_name": 3}, False),
        ({"transpose_forward": None}, True),
        ({"image_reader_writer": None}, False),
        ({"configurations": {"3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"}}}, True),
        ({"configurations": {"a": {"inherits_from": "b", "data_identifier": "nnUNetPlans_3d_fullres"}}}, True),
    ],
)
def test_damaged_plans_beside_the_new_ones_are_refused_by_name_or_passed_over(planned, change, refused):
    folder, cases = planned
    other = folder / "Other.json"
    other.write_text(
        json.dumps(json.loads((folder / "nnUNetPlans.json").read_text()) | {"plans_name": "Other"} | change)
    )
    if not refused:
        assert plan(cases, overwrite=True).images == 2
        return
    with pytest.raises(ValueError, match=r"Other.json") as error:
        plan(cases, overwrite=True)
    assert "\n" not in str(error.value)


def test_what_failed_is_read_like_everything_else(planned):
    folder, cases = planned
    cases[0].images[0].write_bytes(b"")
    plan(cases, overwrite=True)
    failed = folder / "failed.json"

    def read():
        plan(cases, plans="Other")

    contents = [("an object", {}), ("a text", ["x"]), *((repr(damage[:20]), damage) for damage in DAMAGED)]
    assert not_named(read, failed, contents) == []
    assert not (folder / "Other.json").exists()
    # The list of other plans passes over JSON files that are lists.
    failed.write_text(json.dumps([{"identifier": "phantom_0", "files": [], "reason": ""}]))
    assert plan(cases, plans="Other").images == 1
