"""JSON that others write, wrong in one place each: one line that names the file, whoever reads it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
from mutations import RAW, RENAMED, VALUES, WHOLE, Outcome, outcomes

HARMLESS = {
    "plans": r"arch_kwargs\.|resampling_fn_\w+_kwargs"  # nnU-Net's own arguments: fine-tuning takes the same
    r"|inherits_from"  # renamed: nothing is inherited, and nothing of the parent is read
    r"|foreground_intensity_properties_per_channel",  # of CT only
    "dataset.json": r"channel_names\.0|labels\.organ: ",  # any name will do
    "index": r"",  # made anew; its door compares the shapes
    "config.json": r": null$",  # where it is the value
    "study.json": r"warnings|labels\.1|versions|machine",  # words beside a table
    "study.json of a card": r"dataset\.name|summary\.0\.mean",  # text in a card
    "result.json": r"organ: null|per_case\.case_0\d: ",  # no Dice; cases are checked when compared
}
"""Places where a renamed key, nothing, or a value of another kind is taken, as what stands after the kind of file."""

OF_ANOTHER_KIND = (RENAMED, "null", "list", "object", *RAW)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Outcome]]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, "set by the table")
        level = logging.getLogger("ssl_pretrain").level
        logging.getLogger("ssl_pretrain").setLevel(logging.ERROR)
        yield outcomes(tmp_path_factory.mktemp("mutations") / "home")
        logging.getLogger("ssl_pretrain").setLevel(level)


def test_no_mutation_ends_with_a_traceback(found):
    assert [outcome for outcome in found if outcome.outcome == "traceback"] == []
    assert len(found) > 3000


def test_every_refusal_names_its_file_in_one_line(found):
    assert [outcome for outcome in found if outcome.outcome == "refused without its name"] == []
    assert sum(outcome.outcome == "refused" for outcome in found) > 2500


def test_of_whole_files_only_the_byte_order_mark_is_taken(found):
    kinds = {outcome.kind for outcome in found} - {"index"}
    for kind in kinds:
        taken = {o.mutation for o in found if o.kind == kind and "whole file" in o.mutation and o.outcome == "accepted"}
        assert taken == {"whole file: byte order mark"}, kind
    assert len(WHOLE) * (len(kinds) + 1) == sum("whole file" in outcome.mutation for outcome in found)


def test_what_is_taken_of_another_kind_is_harmless(found):
    assert set(OF_ANOTHER_KIND) <= {RENAMED, *VALUES, *RAW}
    taken = [
        o for o in found if o.outcome == "accepted" and o.mutation.endswith(tuple(f": {m}" for m in OF_ANOTHER_KIND))
    ]
    unexpected = [o for o in taken if o.kind not in HARMLESS or not re.search(HARMLESS[o.kind], o.mutation)]
    # NaN is what nnU-Net writes for a label that is nowhere.
    assert [(o.kind, o.mutation) for o in unexpected if not o.mutation.endswith("Dice: NaN")] == []
