"""What attackers with labelled images share: a classifier around whatever they stole."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from hallmark.core.access import HostKind
from hallmark.core.scheme import Images, Trainer
from hallmark.errors import ConfigError
from hallmark.models.classifier import Classifier
from hallmark.models.encoders import Encoder
from hallmark.optimisation import Training
from hallmark.tasks.probe import Probe

LABELLED_HOSTS = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
"""Kinds of host that labelled images can train."""
_BLOCK = 512


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


def label_rest(classifier: nn.Module, data: Images, known: Tensor) -> Images:
    """The same images with the labels of some, and a classifier's answers for labels of the others.

    Args:
        classifier: Maps images in [0, 1] to logits, in evaluation mode.
        data: The attacker's images.
        known: Places ``(K,)`` of those whose labels it has.
    """
    device = next(classifier.parameters()).device
    with torch.no_grad():
        blocks = torch.split(data.images, _BLOCK)
        labels = torch.cat([classifier(block.to(device).float() / 255).argmax(1).cpu() for block in blocks])
    labels[known] = data.labels[known]
    return replace(data, labels=labels)  # type: ignore[type-var]  # a data set, which is a dataclass


def retrain(
    model: nn.Module,
    data: Images,
    *,
    epochs: int,
    batch: int,
    training: Training,
    trainer: Trainer,
    generator: torch.Generator,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Train all of a damaged model in place, behind a head where it has none.

    Args:
        model: Encoder or classifier.
        data: The attacker's labelled images.
        epochs: Passes over them.
        batch: Images per step.
        training: Optimiser and schedule.
        trainer: Runs the loop.
        generator: Seeds the head, the order and the crops.
        after_step: Called after every optimiser step.

    Raises:
        ConfigError: See :func:`with_head`.
    """
    from hallmark.supervised import train_classifier  # Lightning, which planning does without

    classifier, _ = with_head(model, data, trainer=trainer, generator=generator)
    train_classifier(
        classifier,
        data,
        trained=classifier.parameters(),
        epochs=epochs,
        batch=batch,
        training=training,
        trainer=trainer,
        seed=generator.initial_seed(),
        after_step=after_step,
    )
