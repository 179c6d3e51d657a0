"""Measure Hallmark against the alternatives to it, on the machine at hand.

    python scripts/benchmark.py COMMAND [--device cuda] [--repeats 5] [--out DIR]

with one of pretrain, supervised, parity, probe, verify, sweep and stain.

Every figure comes from alternatives run in turn in this one process; median, least and greatest of the rounds are kept.
Each subcommand writes ``<out>/<subcommand>.json``, which also describes the machine; progress goes to stderr.
"""

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import augmentation, parity, pretrain, probe, stain, supervised, sweep, verify
from bench.measure import Machine, say
from hallmark.errors import ConfigError, HallmarkError
from hallmark.pretrain.recipe import HostRecipe
from hallmark.tasks.heads import HeadRecipe

RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1)

Figures = dict[str, Any]


def run_pretrain(options: argparse.Namespace, device: torch.device) -> Figures:
    """Training throughput of each network, the augmentation alone, and its curves."""
    networks = {}
    for name in options.networks:
        network = pretrain.NETWORKS[name]
        given = {field: value for field in ("batch", "steps") if (value := getattr(options, field)) is not None}
        if options.width is not None:
            given["host"] = dataclasses.replace(network.host, width=options.width)
        network = dataclasses.replace(network, **given)
        if not 1 <= options.warmup <= network.steps:
            raise ConfigError(f"--warmup {options.warmup} must lie between 1 and the {network.steps} steps of {name}")
        setup = pretrain.Setup(network, options.size, options.warmup, options.workers, device)
        networks[name] = pretrain.compare(setup, options.repeats, compiled=options.compile)
    figures: Figures = {"networks": networks}
    shared = {"size": options.size, "device": device, "repeats": options.repeats}
    count = options.images
    figures["augmentation"] = augmentation.compare(count=count, batch=min(256, count), **shared)
    if options.curves:
        counts = sorted({max(1, int(options.curve_images * share)) for share in (0.04, 0.1, 0.4, 1)})
        batches = [batch for batch in (64, 128, 256, 512, 1024) if batch <= counts[0]] or [counts[0]]
        figures["curves"] = augmentation.curves(batches=batches, counts=counts, views=8 * count, **shared)
    return figures


def run_supervised(options: argparse.Namespace, device: torch.device) -> Figures:
    """Supervised training of the host of the uchida experiments."""
    if not 1 <= options.warmup <= options.steps:
        raise ConfigError(f"--warmup {options.warmup} must lie between 1 and the {options.steps} steps")
    sizes = {name: getattr(options, name) for name in ("batch", "steps", "warmup", "size")}
    setup = supervised.Setup(HostRecipe("wrn10", options.width), device=device, **sizes)
    return {"supervised": supervised.compare(setup, options.repeats, compiled=options.compile)}


def run_parity(options: argparse.Namespace, device: torch.device) -> Figures:
    """Accuracy by kNN of the suite's pretraining and of lightly's pipeline after equally many epochs."""
    root = os.environ.get("HALLMARK_DATA")
    train, test = parity.pictures(Path(root) if root else None, options.images, options.size)
    if options.batch > len(train):
        raise ConfigError(f"--batch {options.batch} is larger than the {len(train)} images")
    host = HostRecipe("resnet_small", options.width)
    scene = parity.Scene(host, train, test, options.batch, options.epochs, options.workers)
    return {"parity": parity.compare(scene, options.seeds)}


def run_probe(options: argparse.Namespace, device: torch.device) -> Figures:
    """Many linear probes at once."""
    recipe = HeadRecipe(rates=tuple(options.rates), epochs=options.epochs)
    sizes = {name: getattr(options, name) for name in ("tasks", "features", "images", "classes", "repeats")}
    return {"probes": probe.compare(recipe=recipe, **sizes)}


def run_verify(options: argparse.Namespace, device: torch.device) -> Figures:
    """A key and its decoys at suspects on one trunk."""
    scene = verify.Scene.make(options.width, options.heads, 2 * options.queries, options.size, device)
    sizes = {name: getattr(options, name) for name in ("keys", "queries", "one_by_one_keys", "repeats")}
    return {"verification": verify.compare(scene, **sizes)}


def run_sweep(options: argparse.Namespace, device: torch.device) -> Figures:
    """Planning thousands of stages."""
    return {"sweep": sweep.compare(options.experiment, options.stages, options.repeats)}


def run_stain(options: argparse.Namespace, device: torch.device) -> Figures:
    """Marking a trained classifier: an edit against fine-tuning."""
    sizes = {name: getattr(options, name) for name in ("neurons", "images", "size", "search_steps", "bits", "repeats")}
    return {"marking": stain.compare(options.network, **sizes)}


