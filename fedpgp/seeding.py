"""Randomness that depends on what it is for, and on nothing else.

Every draw comes from a generator made of (seed, purpose, numbers such as client and round). So
results do not depend on the number of workers, on packing, or on what was drawn before, and a
resumed run gives the same numbers. Noise that is to hide something is the exception.
"""

import math
import os
import zlib

import numpy as np


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator for one purpose: ``generator(seed, "batches", client, server_round)``."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def secret_uniform(count: int) -> np.ndarray:
    """Return numbers from 0 to below 1 from the operating system's cryptographic source."""
    integers = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return (integers >> np.uint64(11)) * 2.0**-53


def secret_normal(shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers from the operating system's cryptographic source (Box and Muller's
    transform): nobody can draw them again, and no resumed run repeats them."""
    count = math.prod(shape)
    integers = np.frombuffer(os.urandom(16 * ((count + 1) // 2)), dtype=np.uint64)
    uniform = ((integers >> np.uint64(11)) + 1.0) * 2.0**-53  # above 0, at most 1
    radius, angle = np.sqrt(-2 * np.log(uniform[::2])), 2 * np.pi * uniform[1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape)
