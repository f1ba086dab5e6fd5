"""Pretrain with AnatoMask: ``python ssl_pretrain/pretrain_AnatoMask.py`` from any folder; see ``--help``."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's own folder first, where our `data` or `config` would shadow other packages of that name.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (HERE, HERE.parent)]
# Before the repository is on the path: its folder `nnunetv2` would hide an nnU-Net that is installed editable.
import nnunetv2  # noqa: E402, F401

sys.path.append(str(HERE.parent))

if __name__ == "__main__":
    from ssl_pretrain.cli.pretrain import main

    sys.exit(main(method="AnatoMask", explicit=True))
