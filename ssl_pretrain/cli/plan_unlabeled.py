"""``nnUNetv2_plan_unlabeled``: images without labels -> a dataset of nnU-Net with fingerprint and plans."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_pretrain.cli.console import NamesAction, guarded, progress_bar, set_up_console

if TYPE_CHECKING:
    from ssl_pretrain.data.preparation.image_case import ImageCase
    from ssl_pretrain.data.preparation.planning import Planned, PlanRequest

SHOWN_INPUTS = 3
"""Inputs that the next command repeats; of more, the first and an ellipsis."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; what is not given is absent from the result, so that defaults live in one place."""
    parser = argparse.ArgumentParser(
        description="Plan a dataset of images without labels with nnU-Net's own planners.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "-i",
        dest="inputs",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="folders, image files, a pretrain_data.json, or 'raw' for imagesTs and imagesUn of the raw dataset",
    )
    parser.add_argument("-d", dest="number", type=int, required=True, help="number of the dataset to make")
    parser.add_argument("-name", required=True, help="its name, without DatasetXXX_")
    parser.add_argument(
        "-network", metavar="NETWORK", action=NamesAction, names=_networks, help="%(names)s; the first is the default"
    )
    parser.add_argument(
        "-spacing",
        nargs="+",
        metavar="MM",
        help="three numbers in the order of the image array's axes (z y x for NIfTI), 'median' (default, nnU-Net's "
        "rule) or 'none' (no resampling)",
    )
    parser.add_argument(
        "-patch_size", type=int, nargs=3, metavar=("D", "H", "W"), help="voxels of 3d_fullres (default: nnU-Net's)"
    )
    parser.add_argument("-gpu_memory_target", type=float, metavar="GB", help="default: that of nnU-Net's planner")
    parser.add_argument(
        "-channel_names",
        nargs="+",
        metavar="NAME",
        help="CT is normalised over the dataset, anything else image by image (default: CT if the collection says so)",
    )
    parser.add_argument("-p", dest="plans", help="name of the plans (default: nnU-Net's, e.g. nnUNetPlans)")
    parser.add_argument(
        "-filter",
        dest="filters",
        nargs="+",
        action="extend",
        metavar="FILTER",
        help="only images that meet it, e.g. modality=T1w,T2w or 'quality<=3'",
    )
    parser.add_argument("-np", dest="processes", type=int, help="images read at a time (default: 8)")
    parser.add_argument("--overwrite", action="store_true", help="renew fingerprint and plans that are there")
    return parser


def _networks() -> str:
    from ssl_pretrain.data.preparation.planning import PLANNERS

    return ", ".join(PLANNERS)


def request_of(given: dict[str, Any]) -> PlanRequest:
    """What was typed, without inputs and filters, as a request.

    Raises:
        ValueError: a value is not allowed; says what is.
    """
    from ssl_pretrain.data.preparation.planning import PlanRequest
    from ssl_pretrain.functional.geometry import as_triple

    values = {name: value for name, value in given.items() if name not in ("inputs", "filters")}
    if "spacing" in values:
        values["spacing"] = spacing_of(values["spacing"])
    if "patch_size" in values:
        values["patch_size"] = as_triple(values["patch_size"], "-patch_size")
    if "channel_names" in values:
        values["channel_names"] = tuple(values["channel_names"])
    return PlanRequest(**values)


def spacing_of(words: Sequence[str]) -> tuple[float, ...] | str:
    """The words after ``-spacing``: numbers if they are numbers, else one text, right or wrong."""
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        return " ".join(words)


