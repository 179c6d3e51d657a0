"""Extraction for many keys from many suspects."""

from collections.abc import Sequence

import torch

from hallmark.core.access import Access
from hallmark.core.evidence import Evidence
from hallmark.core.key import Key
from hallmark.core.scheme import QueryScheme, Scheme
from hallmark.core.suspect import Suspect

_BLOCK = 1024
"""Images a forward pass."""


def extract_all(scheme: Scheme, suspects: Sequence[Suspect], keys: Sequence[Key]) -> list[list[Evidence]]:
    """Evidence of every key at every suspect.

    For a :class:`QueryScheme` the questions of many keys are asked together and the controls once.  Each block goes
    to all suspects before the next is made, so that suspects on one trunk can share its features.

    Args:
        scheme: The scheme.
        suspects: Suspects that grant a level the scheme can use.
        keys: Keys whose controls are equal, such as a true key and its decoys.

    Returns:
        One list per suspect, one evidence per key.

    Raises:
        AccessError: A suspect's level shows nothing of the mark.
        ValueError: Keys of one call have different controls.
    """
    for suspect in suspects:
        scheme.require_access(suspect)
    asked = [s for s in suspects if s.access is not Access.WEIGHTS] if isinstance(scheme, QueryScheme) else []
    answered = iter(_ask(scheme, asked, keys) if isinstance(scheme, QueryScheme) and asked else [])
    return [next(answered) if suspect in asked else scheme.extract_many(suspect, keys) for suspect in suspects]


def _ask(scheme: QueryScheme, suspects: Sequence[Suspect], keys: Sequence[Key]) -> list[list[Evidence]]:
    controls = scheme.controls(keys[0])
    shared = [suspect.ask(controls.float() / 255) for suspect in suspects]
    evidence: list[list[Evidence]] = [[] for _ in suspects]
    step = max(1, _BLOCK // len(controls))
    for start in range(0, len(keys), step):
        block = keys[start : start + step]
        if any(k is not keys[0] and not _same(scheme.controls(k), controls) for k in block):
            raise ValueError("keys extracted together must share their controls; draw decoys with Scheme.decoys")
        questions = [scheme.questions(key) for key in block]
        # on the device once: suspects on one trunk recognise a batch by the tensor it comes in
        images = torch.cat(questions).to(suspects[0].device).float() / 255
        sizes = [len(q) for q in questions]
        for suspect, control_answers, found in zip(suspects, shared, evidence, strict=True):
            answers = torch.split(suspect.ask(images), sizes)
            found += [scheme.judge(suspect.access, a, control_answers, k) for a, k in zip(answers, block, strict=True)]
    return evidence


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.data_ptr() == second.data_ptr() or torch.equal(first, second)
