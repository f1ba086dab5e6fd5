"""How often the nearest crop is the right one: trained against untrained.

    python benchmarks/retrieval.py RUN [RUN ...] --batch 16 --batches 8 --json FILE

For runs of methods that compare embeddings, on their validation cases, by the cosine of the embeddings and of the
encoder's pooled features. All crops are augmented. Of SimCLR, a batch holds two views of each of its samples, and the
share counts views whose nearest neighbour among all others of the batch is their partner. Of VoCo, the share counts
target crops whose nearest base crop is the one that they overlap most. The untrained network is the one with which the
run began.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import provenance, write
from ssl_pretrain.config import PretrainConfig
from ssl_pretrain.data.batches import assemble
from ssl_pretrain.functional.contrast import effective_rank, uniformity
from ssl_pretrain.methods.base import VALIDATION_STREAM, Batch
from ssl_pretrain.methods.contrastive import ContrastiveMethod
from ssl_pretrain.methods.voco import VoCo
from ssl_pretrain.report.tables import format_table
from ssl_pretrain.training.checkpoints import LATEST
from ssl_pretrain.training.prepare import prepare

HEADERS = ("run", "network", "vectors", "untrained", "trained", "chance", "effective rank", "uniformity")


def top_1(vectors: Tensor) -> float:
    """Share of the views (2N, E) whose nearest other one, by cosine, is their partner: 2k and 2k + 1 are partners."""
    cosines = normalize(vectors, dim=1) @ normalize(vectors, dim=1).T
    nearest = cosines.fill_diagonal_(-torch.inf).argmax(1)
    return float((nearest == (torch.arange(len(vectors)) ^ 1)).float().mean())


def found(method: ContrastiveMethod, vectors: Tensor, batch: Batch) -> float:
    """Share of the crops of a batch whose nearest crop is the right one, by their vectors (B·V, E)."""
    if not isinstance(method, VoCo):
        return top_1(vectors)
    own = method.by_sample(vectors)
    nearest = (own.targets @ own.bases.mT).argmax(2)
    return float((nearest == method.true_overlaps(batch).argmax(2)).float().mean())


def chance(method: ContrastiveMethod, batch: int) -> float:
    """The share that drawing one of the crops would get."""
    return 1 / (method.sample_views.count - method.config.targets if isinstance(method, VoCo) else 2 * batch - 1)


@torch.inference_mode()
def measure(folder: Path, size: int, batches: int) -> list[dict[str, Any]]:
    """Rows of a run: its embeddings, and its pooled features.

    Args:
        folder: of the run.
        size: samples of a batch.
        batches: to average over.
    """
    config = PretrainConfig.from_file(folder / "config.json")
    run = prepare(replace(config, num_workers=0, device="cpu", num_gpus=1, num_nodes=1), resume=True)
    method = run.method
    assert isinstance(method, ContrastiveMethod)
    batches_seen = []
    for number in range(batches):
        samples = [run.data.val_crops[number * size + i] for i in range(size)]
        seeded = method.seeded(assemble(samples), VALIDATION_STREAM)  # type: ignore[arg-type]
        augmented = method.augmented(seeded, method.sample_generators(seeded, torch.Generator()))
        batches_seen.append({**seeded, "image": augmented})
    vectors_of: dict[str, list[dict[str, Tensor]]] = {}
    for state in ("untrained", "trained"):
        if state == "trained":
            method.load_state_dict(torch.load(folder / LATEST, map_location="cpu", weights_only=True)["state_dict"])
        method.eval()
        both = [method.network(one["image"]) for one in batches_seen]
        vectors_of[state] = [{"embeddings": own, "pooled features": pooled} for own, pooled in both]
    rows = []
    for vectors in ("embeddings", "pooled features"):
        shares = {
            state: fmean(found(method, one[vectors], batch) for one, batch in zip(parts, batches_seen, strict=True))
            for state, parts in vectors_of.items()
        }
        everyone = normalize(torch.cat([one[vectors] for one in vectors_of["trained"]]), dim=1)
        rows.append(
            {
                "run": folder.name,
                "network": config.network,
                "vectors": vectors,
                **{state: round(share, 4) for state, share in shares.items()},
                "chance": round(chance(method, size), 4),
                "effective_rank": round(float(effective_rank(everyone)), 1),
                "uniformity": round(float(uniformity(everyone)), 3),
            }
        )
    return rows


def main() -> int:
    """Measure all runs, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--batch", type=int, default=16, help="samples of a batch")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [row for run in args.runs for row in measure(run, args.batch, args.batches)]
    print(format_table(HEADERS, [tuple(map(str, row.values())) for row in rows]))
    if args.json:
        write({**provenance("cpu"), "batch": args.batch, "batches": args.batches, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
