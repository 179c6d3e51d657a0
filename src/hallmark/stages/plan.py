"""From a composed configuration to the graph of one experiment."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn

from hallmark.components import build, identify, instantiate
from hallmark.core import Access, Detector, HostKind, Scheme, Survey, Task
from hallmark.data.fingerprint import FILE
from hallmark.errors import ConfigError
from hallmark.models.classifier import Classifier
from hallmark.models.detectors import ObjectDetector
from hallmark.models.encoders import Encoder
from hallmark.models.image_to_image import ImageToImage
from hallmark.pretrain.recipe import (
    UNTRAINED,
    AnyRecipe,
    DetectionRecipe,
    ForeignRecipe,
    HostRecipe,
    RestorationRecipe,
    build_recipe,
)
from hallmark.stages import cost
from hallmark.stages.beside import Models
from hallmark.stages.checks import (
    check_batch,
    check_distinct,
    check_experiment,
    check_hosts,
    check_restoration,
    check_survey,
)
from hallmark.stages.decoys import SPARE
from hallmark.stages.experiment import Experiment, Mark, Subject, Surveyed
from hallmark.stages.graph import Stage
from hallmark.stages.inputs import (
    Config,
    attack_data,
    concerns,
    downstream_data,
    embedding_data,
    host_data,
    len_of,
    native_data,
    source_name,
    strengths,
    variants,
)
from hallmark.stages.pairs import NOTE, Pairs
from hallmark.stages.sheets import sheets
from hallmark.training_settings import TrainerSettings

Fingerprint = Callable[[str], str]


def plan(config: Config, fingerprint: Fingerprint) -> Experiment:
    """The graph of an experiment.

    Args:
        config: The resolved configuration as plain containers; see ``conf/``.
        fingerprint: Digest of a data set by name.

    Raises:
        ConfigError: A component is unknown or mistyped, or a pair makes no sense.
    """
    if config["parts"]:
        raise ConfigError(f"{config['name']} is made of parts; plan each: {', '.join(config['parts'])}")
    planner = _Planner(config, fingerprint)
    check_experiment(config, planner.marks, lambda: planner.blank)
    subjects = tuple(planner.subjects())
    check_distinct(subjects)
    models = Models(config, planner.recipes, planner.marks, planner.pretrain, planner.embed, planner._prints)
    detections = tuple(models.detections(list(planner.detectors())))
    surveys, drawn, unfit = tuple(planner.surveys()), tuple(sheets(subjects)), tuple(planner.pairs.unfit())
    return Experiment(config, subjects, detections, tuple(models.histograms()), surveys, drawn, unfit)


@dataclass(frozen=True, eq=False)  # hashed by identity, so that methods can be cached
class _Planner:
    config: Config
    fingerprint: Fingerprint

    @cached_property
    def pairs(self) -> Pairs:
        """The schemes that are compared, and the attacks on them."""
        marks = []
        for label, settings in variants(self.config).items():
            scheme = instantiate(settings, f"variants.{label}" if label else "scheme", Scheme)
            marks.append(Mark(scheme, "" if label == scheme.name else label))
        return Pairs(self.config, marks, self.kind, lambda: self.blank)

    @property
    def marks(self) -> list[Mark]:
        """Those of the schemes that hosts of this kind can bear."""
        return self.pairs.marks

    @cached_property
    def recipes(self) -> dict[str, AnyRecipe]:
        """How hosts are trained, by name."""
        if not self.config["pretrains"]:
            raise ConfigError("the experiment names no pretraining; add e.g. /pretrain@pretrains.simclr: simclr")
        found = {name: build_recipe(recipe, f"pretrains.{name}") for name, recipe in self.config["pretrains"].items()}
        if self.config["scale"]["standin"]:  # like the data, weights are none that anybody has to have
            for name, recipe in found.items():
                if isinstance(recipe, ForeignRecipe | DetectionRecipe) and recipe.weights:
                    found[name] = replace(recipe, weights=UNTRAINED)
        return found

    @cached_property
    def kind(self) -> HostKind:
        """What the hosts are."""
        kinds = {recipe.host_kind for recipe in self.recipes.values()}
        if len(kinds) > 1:
            raise ConfigError(f"pretrains {', '.join(self.recipes)} make hosts of different kinds; use two experiments")
        return kinds.pop()

    @cached_property
    def host(self) -> HostRecipe:
        """The hosts' architecture."""
        return build(HostRecipe, self.config["host"], "host")

    @cached_property
    def settings(self) -> TrainerSettings:
        """How networks are trained."""
        return build(TrainerSettings, self.config["trainer"], "trainer")

    @cached_property
    def weight(self) -> float:
        """What an image through a host costs; detectors, which have no answer to blank images, count as the unit."""
        if self.kind is HostKind.DETECTOR:
            return 1.0
        pairs = [r.pairs.side for r in self.recipes.values() if isinstance(r, RestorationRecipe)]
        return cost.weight(self.blank, min([self.config["data"]["size"], *pairs]))

    @cached_property
    def trained(self) -> float:
        """What an image through a host costs in a batch as small as hosts are trained in."""
        batches = [recipe.batch for recipe in self.recipes.values() if not isinstance(recipe, ForeignRecipe)]
        return self.weight + cost.STEP / min(batches, default=128)

    @cached_property
    def blank(self) -> nn.Module:
        """An untrained host whose weights take no memory."""
        with torch.device("meta"):
            if self.kind is HostKind.DETECTOR:
                return ObjectDetector(self.host.backbone, 2, self.config["data"]["size"], self.host.width)
            for recipe in self.recipes.values():
                if isinstance(recipe, RestorationRecipe):
                    return ImageToImage(recipe.architecture(self.host, self.config["data"]["size"]))
            encoder = Encoder(self.host.backbone, self.host.width)
            return Classifier(encoder, classes=2) if self.kind is HostKind.CLASSIFIER else encoder

    def subjects(self) -> Iterator[Subject]:
        """Marked, original, innocent and attacked models, in the order in which they run."""
        seed, calibration = self.config["seed"], self.config["calibration"]
        originals = {name: self.pretrain(name, seed) for name in self.recipes}
        for name, original in originals.items():
            for mark in self.marks:
                embed = self.embed(original, mark)
                shared: dict[str, Any] = {"embed": embed, "mark": mark, "pretrain": name}
                yield self._subject(embed, "marked", **shared)
                yield self._subject(original, "original", **shared)
                for other, stage in originals.items():
                    if other != name:
                        yield self._subject(stage, "innocent", host=f"{other} seed {seed}", **shared)
                for extra in range(calibration["extra_seeds"].get(name, 0)):
                    stranger = self.pretrain(name, seed + 1000 + extra)
                    yield self._subject(stranger, "innocent", host=f"{name} seed {seed + 1000 + extra}", **shared)
                for extra in range(calibration["outsiders"].get(name, 0)):
                    outsider = self.pretrain(name, seed + 2000 + extra, "attacker")
                    label = f"{name} seed {seed + 2000 + extra} other images"
                    yield self._subject(outsider, "innocent", host=label, **shared)
                for attack in self.pairs.on(mark):
                    listed = strengths(self.config["attacks"][attack])
                    for strength in listed:
                        yield self._attacked(embed, "marked", attack, strength, **shared)
                    yield self._attacked(original, "attacked_innocent", attack, max(listed), **shared)

    def surveys(self) -> Iterator[Surveyed]:
        """What the owner measures of each host, or of each mark in it."""
        host = self.config["host"]["backbone"]
        for label, group in self.config["surveys"].items():
            settings = {name: value for name, value in group.items() if name != "variants"}
            survey: Survey = instantiate(settings, f"surveys.{label}", Survey)
            about = (mark for mark in self.marks if mark.scheme.name in survey.schemes)
            marks = [mark for mark in about if concerns(group, mark.name)]
            if not marks and self.config["unfit"] == NOTE:
                continue  # like an attack that is made on none
            check_survey(survey, label, marks, self.kind, lambda: self.blank)
            for name in self.recipes:
                original = self.pretrain(name, self.config["seed"])
                if survey.marks:
                    for mark in marks:
                        stage = self._survey(survey, original, mark)
                        yield Surveyed(stage, mark.scheme.name, mark.variant, "marked", name, host)
                else:
                    yield Surveyed(self._survey(survey, original), marks[0].scheme.name, "", "original", name, host)

    def _survey(self, survey: Survey, original: Stage, mark: Mark | None = None) -> Stage:
        owner, test = native_data(self.config)
        config = {"survey": identify(survey), "owner": owner, "test": test, "seed": self.config["seed"]}
        inputs, seen = {"host": original}, original.label
        if mark is not None:
            embed = self.embed(original, mark)
            config["scheme"], inputs["mark"], seen = identify(mark.scheme), embed, embed.label
        prints = self._prints(owner) | self._prints(test)
        work = survey.work(None if mark is None else mark.scheme, self.kind, len_of(test)) * self.weight
        return Stage("survey", config, inputs, prints, f"{survey.name} of {seen}", work=work)

    def _attacked(self, victim: Stage, suspect: str, name: str, strength: float, **shared: Any) -> Subject:
        attack = self.pairs.attack(name, strength, shared["mark"])
        settings = identify(attack)
        group = self.config["attacks"][name]
        data = attack_data(self.config, group, f"attacks.{name}")
        unit = f"{attack.unit} of {group['data']['name']}" if group.get("data") else attack.unit
        stage = Stage(
            "attack",
            {"attack": settings, "data": data, "seed": self.config["seed"], **self._machine()},
            {"victim": victim},
            self._prints(data),
            f"{attack.name} {strength:g} {unit} on {victim.label}",
            work=attack.work(len_of(data)) * self.trained,
        )
        made: dict[str, Any] = {"attack": attack.name, "strength": attack.strength, "unit": unit}
        return self._subject(stage, suspect, **made, images=attack.images_used(len_of(data)), **shared)

    def _subject(
        self,
        stage: Stage,
        suspect: str,
        *,
        embed: Stage,
        mark: Mark,
        pretrain: str,
        host: str = "",
        attack: str = "none",
        strength: float = 0.0,
        unit: str = "",
        images: int = 0,
    ) -> Subject:
        light = attack != "none" or suspect == "innocent"
        transfers = self._transfers(stage, self.config["attacked_tasks"] if light else list(self.config["tasks"]))
        calibrates = attack == "none" or suspect == "attacked_innocent"
        # where the decoys are given, there are no fresh keys beside them
        trials = self.config["calibration"]["trials"] if calibrates and mark.scheme.most_decoys is None else 0
        verify = self._verify(stage, embed, mark, transfers, trials)
        label = f"{self.config['host']['backbone']} {host}".strip()
        return Subject(stage, embed, mark, suspect, pretrain, label, attack, strength, unit, transfers, verify, images)

    def _verify(
        self, stage: Stage, embed: Stage, mark: Mark, transfers: Mapping[tuple[str, str], Stage], trials: int
    ) -> Stage:
        tasks = self.config["tasks"]
        judged = {f"{d}/{t}": s for (d, t), s in transfers.items() if d and tasks[t].get("verified", True)}
        decoys = self.config["calibration"]["decoys"] if mark.scheme.chance is None else 0
        inputs = {"subject": stage, "mark": embed}
        if decoys and mark.scheme.decoy_work:
            inputs["decoys"] = self._decoys(embed, mark)
        data = host_data(self.config, "owner")
        settings = {
            "scheme": identify(mark.scheme),
            "decoys": decoys,
            "trials": trials,
            "alpha": self.config["alpha"],
            "seed": self.config["seed"],
            "data": data,
        }
        if self.config["aligned"] and Access.WEIGHTS in mark.scheme.access:
            settings["aligned"] = True
        apart = 1 + len({t for _, t in transfers if t == "finetune"}) * len(self.config["downstreams"])
        return Stage(
            "verify",
            settings,
            {**inputs, **judged},
            self._prints(data),
            f"{stage.label}, by the key of {embed.label}",
            work=cost.verify(mark.scheme, 1 + decoys + trials) * apart * self.weight,
        )

    def _decoys(self, embed: Stage, mark: Mark) -> Stage:
        """Decoys of a mark whose decoys are costly, for all its suspects to draw from."""
        calibration, data = self.config["calibration"], host_data(self.config, "owner")
        count = int((1 + SPARE) * (calibration["decoys"] + calibration["trials"]))
        mark.scheme.check_decoys(len_of(data), count)
        return Stage(
            "decoys",
            {"scheme": identify(mark.scheme), "count": count, "data": data, "seed": self.config["seed"]},
            {"mark": embed},
            self._prints(data),
            f"{count} keys beside that of {embed.label}",
            work=count * mark.scheme.decoy_work * self.weight,
        )

    def pretrain(self, name: str, seed: int, part: str = "owner") -> Stage:
        """An unmarked host, trained on the images of ``part``."""
        recipe = self.recipes[name]
        data = host_data(self.config, part)
        prints, work = self._prints(data), 0.0
        if isinstance(recipe, ForeignRecipe):
            prints |= {recipe.file: self.fingerprint(f"{FILE}{recipe.file}")} if recipe.file else {}
        else:
            images = len_of(data)
            if isinstance(recipe, RestorationRecipe):
                check_restoration(recipe, f"pretrains.{name}", self.host, data["size"], self.settings.devices)
                images *= recipe.fit.patches
            check_batch(f"pretrains.{name}", recipe.batch, part, images, self.settings.devices)
            work = len_of(data) * recipe.epochs * recipe.passes * self.trained
        config = {
            "recipe": asdict(recipe),
            "host": asdict(self.host),
            "data": data,
            "seed": seed,
            "trainer": self.settings.semantic(),
        }
        return Stage("pretrain", config, {}, prints, f"{name} seed {seed}", work=work)

    def embed(self, original: Stage, mark: Mark, seed: int | None = None, part: str = "owner") -> Stage:
        """A marked host, by a key and with images of ``part``; the seed is the experiment's unless another is given."""
        data = embedding_data(self.config, part)
        scheme = identify(mark.scheme)
        seed = self.config["seed"] if seed is None else seed
        config = {"scheme": scheme, "data": data, "seed": seed, **self._machine()}
        prints = self._prints(data)
        if mark.scheme.uses_unseen:
            config["unseen"] = native_data(self.config)[1]
            prints |= self._prints(config["unseen"])
        work = mark.scheme.embedding_work(len_of(data)) * self.trained
        return Stage("embed", config, {"host": original}, prints, f"{mark.label} in {original.label}", work=work)

    def detectors(self) -> Iterator[Detector]:
        """What looks for marks without a key."""
        for name, settings in self.config["detectors"].items():
            detector: Detector = instantiate(settings, f"detectors.{name}", Detector)
            check_hosts(detector, self.kind, "detector")
            detector.check_host(self.blank)
            yield detector

    def _transfers(self, stage: Stage, tasks: list[str]) -> dict[tuple[str, str], Stage]:
        """One measurement for each task on the host's own data, one for each other task and downstream set."""
        downstreams = self.config["downstreams"].values()
        found = {}
        for name in tasks:
            if self._task(name).native:
                found["", name] = self._transfer(stage, name, native_data(self.config), "")
            elif not downstreams:
                raise ConfigError(f"task {name!r} needs a downstream set, e.g. +data/downstream@downstreams.a=mnist")
        for down in downstreams:
            for name in tasks:
                if not self._task(name).native:
                    place = source_name(self.config, down["name"]), name
                    found[place] = self._transfer(stage, name, downstream_data(self.config, down), down["name"])
        return found

    def _transfer(self, stage: Stage, name: str, data: tuple[Config, Config], where: str) -> Stage:
        settings = identify(self._task(name))
        train, test = data
        config = {
            "task": settings,
            "train": train,
            "test": test,
            "seed": self.config["seed"],
            **self._machine(),
        }
        work = cost.transfer(self._task(name), train, test) * self.weight
        label = f"{name} on {where} of {stage.label}" if where else f"{name} of {stage.label}"
        return Stage("transfer", config, {"host": stage}, self._prints(train), label, work=work)

    @cache  # noqa: B019 - a planner lives for one plan; checking a task's types takes milliseconds, a plan asks often
    def _task(self, name: str) -> Task:
        settings = {k: v for k, v in self.config["tasks"][name].items() if k != "verified"}
        task: Task = instantiate(settings, f"tasks.{name}", Task)
        check_hosts(task, self.kind, "task")
        return task

    def _machine(self) -> dict[str, Any]:
        """Stages after pretraining run on one device; only precision and compilation can change their result."""
        compiled = {"compile": True} if self.settings.compile else {}
        return {"precision": self.settings.precision, **compiled}

    def _prints(self, data: Config) -> dict[str, str]:
        return {data["name"]: self.fingerprint(data["name"])}
