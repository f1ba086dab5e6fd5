"""``nnUNetv2_pretrain``: flags -> configuration -> run."""

from __future__ import annotations

import argparse
import ast
import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ssl_pretrain.cli.console import EXIT_INTERRUPTED, EXIT_TERMINATED, NamesAction, guarded, set_up_console

if TYPE_CHECKING:
    from ssl_pretrain.config import PretrainConfig

EXPLICIT = {
    "preprocessed_dataset_folder": "preprocessed",
    "splits_file": "splits",
    "dataset_json": "dataset_json",
    "plans_file": "plans",
}
"""AnatoMask's explicit inputs: flag -> name in the configuration's ``files``."""


def build_parser(method: str = "AnatoMask", explicit: bool = False) -> argparse.ArgumentParser:
    """The command's arguments; what is not given is absent from the result, so that defaults live in one place.

    Args:
        method: default of ``-m``.
        explicit: also take AnatoMask's five explicit paths, and make the positional arguments optional.
    """
    parser = argparse.ArgumentParser(
        description="Pretrain a network of nnU-Net on images without labels, then fine-tune it with nnUNetv2_train.",
        argument_default=argparse.SUPPRESS,
    )
    optional: dict[str, Any] = {"nargs": "?"} if explicit else {}
    parser.add_argument("dataset", **optional, help="number or name of the dataset")
    parser.add_argument("configuration", **optional, help="configuration of the plans, e.g. 3d_fullres")
    parser.add_argument("fold", **optional, help="'all', or a fold of splits_final.json, e.g. 0")
    _add_task(parser, method)
    _add_machine(parser)
    parser.add_argument("-config", metavar="FILE.json", help="settings from a file; flags override them")
    parser.add_argument("--c", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--dry_run", action="store_true", help="show configuration, network and memory, then stop")
    if explicit:
        _add_explicit(parser)
    return parser


def written_keys(module: str, dictionary: str) -> list[str]:
    """Keys of a dictionary as the source of a module writes them: to import it takes seconds, which help should not."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == dictionary:
            return [ast.literal_eval(key) for key in cast("ast.Dict", node.value).keys if key is not None]
    raise LookupError(f"{module} writes no dictionary {dictionary}.")


def _add_task(parser: argparse.ArgumentParser, method: str) -> None:
    parser.add_argument(
        "-m",
        dest="method",
        help=f"{', '.join(written_keys('ssl_pretrain.methods', 'METHODS'))} (default: {method})",
    )
    parser.add_argument(
        "-recipe",
        choices=("default", "published"),
        help="published: every published choice at once, but for what -set and other flags say",
    )
    parser.add_argument("-p", dest="plans", help="name of the plans (default: nnUNetPlans)")
    _add_cases(parser)
    parser.add_argument(
        "-network",
        action=NamesAction,
        names=_networks,
        help="%(names)s, or package.module:Class; plans, the network that they name, is the default",
    )
    parser.add_argument(
        "-trust_plans", action="store_true", help="the plans may name code of packages that are not well known: run it"
    )
    parser.add_argument(
        "-network_settings",
        nargs="+",
        action="extend",
        metavar="NAME=VALUE",
        help="size of the network, where it differs from the published one, e.g. depth=4",
    )
    parser.add_argument("-o", dest="output_folder", metavar="FOLDER", help="default: a folder in nnUNet_results")
    parser.add_argument("-epochs", type=int, help="default: 1000")
    parser.add_argument("-iters", type=int, help="optimiser steps per epoch (default: 250)")
    parser.add_argument("-val_iters", type=int, help="validation batches per epoch (default: 50)")
    parser.add_argument("-batch_size", type=int, help="samples per step and device (default: the plans')")
    parser.add_argument("-patch_size", type=int, nargs=3, metavar=("D", "H", "W"), help="voxels (default: the plans')")
    parser.add_argument(
        "-optimizer", choices=("auto", "adamw", "sgd"), help="default: the method's, for the kind of network"
    )
    parser.add_argument("-lr", type=float, help="peak learning rate (default: the method's)")
    parser.add_argument("-mask_ratio", type=float, help="share of the cells that is masked (default: the method's)")
    parser.add_argument("-mask_cell", type=int, nargs=3, metavar=("D", "H", "W"), help="voxels (default: about 16)")
    parser.add_argument("-seed", type=int, help="default: 0")
    parser.add_argument("-pretrained_weights", metavar="FILE", help="weights to start from")
    parser.add_argument(
        "-fix_nnssl_axes", action="store_true", help="they are of a Primus that nnssl trained with two axes exchanged"
    )
    parser.add_argument(
        "-export", choices=("all", "encoder"), help="all that was trained (default), or the encoder alone"
    )
    parser.add_argument(
        "-set",
        dest="settings",
        nargs="+",
        action="extend",
        metavar="NAME=VALUE",
        help="any setting of the method or crops",
    )


def _networks() -> str:
    from ssl_pretrain.networks.registry import shown_names

    return shown_names()


def _add_cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-use", choices=("all", "labeled", "unlabeled"), help="which cases (default: all there are)")
    parser.add_argument("-datasets", nargs="+", metavar="DATASET", help="draw from these, preprocessed with one plans")
    parser.add_argument(
        "-balance", choices=("cases", "datasets", "subjects"), help="what is drawn equally often (default: cases)"
    )
    parser.add_argument(
        "-filter",
        dest="filters",
        nargs="+",
        action="extend",
        metavar="CONDITION",
        help="keep cases of a collection, e.g. modality=T1w,T2w 'quality<=3'",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-num_workers", type=int, help="reading processes (default: nnU-Net's, at most 8)")
    parser.add_argument(
        "-augment_on", choices=("loader", "device"), help="where crops are rotated and scaled (default: loader)"
    )
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda")
    parser.add_argument("-num_gpus", type=int, help="GPUs per node; with -device cpu, processes (default: 1)")
    parser.add_argument("-num_nodes", type=int, help="nodes (default: 1)")
    parser.add_argument("-precision", choices=("auto", "32", "bf16", "16"), help="default: auto")
    parser.add_argument("-picture_every", type=int, help="epochs between pictures (default: 50)")


def _add_explicit(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("explicit inputs, instead of DATASET")
    group.add_argument("--output_folder", dest="output_folder", metavar="FOLDER")
    group.add_argument(
        "--preprocessed_dataset_folder", metavar="FOLDER", help="preprocessed cases, or the dataset's folder"
    )
    group.add_argument("--splits_file", metavar="FILE", help="splits_final.json")
    group.add_argument("--dataset_json", metavar="FILE")
    group.add_argument("--plans", dest="plans_file", metavar="FILE", help="the plans file")


def config_from(given: dict[str, Any], method: str = "AnatoMask") -> PretrainConfig:
    """The configuration of a command line: a file, or the run that is continued, overridden by flags.

    Args:
        given: what was typed.
        method: the method where neither flags nor file name one.

    Raises:
        ValueError, FileNotFoundError: bad values; says what is allowed.
    """
    from ssl_pretrain.files import read_settings
    from ssl_pretrain.training.run import resolve_folder

    flags = dict(given)
    settings = parse_settings(flags.pop("settings", []))
    if "network_settings" in flags:
        flags["network_settings"] = parse_settings(flags["network_settings"], "-network_settings")
    for name in ("lr", "optimizer", "mask_ratio", "mask_cell"):
        if name in flags:
            settings[name] = flags.pop(name)
    resume, file = flags.pop("c", False), flags.pop("config", None)
    for name in ("dry_run", "trust_plans"):
        flags.pop(name, None)
    flags = _with_files(flags)
    content = read_settings(Path(file)) if file else {}
    if {"task", "recipe"} <= set(content) and flags.get("recipe", content["recipe"]) != content["recipe"]:
        raise ValueError(
            f"{file} holds the settings of recipe {content['recipe']}, which would all win over -recipe "
            f"{flags['recipe']}. Leave one of the two out."
        )
    config = _combined({"method": method, **content}, flags, file)
    if resume:
        stored = resolve_folder(config) / "config.json"
        if stored.is_file():
            # A continued run is what it was; only what is typed again counts as a wish.
            content = read_settings(stored)
            if flags.get("method", content.get("method")) != content.get("method"):
                raise ValueError(
                    f"{stored.parent} holds a run of {content.get('method')}, not of {flags['method']}. Continue "
                    "with the same method, or choose another folder with -o."
                )
            network = str(content.get("network", "plans"))
            if ":" in network and network != config.network:
                # A network of one's own is code, and whoever can write into a results folder must not choose it.
                raise ValueError(
                    f"{stored} names the network {network}, whose code would be run. If that is what you began with, "
                    f"say so again: -network {shlex.quote(network)}; else choose another folder with -o."
                )
            # Nor where else is written.
            config = _combined(content, {**flags, "output_folder": config.output_folder}, stored)
    return config.with_settings(settings)


def _combined(content: dict[str, Any], flags: dict[str, Any], file: object) -> PretrainConfig:
    """Settings of a file, if there is one, and of the command line, which counts where both say something."""
    from ssl_pretrain.config import PretrainConfig

    try:
        return PretrainConfig.from_dict({**content, **flags})
    except ValueError as error:
        if not file:
            raise
        raise ValueError(f"{error} It comes from {file}, or from the command line.") from error


def _with_files(flags: dict[str, Any]) -> dict[str, Any]:
    """Gather the explicit inputs, all or none of them."""
    explicit = {name: flags.pop(flag) for flag, name in EXPLICIT.items() if flag in flags}
    if not explicit:
        missing = [n for n in ("dataset", "configuration", "fold") if flags.get(n) is None]
        if missing:
            raise ValueError(f"Missing arguments: {', '.join(missing)}. Usage: DATASET CONFIGURATION FOLD.")
        return flags
    missing = [
        f"--{'plans' if flag == 'plans_file' else flag}" for flag, name in EXPLICIT.items() if name not in explicit
    ]
    if "output_folder" not in flags:
        missing.append("--output_folder")
    if missing:
        raise ValueError(f"Explicit inputs are given all together; missing: {', '.join(missing)}.")
    positional = {"dataset": "explicit", "configuration": "3d_fullres", "fold": "0"}
    return {**flags, **{n: flags.get(n) or v for n, v in positional.items()}, "files": explicit}


def parse_settings(pairs: Sequence[str], flag: str = "-set") -> dict[str, Any]:
    """``NAME=VALUE`` strings as a mapping.

    Raises:
        ValueError: one has no equals sign.
    """
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ValueError(f"{flag} takes NAME=VALUE, got {', '.join(map(repr, wrong))}.")
    return dict(pair.split("=", 1) for pair in pairs)


def main(arguments: Sequence[str] | None = None, method: str = "AnatoMask", explicit: bool = False) -> int:
    """Run the command; returns the exit status, with errors as one line on stderr."""
    given = vars(build_parser(method, explicit).parse_args(arguments))
    status = guarded(lambda: run(given, method), expected=run_errors)
    # Lightning kills the first process of a run as soon as another one ends with a status, before it can speak.
    return 0 if status in (EXIT_INTERRUPTED, EXIT_TERMINATED) and is_another_process() else status


def is_another_process() -> bool:
    """Whether this is not the process of a distributed run that was started first."""
    training = sys.modules.get("ssl_pretrain.training.run")  # to import it takes seconds, also after Ctrl-C
    return training is not None and training.process_rank() > 0


def run_errors() -> tuple[type[Exception], ...]:
    """What ends a run and says so in words of its own."""
    from ssl_pretrain.training.checkpoints import NonFiniteLossError
    from ssl_pretrain.training.failures import RunFailedError

    return NonFiniteLossError, RunFailedError


def look_first(given: dict[str, Any]) -> None:
    """Check arguments, paths and JSON before the imports of training, which take seconds.

    Raises:
        ValueError, FileNotFoundError: bad values; says what is allowed.
    """
    from ssl_pretrain.data import locate
    from ssl_pretrain.data.plans_file import check_plans
    from ssl_pretrain.files import read_settings

    for flag, name in (("-set", "settings"), ("-network_settings", "network_settings")):
        parse_settings(given.get(name, []), flag)
    flags = _with_files(dict(given))
    wanted = {**(read_settings(Path(given["config"])) if "config" in given else {}), **flags}
    configuration = str(wanted.get("configuration", "3d_fullres"))
    if "files" in flags:
        plans_file, dataset_json = (Path(flags["files"][name]) for name in ("plans", "dataset_json"))
        check_plans(plans_file, dataset_json, configuration, cascades=False)
    else:
        plans_name = str(wanted.get("plans", "nnUNetPlans"))
        locate.look_first(str(wanted["dataset"]), configuration, plans_name, cascades=False)


def run(given: dict[str, Any], method: str) -> int:
    """Pretrain, or show what would be, and say what comes next."""
    look_first(given)
    # nnU-Net first: in a checkout of ours, the current folder has one of that name.
    import nnunetv2  # noqa: F401

    from ssl_pretrain.cli.dry_run import show
    from ssl_pretrain.training.checkpoints import NonFiniteLossError
    from ssl_pretrain.training.failures import plain_words
    from ssl_pretrain.training.guards import PreemptedError
    from ssl_pretrain.training.prepare import prepare
    from ssl_pretrain.training.run import pretrain

    # After the imports: Lightning sets the levels of its loggers when it is imported.
    quiet_training()
    config, trust_plans = config_from(given, method), bool(given.get("trust_plans"))
    if ":" in config.network:
        # A console command does not look for modules in the current folder; -network package.module:Class should.
        sys.path.append(str(Path.cwd()))
    if given.get("dry_run"):
        with plain_words(config):
            print(show(prepare(config, trust_plans=trust_plans, dry=True)))
        return 0
    try:
        result = pretrain(config, resume=bool(given.get("c")), trust_plans=trust_plans)
    except PreemptedError as stop:
        if not is_another_process():
            print(stop, file=sys.stderr)
        return EXIT_TERMINATED
    except NonFiniteLossError:
        # Raised on every process alike.
        if is_another_process():
            return 0
        raise
    if is_another_process():
        return 0
    print(f"\nFine-tune with:\n\n{_where_trainers_are(result.finetune_command)}    {result.finetune_command}\n")
    return 0


def _where_trainers_are(command: str) -> str:
    """A line that lets nnU-Net find the trainer of a command, where it is one of ours."""
    if " -tr " not in command:
        return ""
    from ssl_pretrain.transfer.extension import VARIABLE, extension_folder

    return f"    export {VARIABLE}={shlex.quote(str(extension_folder()))}\n"


def quiet_training() -> None:
    """Lightning's hints about things we decided on are left out, and one process of a distributed run speaks."""
    from ssl_pretrain.training.run import process_rank

    set_up_console(logging.ERROR if process_rank() else logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    # Of several processes, about the memory format of a convolution with one channel: a few kilobytes are copied.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")


if __name__ == "__main__":
    sys.exit(main())
