"""What attackers with labelled images share: a classifier around whatever they stole."""

from copy import deepcopy

import torch
from torch import nn

from hallmark.core.scheme import Images, Trainer
from hallmark.errors import ConfigError
from hallmark.models.classifier import Classifier
from hallmark.models.encoders import Encoder
from hallmark.tasks.probe import Probe


def with_head(
    model: nn.Module, data: Images, *, trainer: Trainer, generator: torch.Generator
) -> tuple[nn.Module, nn.Module]:
    """A classifier that trains ``model`` in place, and its last layer or stage.

    A stolen classifier comes as it is; its last layer is its head.  A stolen encoder gets a head probed on its
    features, so that training starts from a working classifier; its last layer is its last stage.

    Args:
        model: Encoder or classifier, shared with the result.
        data: The attacker's labelled images.
        trainer: Passed on to the probe.
        generator: Draws the probe's weights.

    Raises:
        ConfigError: The model is neither, or the data has other classes than the stolen classifier.
    """
    if isinstance(model, Classifier):
        if model.classes != data.classes:
            raise ConfigError(f"the victim answers {model.classes} classes, the attacker's data has {data.classes}")
        return model, model.head
    if isinstance(model, Encoder):
        classifier = Probe().transfer(model, data, trainer=trainer, generator=generator)
        return classifier, model.last_stage()
    raise ConfigError(f"cannot train a {type(model).__name__} on labels; allowed: Encoder, Classifier")


def reinitialise(module: nn.Module, *, generator: torch.Generator) -> None:
    """Give a module the weights of a fresh copy of itself, from the generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        fresh = deepcopy(module)
        for part in fresh.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()  # type: ignore[operator]
    module.load_state_dict(fresh.state_dict())
