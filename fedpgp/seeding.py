"""Randomness that depends on what it is for, and on nothing else.

Every draw comes from a generator made of (seed, purpose, numbers such as client and round). So results do not depend on
the number of workers, on packing, or on what was drawn before, and a resumed run goes on with the same numbers.
"""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator for one purpose: ``generator(seed, "batches", client, round)``."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])
