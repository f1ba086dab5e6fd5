"""``nnUNetv2_make_collection``: a folder in BIDS layout -> ``pretrain_data.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssl_pretrain.cli.console import guarded, set_up_console


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        description="Write a pretrain_data.json for a folder in BIDS layout, with subjects, sessions and modalities.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("-i", dest="folder", required=True, help="a BIDS dataset, or a folder of several")
    add_output(parser)
    parser.add_argument("-d", dest="index", type=int, help="number of the dataset (default: 1)")
    parser.add_argument("-name", help="name of the dataset (default: the folder's)")
    parser.add_argument(
        "-datatypes", nargs="+", metavar="NAME", help="folders to search in every session (default: anat ct pet)"
    )
    parser.add_argument(
        "--no_masks", dest="masks", action="store_false", help="do not take _defacemask files as anonymisation masks"
    )
    parser.add_argument(
        "-defacemask_marks",
        dest="deface_marks",
        choices=("removed", "kept"),
        help="what is not 0 in _defacemask files; BIDS does not say, and programs differ (default: removed)",
    )
    return parser


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where and how the collection is written; the same for all commands that make one."""
    parser.add_argument("-o", dest="file", metavar="FILE", help="default: pretrain_data.json in the folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument(
        "--absolute", action="store_true", help="write absolute paths, as nnssl needs them (default: relative)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, with errors as one line on stderr."""
    from ssl_pretrain.data.collection.bids import bids_collection

    return make(vars(build_parser().parse_args(arguments)), bids_collection)


def make(given: dict[str, Any], collection_of: Callable[..., Any]) -> int:
    """Make a collection, write it, say what comes next; returns the exit status.

    Args:
        given: what was typed.
        collection_of: takes the folder, the file and the other arguments.
    """
    from ssl_pretrain.data.collection.writing import FILE_NAME, write_collection

    set_up_console()
    overwrite = given.pop("overwrite", False)
    folder = Path(given.pop("folder"))
    file = Path(given.pop("file", folder / FILE_NAME))

    def run() -> int:
        collection = collection_of(folder, file, **given)
        write_collection(collection, overwrite=overwrite)
        number, name = collection.collection_index, collection.collection_name.partition("_")[2]
        print(f'\nPlan with:\n\n    nnUNetv2_plan_unlabeled -i "{file}" -d {number} -name {name} -spacing 1 1 1\n')
        return 0

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
