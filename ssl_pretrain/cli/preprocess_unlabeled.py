"""``nnUNetv2_preprocess_unlabeled``: images without labels -> cases that ``nnUNetv2_pretrain`` reads."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssl_pretrain.cli.console import EXIT_TERMINATED, guarded, progress_bar, set_up_console

if TYPE_CHECKING:
    from ssl_pretrain.data.preparation.target import Target
    from ssl_pretrain.data.preparation.unlabeled import Summary


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        description="Preprocess images without labels exactly as nnU-Net would for a dataset, plans and configuration, "
        "so that nnUNetv2_pretrain can use them. What is done already is not done again.",
    )
    parser.add_argument(
        "-i",
        dest="inputs",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="folders or files (case_0000.nii.gz, case_0001.nii.gz, …), a pretrain_data.json, or 'raw' for imagesTs "
        "and imagesUn of the raw dataset",
    )
    parser.add_argument("-d", dest="dataset", required=True, help="number or name of a planned dataset")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="name of the plans (default: nnUNetPlans)")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="default: 3d_fullres")
    parser.add_argument("-np", dest="processes", type=int, default=8, help="images at a time (default: 8)")
    parser.add_argument("-part_id", type=int, default=0, help="part of the images to do, from 0 (default: 0)")
    parser.add_argument("-num_parts", type=int, default=1, help="parts that the images are split into (default: 1)")
    parser.add_argument(
        "-filter",
        dest="filters",
        nargs="+",
        action="extend",
        default=[],
        metavar="CONDITION",
        help="of a collection take only such images, e.g. modality=T1w,T2w 'quality<=3'",
    )
    parser.add_argument("--verify", action="store_true", help="read what is done whole, and redo what is damaged")
    parser.add_argument("--overwrite", action="store_true", help="redo what is done")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, with errors as one line on stderr."""
    given = build_parser().parse_args(arguments)
    set_up_console()
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return guarded(lambda: run(given), "Stopped. What is done is kept; the same command goes on.")
    finally:
        signal.signal(signal.SIGTERM, before)


def run(given: argparse.Namespace) -> int:
    """Find the images, preprocess them, say what came of it."""
    # nnU-Net first: in a checkout of ours, the current folder has one of that name.
    import nnunetv2  # noqa: F401

    from ssl_pretrain.data.locate import environment_folder
    from ssl_pretrain.data.preparation.sources import RAW, find_images
    from ssl_pretrain.data.preparation.target import find_target, refuse_labelled
    from ssl_pretrain.data.preparation.unlabeled import Options, preprocess_unlabeled

    options = Options(
        processes=given.processes,
        part=given.part_id,
        parts=given.num_parts,
        verify=given.verify,
        overwrite=given.overwrite,
        watch=progress_bar,
    )
    target = find_target(given.dataset, given.plans, given.configuration)
    if RAW in given.inputs:
        environment_folder("nnUNet_raw")
    cases = find_images(
        given.inputs, channels=target.plan.input_channels, file_ending=target.file_ending, raw_dataset=target.raw
    )
    if given.filters:
        from ssl_pretrain.data.filters import keep, parse_filters

        cases = keep(parse_filters(given.filters), cases, lambda case: case.info)
    refuse_labelled(cases, target)
    summary = preprocess_unlabeled(cases, target, options)
    print(describe(summary, given, target))
    return 1 if summary.failures.entries else 0


def describe(summary: Summary, given: argparse.Namespace, target: Target) -> str:
    """What came of it, and what to type next."""
    from ssl_pretrain.data.locate import dataset_number

    done, failed = summary.before + summary.made, len(summary.failures.entries)
    part = f" of part {given.part_id}" if given.num_parts > 1 else ""
    minutes, seconds = divmod(round(summary.seconds), 60)
    lines = [
        f"\n{done} of {summary.cases} images{part} are preprocessed in {summary.folder} ({summary.made} of them now, "
        f"in {minutes} min {seconds} s)."
    ]
    if failed:
        lines.append(
            f"{failed} failed and will not be pretrained on: {summary.failures.file} says why. The same command tries "
            "them again."
        )
    if done:
        when = "When all parts are done, pretrain" if given.num_parts > 1 else "Pretrain"
        number = dataset_number(target.files.name)
        plans = "" if given.plans == "nnUNetPlans" else f" -p {given.plans}"
        lines.append(f"\n{when} with:\n\n    nnUNetv2_pretrain {number} {given.configuration} all{plans}\n")
    return "\n".join(lines)


def _terminate(*_: object) -> None:
    """Clusters send SIGTERM before they stop a job: end the processes, then this one."""
    print("\nAsked to terminate. What is done is kept; the same command goes on.", file=sys.stderr)
    raise SystemExit(EXIT_TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
