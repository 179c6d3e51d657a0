"""Pruning of whole filters: the smallest (Li et al. 2017), or those that clean images hardly wake (Fine-Pruning)."""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.attacks.hearing import heard
from hallmark.attacks.labelled import LABELLED_HOSTS, retrain
from hallmark.attacks.prune import apply_masks
from hallmark.attacks.remove import remove
from hallmark.attacks.sample import draw_images
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.channels import Axis, Group, channelwise
from hallmark.models.encoders import Encoder
from hallmark.models.layers import weight_layers
from hallmark.models.tracing import channel_groups
from hallmark.optimisation import Training, require_batch

CRITERIA = ("l1", "activation")


@dataclass(frozen=True)
class PruneFilters(Attack):
    """Remove a share of the filters of every convolution, or of the last ones, then train what is left, if asked.

    A filter goes with its bias, its BatchNorm and whatever reads its channel.  Convolutions whose outputs a residual
    network adds up lose the same channels: Li et al. (2017, §3.3) go by the norms of the shortcut's, here all add up.

    ``activation`` with ``last=1`` and retraining is Fine-Pruning (Liu et al. 2018).

    Args:
        fraction: Share of a layer's filters that goes, 0 … 1.
        by: What goes first: ``l1`` those whose weights have the least sum of magnitudes, ``activation`` those whose
            channel is least active on average on the attacker's images.
        last: How many convolutions, counted from the last, are pruned; those that share channels are one.  0 for all.
        images: The attacker's images, without labels, that ``activation`` looks at.
        retrain_epochs: Epochs of training on the attacker's labelled images afterwards; 0 for none.
        lr: Peak learning rate of the retraining.
        batch: Images per step of the retraining.
    """

    fraction: float
    by: str = "l1"
    last: int = 0
    images: int = 256
    retrain_epochs: int = 0
    lr: float = 1e-3
    batch: int = 128

    name: ClassVar[str] = "prune"
    hosts: ClassVar[frozenset[HostKind]] = LABELLED_HOSTS
    access: ClassVar[Access] = Access.WEIGHTS

    def __post_init__(self) -> None:
        if self.by not in CRITERIA:
            raise ConfigError(allowed(self.by, CRITERIA, "criterion to prune filters by"))
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"prune fraction must lie in 0 … 1, got {self.fraction}")
        if min(self.last, self.retrain_epochs) < 0 or self.images < 1:
            raise ConfigError(
                "pruning filters needs last and retrain_epochs of at least 0 and images of at least 1, got "
                f"{self.last}, {self.retrain_epochs} and {self.images}"
            )
        require_batch(self.batch, "prune")

    def check_host(self, host: nn.Module) -> None:
        """Refuse a host whose channels cannot be followed, or that has fewer convolutions."""
        self._layers(deepcopy(host).eval())

    @property
    def needs_labels(self) -> bool:
        """Where training follows."""
        return bool(self.retrain_epochs)

    def images_used(self, images: int) -> int:
        """All where training follows; else those that ``activation`` looks at."""
        if self.retrain_epochs:
            return images
        return self.images if self.by == "activation" else 0

    @property
    def strength(self) -> float:
        """Share of the filters."""
        return self.fraction

    @property
    def unit(self) -> str:
        """The criterion, where, and whether training follows."""
        where = f" of the last {self.last}" if self.last else ""
        return f"fraction of filters {self.by}{where}" + (" retrained" if self.retrain_epochs else "")

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The model without those filters, which stay away through retraining.

        Raises:
            ConfigError: Its channels cannot be followed, or the attacker has fewer images.
        """
        model = victim.weights_module()
        if not self.fraction:
            return model
        groups = self._layers(model)
        if self.by == "activation":
            rows = draw_images(attacker_data, self.images, "prune.images", generator=generator)
            scores = [found.mean for found in heard(model, groups, attacker_data.images[rows])]
        else:
            scores = [magnitudes(model, group) for group in groups]
        masks = []
        for group, score in zip(groups, scores, strict=True):
            gone = torch.zeros(group.size, dtype=torch.bool)
            gone[score.argsort(stable=True)[: round(self.fraction * group.size)]] = True
            masks += remove(model, group, gone)
        if self.retrain_epochs:
            retrain(
                model,
                attacker_data,
                epochs=self.retrain_epochs,
                batch=self.batch,
                training=Training(lr=self.lr, weight_decay=0.0),
                trainer=trainer,
                generator=generator,
                after_step=lambda: apply_masks(masks),
            )
        return model.eval()

    def _layers(self, model: nn.Module) -> list[Group]:
        """The channels of the convolutions in question."""
        groups = filters(model)
        if len(groups) < max(1, self.last):
            raise ConfigError(
                f"prune last={self.last} asks for more convolutions than the {len(groups)} whose channels can be "
                f"followed in this {type(model).__name__}; lower it or prune weights"
            )
        chosen = groups[-self.last :]  # all for 0
        features = {module.num_features for module in model.modules() if isinstance(module, Encoder)}
        deaf = [g for g in chosen if not (g.consumers or (g is groups[-1] and {g.size} == features))]
        if self.by == "activation" and deaf:
            raise ConfigError(
                f"how active the channels of {len(deaf)} of {len(chosen)} convolutions are cannot be heard: no layer "
                "is known to read them; set prune last=1 or by=l1"
            )
        return chosen


def filters(model: nn.Module) -> list[Group]:
    """The channels that convolutions make, by the place of the last convolution that makes them.

    Raises:
        ConfigError: They cannot be followed; see :func:`hallmark.models.tracing.channel_groups`.
    """
    order = {f"{name}.weight": place for place, name in enumerate(weight_layers(model))}
    found = [group for group in channel_groups(model) if _convolutions(model, group)]
    return sorted(found, key=lambda group: max(order[axis.tensor] for axis in _convolutions(model, group)))


def magnitudes(model: nn.Module, group: Group) -> Tensor:
    """Sums of magnitudes ``(C,)`` of the weights of the convolutions that make each channel of a group."""
    norms = [
        channelwise(model.get_parameter(axis.tensor).detach().cpu(), axis).abs().flatten(1).sum(1)
        for axis in _convolutions(model, group)
    ]
    return torch.stack(norms).sum(0)


def _convolutions(model: nn.Module, group: Group) -> list[Axis]:
    """The weights of convolutions among what makes the channels of a group."""
    return [axis for axis in group.producers if model.get_parameter(axis.tensor).ndim == 4]
