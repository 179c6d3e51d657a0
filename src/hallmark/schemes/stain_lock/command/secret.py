"""Randomness that nobody can repeat."""

import secrets

import torch

_WORDS = 624
_FIRST = 3
"""State words of the Mersenne Twister, and where they lie among the 64-bit words of a CPU generator's state."""


def secret_generator() -> torch.Generator:
    """A generator whose whole state comes from the operating system.

    ``manual_seed`` keeps 32 bits of its seed, so a direction drawn from a seed could be found by trying all of them.
    """
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    words = generator.get_state().view(torch.int64).clone()
    words[_FIRST : _FIRST + _WORDS] = torch.tensor([secrets.randbits(32) for _ in range(_WORDS)])
    return generator.set_state(words.view(torch.uint8))
