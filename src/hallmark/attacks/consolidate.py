"""Elastic weight consolidation: weights that a stolen network's answers hang on are held to where they were."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGES = 1000
"""Images that the Fisher information is estimated on, or all there are; the default of the authors' program."""


class Consolidation:
    """REFIT's elastic weight consolidation (Chen et al. 2021, after Kirkpatrick et al. 2017), as a penalty.

    ½ λ Σ F_i (θ_i − θ*_i)², where θ* are the weights at the beginning and F_i their Fisher information in units of the
    largest.  As in the authors' program λ F_i is at most 1 / learning rate: a step then leads no further than back.

    Args:
        parameters: What is trained, and is held from now on.
        information: Their Fisher information, of the same shapes; see :func:`fisher`.
        strength: λ.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], information: Sequence[Tensor], strength: float) -> None:
        self.parameters = list(parameters)
        self.information = list(information)
        self.strength = strength
        self.start = [parameter.detach().clone() for parameter in parameters]

    def __call__(self, lr: float) -> Tensor:
        """The penalty at a learning rate."""
        most = 1 / lr if lr > 0 else math.inf
        terms = []
        for parameter, information, start in zip(self.parameters, self.information, self.start, strict=True):
            stiffness = (self.strength * information.to(parameter.device)).clamp_max(most)
            terms.append((stiffness * (parameter - start.to(parameter.device)).square()).sum())
        return torch.stack(terms).sum() / 2 if terms else torch.zeros(())


def fisher(
    classifier: nn.Module, parameters: Sequence[nn.Parameter], images: Tensor, *, generator: torch.Generator
) -> list[Tensor]:
    """The diagonal of a classifier's Fisher information, in units of its largest entry.

    For each image one answer is drawn from the classifier's own posterior; entries are mean squares of the gradient of
    that answer's log probability.  No label is used.

    Args:
        classifier: Maps images in [0, 1] to logits, in evaluation mode; left as it is.
        parameters: Those of its parameters that are asked about.
        images: uint8 ``(N, 3, H, W)``.
        generator: Draws the answers.

    Returns:
        In the parameters' shapes, 0 … 1; all zero where no answer depends on any.
    """
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    device = parameters[0].device
    for image in images:
        with torch.enable_grad():
            posterior = classifier(image[None].to(device).float() / 255).float().log_softmax(1)[0]
            drawn = torch.multinomial(posterior.detach().exp().cpu(), 1, generator=generator)
            gradients = torch.autograd.grad(posterior[int(drawn)], parameters, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient.square()
    largest = max(float(total.max()) for total in sums)
    return [total / largest for total in sums] if largest > 0 else sums
