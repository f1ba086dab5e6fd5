"""Filters: what is taken, what is left out and counted, what is refused."""

import logging

import pytest

from ssl_pretrain.data.case_info import CaseInfo
from ssl_pretrain.data.filters import keep, parse_filters

CASES = {
    "a": CaseInfo(dataset="ds1", subject="C__ds1__sub-01", session="ses-1", modality="T1w", quality=1.0),
    "b": CaseInfo(dataset="ds1", subject="C__ds1__sub-01", session="ses-2", modality="T2w", quality=3.0),
    "c": CaseInfo(dataset="ds2", subject="C__ds2__sub-01", session="ses-1", modality="T1w", quality=3.5),
    "d": CaseInfo(dataset="ds2", subject="C__ds2__sub-011", session="ses-1", modality="FLAIR"),
    "e": CaseInfo(),
}


def kept(*texts: str) -> str:
    return "".join(keep(parse_filters(texts), list(CASES), CASES.__getitem__))


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        ((), "abcde"),
        (("modality=T1w",), "ac"),
        (("modality=T1w,T2w",), "abc"),
        ((" modality = T1w , T2w ",), "abc"),
        (("modality!=T1w",), "bd"),
        (("modality!=T1w,FLAIR",), "b"),
        (("dataset=ds2",), "cd"),
        (("dataset!=ds2",), "ab"),
        (("session=ses-2",), "b"),
        (("subject=sub-01",), "abc"),
        (("subject=C__ds1__sub-01",), "ab"),
        (("subject!=sub-01",), "d"),
        (("quality<=3",), "ab"),
        (("quality<3",), "a"),
        (("quality>3",), "c"),
        (("quality>=3",), "bc"),
        (("quality=3",), "b"),
        (("quality=1,3.5",), "ac"),
        (("quality!=3",), "ac"),
        (("modality=T1w", "quality<=3"), "a"),
    ],
)
def test_a_case_is_taken_when_it_meets_every_condition(texts, names):
    assert kept(*texts) == names


def test_what_each_filter_left_out_is_logged_and_the_unknown_counted(caplog):
    with caplog.at_level(logging.INFO, logger="ssl_pretrain"):
        kept("modality=T1w,T2w,FLAIR", "quality<=3")
    assert caplog.messages == [
        "Filter modality=T1w,T2w,FLAIR left out 1 of 5 images (1 of them without a modality)",
        "Filter quality<=3 left out 2 of 4 images (1 of them without a quality)",
    ]


def test_nothing_left_names_each_filter_and_what_there_is():
    with pytest.raises(ValueError) as caught:
        kept("quality<=3", "modality=CT,PET", "dataset=ds1")
    assert str(caught.value) == (
        "No image left after the filters: quality<=3 left out 3 of 5 images (2 of them without a quality); "
        "modality=CT,PET left out 2 of 2 images, there: T1w, T2w. Relax one of them (-filter)."
    )
    with pytest.raises(ValueError, match=r"session=x left out 0 of 0 images, there: none"):
        keep(parse_filters(["session=x"]), [], CASES.__getitem__)


def test_only_the_most_frequent_values_are_listed():
    infos = [CaseInfo(subject=f"s{i}") for i in range(30)]
    with pytest.raises(ValueError, match=r"there: s0, s1, .*s9, … *\. Relax"):
        keep(parse_filters(["subject=nobody"]), infos, lambda info: info)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modality", "A filter is FIELD, an operator and a value, got 'modality'. Examples: modality=T1w,T2w and "),
        ("quality", "quoted because a shell takes < and > for redirections"),
        ("", "A filter is FIELD, an operator and a value, got ''"),
        ("modality:T1w", "A filter is FIELD, an operator and a value"),
        ("age<=3", "there is no field 'age'. Choose from modality, dataset, subject, session, quality"),
        ("modality==T1w", "there is no operator '=='. Choose from = != < <= > >="),
        ("quality=<3", "there is no operator '=<'"),
        ("modality~T1", "there is no operator '~'"),
        ("modality<=T1w", "modality is a text, which can only be compared with = and !="),
        ("subject>3", "subject is a text"),
        ("quality<=good", "'good' is not a number"),
        ("quality<=nan", "'nan' is not a number"),
        ("quality<=1,2", "<= takes one number"),
        ("modality=", "has an empty value"),
        ("modality=T1w,,T2w", "has an empty value"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(text, message):
    with pytest.raises(ValueError) as caught:
        parse_filters([text])
    assert message in str(caught.value)
    assert "Examples: modality=T1w,T2w" in str(caught.value)
