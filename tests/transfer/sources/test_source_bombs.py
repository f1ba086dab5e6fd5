"""Files that are small and would become large: each is one line, and none takes memory."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch as safetensors
import torch
from conftest import run_command
from made_weights import save

from ssl_pretrain.transfer.weights_file import read_weights

MEGABYTES = 80
"""More than is allowed to a small file, and little enough to be made in a test."""


def archive(file: Path, pickled: bytes = b"\x80\x02}.", **entries: bytes) -> Path:
    """An archive of torch.save with other entries; a double underscore stands for a slash."""
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a/data.pkl", pickled)
        for name, content in {"version": b"3\n", **entries}.items():
            packed.writestr(f"a/{name.replace('__', '/')}", content, zipfile.ZIP_DEFLATED, 1)
    return file


def number(index: int) -> bytes:
    return index.to_bytes(4, "little")


ZEROS = bytes(MEGABYTES * 2**20)
DOUBLED = b")" + b"".join(b"q\x00h\x00h\x00\x86" for _ in range(60))
"""A tuple of two, twice, and so on: 2^60 of them for whoever walks through."""

LISTS = b"".join(
    [
        b"(" + b"".join(b"]r" + number(index) for index in range(61)) + b"t",
        # From the outside in: when a list is filled, what it is filled with is still empty.
        *(b"j" + number(index) + b"(" + 2 * (b"j" + number(index + 1)) + b"e" for index in range(60)),
        b"j" + number(0),
    ]
)

PICKLES = {
    "tuples as a key": (b"\x80\x02}" + DOUBLED + b"Ns.", "5000000 objects"),
    "tuples in an archive in capitals": (b"\x80\x02}" + DOUBLED + b"Ns.", "5000000 objects"),
    "lists as a function": (b"\x80\x02" + LISTS + b")R.", "5000000 objects"),
    "depth of tuples": (b"\x80\x02)" + b"\x85" * 100_000 + b".", "200 objects within each other"),
    "depth of lists": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "200 objects within each other"),
    "instructions": (b"\x80\x02" + b"N0" * 200_000 + b"N.", "instructions beside its tensors"),
    "a cycle": (b"\x80\x02]q\x00h\x00a.", "contains itself"),
    "an array of bytes": (
        b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.",
        "array of bytes that",
    ),
    "a codec": (
        b"\x80\x02c_codecs\nencode\nX" + number(2) + "é".encode() + b"X" + number(8) + b"punycode\x86R.",
        "encodes text in another way",
    ),
    "before a damage": (b"\x80\x02}" + DOUBLED + b"Ns\xff.", "5000000 objects"),
}


def unet(**changes):
    """A checkpoint that says of which network it is, and says too much."""
    size = {
        **{"n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": [[3] * 3] * 2, "strides": [[1] * 3, [2] * 3]},
        **{"n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True},
        **{"conv_op": "torch.nn.modules.conv.Conv3d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d"},
        **{"nonlin": "torch.nn.LeakyReLU", **changes},
    }
    network = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    imports = ["conv_op", "norm_op", "nonlin"]
    described = {"network_class_name": network, "arch_kwargs": size, "_kw_requires_import": imports}
    return {
        "network_weights": {"encoder.stages.0.0.convs.0.conv.weight": torch.ones(4, 1, 3, 3, 3)},
        "pretraining": {
            **{"network": "plans", "configuration": "3d", "input_channels": 1, "patch_size": [16] * 3, "config": {}},
            "plans": {"configurations": {"3d": {"architecture": described}}},
            "pretrained_keys": ["encoder.stages.0.0.convs.0.conv.weight"],
        },
    }


NETWORKS = {
    "features": (
        unet(features_per_stage=[3000, 3000]),
        r"of a network of \d+ modules and 2\d\d million numbers at least, and has 0.0 million",
    ),
    "layers": (unet(n_conv_per_stage=[90_000, 90_000]), "of a network of 10011 modules and "),
    "stages": (unet(n_stages=10**9, features_per_stage=4), r"says 1e\+09 of its network, and no size of one is above"),
    "kernels": (unet(kernel_sizes=[[99_999] * 3] * 2), "million numbers at least"),
    "a path through attributes": (
        unet(nonlin="torch.nn.modules.module.torch.os.ReLU"),
        "code that we do not know: torch.nn.modules.module.torch.os.ReLU",
    ),
    "a path that leads nowhere": (
        unet(nonlin="dynamic_network_architectures.building_blocks.residual.Nothing"),
        "residual.Nothing, which the installed packages do not have",
    ),
}


def write_all(folder: Path) -> dict[str, str]:
    """All files of this module; file -> what its refusal says."""
    said = {}
    for place in ("version", "byteorder", ".data__serialization_id", "data__0", "constants.pkl"):
        archive(folder / f"zeros in {place}.pth", **{place: ZEROS})
        said[f"zeros in {place}.pth"] = "would unpack into"
    for name, (content, message) in PICKLES.items():
        (folder / f"{name}, legacy.pth").write_bytes(content)
        archive(folder / f"{name}.pth", content)
        said |= {f"{name}.pth": message, f"{name}, legacy.pth": message}
    capitals = folder / "tuples in an archive in capitals.pth"
    capitals.write_bytes(capitals.read_bytes().replace(b"a/data.pkl", b"a/DATA.PKL"))
    whole = torch.ones(2**20)
    tensors = {
        "a view without steps": ({"a": torch.ones(1).expand(10**9)}, "would become 3815 MB of tensors"),
        "views of one storage": ({f"t{start}": whole[start:] for start in range(30)}, "would become 120 MB of tensors"),
        "many tensors": (dict.fromkeys(map(str, range(20_001)), torch.ones(1)), "it has 20001 tensors"),
        "a long name": ({"a" * 1001: torch.ones(1)}, "names of up to 1001 characters"),
    }
    for name, (content, message) in (*tensors.items(), *NETWORKS.items()):
        save(content, folder / f"{name}.pth")
        said[f"{name}.pth"] = message
    size = b"ctorch\nFloatTensor\n\x8a\x05\x00\x00\x00\x00\x01\x85R"
    archive(folder / "memory that no file gives.pth", b"\x80\x02}X\x01\x00\x00\x00a" + size + b"s.")
    said["memory that no file gives.pth"] = "MB of tensors|more memory than there is"
    aliases = json.dumps({str(index): "a" for index in range(20_001)})
    safetensors.save_file({"a": torch.ones(1)}, folder / "aliases.safetensors", {"aliases": aliases})
    said["aliases.safetensors"] = "it has 20002 tensors"
    safetensors.save_file({"a": torch.ones(1)}, folder / "header.safetensors", {"aliases": " " * 17 * 2**20})
    said["header.safetensors"] = "its header has 17 MB"
    return said


PROGRAM = """
import json, resource, sys
from pathlib import Path
from ssl_pretrain.transfer.encoder import load_encoder
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
import nnunetv2.utilities.get_network_from_plans
before, said = peak(), {}
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_encoder(file)
        said[file.name] = "opened"
    except ValueError as error:
        said[file.name] = str(error)
