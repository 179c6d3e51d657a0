"""From a composed configuration to the graph of one experiment."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

from hallmark.components import build, identify, instantiate
from hallmark.core import Access, Attack, HostKind, Scheme, Task
from hallmark.core.access import LEVELS
from hallmark.errors import ConfigError, allowed
from hallmark.pretrain.recipe import METHODS, HostRecipe, Recipe
from hallmark.stages.graph import Stage, in_order
from hallmark.training_settings import TrainerSettings

Config = Mapping[str, Any]
Fingerprint = Callable[[str], str]

DOWNSTREAM_ACCESS = (Access.LOGITS, Access.LABELS)
"""What an owner may see of a model somebody built on the encoder; the encoder itself is judged at FEATURES."""


@dataclass(frozen=True)
class Subject:
    """One model under the microscope, with everything its result rows say about it.

    Args:
        stage: Makes the encoder.
        mark: The embed stage whose key it is judged by.
        suspect: ``marked``, ``original``, ``innocent`` or ``attacked_innocent``.
        pretrain: Algorithm of the marked encoder it is compared with.
        host: Architecture, and for innocents how they came about.
        attack: Verb, or ``none``.
        strength: In ``unit``; 0 where nothing was done.
        unit: What the strength counts.
        transfers: Downstream models by (data set, task).
        verify: Judges it.
    """

    stage: Stage
    mark: Stage
    suspect: str
    pretrain: str
    host: str
    attack: str
    strength: float
    unit: str
    transfers: Mapping[tuple[str, str], Stage]
    verify: Stage


@dataclass(frozen=True)
class Experiment:
    """One experiment at one seed and scale.

    Args:
        config: The resolved configuration.
        scheme: Name of the scheme.
        subjects: The models it looks at.
    """

    config: Config
    scheme: str
    subjects: tuple[Subject, ...]

    @property
    def dataset(self) -> str:
        """What the hosts are pretrained on, by the name that rows carry."""
        return source_name(self.config, self.config["data"]["name"])

    @property
    def stages(self) -> list[Stage]:
        """Every stage, inputs first."""
        return in_order(stage for subject in self.subjects for stage in (*subject.transfers.values(), subject.verify))


def plan(config: Config, fingerprint: Fingerprint) -> Experiment:
    """The graph of an experiment.

    Args:
        config: The resolved configuration as plain containers; see ``conf/``.
        fingerprint: Digest of a data set by name.

    Raises:
        ConfigError: A component is unknown or mistyped, or a pair makes no sense.
    """
    return _Planner(config, fingerprint).experiment()


@dataclass(frozen=True, eq=False)  # hashed by identity, so that methods can be cached
class _Planner:
    config: Config
    fingerprint: Fingerprint

    @cached_property
    def scheme(self) -> Scheme:
        """The scheme, checked against the host."""
        scheme = instantiate(self.config["scheme"], "scheme")
        _require(scheme, Scheme, "scheme")
        _check_scheme(scheme, HostKind.ENCODER)
        return scheme  # type: ignore[no-any-return]

    def experiment(self) -> Experiment:
        if not self.config["pretrains"]:
            raise ConfigError("the experiment names no pretraining; add e.g. /pretrain@pretrains.simclr: simclr")
        self._check()
        subjects = tuple(self._subjects())
        _check_distinct(subjects)
        return Experiment(self.config, self.scheme.name, subjects)

    def _check(self) -> None:
        """Refuse now what would fail, or could never succeed, after hours."""
        config, calibration = self.config, self.config["calibration"]
        if not config["downstreams"] or not config["tasks"]:
            raise ConfigError("the experiment names no downstream set or no task; add e.g. +task@tasks.knn=knn")
        for name in config["attacked_tasks"]:
            if name not in config["tasks"]:
                raise ConfigError(allowed(name, config["tasks"], "attacked_tasks entry"))
        for name in calibration["extra_seeds"]:
            if name not in METHODS:
                raise ConfigError(allowed(name, METHODS, "calibration.extra_seeds entry"))
        attainable = 1 / (calibration["decoys"] + 1)
        if self.scheme.chance is None and attainable > config["alpha"] * (1 + 1e-9):
            raise ConfigError(
                f"with calibration.decoys={calibration['decoys']} no p-value can fall below {attainable:.3g}, so "
                f"nothing is ever detected at alpha={config['alpha']:g}; raise the decoys or alpha"
            )
        self.scheme.check(config["data"]["size"], len_of(host_data(config, "owner")))

    def _subjects(self) -> Iterator[Subject]:
        seed, calibration = self.config["seed"], self.config["calibration"]
        originals = {name: self._pretrain(name, seed) for name in self.config["pretrains"]}
        for name, original in originals.items():
            mark = self._embed(original, name)
            shared = {"mark": mark, "pretrain": name}
            yield self._subject(mark, "marked", **shared)
            yield self._subject(original, "original", **shared)
            for other, stage in originals.items():
                if other != name:
                    yield self._subject(stage, "innocent", host=f"{other} seed {seed}", **shared)
            for extra in range(calibration["extra_seeds"].get(name, 0)):
                stranger = self._pretrain(name, seed + 1000 + extra)
                yield self._subject(stranger, "innocent", host=f"{name} seed {seed + 1000 + extra}", **shared)
            for attack, group in self.config["attacks"].items():
                strengths = _strengths(group)
                for strength in strengths:
                    yield self._attacked(mark, "marked", attack, strength, **shared)
                yield self._attacked(original, "attacked_innocent", attack, max(strengths), **shared)

    def _attacked(self, victim: Stage, suspect: str, name: str, strength: float, **shared: Any) -> Subject:
        attack = self._attack(name, strength)
        settings = identify(attack)
        data = host_data(self.config, "attacker")
        epochs = settings.get("epochs", 0) + settings.get("retrain_epochs", 0)
        stage = Stage(
            "attack",
            {"attack": settings, "data": data, "seed": self.config["seed"], **self._machine()},
            {"victim": victim},
            self._prints(data),
            f"{attack.name} {strength:g} {attack.unit} on {victim.label}",
            work=len_of(data) * (3 * epochs + 1),
        )
        return self._subject(stage, suspect, attack=attack.name, strength=attack.strength, unit=attack.unit, **shared)

    def _subject(
        self,
        stage: Stage,
        suspect: str,
        *,
        mark: Stage,
        pretrain: str,
        host: str = "",
        attack: str = "none",
        strength: float = 0.0,
        unit: str = "",
    ) -> Subject:
        backbone = self.config["host"]["backbone"]
        light = attack != "none" or suspect == "innocent"
        tasks = self.config["tasks"]
        chosen = [t for t in tasks if not light or t in self.config["attacked_tasks"]]
        transfers = {
            (source_name(self.config, down["name"]), task): self._transfer(stage, down, task)
            for down in self.config["downstreams"].values()
            for task in chosen
        }
        judged = {f"{d}/{t}": s for (d, t), s in transfers.items() if tasks[t].get("verified", True)}
        calibration = self.config["calibration"]
        trials = calibration["trials"] if attack == "none" or suspect == "attacked_innocent" else 0
        data = host_data(self.config, "owner")
        settings = {
            "scheme": identify(self.scheme),
            "decoys": calibration["decoys"],
            "trials": trials,
            "alpha": self.config["alpha"],
            "seed": self.config["seed"],
            "data": data,
        }
        apart = 1 + len({t for _, t in transfers if t == "finetune"}) * len(self.config["downstreams"])
        verify = Stage(
            "verify",
            settings,
            {"subject": stage, "mark": mark, **judged},
            self._prints(data),
            f"{stage.label}, by the key of {mark.label}",
            work=(calibration["decoys"] + trials) * getattr(self.scheme, "queries", 1) * apart,
        )
        label = f"{backbone} {host}".strip()
        return Subject(stage, mark, suspect, pretrain, label, attack, strength, unit, transfers, verify)

    def _pretrain(self, name: str, seed: int) -> Stage:
        recipe = self.config["pretrains"][name]
        built = build(Recipe, recipe, f"pretrains.{name}")
        host = build(HostRecipe, self.config["host"], "host")
        data = host_data(self.config, "owner")
        if built.batch > len_of(data):
            raise ConfigError(
                f"pretrains.{name}.batch={built.batch} exceeds the owner's {len_of(data)} images; lower the batch"
            )
        config = {"recipe": asdict(built), "host": asdict(host), "data": data, "seed": seed}
        settings = build(TrainerSettings, self.config["trainer"], "trainer")
        if built.batch % settings.devices:
            raise ConfigError(
                f"pretrains.{name}.batch={built.batch} cannot be shared by trainer.devices={settings.devices}; "
                "make it a multiple"
            )
        config["trainer"] = settings.semantic()
        label = f"{name} seed {seed}"
        return Stage("pretrain", config, {}, self._prints(data), label, work=len_of(data) * built.epochs * 7)

    def _embed(self, original: Stage, name: str) -> Stage:
        data = host_data(self.config, "owner")
        scheme = identify(self.scheme)
        config = {"scheme": scheme, "data": data, "seed": self.config["seed"], **self._machine()}
        epochs = scheme.get("embedding", {}).get("epochs", 0)
        label = f"{self.scheme.name} in {original.label}"
        return Stage("embed", config, {"host": original}, self._prints(data), label, work=len_of(data) * epochs * 11)

    def _transfer(self, stage: Stage, downstream: Config, task: str) -> Stage:
        settings = identify(self._task(task))
        train, test = self._downstream_data(downstream)
        config = {
            "task": settings,
            "train": train,
            "test": test,
            "seed": self.config["seed"],
            **self._machine(),
        }
        work = len_of(train) * (1 + 3 * settings.get("epochs", 0)) + len_of(test)
        label = f"{task} on {downstream['name']} of {stage.label}"
        return Stage("transfer", config, {"host": stage}, self._prints(train), label, work=work)

    @cache  # noqa: B019 - a planner lives for one plan; checking a task's types takes milliseconds, a plan asks often
    def _task(self, name: str) -> Task:
        settings = {k: v for k, v in self.config["tasks"][name].items() if k != "verified"}
        task = instantiate(settings, f"tasks.{name}")
        _require(task, Task, f"tasks.{name}")
        return task  # type: ignore[no-any-return]

    @cache  # noqa: B019
    def _attack(self, name: str, strength: float) -> Attack:
        group = self.config["attacks"][name]
        attack = instantiate(attack_settings(group, strength), f"attacks.{name} at {group['strength']}={strength:g}")
        _require(attack, Attack, f"attacks.{name}")
        if HostKind.ENCODER not in attack.hosts:
            raise ConfigError(f"attack {attack.name!r} works on {_names(attack.hosts)}, but the host is an encoder")
        return attack  # type: ignore[no-any-return]

    def _machine(self) -> dict[str, Any]:
        """Stages after pretraining run on one device; only the precision can change their result."""
        return {"precision": self.config["trainer"]["precision"]}

    def _downstream_data(self, downstream: Config) -> tuple[dict[str, Any], dict[str, Any]]:
        size = self.config["data"]["size"]
        base = {"name": source_name(self.config, downstream["name"]), "size": size, "seed": self.config["seed"]}
        test = {**base, "split": "test", "limit": downstream["test"]}
        if downstream["name"] == self.config["data"]["name"]:
            return host_data(
                self.config, "attacker"
            ), test  # whoever builds on the encoder never saw the owner's images
        return {**base, "split": "train", "limit": downstream["train"]}, test

    def _prints(self, data: Config) -> dict[str, str]:
        return {data["name"]: self.fingerprint(data["name"])}


def source_name(config: Config, name: str) -> str:
    """The data set that stands for ``name`` at this scale."""
    generated = name in ("procedural", "digits")
    return f"standin-{name}" if config["scale"]["standin"] and not generated else name


def host_data(config: Config, part: str) -> dict[str, Any]:
    """Description of one part (``owner``, ``attacker``) of the host's training images."""
    data = config["data"]
    return {
        "name": source_name(config, data["name"]),
        "split": "train",
        "size": data["size"],
        "limit": data["limit"],
        "seed": config["seed"],
        "parts": data["parts"],
        "part": part,
    }


