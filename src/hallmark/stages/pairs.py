"""Which attacks are made on which marks, and why the others are not.

A pair that makes no sense is refused, unless the experiment says ``unfit: note``: then it is a cell of its tables that
holds the reason, so that every scheme can be listed with every attack.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from torch import nn

from hallmark.components import TARGET, identify, instantiate, locate
from hallmark.core import Attack, HostKind
from hallmark.errors import UnfitError
from hallmark.stages.checks import check_attack, check_hosts, check_scheme
from hallmark.stages.experiment import Mark, Unfit
from hallmark.stages.inputs import Config, attack_settings, by_own_kind, concerns, strengths

NOTE = "note"
"""The value of ``unfit`` under which pairs that make no sense are noted."""


@dataclass(frozen=True, eq=False)  # hashed by identity, so that methods can be cached
class Pairs:
    """The marks and attacks of an experiment.

    Args:
        config: The resolved configuration.
        listed: The marks that it lists.
        kind: What its hosts are.
        host: Builds an untrained host on torch's meta device.
    """

    config: Config
    listed: Collection[Mark]
    kind: HostKind
    host: Callable[[], nn.Module]

    @cached_property
    def marks(self) -> list[Mark]:
        """Those that hosts of the kind can bear.

        Raises:
            UnfitError: One cannot be borne, and that is refused, or none can.
        """
        misfits = {mark.name: self._cannot_bear(mark) for mark in self.listed}
        found = [mark for mark in self.listed if not misfits[mark.name]]
        for mark in self.listed:
            if misfits[mark.name] and (not found or self.config["unfit"] != NOTE):
                check_scheme(mark.scheme, self.kind)
        return found

    def on(self, mark: Mark) -> list[str]:
        """Names of the attacks that are made on a mark.

        Raises:
            ConfigError: One is misconfigured, or makes no sense and that is refused.
        """
        return [name for name in self.config["attacks"] if not (self._left_out(name, mark) or self._misfit(name, mark))]

    def unfit(self) -> Iterator[Unfit]:
        """The pairs that make no sense, where they are noted: of mark and verb, where no attack of the verb is made.

        Where some are, the others that do not work on the hosts are named in the reason.
        """
        for mark in self.listed if self.config["unfit"] == NOTE else ():
            if mark not in self.marks:
                yield Unfit(mark, "none", self._cannot_bear(mark))
                continue
            verbs = {name: self._class(name).name for name in self.config["attacks"]}
            made, said = {verbs[name] for name in self.on(mark)}, set[str]()
            for name, verb in verbs.items():
                left_out = self._left_out(name, mark)
                reason = left_out or self._misfit(name, mark)
                if reason and verb in made and not left_out:
                    yield Unfit(mark, verb, f"{name}: {reason}")
                elif reason and verb not in made | said:
                    said.add(verb)
                    yield Unfit(mark, verb, reason)

    @cache  # noqa: B019 - lives for one plan; building an attack takes a moment, and a plan asks often
    def attack(self, name: str, strength: float, mark: Mark) -> Attack:
        """An attack on a mark.

        Raises:
            ConfigError: It is misconfigured.
            UnfitError: It does not work on the hosts.
        """
        group = self.config["attacks"][name]
        where = f"attacks.{name} at {group['strength']}={strength:g}"
        attack: Attack = instantiate(attack_settings(group, strength, identify(mark.scheme)), where, Attack)
        check_attack(attack, self.kind, self.host)
        return attack

    def _class(self, name: str) -> type[Attack]:
        return locate(str(self.config["attacks"][name][TARGET]))

    def _cannot_bear(self, mark: Mark) -> str:
        try:
            check_scheme(mark.scheme, self.kind)
        except UnfitError as error:
            return error.reason
        return ""

    def _left_out(self, name: str, mark: Mark) -> str:
        """Why a group says that its attack is not made on a mark."""
        group = self.config["attacks"][name]
        if by_own_kind(group) and not mark.scheme.trains:
            return "puts a second mark of the same kind over the first by training, and this one is not trained in"
        return "" if concerns(group, mark.name) else f"is made on {', '.join(group['variants'])} alone"

    @cache  # noqa: B019
    def _misfit(self, name: str, mark: Mark) -> str:
        """Why an attack does not work on the hosts."""
        group = self.config["attacks"][name]
        try:
            if TARGET in group and isinstance(getattr(self._class(name), "hosts", None), frozenset):
                # the class says, and its settings may make no sense here
                check_hosts(self._class(name), self.kind, "attack")  # type: ignore[arg-type]
            for strength in strengths(group):
                self.attack(name, strength, mark)
        except UnfitError as error:
            if self.config["unfit"] != NOTE:
                raise
            return error.reason
        return ""
