"""What an experiment must not be: refused while planning, before hours go into what fails or can never succeed."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import nn

from hallmark.core import Access, Attack, Detector, HostKind, Scheme, Survey, Task
from hallmark.core.access import LEVELS
from hallmark.errors import ConfigError, UnfitError, allowed
from hallmark.models.torchvision_nets import required_size
from hallmark.pretrain.recipe import FOREIGN, METHODS, HostRecipe, RestorationRecipe
from hallmark.stages.experiment import Mark, Subject
from hallmark.stages.inputs import Config, host_data, len_of, native_data, variants

DOWNSTREAM_ACCESS = frozenset({Access.LOGITS, Access.LABELS})
"""What an owner may see of a model that somebody built on an encoder."""


def check_experiment(config: Config, marks: Collection[Mark], host: Callable[[], nn.Module]) -> None:
    """Refuse an experiment whose parts do not fit together.

    Args:
        config: The resolved configuration.
        marks: The schemes it compares, as far as they mark hosts of its kind.
        host: Builds an untrained host on torch's meta device.

    Raises:
        ConfigError: Something is missing, unknown, or could never be detected.
    """
    calibration = config["calibration"]
    if not config["tasks"]:
        raise ConfigError("the experiment names no task; add e.g. +task@tasks.knn=knn")
    for name in config["attacked_tasks"]:
        if name not in config["tasks"]:
            raise ConfigError(allowed(name, config["tasks"], "attacked_tasks entry"))
    for kind_of_innocent in ("extra_seeds", "outsiders"):
        _check_innocents(f"calibration.{kind_of_innocent}", calibration[kind_of_innocent])
    known = {mark.name for mark in marks} | variants(config).keys()
    for part, needed in (("attacks", "_target_, strength and strengths"), ("surveys", "_target_")):
        for name, group in config[part].items():
            if not isinstance(group, Mapping):
                raise ConfigError(f"{part}.{name} is {group!r}; give its {needed}")
            for variant in group.get("variants") or []:
                if variant not in known:
                    raise ConfigError(allowed(variant, sorted(known), f"{part}.{name}.variants entry"))
    size = required_size(config["host"]["backbone"])
    if size not in (None, config["data"]["size"]):
        raise ConfigError(f"host {config['host']['backbone']!r} takes {size}x{size} images only; set data.size={size}")
    for mark in marks:
        check_attainable(mark, calibration["decoys"], config["alpha"])
        mark.scheme.check(config["data"]["size"], len_of(host_data(config, "owner")))
        if mark.scheme.uses_unseen:
            mark.scheme.check_unseen(len_of(native_data(config)[1]))
        if type(mark.scheme).check_host is not Scheme.check_host:  # building a host takes a moment
            mark.scheme.check_host(host())


def _check_innocents(where: str, numbers: Config) -> None:
    """Refuse numbers of further innocents, by way of training, that make no sense."""
    for name, number in numbers.items():
        if name not in METHODS:
            raise ConfigError(allowed(name, METHODS, f"{where} entry"))
        if not isinstance(number, int) or number < 0:
            raise ConfigError(f"{where}.{name} must be a whole number of at least 0, got {number!r}")
        if name == FOREIGN:
            raise ConfigError(f"there is one foreign host, and no other seed of it; remove {where}.foreign")


def check_attainable(mark: Mark, decoys: int, alpha: float) -> None:
    """Refuse a mark that could never be detected: its rank among so few decoys gives no p-value up to alpha."""
    if mark.scheme.chance is not None:
        return
    most = mark.scheme.most_decoys
    there, why, what = decoys, f"calibration.decoys={decoys}", "the decoys"
    if most is not None and most < decoys:
        there, why, what = most, f"the {most} decoys that {mark.label} has", "their number"
    smallest = 1 / (there + 1)
    if smallest > alpha * (1 + 1e-9):
        raise ConfigError(
            f"with {why} no p-value can fall below {smallest:.3g}, so nothing is ever detected at alpha={alpha:g}; "
            f"raise {what} or alpha"
        )


def check_batch(where: str, batch: int, part: str, images: int, devices: int) -> None:
    """Refuse a batch that is larger than the data, or that devices cannot share."""
    if batch > images:
        raise ConfigError(f"{where}.batch={batch} exceeds the {part}'s {images} images; lower the batch")
    if batch % devices:
        raise ConfigError(f"{where}.batch={batch} cannot be shared by trainer.devices={devices}; make it a multiple")


def check_restoration(recipe: RestorationRecipe, where: str, host: HostRecipe, size: int, devices: int) -> None:
    """Refuse a host whose network does not fit its patches or images, or that several devices would train."""
    recipe.architecture(host, size)
    if devices > 1:
        raise ConfigError(f"{where} does not share its normalisation between devices; set trainer.devices=1")


def check_scheme(scheme: Scheme, kind: HostKind) -> None:
    """Refuse a scheme that does not mark hosts of a kind, or whose mark nobody could look for there."""
    if kind not in scheme.hosts:
        raise UnfitError(f"marks {_kinds(scheme.hosts)}, but the host is {kind.one}", f"scheme {scheme.name!r}")
    downstream = DOWNSTREAM_ACCESS if kind is HostKind.ENCODER else frozenset()
    if not scheme.access & (LEVELS[kind] | downstream):
        raise UnfitError(
            f"is verified at {_names(scheme.access)}, which {kind.one} does not offer", f"scheme {scheme.name!r}"
        )


def check_hosts(component: Attack | Detector | Task | Survey, kind: HostKind, what: str) -> None:
    """Refuse an attack, detector, task or survey that does not work on hosts of a kind."""
    if kind not in component.hosts:
        raise UnfitError(
            f"works on {_kinds(component.hosts)}, but the host is {kind.one}", f"{what} {component.name!r}"
        )


def check_attack(attack: Attack, kind: HostKind, host: Callable[[], nn.Module]) -> None:
    """Refuse an attack that does not work on hosts of a kind, needs to see what they do not show, or misfits the host.

    Args:
        attack: The attack with its settings.
        kind: What the hosts are.
        host: Builds an untrained host on torch's meta device.

    Raises:
        UnfitError: One of these.
    """
    check_hosts(attack, kind, "attack")
    access = attack.access_for(kind)
    if access not in LEVELS[kind]:
        raise UnfitError(f"needs {access}, which {kind.one} does not offer", f"attack {attack.name!r}")
    if type(attack).check_host is not Attack.check_host:  # building a host takes a moment
        try:
            attack.check_host(host())
        except ConfigError as error:
            raise UnfitError(str(error)) from None


def check_survey(
    survey: Survey, label: str, marks: Collection[Mark], kind: HostKind, host: Callable[[], nn.Module]
) -> None:
    """Refuse a survey that does not look at hosts of a kind, or at nothing that the experiment marks."""
    check_hosts(survey, kind, "survey")
    if not marks:
        about = ", ".join(sorted(survey.schemes))
        raise ConfigError(f"surveys.{label} is about {about}, and the experiment has no such mark; take it out")
    if type(survey).check_host is not Survey.check_host:
        survey.check_host(host())


def check_distinct(subjects: Iterable[Subject]) -> None:
    """Refuse two models that result rows could not tell apart."""
    seen: dict[tuple[object, ...], Subject] = {}
    for subject in subjects:
        # rows of what bears no mark do not say whose key it was measured for
        mark = (subject.mark.scheme.name, subject.mark.variant) if subject.suspect == "marked" else ()
        place = (*mark, subject.pretrain, subject.host, subject.suspect, subject.attack, subject.unit, subject.strength)
        if seen.setdefault(place, subject).stage.key != subject.stage.key:
            raise ConfigError(
                f"two attacks are called {subject.attack} {subject.strength:g} {subject.unit} and differ in what that "
                "does not say; put them into experiments of different names"
            )


def _kinds(kinds: Iterable[HostKind]) -> str:
    """Kinds of host in words: ``classifiers and encoders``."""
    *others, last = sorted(kind.many for kind in kinds)
    return f"{', '.join(others)} and {last}" if others else last


def _names(values: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, values)))
