"""Making a host: the model that nobody has marked yet."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hallmark.core.random import derive_seed
from hallmark.core.scheme import Images
from hallmark.data.images import ImageSet
from hallmark.detection import train_detector
from hallmark.models.classifier import Classifier
from hallmark.models.detectors import ObjectDetector, fresh, pretrained
from hallmark.models.encoders import Encoder
from hallmark.pretrain.distributed import synchronise_batch_norm
from hallmark.pretrain.foreign import adopt_foreign
from hallmark.pretrain.monitor import OnlineEvaluation
from hallmark.pretrain.recipe import (
    UNTRAINED,
    AnyRecipe,
    DetectionRecipe,
    ForeignRecipe,
    HostRecipe,
    RestorationRecipe,
    SupervisedRecipe,
)
from hallmark.pretrain.train import pretrain
from hallmark.restoration import train_restorer
from hallmark.supervised import train_classifier
from hallmark.training import LightningTrainer


def make_host(
    host: HostRecipe,
    recipe: AnyRecipe,
    owner: ImageSet,
    *,
    trainer: LightningTrainer,
    seed: int,
    root: Path | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A trained host in evaluation mode.

    Args:
        host: Architecture.
        recipe: How it is trained, or whose weights it takes.
        owner: The owner's images; contrastive methods read their labels for the monitor alone.
        trainer: Runs the loop, on one device or many.
        seed: Seeds weights, order and views.
        root: Folder below which foreign weights are.

    Returns:
        The host, and what was measured on the way.
    """
    if isinstance(recipe, ForeignRecipe):
        return adopt_foreign(host, recipe, root=root, seed=seed), {}
    if isinstance(recipe, SupervisedRecipe):
        return train_supervised(host, recipe, owner, trainer=trainer, seed=seed), {}
    if isinstance(recipe, DetectionRecipe):
        return make_detector(host, recipe, owner, trainer=trainer, seed=seed), {}
    if isinstance(recipe, RestorationRecipe):
        network = recipe.architecture(host, owner.images.shape[-1])
        return train_restorer(network, recipe.pairs, owner, recipe.fit, trainer=trainer, seed=seed), {}
    monitor = OnlineEvaluation(owner)
    encoder = pretrain(host, recipe, owner.images, trainer=trainer, seed=seed, callbacks=[monitor])
    return encoder, {"knn_accuracy": monitor.measure(encoder)}


def train_supervised(
    host: HostRecipe, recipe: SupervisedRecipe, owner: Images, *, trainer: LightningTrainer, seed: int
) -> Classifier:
    """A classifier with a linear head, trained from fresh weights; equal seeds give equal classifiers."""
    classifier = fresh_classifier(host, owner.classes, seed=seed)
    training = fresh_classifier(host, owner.classes, seed=seed)
    if trainer.settings.devices > 1:
        synchronise_batch_norm(training, trainer.settings.accelerator)
    train_classifier(
        training,
        owner,
        trained=training.parameters(),
        epochs=recipe.epochs,
        batch=recipe.batch,
        training=recipe.training,
        view=recipe.view,
        trainer=trainer,
        seed=seed,
    )
    classifier.load_state_dict(training.state_dict())  # without what synchronises BatchNorm over ranks
    return classifier.eval()


def make_detector(
    host: HostRecipe, recipe: DetectionRecipe, owner: ImageSet, *, trainer: LightningTrainer, seed: int
) -> ObjectDetector:
    """A detector with published weights, or one trained from fresh weights; equal seeds give equal detectors."""
    size = owner.images.shape[-1]
    if recipe.weights == UNTRAINED:
        return fresh(host.backbone, owner.classes, size, host.width, seed=seed).eval()
    if recipe.weights:
        return pretrained(host.backbone, recipe.weights, owner.classes, size)
    detector, training = (fresh(host.backbone, owner.classes, size, host.width, seed=seed) for _ in range(2))
    if trainer.settings.devices > 1:
        synchronise_batch_norm(training, trainer.settings.accelerator)
    fields = {"epochs": recipe.epochs, "batch": recipe.batch, "training": recipe.training}
    train_detector(training, owner, **fields, trainer=trainer, seed=seed)  # type: ignore[arg-type]
    detector.load_state_dict(training.state_dict())  # without what synchronises BatchNorm over ranks
    return detector.eval()


def fresh_classifier(host: HostRecipe, classes: int, *, seed: int) -> Classifier:
    """An untrained classifier; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        return Classifier(Encoder(host.backbone, host.width), classes)
