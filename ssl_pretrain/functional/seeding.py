"""Seeds for independent, replayable streams of randomness."""

from __future__ import annotations

import numpy as np


def derive_seed(seed: int, *path: int) -> int:
    """A 63-bit seed that is a pure function of the run's seed and a path such as ``(stream, step, rank)``.

    Streams with different paths are statistically independent (NumPy's ``SeedSequence``).
    """
    state = np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
