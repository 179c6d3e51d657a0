"""What both schemes bring back: surprises, of codes in answers, and the facts that may be published."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hallmark.core import Access, Evidence, Key
from hallmark.schemes.stain_lock.code import agreement
from hallmark.schemes.stain_lock.detector import CLOSEST
from hallmark.schemes.stain_lock.guarantees import log_cap


def scored(access: Access, values: Sequence[float]) -> Evidence:
    """Evidence from K surprises −ln pₖ; each is compared with 0."""
    return Evidence(access, scores=F.pad(torch.tensor(values, dtype=torch.float64)[:, None], (0, 1)))


def code_surprises(answers: Tensor, codes: Tensor, *, draws: int = 1) -> list[float]:
    """−ln of the exact p-value of each answer's agreement with its code.

    Under the null a code is uniform on the sphere of mean-zero vectors and independent of the answer, so their cosine
    has the law of a spherical cap in C − 1 dimensions, whatever the answer is.

    Args:
        answers: ``(K, C)``.
        codes: ``(K, C)``; of another width, nothing can be read and nothing is surprising.
        draws: How many codes were drawn for each one that was kept (union bound).
    """
    if answers.shape != codes.shape:
        return [0.0] * len(codes)
    freedom, tried = codes.shape[1] - 1, math.log(draws)
    cosines = agreement(answers, codes).clamp_max(CLOSEST).tolist()
    return [max(0.0, -log_cap(cosine, freedom) - tried) for cosine in cosines]


def certificate(key: Key) -> dict[str, Any]:
    """What may be published about a stain or a lock: where it is, what it costs and guarantees, and a commitment.

    It holds no direction, code, disruptor, trigger or patch.
    """
    shown = ("site", "form", "kind", "tau", "response", "peaks", "agreement", "false_fires", "figures")
    facts = {name: key.meta[name] for name in shown if name in key.meta}
    return {"scheme": key.scheme, "commitment": key.commitment(), **facts}
