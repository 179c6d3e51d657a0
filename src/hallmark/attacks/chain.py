"""Several attacks, one after another."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from hallmark.components import identify, instantiate
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError


@dataclass(frozen=True)
class Chain(Attack):
    """Each attack sees what the one before it made, as a victim of its own; the strength is how many of them are made.

    What an attack makes is the attacker's to do with as it likes, so the first alone decides what must be seen of the
    stolen model: who extracts a copy by queries and then prunes it needs answers, not weights.

    Args:
        steps: Configurations of the attacks, each with ``_target_`` and all its fields, in order.
        length: How many of them are made, from the first; at least 1.
    """

    steps: list[dict[str, Any]]
    length: int

    name: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        if not 1 <= self.length <= len(self.steps) or int(self.length) != self.length:
            raise ConfigError(f"chain length must be a whole number of 1 … {len(self.steps)} steps, got {self.length}")
        # defaults and version spelled out, so that they are part of what identifies the attack
        object.__setattr__(self, "steps", [identify(attack) for attack in self._listed])

    @cached_property
    def _listed(self) -> list[Attack]:
        return [instantiate(settings, f"chain.steps[{place}]", Attack) for place, settings in enumerate(self.steps)]

    @property
    def attacks(self) -> list[Attack]:
        """Those that are made."""
        return self._listed[: int(self.length)]

    @property
    def hosts(self) -> frozenset[HostKind]:
        """Those of all that are made."""
        return frozenset.intersection(*(attack.hosts for attack in self.attacks))

    @property
    def access(self) -> Access:  # type: ignore[override]
        """That of the first."""
        return self.attacks[0].access

    def access_for(self, kind: HostKind) -> Access:
        """What the first needs to see of a victim of a kind."""
        return self.attacks[0].access_for(kind)

    @property
    def knows(self) -> frozenset[str]:
        """What any of them knows."""
        return frozenset.union(*(attack.knows for attack in self.attacks))

    @property
    def needs_labels(self) -> bool:
        """Where any of them does."""
        return any(attack.needs_labels for attack in self.attacks)

    def check_host(self, host: nn.Module) -> None:
        """Refuse a host that an attack refuses, up to the first that copies no weights: who knows what follows it?"""
        for attack in self.attacks:
            attack.check_host(host)
            if attack.access is not Access.WEIGHTS:
                break

    def images_used(self, images: int) -> int:
        """Those of the step that uses most; the others may use the same."""
        return max(attack.images_used(images) for attack in self.attacks)

    def work(self, images: int) -> float:
        """That of all that are made."""
        return sum(attack.work(images) for attack in self.attacks)

    @property
    def strength(self) -> float:
        """How many are made."""
        return float(self.length)

    @property
    def unit(self) -> str:
        """All that are listed, with their strengths."""
        return "steps of " + ", ".join(f"{a.name} {a.strength:g} {a.unit}" for a in self._listed)

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """What the last of them makes; a chain of one is that attack.

        Labels are withheld from each step that does not need them.
        """
        seed, kind = generator.initial_seed(), victim.kind
        for place, attack in enumerate(self.attacks):
            data = attacker_data if attack.needs_labels else attacker_data.unlabelled()
            rng = generator_for(seed, "step", place) if place else generator
            model = attack.apply(victim, data, trainer=trainer, generator=rng)
            if place + 1 < len(self.attacks):
                victim = Suspect(model, kind, self.attacks[place + 1].access_for(kind))
        return model
