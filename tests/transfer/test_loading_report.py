"""The table of what became of every tensor, for people and for programs."""

import json
from pathlib import Path

import pytest

from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.report import Report, TensorEntry

REPORT = Report(
    Path("weights.pth"),
    loaded=(TensorEntry("body.weight", (4, 2, 3), (4, 2, 3), ""), TensorEntry("body.scale", (), (), "")),
    adapted=(TensorEntry("stem.weight", (5, 1), (5, 3), "repeated 3 times over channels, divided by 3"),),
    fresh=(
        TensorEntry("head.weight", (9, 5), (2, 5), "segmentation head"),
        TensorEntry("tail.weight", None, (50,), "nothing in the file; as initialised"),
    ),
    unused=(TensorEntry("extra.weight", (7, 7), None, "no such tensor in the network"),),
)

TABLE = """\
Pretrained weights from weights.pth: 40.0 % of the network. Tensors: 2 loaded, 1 adapted, 2 fresh, 1 unused. \
Parameters: 25.0 % loaded, 15.0 % adapted, 60.0 % fresh.
         tensor        in the file  in the network  % of network  why
-------  ------------  -----------  --------------  ------------  --------------------------------------------
loaded   body.weight   4x2x3        4x2x3            24.00
loaded   body.scale    scalar       scalar            1.00
adapted  stem.weight   5x1          5x3              15.00        repeated 3 times over channels, divided by 3
fresh    head.weight   9x5          2x5              10.00        segmentation head
fresh    tail.weight   -            50               50.00        nothing in the file; as initialised
unused   extra.weight  7x7          -                    -        no such tensor in the network"""


def test_the_table():
    assert str(REPORT) == TABLE


def test_shares_are_of_the_networks_numbers():
    assert REPORT.fraction == pytest.approx(0.4)
    assert [REPORT.share(kind) for kind in ("loaded", "adapted", "fresh", "unused")] == [0.25, 0.15, 0.6, 0]


def test_json_says_the_same(tmp_path):
    REPORT.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content == REPORT.to_json()
    assert content["file"] == "weights.pth"
    assert content["fraction"] == pytest.approx(0.4)
    assert content["totals"] == {
        "loaded": {"tensors": 2, "parameters": 25, "share": 0.25},
        "adapted": {"tensors": 1, "parameters": 15, "share": 0.15},
        "fresh": {"tensors": 2, "parameters": 60, "share": 0.6},
        "unused": {"tensors": 1, "parameters": 0, "share": 0.0},
    }
    assert content["tensors"][2] == {
        "kind": "adapted",
        "name": "stem.weight",
        "file_shape": [5, 1],
        "network_shape": [5, 3],
        "share": 0.15,
        "reason": "repeated 3 times over channels, divided by 3",
    }
    assert content["tensors"][-2]["file_shape"] is None
    assert content["tensors"][-1]["network_shape"] is None
    assert sum(tensor["share"] for tensor in content["tensors"]) == pytest.approx(1)


def test_a_report_of_an_empty_network_is_nothing():
    assert Report(Path("a"), (), (), (), ()).fraction == 0


def test_it_is_what_loading_returns():
    assert load_pretrained.__annotations__["return"] == "Report"
