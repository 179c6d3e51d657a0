"""What stages cost, for estimates: images through the network, a backward pass counting double.

The unit is an image of 32x32 pixels through ``resnet_small`` of width 16, forward, while it trains in batches of
hundreds.  Other networks count by the root of their multiplications: small ones keep a processor less busy than large
ones.  What finished stages have really taken then corrects the estimate; see :func:`hallmark.stages.runner.survey`.
"""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.core import QueryScheme, Scheme, Task
from hallmark.stages.graph import Stage
from hallmark.stages.inputs import Config, len_of

UNIT = 32.3e6
"""Floating point operations for one image in the convolutions and linear layers of the network that is the unit."""

STEP = 40.0
"""Units that a pass of any batch costs beside its images."""
ASKED = 0.5
"""Units per unit of the network where it is only asked, in large batches and without gradients."""

_ROLES = ("attack", "scheme", "task", "survey", "detector")


_weights: dict[tuple[str, int], float] = {}


def weight(host: nn.Module, side: int) -> float:
    """Units for one image in a network, beside others in a large batch; 1 for one that cannot be tried without weights.

    Args:
        host: The network, on torch's meta device.
        side: Height and width of its images.
    """
    known = str(host), side  # a sweep asks for the same network at every seed
    if known not in _weights:
        _weights[known] = _weight(host, side)
    return _weights[known]


def _weight(host: nn.Module, side: int) -> float:
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * module.weight[0].numel()  # type: ignore[index]

    tried = (
        deepcopy(host).to_empty(device="cpu").eval()
    )  # on the meta device it would import torch's compiler: a second
    layers = [module for module in tried.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(count)
    try:
        with torch.no_grad():
            tried(torch.zeros(1, 3, side, side))
    except (NotImplementedError, RuntimeError):  # such as one whose way depends on its numbers
        return 1.0
    return math.sqrt(total / UNIT)


def transfer(task: Task, train: Config, test: Config) -> float:
    """Units per unit of the network that a task costs: features once, and epochs of training; or the test set alone."""
    tested = ASKED * len_of(test) * getattr(task, "patches", 1)
    return tested if task.native else tested + len_of(train) * (ASKED + 3 * getattr(task, "epochs", 0))


def verify(scheme: Scheme, keys: int) -> float:
    """Units per unit of the network that looking for several keys costs: each asks, or one asks for all."""
    return ASKED * getattr(scheme, "queries", 1) * (keys if isinstance(scheme, QueryScheme) else 1)


def component(stage: Stage) -> str:
    """What a stage of its kind is about: the class of its attack, scheme, task and so on; empty for pretraining."""
    named: list[dict[str, Any]] = [stage.config[role] for role in _ROLES if role in stage.config]
    return str(named[0]["_target_"]) if named else ""
