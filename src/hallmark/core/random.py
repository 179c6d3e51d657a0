"""Randomness by purpose: every draw has a name, and nobody shares a stream.

A generator depends only on ``(seed, purpose)``.  A run that is resumed, or that skips a finished stage, therefore
draws exactly what an uninterrupted run draws, and adding a draw in one place never shifts the draws of another.
"""

import hashlib
import json

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose.

    Args:
        seed: The run's seed.
        *purpose: What the draws are for, e.g. ``"views", 1200``.

    Returns:
        An integer in ``[0, 2**63)``; different purposes give independent-looking seeds.
    """
    text = json.dumps([seed, *purpose], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose; see :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
