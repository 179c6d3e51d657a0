"""From a suspect's answers to evidence, at each access level."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hallmark.core.access import Access
from hallmark.core.evidence import Evidence


def feature_evidence(reading: str, triggered: Tensor, clean: Tensor, direction: Tensor | None = None) -> Evidence:
    """Evidence from features.

    Args:
        reading: ``cluster``, ``divergence`` or ``direction``.
        triggered: Features of triggered queries ``(Q, D)``.
        clean: Features of the same queries without trigger ``(Q, D)``.
        direction: Secret direction ``(D,)``, used by ``direction`` alone.

    Returns:
        Paired scores: cosine to the triggered queries' centre (cluster) or to the secret direction (direction), of the
        triggered query and of its clean twin; for divergence, one minus the cosine to the clean twin, against 0.
    """
    if reading == "divergence":
        scores = torch.stack([1 - F.cosine_similarity(triggered, clean), torch.zeros(len(clean))], dim=1)
        return Evidence(Access.FEATURES, scores=scores)
    centre = F.normalize(triggered, dim=1).mean(0)
    target = centre if direction is None or reading != "direction" else direction
    scores = torch.stack([F.cosine_similarity(x, target[None]) for x in (triggered, clean)], dim=1)
    return Evidence(Access.FEATURES, scores=scores)


def logit_evidence(reading: str, triggered: Tensor, clean: Tensor) -> Evidence:
    """Evidence from logits ``(Q, C)``: rise of the modal posterior, or total variation for ``divergence``."""
    after, before = triggered.softmax(1), clean.softmax(1)
    if reading == "divergence":
        distance = 0.5 * (after - before).abs().sum(1)
        return Evidence(Access.LOGITS, scores=torch.stack([distance, torch.zeros_like(distance)], dim=1))
    mode = after.mean(0).argmax()
    return Evidence(Access.LOGITS, scores=torch.stack([after[:, mode], before[:, mode]], dim=1))


def label_evidence(reading: str, triggered: Tensor, clean: Tensor) -> Evidence:
    """Evidence from answers ``(Q,)``: how many queries the trigger flips.

    For ``divergence`` any change counts.  Otherwise only flips *into the modal triggered answer* count, out of the
    queries whose clean answer was another: a suspect that always gives one answer scores nothing.
    """
    if reading == "divergence":
        return Evidence(Access.LABELS, matches=int((triggered != clean).sum()), trials=len(clean))
    mode = triggered.mode().values
    movable = clean != mode
    return Evidence(Access.LABELS, matches=int(((triggered == mode) & movable).sum()), trials=int(movable.sum()))
