"""Heads on cached features: many are trained as one batched problem."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hallmark.models.classifier import head as build_head


@dataclass(frozen=True)
class HeadRecipe:
    """How heads are trained: Adam with a cosine schedule on standardised features, the best rate by held-out accuracy.

    Args:
        hidden: Widths of hidden ReLU layers; none gives a linear probe.
        rates: Learning rates, all trained at once.
        epochs: Passes over the training features.
        batch: Features per step.
        weight_decay: Decoupled weight decay.
        held_out: Share of the training features that chooses the rate, 0 … 1.
    """

    hidden: tuple[int, ...] = ()
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    epochs: int = 30
    batch: int = 512
    weight_decay: float = 1e-4
    held_out: float = 0.1


def train_head(
    features: Tensor, labels: Tensor, classes: int, recipe: HeadRecipe, *, generator: torch.Generator
) -> nn.Sequential:
    """The best of the heads that ``recipe`` trains together.

    Args:
        features: float32 ``(N, D)``.
        labels: int64 ``(N,)``.
        classes: Number of classes C.
        recipe: Architecture and training.
        generator: Draws initial weights, batches and the held-out share.

    Returns:
        A head ``(B, D) → (B, C)`` on raw features; standardisation is folded into its first layer.
    """
    mean, std = features.mean(0), features.std(0)
    # a nearly dead feature is not blown up to the size of the others: its first stir would drown them all
    std = std.clamp_min(0.1 * std.square().mean().sqrt()).clamp_min(1e-6)
    order = torch.randperm(len(features), generator=generator)
    held = order[: max(1, int(recipe.held_out * len(features)))]
    train = order[len(held) :]
    x, y = (features[train] - mean) / std, labels[train]
    layers = _initial(features.shape[1], classes, recipe, generator)
    _descend(layers, x, y, recipe, generator)
    with torch.no_grad():
        answers = _forward(layers, (features[held] - mean) / std).argmax(-1)
        best = int((answers == labels[held]).float().mean(1).argmax())
    return _fold([(w[best], b[best, 0]) for w, b in layers], mean, std, recipe.hidden)


Layer = tuple[Tensor, Tensor]
"""Weights ``(P, inputs, outputs)`` and biases ``(P, 1, outputs)`` of one layer of all P heads."""


def _initial(inputs: int, classes: int, recipe: HeadRecipe, generator: torch.Generator) -> list[Layer]:
    layers = []
    for fan_in, fan_out in itertools.pairwise([inputs, *recipe.hidden, classes]):
        # one draw shared by all rates, so that they differ in the rate alone
        weight = torch.randn(1, fan_in, fan_out, generator=generator) * (2 / fan_in) ** 0.5 * (0.1 if not layers else 1)
        weight = weight.repeat(len(recipe.rates), 1, 1).requires_grad_()
        layers.append((weight, torch.zeros(len(recipe.rates), 1, fan_out, requires_grad=True)))
    return layers


def _forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Answers ``(P, B, outputs)`` of all heads to the same features ``(B, inputs)``."""
    weight, bias = layers[0]
    joint = weight.transpose(0, 1).flatten(1)  # side by side: one wide product is much faster than P narrow ones
    answers = torch.addmm(bias.flatten(), x, joint).unflatten(1, (len(weight), -1)).transpose(0, 1)
    for weight, bias in layers[1:]:
        answers = torch.baddbmm(bias, torch.relu(answers), weight)
    return answers


def _descend(layers: list[Layer], x: Tensor, y: Tensor, recipe: HeadRecipe, generator: torch.Generator) -> None:
    """Adam with decoupled decay for P heads at once; each head has its own rate, which no torch optimiser offers."""
    rates = torch.tensor(recipe.rates).view(-1, 1, 1)
    count = len(recipe.rates)
    parameters = [tensor for layer in layers for tensor in layer]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    batch = min(recipe.batch, len(x))
    steps = recipe.epochs * (len(x) // batch)
    step = 0
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].view(-1, batch):
            logits = _forward(layers, x[rows])
            loss = F.cross_entropy(logits.flatten(0, 1), y[rows].repeat(count), reduction="sum") / batch
            gradients = torch.autograd.grad(loss, parameters)
            rate = rates * 0.5 * (1 + torch.cos(torch.tensor(step / steps * torch.pi)))
            step += 1
            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    m.lerp_(g, 0.1)
                    v.lerp_(g * g, 0.001)
                    update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                    p.sub_(rate * (update + recipe.weight_decay * p))


def _fold(layers: list[tuple[Tensor, Tensor]], mean: Tensor, std: Tensor, hidden: Sequence[int]) -> nn.Sequential:
    weight, bias = layers[0]
    layers[0] = (weight / std[:, None], bias - (mean / std) @ weight)
    module = build_head(len(mean), layers[-1][0].shape[1], hidden)
    linears = [m for m in module if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for linear, (w, b) in zip(linears, layers, strict=True):
            linear.weight.copy_(w.T)
            linear.bias.copy_(b)
    return module
