"""Clean and triggered queries in the plane of their two principal components, for people to look at."""

import torch

from hallmark.core import Access, HostKind, Key, QueryScheme, Suspect
from hallmark.models.encoders import Encoder


def projection(scheme: QueryScheme, key: Key, encoder: Encoder) -> dict[str, list[list[float]]]:
    """2-D coordinates of a key's controls and questions in an encoder's feature space.

    Args:
        scheme: Gives the images.
        key: The owner's key.
        encoder: The model looked at.

    Returns:
        ``{"clean": [[x, y], …], "triggered": [[x, y], …]}`` on the two leading principal components of both together,
        features normalised to length 1, rounded to four decimals.
    """
    suspect = Suspect(encoder, HostKind.ENCODER, Access.FEATURES)
    images = {"clean": scheme.controls(key), "triggered": scheme.questions(key)}
    features = [torch.nn.functional.normalize(suspect.features(x.float() / 255), dim=1) for x in images.values()]
    joined = torch.cat(features).double()
    centred = joined - joined.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    plane = axes[:2] * axes[:2].sum(1, keepdim=True).sign()  # singular vectors have no sign of their own
    points = (centred @ plane.T).split([len(x) for x in features])
    return {name: [[round(v, 4) for v in p] for p in part.tolist()] for name, part in zip(images, points, strict=True)}
