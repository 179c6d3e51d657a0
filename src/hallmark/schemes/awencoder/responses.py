"""From a suspect's answers to evidence, at each access level.

Key images differ in how far they lie from everything else, so raw distances would rank keys by their images.  Scores
are therefore shares of the way: 1 where perturbed queries reach their goal, 0 where they stay.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hallmark.core.access import Access
from hallmark.core.evidence import Evidence

READINGS = ("key", "modal", "own")


def discrepancy(reading: str, access: Access, moved: Tensor, clean: Tensor, key: Tensor) -> Evidence:
    """Evidence from the answers to perturbed queries, to the same queries as they are, and to the key image.

    Args:
        reading: ``key``: perturbed queries get the key image's answer; ``modal``: they get one answer, whichever;
            ``own``: they lose their own.
        access: FEATURES, LOGITS or LABELS.
        moved: Answers to perturbed queries: features ``(Q, D)``, logits ``(Q, C)`` or labels ``(Q,)``.
        clean: Answers to the queries themselves, in the same form.
        key: Answer to the key image ``(D,)``, ``(C,)`` or a scalar.

    Returns:
        At LABELS, for ``own`` the count of changed answers; otherwise that of flips *into* the key image's or the modal
        answer, out of the queries whose clean answer was another, so that a suspect with one answer scores nothing.
        At FEATURES (distance: one minus the cosine) and LOGITS (total variation between posteriors), for ``own`` the
        distance from the clean twin, against 0; otherwise paired scores ``1 − distance / mean clean distance`` to the
        goal, whose mean difference is the share of the way that the perturbation goes.
    """
    if access is Access.LABELS:
        if reading == "own":
            return Evidence(access, matches=int((moved != clean).sum()), trials=len(clean))
        goal = key if reading == "key" else moved.mode().values
        movable = clean != goal
        return Evidence(access, matches=int(((moved == goal) & movable).sum()), trials=int(movable.sum()))
    places = [_place(access, answers) for answers in (moved, clean, key[None])]
    distance = _cosine_distance if access is Access.FEATURES else _total_variation
    if reading == "own":
        left = distance(places[0], places[1])
        return Evidence(access, scores=torch.stack([left, torch.zeros_like(left)], dim=1))
    goal = places[2] if reading == "key" else places[0].mean(0, keepdim=True)
    after, before = distance(places[0], goal), distance(places[1], goal)
    way = before.mean().clamp_min(1e-6)  # a suspect with one answer has nowhere to go, up to rounding
    return Evidence(access, scores=1 - torch.stack([after, before], dim=1) / way)


def _place(access: Access, answers: Tensor) -> Tensor:
    """Unit features or posteriors, the points between which distances are taken."""
    return F.normalize(answers, dim=1) if access is Access.FEATURES else answers.softmax(1)


def _cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(first, second)


def _total_variation(first: Tensor, second: Tensor) -> Tensor:
    return 0.5 * (first - second).abs().sum(1)
