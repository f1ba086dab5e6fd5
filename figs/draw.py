"""Take the pictures of a real run for the documentation.

    python figs/draw.py RUN_FOLDER

``RUN_FOLDER`` is the output folder of ``nnUNetv2_pretrain``. Copies its last reconstruction to ``reconstruction.png``
and redraws its curves as ``progress.png``, both beside this script.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ssl_pretrain.report.progress import draw_progress

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Copy and draw; returns the exit status."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    run = Path(arguments[0])
    pictures = sorted((run / "pictures").glob("epoch_*.png"))
    if not pictures:
        print(f"{run} has no pictures: is it the output folder of a run?", file=sys.stderr)
        return 1
    shutil.copyfile(pictures[-1], HERE / "reconstruction.png")
    draw_progress(run / "metrics.csv", HERE / "progress.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