COMMANDS: Mapping[str, Callable[[argparse.Namespace, torch.device], Figures]] = {
    "pretrain": run_pretrain,
    "supervised": run_supervised,
    "parity": run_parity,
    "probe": run_probe,
    "verify": run_verify,
    "sweep": run_sweep,
    "stain": run_stain,
}


CPU_ONLY = ("parity", "probe", "sweep", "stain")
"""What is measured on the CPU whatever device trains; ``--device`` is accepted and changes nothing."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the JSON files")
    shared.add_argument("--repeats", type=_positive, default=5, help="rounds of every comparison")
    shared.add_argument("--threads", type=_positive, help="CPU threads; torch's own choice if absent")
    shared.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, numbers: Mapping[str, int | None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, parents=[shared], help=COMMANDS[name].__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        for option, default in numbers.items():
            sub.add_argument(f"--{option}", type=_positive, default=default, help=_HELP[option])
        return sub

    nothing = dict.fromkeys(("width", "batch", "steps"))
    sub = command("pretrain", nothing | {"warmup": 4, "workers": 2, "size": 32, "images": 2048, "curve-images": 50_000})
    sub.add_argument("--networks", nargs="+", choices=pretrain.NETWORKS, default=list(pretrain.NETWORKS))
    sub.add_argument("--compile", action="store_true", help="also measure the step behind torch.compile")
    sub.add_argument("--curves", action="store_true", help="also measure views over batch size and number of images")
    numbers = {"width": 4, "batch": 64, "steps": 60, "warmup": 6, "size": 32}
    sub = command("supervised", numbers)
    sub.add_argument("--compile", action="store_true", help="also measure both behind torch.compile")
    numbers = {"width": 16, "batch": 256, "epochs": 8, "images": 5000, "size": 32, "workers": 2, "seeds": 3}
    command("parity", numbers)
    sub = command("probe", {"tasks": 3, "epochs": 30, "features": 128, "images": 8000, "classes": 10})
    sub.add_argument("--rates", nargs="+", type=float, default=RATES, help="learning rates")
    numbers = {"keys": 1000, "queries": 100, "one-by-one-keys": 20, "heads": 3, "width": 16, "size": 32}
    command("verify", numbers)
    sub = command("sweep", {"stages": 10_000})
    sub.add_argument("--experiment", default="wpe/main", help="what is planned, once a seed")
    sub = command("stain", {"neurons": 4, "search-steps": 60, "images": 2048, "size": 32, "bits": 64})
    sub.add_argument("--network", default="resnet18", help="backbone of the classifier that is marked")
    return top


_HELP = {
    "width": "base width of the network; its own if absent",
    "batch": "pairs a step; the network's own if absent",
    "steps": "timed steps; the network's own if absent",
    "warmup": "steps before the clock starts",
    "workers": "processes of lightly's loader",
    "size": "side of the images in pixels",
    "images": "images, or features",
    "curve-images": "images of the largest set of the curves",
    "seeds": "pairs of runs, in place of --repeats",
    "tasks": "Gaussian mixtures to train probes on",
    "epochs": "passes over the images or features",
    "features": "dimensions of a feature",
    "classes": "classes of a mixture",
    "keys": "the true key and its decoys together",
    "queries": "query images of a key",
    "one-by-one-keys": "keys that the one-by-one way is timed on",
    "heads": "classifiers on the trunk",
    "stages": "stages to plan, at least",
    "neurons": "neurons that a stain takes",
    "search-steps": "steps of the search for its images, from one start",
    "bits": "bits that fine-tuning embeds",
}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run one subcommand and write its figures.

    Returns:
        The JSON file.

    Raises:
        ConfigError: The machine or the options cannot run it.
    """
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a CUDA device and torch sees none; use --device cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cpu" if options.command in CPU_ONLY else options.device)
    warnings.filterwarnings("ignore", message="The transform `ToTensor", category=UserWarning)  # lightly's
    figures = COMMANDS[options.command](options, device)
    settings = {name: value for name, value in vars(options).items() if name not in ("command", "out")}
    document = {"benchmark": options.command, "machine": Machine.here(device), "settings": settings, **figures}
    path: Path = options.out / f"{options.command}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=dataclasses.asdict) + "\n")
    say(f"wrote {path}")
    return path


if __name__ == "__main__":
    try:
        main()
    except HallmarkError as error:
        say(f"error: {error}")
        sys.exit(2)