print(json.dumps({"megabytes": peak() - before, "said": said}))
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What was said of every file and what should be, and the peak of memory."""
    folder = tmp_path_factory.mktemp("bombs")
    expected = write_all(folder)
    # In a process of its own, so that its peak is that of these files alone.
    done = run_command(("python", "-c", PROGRAM, folder), cwd=folder.parent)
    return expected, json.loads(done.stdout.splitlines()[-1])


def test_each_is_refused_in_one_line_that_names_the_file_and_what_is_too_much(opened):
    expected, found = opened
    assert found["said"].keys() == expected.keys()
    for name, pattern in expected.items():
        assert re.search(pattern, found["said"][name]), (name, found["said"][name])
        assert name in found["said"][name]
        assert "\n" not in found["said"][name]


def test_none_takes_memory(opened):
    """The zeros alone are 400 MB, and the views 4 GB."""
    assert opened[1]["megabytes"] < 300


def test_what_honest_files_hold_is_no_bomb(tmp_path):
    """1000 epochs of the Dice of 15 classes, in a file with hardly any weights: 250 000 instructions."""
    log = {
        "dice": [[np.float64(dice) for dice in range(15)] for _ in range(1000)],
        "bytes": b"any",
        "array": bytearray(b"one"),
    }
    shared = (1, 2)
    content = {"network_weights": {"a": torch.ones(10, 10)}, "log": log, "shared": [shared] * 1000, "key": {shared: 1}}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        file = save(content, tmp_path / "honest.pth", **options)
        assert read_weights(file).tensors["a"].shape == (10, 10)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(save(content, file)) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as smaller:
        for entry in plain.infolist():
            smaller.writestr(entry.filename, plain.read(entry))
    assert read_weights(packed).tensors["a"].shape == (10, 10)
