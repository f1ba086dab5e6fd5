"""``nnUNetv2_adapt_weights``: weights -> a file for another dataset or plans, in another format, or with a card."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_pretrain.cli.console import guarded, set_up_console

if TYPE_CHECKING:
    from ssl_pretrain.transfer.adapt import FineTuningTarget
    from ssl_pretrain.transfer.load import Report

OF_A_TARGET = ("plans", "trainer", "channels", "strict", "seed", "trust_plans")
"""What is only said together with a dataset."""

OF_A_CARD = ("license", "results")


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; what is not given is absent from the result, so that defaults live in one place."""
    parser = argparse.ArgumentParser(
        description="Make weights fit the network that nnU-Net will fine-tune, and write a file that nnUNetv2_train "
        "-pretrained_weights takes. Without -d and -c only the format changes.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "-w", dest="source", required=True, metavar="FILE", help="weights: a file, or hf://ORG/REPO[/FILE]"
    )
    parser.add_argument(
        "-o",
        dest="output",
        required=True,
        metavar="OUT",
        help="a .pth or .safetensors file; a folder with --model_card",
    )
    parser.add_argument("-d", dest="dataset", help="number or name of the dataset to fine-tune on")
    parser.add_argument("-c", dest="configuration", help="configuration of its plans, e.g. 3d_fullres")
    parser.add_argument("-p", dest="plans", help="name of its plans (default: nnUNetPlans)")
    parser.add_argument("-tr", dest="trainer", help="nnU-Net's trainer that will fine-tune (default: nnUNetTrainer)")
    parser.add_argument(
        "-channels",
        type=int,
        nargs="+",
        metavar="N",
        help="for each channel of the dataset the file's channel it takes, from 0, e.g. 0 0 1 (default: all, averaged)",
    )
    parser.add_argument(
        "-trust_plans", action="store_true", help="the plans may name code of packages that are not well known: run it"
    )
    parser.add_argument("-strict", action="store_true", help="refuse anything but an exact fit")
    parser.add_argument(
        "-fix_nnssl_axes",
        action="store_true",
        help="the file is of a MAE trainer of nnssl for Primus: unswap positions",
    )
    parser.add_argument("-seed", type=int, help="of tensors that the file does not give (default: 0)")
    parser.add_argument("--verbose", action="store_true", help="show every tensor of the file that is not used, too")
    parser.add_argument(
        "--model_card", action="store_true", help="write a folder for the Hugging Face Hub, with a card and safetensors"
    )
    parser.add_argument("-license", help="identifier of the weights' licence, e.g. cc-by-4.0, for the card")
    parser.add_argument("-results", metavar="FILE", help="study.json, or a text in Markdown, for the card")
    return parser


def check(given: dict[str, Any]) -> None:
    """Refuse arguments that say nothing without others.

    Raises:
        ValueError: names them.
    """
    if ("dataset" in given) != ("configuration" in given):
        raise ValueError("-d and -c go together: say both, or none to change the format only.")
    lonely = [f"-{_flag(name)}" for name in OF_A_TARGET if name in given and "dataset" not in given]
    if lonely:
        raise ValueError(f"{', '.join(lonely)} says something about a network to fit into: name it with -d and -c.")
    lonely = [f"-{name}" for name in OF_A_CARD if name in given and "model_card" not in given]
    if lonely:
        raise ValueError(f"{', '.join(lonely)} is for the card: add --model_card.")


def run(given: dict[str, Any]) -> int:
    """Convert or adapt, write, and say what comes next."""
    check(given)
    if "dataset" in given:
        from ssl_pretrain.data.locate import look_first

        look_first(given["dataset"], given["configuration"], given.get("plans", "nnUNetPlans"))
    # nnU-Net first: in a checkout of ours, the current folder has one of that name.
    import nnunetv2  # noqa: F401

    from ssl_pretrain.transfer.adapt import adapt_weights, check_output, read_content, save_content
    from ssl_pretrain.transfer.model_folder import write_model_folder

    source, output, as_folder = given["source"], Path(given["output"]), "model_card" in given
    check_output(output, source, folder=as_folder)
    report: Report | None = None
    target = locate_target(given) if "dataset" in given else None
    axes = "fix_nnssl_axes" in given
    if target is not None:
        options = {name: given[name] for name in ("channels", "strict", "seed") if name in given}
        adapted = adapt_weights(source, target, fix_nnssl_axes=axes, **options)
        content, report = adapted.content, adapted.report
    else:
        content = read_content(source, fix_nnssl_axes=axes)
    if as_folder:
        cards = {name: given[name] for name in OF_A_CARD if name in given}
        write_model_folder(content, output, report=report, **cards)
    else:
        save_content(content, output)
        if report is not None:
            report.save(output.with_name(f"{output.stem}_report.json"))
    print(f"\nWritten: {output}\n{next_step(given, output, target)}")
    return 0


def locate_target(given: dict[str, Any]) -> FineTuningTarget:
    """What the arguments name, found as ``nnUNetv2_train`` finds it.

    Raises:
        ValueError, FileNotFoundError: something is missing or unknown; says what there is and what to do.
    """
    from ssl_pretrain.data.locate import dataset_number, locate
    from ssl_pretrain.transfer.adapt import STOCK_TRAINER, FineTuningTarget

    files, plan = locate(given["dataset"], given["configuration"], given.get("plans", "nnUNetPlans"))
    if not files.has_labelled:
        raise FileNotFoundError(
            f"{files.name} is preprocessed without labels only, and fine-tuning needs them. Name the dataset to "
            f"fine-tune on, or run: nnUNetv2_preprocess -d {dataset_number(files.name)} -plans_name {plan.name} "
            f"-c {plan.configuration}"
        )
    trainer, trust_plans = given.get("trainer", STOCK_TRAINER), given.get("trust_plans", False)
    return FineTuningTarget(plan.plans, plan.dataset, plan.configuration, trainer, trust_plans)


def next_step(given: dict[str, Any], output: Path, target: FineTuningTarget | None) -> str:
    """What to do with what was written."""
    from ssl_pretrain.transfer.adapt import STOCK_TRAINER
    from ssl_pretrain.transfer.extension import VARIABLE, trainer_environment

    if "model_card" in given:
        return f"Read {output / 'README.md'}, complete it, then: hf upload ORG/REPO {shlex.quote(str(output))}\n"
    if target is None:
        return ""
    number, plans = given["dataset"], given.get("plans", "nnUNetPlans")
    if target.trainer == STOCK_TRAINER and output.suffix != ".pth":
        return f"{STOCK_TRAINER} reads .pth files only: take -o {output.stem}.pth, or a trainer of ours (-tr …_ft).\n"
    words = ["nnUNetv2_train", number, target.configuration, "0"]
    words += [] if plans == "nnUNetPlans" else ["-p", plans]
    folders = ""
    if target.trainer != STOCK_TRAINER:
        words += ["-tr", target.trainer]
        folders = f"    export {VARIABLE}={shlex.quote(trainer_environment()[VARIABLE])}\n"
    command = shlex.join([*words, "-pretrained_weights", str(output.absolute())])
    return f"Fine-tune with:\n\n{folders}    {command}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, with errors as one line on stderr."""
    given = vars(build_parser().parse_args(arguments))
    set_up_console(logging.DEBUG if given.pop("verbose", False) else logging.INFO)
    return guarded(lambda: run(given))


def _flag(name: str) -> str:
    return {"plans": "p", "trainer": "tr"}.get(name, name)


if __name__ == "__main__":
    sys.exit(main())
