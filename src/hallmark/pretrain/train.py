"""Pretraining an encoder by a recipe."""

from collections.abc import Iterable

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from hallmark.core.random import derive_seed
from hallmark.data.resident import ResidentBatches, TwoViews
from hallmark.models.encoders import Encoder
from hallmark.pretrain.base import ContrastiveModule
from hallmark.pretrain.byol import BYOL
from hallmark.pretrain.distributed import synchronise_batch_norm
from hallmark.pretrain.moco import MoCo
from hallmark.pretrain.recipe import HostRecipe, Recipe
from hallmark.pretrain.simclr import SimCLR
from hallmark.training import LightningTrainer

MODULES: dict[str, type[ContrastiveModule]] = {"simclr": SimCLR, "moco_v2": MoCo, "byol": BYOL}


def build_module(host: HostRecipe, recipe: Recipe, *, seed: int) -> ContrastiveModule:
    """A method around a fresh encoder; equal seeds give equal weights.

    Raises:
        ConfigError: The backbone is unknown.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        encoder = Encoder(host.backbone, host.width)
        return MODULES[recipe.method](
            encoder=encoder,
            views=TwoViews((recipe.first_view, recipe.second_view), seed=derive_seed(seed, "views")),
            optimisation=recipe.optimisation,
            batch=recipe.batch,
            **recipe.options,
        )


def pretrain(
    host: HostRecipe,
    recipe: Recipe,
    images: Tensor,
    *,
    trainer: LightningTrainer,
    seed: int,
    callbacks: Iterable[Callback] = (),
) -> nn.Module:
    """A pretrained encoder in evaluation mode.

    Args:
        host: Architecture.
        recipe: Method and schedule.
        images: uint8 ``(N, 3, H, W)``; no labels.
        trainer: Runs the loop, on one device or many.
        seed: Seeds weights, order and views.
        callbacks: What watches the training, such as online evaluation.
    """
    module = build_module(host, recipe, seed=seed)
    settings = trainer.settings
    if settings.devices > 1:
        synchronise_batch_norm(module, settings.accelerator)
    batches = ResidentBatches(images, batch=recipe.batch, seed=derive_seed(seed, "order"))
    trainer.fit(module, batches, epochs=recipe.epochs, callbacks=callbacks)
    encoder = Encoder(host.backbone, host.width)
    encoder.load_state_dict(module.encoder.state_dict())
    return encoder.eval()
