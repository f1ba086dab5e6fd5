"""Files that torch.save wrote and that are not what they look like: one line that names file, format and remedy."""

import json

import pytest
import safetensors.torch as safetensors
import torch
from made_weights import save

from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.sources.base import DEPTH
from ssl_pretrain.transfer.weights_file import read_weights

WEIGHTS = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)}


def version_2(configurations, configuration="a"):
    plans = {"configurations": configurations}
    return {"network_weights": WEIGHTS, "init_args": {"plans": plans, "configuration": configuration}}


def nnssl(**plan):
    return {"network_weights": WEIGHTS, "nnssl_adaptation_plan": plan}


def nested(depth):
    content = dict(WEIGHTS)
    for _ in range(depth):
        content = {"state_dict": content}
    return content


@pytest.mark.parametrize(
    ("content", "origin"),
    [
        (version_2([1, 2]), "nnU-Net v2"),
        (version_2({"a": {}}, ["a"]), "nnU-Net v2"),
        (nnssl(pretrain_plan="x"), "nnssl"),
        (nnssl(pretrain_plan={"configurations": [1]}), "nnssl"),
        (nnssl(architecture_plans="x"), "nnssl"),
        ({"network_weights": WEIGHTS, "pretraining": {"pretrained_keys": None}}, "anatomask"),
    ],
)
def test_an_entry_of_another_kind_names_file_format_and_remedy(content, origin, tmp_path):
    with pytest.raises(
        ValueError, match=rf"odd\.pth \(format: {origin}\) is damaged, or of another format: "
    ) as refusal:
        read_weights(save(content, tmp_path / "odd.pth"))
    assert "Copy or download it again" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_patch_that_cannot_be_names_the_file(tmp_path):
    file = save(version_2({"a": {"patch_size": [0, -1, 3]}}), tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"odd\.pth \(format: nnU-Net v2\) is damaged: patch_size in the file must.*-1"
    ):
        read_weights(file)


def test_a_patch_without_bounds_is_none(tmp_path):
    file = save(version_2({"a": {"patch_size": [float("inf")] * 3}}), tmp_path / "odd.pth")
    assert read_weights(file).patch is None


def test_containers_within_each_other_have_a_depth(tmp_path):
    assert set(read_weights(save(nested(DEPTH - 1), tmp_path / "deep.pth")).tensors) == set(WEIGHTS)
    with pytest.raises(ValueError, match=r"odd\.pth holds no weights"):
        read_weights(save(nested(DEPTH), tmp_path / "odd.pth"))


@pytest.mark.parametrize("header", [{"anatomask": "[" * 10**5}, {"anatomask": "{}", "aliases": "[" * 10**5}])
def test_a_header_of_great_depth_is_damaged(header, tmp_path):
    safetensors.save_file(WEIGHTS, tmp_path / "odd.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"odd\.safetensors cannot be opened as a safetensors file \(RecursionError"):
        read_weights(tmp_path / "odd.safetensors")


# -------------------------------------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_a_file_of_a_training_that_diverged_is_refused(kind, value, tmp_path):
    content = {f"layer{index}": torch.full((3,), value, dtype=kind) for index in range(5)}
    with pytest.raises(
        ValueError, match=r"odd\.pth holds NaN or infinity in layer0, layer1, layer2 and 2 more: .*diverged"
    ):
        read_weights(save({"fine": torch.ones(2), **content}, tmp_path / "odd.pth"))


def test_one_number_is_enough(tmp_path):
    content = {"fine": torch.ones(2), "steps": torch.tensor(3), "none": torch.ones(0), "bad": torch.ones(9, 9)}
    content["bad"][3, 4] = float("nan")
    safetensors.save_file(content, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"infinity in bad: the training that wrote it diverged\. Take an earlier"):
        read_weights(tmp_path / "odd.safetensors")


def test_numbers_of_eight_bits_are_looked_at_too(tmp_path):
    content = {"a": torch.ones(2).to(torch.float8_e4m3fn)}
    assert set(read_weights(save(content, tmp_path / "fine.pth")).tensors) == {"a"}
    content["a"] = torch.tensor([float("nan")]).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="infinity in a:"):
        read_weights(save(content, tmp_path / "odd.pth"))


def test_an_expanded_view_is_looked_at_as_well(tmp_path):
    content = {"a": torch.ones(1, 1, 1).expand(10, 10, 10)}
    assert read_weights(save(content, tmp_path / "fine.pth")).tensors["a"].numel() == 1000
    content["a"] = torch.full((1, 1, 1), float("nan")).expand(10, 10, 10)
    with pytest.raises(ValueError, match="infinity in a:"):
        read_weights(save(content, tmp_path / "odd.pth"))


# --------------------------------------------------------------------------------------------- tensors of another kind

ODD = {
    "sparse": (lambda: torch.eye(2).to_sparse(), r"sparse tensor, which no network takes: save it after to_dense\(\)"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), r"quantised .* dequantize\(\)"),
    "meta": (lambda: torch.empty(2, 2, device="meta"), "meta tensor, which has no values"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_of_another_kind_is_left_out_with_the_reason(kind, tmp_path):
    made, reason = ODD[kind]
    weights = read_weights(save({"module.weight": made(), "bias": torch.ones(2)}, tmp_path / "odd.pth"))
    assert set(weights.tensors) == {"bias"}
    assert list(weights.left_out) == ["weight"]
    with pytest.raises(ValueError, match=rf"odd\.pth holds no weights that can be used: all of its 1 .*{reason}"):
        read_weights(save({"module.weight": made()}, tmp_path / "odd.pth"))


def test_the_report_says_what_a_sparse_tensor_is(tmp_path):
    file = save({"weight": torch.eye(2).to_sparse(), "bias": torch.ones(2)}, tmp_path / "odd.pth")
    report = load_pretrained(torch.nn.Linear(2, 2), file)
    assert [(entry.name, entry.reason) for entry in report.fresh] == [
        ("weight", "left out of the file: a sparse tensor, which no network takes: save it after to_dense()")
    ]


def test_entries_of_a_strangers_header_are_taken_as_they_are(tmp_path):
    header = {"anatomask": json.dumps({"pretraining": "x", "nnssl_adaptation_plan": 3})}
    safetensors.save_file(WEIGHTS, tmp_path / "odd.safetensors", metadata=header)
    assert read_weights(tmp_path / "odd.safetensors").origin == "state_dict"
