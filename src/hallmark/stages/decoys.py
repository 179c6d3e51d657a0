"""Decoy keys that are costly to make: made once for a mark, and drawn from anew for each suspect."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hallmark.core import Key, generator

TENSORS = "decoys.safetensors"
METAS = "decoys.json"

SPARE = 0.5
"""Decoys made beyond what a verdict takes, as a share, so that no two suspects of one mark are judged by the same
set of them; the sets overlap."""


def save(decoys: Sequence[Key], key: Key, folder: Path) -> None:
    """Write what sets decoys apart from the true key; what they share with it, such as query images, is left out."""
    own = {
        name for decoy in decoys for name, value in decoy.tensors.items() if not torch.equal(value, key.tensors[name])
    }
    stacked = {name: torch.stack([decoy.tensors[name].cpu() for decoy in decoys]) for name in sorted(own)}
    save_file(stacked, folder / TENSORS)
    (folder / METAS).write_text(json.dumps([dict(decoy.meta) for decoy in decoys], sort_keys=True) + "\n")


def load(folder: Path, key: Key) -> list[Key]:
    """The decoys of a key, as :func:`save` left them."""
    tensors = load_file(folder / TENSORS)
    metas = json.loads((folder / METAS).read_text())
    return [
        Key(key.scheme, {**key.tensors, **{name: stack[row] for name, stack in tensors.items()}}, meta)
        for row, meta in enumerate(metas)
    ]


def draw(made: Sequence[Key], counts: Sequence[int], seed: int) -> list[list[Key]]:
    """Disjoint groups of decoys, without replacement.

    Args:
        made: All that were made.
        counts: Size of each group.
        seed: Of the suspect, so that no two are judged by the same ones.
    """
    order = torch.randperm(len(made), generator=generator(seed, "decoys")).tolist()
    starts = [sum(counts[:n]) for n in range(len(counts))]
    return [[made[n] for n in order[start : start + count]] for start, count in zip(starts, counts, strict=True)]
