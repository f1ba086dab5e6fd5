"""Names of arms: short, telling, and a folder of their own on every disk."""

import pytest

from ssl_pretrain.study.design import slug
from ssl_pretrain.study.names import LONGEST, name_arms, unique

FINAL = "checkpoint_final.pth"
SPARK, MAE = "SparK", "MAE"


def names(*files, method=SPARK, known=(), taken=("scratch",)):
    found = name_arms(dict.fromkeys(files, method), dict.fromkeys(known, method), taken)
    assert list(found) == list(files)
    return list(found.values())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([f"/w/a/{FINAL}"], [SPARK]),
        ([f"/w/SparK_encoder/{FINAL}"], ["SparK_encoder"]),
        ([f"/w/first/{FINAL}", f"/w/second/{FINAL}"], ["SparK first", "SparK second"]),
        ([f"/w/spark_long/{FINAL}", f"/w/short/{FINAL}"], ["spark_long", "SparK short"]),
        ([f"/w/run/{FINAL}", "/w/run/checkpoint_best.pth"], ["SparK checkpoint_final", "SparK checkpoint_best"]),
        ([f"/w/unet/pretrained/SparK/{FINAL}", f"/w/adamw/pretrained/SparK/{FINAL}"], ["SparK unet", "SparK adamw"]),
        (
            [f"/r/D1/SparK__plans__A__3d/fold_0/{FINAL}", f"/r/D1/SparK__ResEncM__A__3d/fold_0/{FINAL}"],
            ["SparK__plans__A__3d", "SparK__ResEncM__A__3d"],
        ),
        ([f"/w/a/x/{FINAL}", f"/w/b/x/{FINAL}", f"/w/a/y/{FINAL}"], ["SparK x a", "SparK x b", "SparK y a"]),
        ([f"/w/Case/x/{FINAL}", f"/w/case2/X/{FINAL}"], ["SparK Case", "SparK case2"]),
        (["hf://org/swin-ct", "hf:/org/unet-ct"], ["SparK swin-ct", "SparK unet-ct"]),
        (["hf://org/ct/a.pth", "hf://org/ct/b.pth"], ["SparK a", "SparK b"]),
        (["hf://org/ct", "hf://other/ct"], ["SparK org", "SparK other"]),
        (["hf://org/ct", f"/w/ct/{FINAL}"], ["SparK", "SparK checkpoint_final"]),
        ([FINAL, f"a/{FINAL}"], ["SparK", "SparK a"]),
    ],
)
def test_files_of_one_method_are_told_apart(files, expected):
    assert names(*files) == expected


def test_names_of_files_without_a_method():
    files = ["/w/theirs/swin 48.pth", "/w/theirs/swin 96.pth", "/w/fold_1/model_final.pth", "/w/theirs/model_final.pth"]
    assert names(*files, method=None) == ["swin 48", "swin 96", "fold_1", "theirs"]
    assert names("hf://somebody/swin-ct/model_final.pth", method=None) == ["swin-ct"]
    assert names("/a/fold_0/model_final.pth", "/b/fold_0/model_final.pth", method=None) == ["fold_0 a", "fold_0 b"]


def test_a_study_that_grows_tells_new_files_from_those_it_has():
    old = f"/w/first/{FINAL}"
    assert names(f"/w/second/{FINAL}", known=[old], taken=["scratch", SPARK]) == ["SparK second"]
    taken = ["scratch", "SparK first", "SparK second"]
    assert names(f"/w/third/{FINAL}", known=[old, f"/w/second/{FINAL}"], taken=taken) == ["SparK third"]


def test_methods_do_not_meet():
    files = {f"/w/a/{FINAL}": SPARK, f"/w/b/{FINAL}": MAE}
    assert list(name_arms(files, {}, ["scratch"]).values()) == [SPARK, MAE]


def test_no_two_names_are_one_folder():
    assert unique("SparK", ["spark", "SPARK 2"]) == "SparK 3"
    assert unique("a b", ["a_b"]) == "a b 2"
    assert names("/w/scratch/model_final.pth", method=None) == ["scratch 2"]


def test_long_names_are_shortened_and_stay_different():
    found = names(*(f"/w/{'x' * 250}{i}/{FINAL}" for i in range(3)))
    assert len({slug(name).lower() for name in found}) == 3
    assert max(map(len, found)) <= LONGEST + 2
