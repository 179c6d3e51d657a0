"""A second mark over the first."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from omegaconf import OmegaConf
from torch import nn

from hallmark.components import identify, instantiate
from hallmark.core import Access, Attack, HostKind, Key, Scheme, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.models.layers import weight_layers


@dataclass(frozen=True)
class OverwriteAttack(Attack):
    """The adaptive attacker embeds a mark of its own, by the same scheme, starting from the stolen model.

    It draws its own key from its own images.

    Args:
        scheme: Configuration of the second mark, with ``_target_``; the owner's, for one who knows it.
        varied: Dotted name of the scheme's field that makes the attack stronger, e.g. ``bits``.
        amount: Its value; 0 leaves the model as it is.
        changes: What else the attacker sets otherwise, by dotted name.  A scheme that embeds from scratch has to be
            told to start from the stolen model, e.g. ``{embedding.situation: finetune}``.
        layer_field: Dotted name of the scheme's field that names the marked layer; empty for schemes without one.
        layer_known: Whether the attacker marks the layer that ``scheme`` names.  Otherwise it draws one of the victim's
            convolutions and linear layers, among those that can bear the second mark.
    """

    scheme: dict[str, Any]
    varied: str
    amount: float
    changes: dict[str, Any] = field(default_factory=dict)
    layer_field: str = ""
    layer_known: bool = True

    name: ClassVar[str] = "overwrite"
    access: ClassVar[Access] = Access.WEIGHTS

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise ConfigError(f"overwrite amount must be a finite number of at least 0, got {self.amount}")
        if not self.varied:
            raise ConfigError("overwrite needs varied, the scheme's field that amount sets, e.g. bits; got ''")
        if not (self.layer_known or self.layer_field):
            raise ConfigError("overwriting an unknown layer needs layer_field, the scheme's field that names the layer")
        # defaults and version spelled out, so that they are part of what identifies the attack
        object.__setattr__(self, "scheme", identify(self._second))

    @cached_property
    def _second(self) -> Scheme:
        """The scheme of the second mark, as strong as asked."""
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return changed_scheme(self.scheme, self.changes | ({self.varied: amount} if amount else {}))

    @property
    def hosts(self) -> frozenset[HostKind]:
        """Those of the scheme."""
        return self._second.hosts

    @property
    def needs_labels(self) -> bool:
        """Where the scheme does."""
        return self._second.uses_labels

    @property
    def knows(self) -> frozenset[str]:
        """The scheme, and the layer unless it is drawn."""
        return frozenset({"scheme", "layer"} if self.layer_field and self.layer_known else {"scheme"})

    def work(self, images: int) -> float:
        """That of embedding."""
        return self._second.embedding_work(images)

    @property
    def strength(self) -> float:
        """The field's value."""
        return self.amount

    @property
    def unit(self) -> str:
        """Scheme and field, and the layer where it is given, or that it is unknown."""
        place = f" in {getattr(self._second, self.layer_field)}" if self.layer_field else ""
        return f"{self._second.name} {self.varied}" + (place if self.layer_known else " layer unknown")

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The model with the second mark; its key is forgotten."""
        model = victim.weights_module()
        if not self.amount:
            return model
        seed = generator.initial_seed()
        scheme, key = self._drawn(model, attacker_data, seed)
        rng = generator_for(seed, "embed")
        return scheme.embed(model, key, attacker_data, trainer=trainer, generator=rng)[0].eval()

    def _drawn(self, model: nn.Module, data: Images, seed: int) -> tuple[Scheme, Key]:
        """The first scheme, over the layers in question, that takes the model, with a fresh key.

        Raises:
            ConfigError: No layer can bear the mark; says why the last one cannot.
        """
        refusal = None
        for scheme in self._candidates(model, seed):
            try:
                scheme.check(data.images.shape[-1], len(data))
                return scheme, scheme.keygen(model, data, generator=generator_for(seed, "key"))
            except ConfigError as error:  # such as a layer too small for so many bits
                refusal = error
        raise ConfigError(f"the second mark does not fit the stolen model: {refusal}")

    def _candidates(self, model: nn.Module, seed: int) -> Iterator[Scheme]:
        if self.layer_known:
            yield self._second
            return
        names = list(weight_layers(model))
        for place in torch.randperm(len(names), generator=generator_for(seed, "layer")).tolist():
            yield changed_scheme(self.scheme, {self.layer_field: names[place]})


def changed_scheme(config: Mapping[str, Any], changes: Mapping[str, Any]) -> Scheme:
    """A configured scheme with some fields changed, nested ones by their dotted names."""
    changed = OmegaConf.create(dict(config))
    for name, value in changes.items():
        OmegaConf.update(changed, name, value)
    found: Scheme = instantiate(cast("dict[str, Any]", OmegaConf.to_container(changed)), "overwrite.scheme", Scheme)
    return found
