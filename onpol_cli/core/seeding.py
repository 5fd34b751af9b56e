"""Seeds derived by name, so that no stage depends on what another one drew."""

from __future__ import annotations

import hashlib
import random


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called `names` of the run seeded `seed`.

    Stable over processes, platforms and Python versions (SHA-256 of the joined names).
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_rng(seed: int, *names: object) -> random.Random:
    """A `random.Random` seeded with `derive_seed(seed, *names)`."""
    return random.Random(derive_seed(seed, *names))
