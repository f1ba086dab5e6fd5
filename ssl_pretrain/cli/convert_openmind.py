"""``nnUNetv2_convert_openmind``: OpenMind's table of metadata -> ``pretrain_data.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ssl_pretrain.cli.make_collection import add_output, make


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        description="Write a pretrain_data.json for OpenMind as it is downloaded, or for a part of it.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "-i",
        dest="folder",
        required=True,
        help="holds openneuro_metadata.csv, and beside it the folder OpenMind with the images",
    )
    add_output(parser)
    parser.add_argument("-d", dest="index", type=int, help="number of the dataset (default: 745)")
    parser.add_argument("-name", help="name of the dataset (default: OpenMind)")
    parser.add_argument(
        "--no_check",
        dest="check_files",
        action="store_false",
        help="list all images of the table, without looking whether they are on disk",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, with errors as one line on stderr."""
    from ssl_pretrain.data.collection.openmind import openmind_collection

    return make(vars(build_parser().parse_args(arguments)), openmind_collection)


if __name__ == "__main__":
    sys.exit(main())