def find_cases(given: dict[str, Any], request: PlanRequest) -> tuple[list[ImageCase], str]:
    """The images that are meant, and the ending of their files.

    Raises:
        ValueError, FileNotFoundError: there is none, or one cannot be used; says what to do.
    """
    from ssl_pretrain.data.filters import keep, parse_filters
    from ssl_pretrain.data.preparation.dataset_folder import DatasetFolder
    from ssl_pretrain.data.preparation.layout import layout_of
    from ssl_pretrain.data.preparation.sources import find_images

    filters = parse_filters(given.get("filters", []))
    raw = DatasetFolder.of(request.number, request.name).raw
    layout = layout_of(given["inputs"], raw)
    ending = layout.file_ending
    cases = find_images(given["inputs"], channels=layout.channels, file_ending=ending, raw_dataset=raw)
    return keep(filters, cases, lambda case: case.info), ending


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, with errors as one line on stderr."""
    given = vars(build_parser().parse_args(arguments))
    set_up_console()
    return guarded(lambda: run(given))


def run(given: dict[str, Any]) -> int:
    """Find the images, plan, say what came of it."""
    # nnU-Net first: in a checkout of ours, the current folder has one of that name.
    import nnunetv2  # noqa: F401

    from ssl_pretrain.data.preparation.planning import plan_unlabeled

    request = request_of(given)
    cases, ending = find_cases(given, request)
    planned = plan_unlabeled(request, cases, ending, _bar)
    print(f"\n{summary(planned)}\n\nPreprocess with:\n\n    {next_command(given, planned)}\n")
    failed = len(planned.failures.entries)
    if failed:
        print(
            f"{failed} of {len(cases)} images cannot be used and are left out of the plans; the reasons are in "
            f"{planned.failures.file}.",
            file=sys.stderr,
        )
    return 1 if failed else 0


def summary(planned: Planned) -> str:
    """What was planned, as a table, and where it is."""
    from ssl_pretrain.report.tables import format_table

    plan = planned.plans["configurations"]["3d_fullres"]
    network = plan["architecture"]
    resampled = plan["resampling_fn_data"] != "no_resampling_hack"
    order = planned.plans["transpose_forward"]
    spacing, median = planned.plans["original_median_spacing_after_transp"], plan["median_image_size_in_voxels"]
    strides = network["arch_kwargs"]["strides"]
    rows = [
        ("images", str(planned.images)),
        ("channels and normalisation", ", ".join(_normalisation(planned))),
        ("axes of the image array", f"{_numbers(order, ', ')}{', as they are' * (order == [0, 1, 2])}"),
        ("median spacing", f"{_numbers(spacing)} mm"),
        ("resampling", f"to {_numbers(plan['spacing'])} mm" if resampled else "none"),
        ("median shape" + ", resampled" * resampled, f"{_numbers(median)} voxels"),
        ("network", f"{network['network_class_name'].rpartition('.')[2]}, {len(strides)} stages"),
        ("strides", ", ".join("x".join(map(str, stride)) for stride in strides[1:])),
        ("patch size", f"{_numbers(plan['patch_size'])} voxels"),
        ("batch size", str(plan["batch_size"])),
        ("configurations", ", ".join(planned.plans["configurations"])),
    ]
    files = f"Plans:       {planned.plans_file}\nFingerprint: {planned.folder / 'dataset_fingerprint.json'}"
    return f"{format_table(('3d_fullres', planned.plans['plans_name']), rows)}\n\n{files}"


def next_command(given: dict[str, Any], planned: Planned) -> str:
    """The command that preprocesses the images by these plans."""
    inputs = given["inputs"]
    shown = [shlex.quote(source if source == "raw" else str(Path(source))) for source in inputs[:SHOWN_INPUTS]]
    if len(inputs) > SHOWN_INPUTS:
        shown = [shown[0], "…"]
    words = ["nnUNetv2_preprocess_unlabeled", "-i", *shown, "-d", str(given["number"]), "-c", "3d_fullres"]
    name = planned.plans["plans_name"]
    words += [] if name == "nnUNetPlans" else ["-p", name]
    filters = given.get("filters", [])
    words += ["-filter", *map(shlex.quote, filters)] if filters else []
    return " ".join(words)


def _normalisation(planned: Planned) -> list[str]:
    from ssl_pretrain.files import read_json

    names = read_json(planned.folder / "dataset.json")["channel_names"].values()
    schemes = planned.plans["configurations"]["3d_fullres"]["normalization_schemes"]
    return [f"{name}: {scheme.removesuffix('Normalization')}" for name, scheme in zip(names, schemes, strict=True)]


def _numbers(values: Iterable[float], between: str = " x ") -> str:
    return between.join(f"{value:.4g}" for value in values)


def _bar(results: Iterable[Any], total: int) -> Iterable[Any]:
    return progress_bar(results, total, "Reading images")


if __name__ == "__main__":
    sys.exit(main())
