"""What each kind of stage does, given a folder to leave its result in."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger

from hallmark.components import build, instantiate
from hallmark.core import Access, Key, Marking, QueryScheme, Suspect, derive_seed, generator
from hallmark.data.described import DataFolder
from hallmark.models import files
from hallmark.models.classifier import Classifier
from hallmark.models.encoders import Encoder
from hallmark.models.kinds import kind_of
from hallmark.pretrain.hosts import make_host
from hallmark.pretrain.recipe import HostRecipe, build_recipe
from hallmark.stages import decoys, sheets
from hallmark.stages.beside import groups
from hallmark.stages.graph import Stage
from hallmark.stages.histogram import Bins, histograms, rounded
from hallmark.stages.judge import judge
from hallmark.stages.projection import projection
from hallmark.training import LightningTrainer
from hallmark.training_settings import Deadline, TrainerSettings

KEY = "key.safetensors"
RESULT = "result.json"


@dataclass(frozen=True)
class Bench:
    """Everything a stage needs that cannot change its result.

    Args:
        data: Loads described images.
        settings: Machine and progress; its semantic part is in the stage's configuration too.
        deadline: The time budget.
        open: Folder of a finished stage by key.
        logger: Makes a Lightning logger for a stage, or None.
        device: Where models are evaluated.
        machine: What it runs on, for the rows.
        commit: Version of the code, for the rows.
    """

    data: DataFolder
    settings: TrainerSettings
    deadline: Deadline
    open: Callable[[str], Path]
    logger: Callable[[Stage], Logger | None]
    device: torch.device
    machine: str
    commit: str


def run(stage: Stage, folder: Path, bench: Bench) -> None:
    """Do a stage's work and leave its files in a folder.

    Raises:
        HallmarkError: Something that the user can mend.
        BudgetExhausted: The budget ran out; checkpoints are in the folder.
    """
    started = time.perf_counter()
    trainer = _trainer(stage, folder, bench)
    result = _KINDS[stage.kind](stage, folder, bench, trainer)
    seconds = trainer.resumed_s + time.perf_counter() - started
    result |= {"seconds": seconds, "device": bench.machine, "commit": bench.commit}
    (folder / RESULT).write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def _pretrain(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    config = stage.config
    host, figures = make_host(
        build(HostRecipe, config["host"], "host"),
        build_recipe(config["recipe"], "pretrain"),
        bench.data.get(config["data"]),
        trainer=trainer,
        seed=config["seed"],
        root=bench.data.root,
    )
    files.save(host, folder)
    return figures


def _embed(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    config = stage.config
    scheme = instantiate(config["scheme"], "scheme")
    host = files.load(bench.open(stage.inputs["host"].key))
    owner = bench.data.get(config["data"])
    if not scheme.uses_labels:
        owner = owner.unlabelled()
    purpose = stage.inputs["host"].key  # every host of a sweep has a key of its own
    key = scheme.keygen(host, owner, generator=generator(config["seed"], "key", purpose))
    marked, key = scheme.embed(host, key, owner, trainer=trainer, generator=generator(config["seed"], "embed", purpose))
    if scheme.uses_unseen:
        unseen = bench.data.get(config["unseen"]).unlabelled()
        key = scheme.witness(key, unseen, generator=generator(config["seed"], "witness", purpose))
    files.save(marked, folder)
    key.save(folder / KEY)
    return {"commitment": key.commitment()}


def _attack(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    config = stage.config
    attack = instantiate(config["attack"], "attack")
    victim = files.load(bench.open(stage.inputs["victim"].key))
    kind = kind_of(victim)
    access = attack.access_for(kind)
    if (
        access is not Access.WEIGHTS
    ):  # weights are edited on the CPU, where generators live; answers are quicker elsewhere
        victim = victim.to(bench.device)
    suspect = Suspect(victim, kind, access)
    data = bench.data.get(config["data"])
    if not attack.needs_labels:
        data = data.unlabelled()
    attacked = attack.apply(suspect, data, trainer=trainer, generator=generator(config["seed"], "attack", stage.key))
    files.save(attacked, folder)
    return {"queries": suspect.queries, "images": attack.images_used(len(data))}


def _transfer(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    config = stage.config
    task = instantiate(config["task"], "task")
    host = files.load(bench.open(stage.inputs["host"].key)).to(bench.device)
    train, test = bench.data.get(config["train"]), bench.data.get(config["test"])
    rng = generator(config["seed"], "transfer", task.name, config["train"]["name"])
    downstream = task.transfer(host, train, trainer=trainer, generator=rng)
    if isinstance(downstream, Classifier):
        files.save_downstream(downstream, host, folder)
    figures = task.measure(host, downstream, train, test)
    return {"measurements": [vars(figure) for figure in figures]}


def _decoys(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    config = stage.config
    scheme = instantiate(config["scheme"], "scheme")
    mark = stage.inputs["mark"]
    key = Key.load(bench.open(mark.key) / KEY, scheme=scheme.name)
    host = files.load(bench.open(mark.inputs["host"].key))
    owner = bench.data.get(config["data"]).unlabelled()
    seed = derive_seed(config["seed"], "decoys", key.commitment())
    made = scheme.decoys(host, key, owner, config["count"], seed=seed)
    decoys.save(made, key, folder)
    return {"count": len(made)}


def _verify(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    config = stage.config
    scheme = instantiate(config["scheme"], "scheme")
    subject = files.load(bench.open(stage.inputs["subject"].key)).to(bench.device)
    key = Key.load(bench.open(stage.inputs["mark"].key) / KEY, scheme=scheme.name)
    downstream = {
        role: files.load_downstream(bench.open(source.key), subject).to(bench.device)
        for role, source in stage.inputs.items()
        if role not in ("subject", "mark", "decoys")
    }
    owner = bench.data.get(config["data"]).unlabelled()
    host = files.load(bench.open(stage.inputs["mark"].inputs["host"].key))
    purpose = stage.inputs["subject"].key
    reference = files.load(bench.open(stage.inputs["mark"].key)).to(bench.device) if config.get("aligned") else None
    made = decoys.load(bench.open(stage.inputs["decoys"].key), key) if "decoys" in stage.inputs else None
    judgements = judge(
        scheme, key, host, subject, downstream, owner, config, purpose=purpose, reference=reference, made=made
    )
    result: dict[str, Any] = {"judgements": judgements}
    if isinstance(scheme, QueryScheme) and isinstance(subject, Encoder) and Access.FEATURES in scheme.access:
        result["projection"] = projection(scheme, key, subject)
    return result


def _detect(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    """Scores of the suspects, marked and unmarked; weights are read on the CPU, unless images go through them."""
    detector = instantiate(stage.config["detector"], "detector")
    device, shown = torch.device("cpu"), {}
    if detector.needs_images:
        device = bench.device
        shown["images"] = bench.data.get(stage.config["data"]).images.to(device)

    def seen(group: str) -> list[Suspect]:
        models = [files.load(bench.open(stage.inputs[role].key)).to(device) for role in groups(stage.inputs)[group]]
        return [Suspect(model, kind_of(model), Access.WEIGHTS) for model in models]

    marked, unmarked = seen("suspect marked"), seen("suspect unmarked")
    scores = detector.scores(seen("known unmarked"), seen("known marked"), [*marked, *unmarked], **shown)
    found = [rounded(score) for score in scores]
    return {"scores": {"marked": found[: len(marked)], "unmarked": found[len(marked) :]}}


def _histogram(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    scheme = instantiate(stage.config["scheme"], "scheme")
    key = Key.load(bench.open(stage.inputs["marked"].key) / KEY, scheme=scheme.name)
    samples: dict[str, Mapping[str, torch.Tensor]] = {}
    for whose, source in stage.inputs.items():
        model = files.load(bench.open(source.key))
        samples[whose] = scheme.samples(Suspect(model, kind_of(model), Access.WEIGHTS), key)
    found = {
        kind: histograms({whose: numbers[kind] for whose, numbers in samples.items()}, build(Bins, settings, kind))
        for kind, settings in stage.config["bins"].items()
    }
    return {"histograms": found}


def _survey(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    config = stage.config
    survey = instantiate(config["survey"], "survey")
    host = files.load(bench.open(stage.inputs["host"].key)).to(bench.device)
    marking = None
    if "mark" in stage.inputs:
        scheme, folder_of = instantiate(config["scheme"], "scheme"), bench.open(stage.inputs["mark"].key)
        model = files.load(folder_of).to(bench.device)
        marking = Marking(scheme, model, Key.load(folder_of / KEY, scheme=scheme.name))
    owner, test = bench.data.get(config["owner"]).unlabelled(), bench.data.get(config["test"])
    rng = generator(config["seed"], "survey", stage.key)
    return {"readings": [vars(reading) for reading in survey.look(host, marking, owner, test, generator=rng)]}


def _sheet(stage: Stage, folder: Path, bench: Bench, trainer: LightningTrainer) -> dict[str, Any]:
    """Pictures of a mark, as one file, and what its columns show."""
    scheme = instantiate(stage.config["scheme"], "scheme")
    key = Key.load(bench.open(stage.inputs["marked"].key) / KEY, scheme=scheme.name)

    def seen(role: str) -> Suspect:
        model = files.load(bench.open(stage.inputs[role].key)).to(bench.device)
        return Suspect(model, kind_of(model), Access.IMAGES)

    host = files.load(bench.open(stage.inputs["host"].key)).to(bench.device)
    others = {role: seen(role) for role in stage.inputs if role not in ("host", "marked")}
    columns = scheme.pictures(host, seen("marked"), others, key, stage.config["pictures"])
    sheets.image(columns).save(folder / sheets.FILE, optimize=True)
    return {"columns": list(columns)}


def _trainer(stage: Stage, folder: Path, bench: Bench) -> LightningTrainer:
    settings = bench.settings
    if stage.kind != "pretrain":
        settings = settings.single()
    return LightningTrainer(
        settings,
        folder / "checkpoints",
        deadline=bench.deadline,
        logger=bench.logger(stage),
    )


_KINDS: Mapping[str, Callable[[Stage, Path, Bench, LightningTrainer], dict[str, Any]]] = {
    "pretrain": _pretrain,
    "embed": _embed,
    "attack": _attack,
    "transfer": _transfer,
    "decoys": _decoys,
    "verify": _verify,
    "detect": _detect,
    "histogram": _histogram,
    "survey": _survey,
    "sheet": _sheet,
}