def len_of(data: Config) -> int:
    """Number of images of a data description at the most; taken as 50,000 where it has no limit."""
    share = data["parts"][data["part"]] if data.get("parts") else 1.0
    return int((data["limit"] or 50_000) * share)


def attack_settings(group: Config, strength: float) -> dict[str, Any]:
    """The fields of one attack of a group: ``strength`` names the one that takes each of the ``strengths`` in turn."""
    fields = {name: value for name, value in group.items() if name not in ("strengths", "strength")}
    return {**fields, group["strength"]: strength}


def _strengths(group: Config) -> list[float]:
    listed = group.get("strengths") if isinstance(group, Mapping) else None
    numbers = isinstance(listed, list) and all(isinstance(s, int | float) for s in listed)
    if not listed or not numbers or not group.get("strength"):
        raise ConfigError("an attack needs strength (the field that varies) and strengths (a list), e.g. [0.5, 0.9]")
    return list(group["strengths"])


def _check_distinct(subjects: Iterable[Subject]) -> None:
    """Refuse two models that result rows could not tell apart."""
    seen: dict[tuple[object, ...], Subject] = {}
    for subject in subjects:
        place = (subject.pretrain, subject.host, subject.suspect, subject.attack, subject.unit, subject.strength)
        if seen.setdefault(place, subject).stage.key != subject.stage.key:
            raise ConfigError(
                f"two attacks are called {subject.attack} {subject.strength:g} {subject.unit} and differ in what that "
                "does not say; put them into experiments of different names"
            )


def _check_scheme(scheme: Scheme, kind: HostKind) -> None:
    if kind not in scheme.hosts:
        raise ConfigError(f"scheme {scheme.name!r} marks {_names(scheme.hosts)}, but the host is a {kind}")
    if not scheme.access & (LEVELS[kind] | set(DOWNSTREAM_ACCESS)):
        raise ConfigError(
            f"scheme {scheme.name!r} is verified at {_names(scheme.access)}, which a {kind} does not offer"
        )


def _require(component: object, kind: type, where: str) -> None:
    if not isinstance(component, kind):
        raise ConfigError(f"{where} builds a {type(component).__name__}, which is no {kind.__name__}; see conf/{where}")


def _names(values: frozenset[Any]) -> str:
    return ", ".join(sorted(map(str, values)))
