"""Seeds for independent, replayable streams of randomness."""

from __future__ import annotations

import numpy as np
import torch


def derive_seed(seed: int, *path: int) -> int:
    """A 63-bit seed that is a pure function of the run's seed and a path such as ``(stream, step, rank)``.

    Streams with different paths are statistically independent (NumPy's ``SeedSequence``).
    """
    state = np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def host_twin(generator: torch.Generator) -> np.random.Generator:
    """A generator of the host, for what the host itself must know: asking the GPU for a number would wait for it.

    Its numbers are a pure function of the seed of ``generator`` and not of what was drawn from that one, which stays
    as it is. So every twin begins anew: a step makes one and draws from it all that it needs.
    """
    return np.random.default_rng(generator.initial_seed())
