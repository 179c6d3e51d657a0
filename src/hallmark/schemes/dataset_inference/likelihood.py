"""How likely an encoder's features are under a mixture of Gaussians fitted to others of its features."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def log_likelihoods(fitted: Tensor, judged: Tensor, components: int, *, seed: int) -> Tensor:
    """Log-densities of features under a Gaussian mixture with diagonal covariances, all at length 1.

    Args:
        fitted: Features ``(N, D)`` that the mixture is fitted to, N at least ``components``.
        judged: Features ``(M, D)``.
        components: Number of Gaussians.
        seed: Of the fit's start.

    Returns:
        float64 ``(M,)``; zeros where features are not finite, or all the same: such a suspect shows nothing.
    """
    from sklearn.mixture import GaussianMixture  # takes a second to import

    if not (fitted.isfinite().all() and judged.isfinite().all()) or bool((fitted == fitted[0]).all()):
        return torch.zeros(len(judged), dtype=torch.float64)
    train, test = (F.normalize(features.double(), dim=1).numpy() for features in (fitted, judged))
    mixture = GaussianMixture(components, covariance_type="diag", max_iter=1000, random_state=seed % 2**32)
    return torch.from_numpy(np.asarray(mixture.fit(train).score_samples(test)))
