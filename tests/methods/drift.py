"""Loss and gradient norm of every cell of the matrix, seeded: a change that nobody meant shows here.

    python tests/methods/drift.py

renews ``drift.json``. The values are of float32 on a CPU; other machines agree to about a thousandth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from cells import batch_for, build, cells, generator

DRIFT = Path(__file__).with_name("drift.json")


def measure(method: str, network: str) -> list[float]:
    """Loss of one batch, and norm of its gradient."""
    made = build(method, network).train()
    torch.manual_seed(0)
    loss = made(batch_for(made), generator()).loss
    loss.backward()
    grads = [p.grad for p in made.trained.parameters() if p.grad is not None]
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    return [round(loss.item(), 6), round(norm.item(), 6)]


def main() -> None:
    """Measure all and write the file."""
    values = {f"{method} {network}": measure(method, network) for method, network in cells()}
    DRIFT.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
