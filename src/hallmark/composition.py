"""Hydra configurations as plain containers, and what composing needs to know of the machine."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hallmark.data.fingerprint import FILE, fingerprint
from hallmark.errors import ConfigError, DataError, allowed

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The configuration tree of the source checkout; Hallmark is installed from one with ``pip install -e``."""


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of one run.

    Raises:
        ConfigError: An override names something unknown or of the wrong type.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return resolve(hydra_compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from None


def compose_parts(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The resolved configurations of all experiments that one run is made of; see :func:`parts`.

    Raises:
        ConfigError: An override names something unknown or of the wrong type, in the whole or in a part.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return parts(resolve(hydra_compose("config", overrides=list(overrides))), overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from None


def parts(config: dict[str, Any], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The experiments that a configuration stands for: itself, or each of its ``parts``, under the same overrides.

    Hydra has to be initialised, as it is below ``hydra.main``.  A ``name`` of the whole becomes the first half of the
    parts' names.

    Args:
        config: The resolved configuration.
        overrides: What it was composed with.

    Returns:
        Resolved configurations.

    Raises:
        ConfigError: A part is unknown, lacks what an override names, or has parts of its own.
    """
    found = []
    for part in config["parts"]:
        about = f"{part}, a part of {config['name']}"
        try:
            composed = resolve(hydra_compose("config", overrides=_of_part(part, config["name"], overrides)))
        except (HydraException, OmegaConfBaseException, ConfigError) as error:
            raise ConfigError(f"{about}: {one_line(error)}; experiment={part} takes overrides of its own") from None
        if composed["parts"]:
            raise ConfigError(f"{about}, has parts of its own; name these instead")
        found.append(composed)
    return found or [config]


def _of_part(part: str, name: str, overrides: Sequence[str]) -> list[str]:
    """The overrides of a whole, for one part of it."""
    kept = [f"experiment={part}"]
    for word in overrides:
        key = overridden(word)
        if key == "name":
            kept.append(f"name={name}/{part.rpartition('/')[2]}")
        elif key not in ("experiment", "parts"):
            kept.append(word)
    return kept


def overridden(word: str) -> str:
    """What an override sets: ``data.name`` of ``data.name=digits``, ``attack`` of ``+attack@attacks.a=prune``."""
    return word.lstrip("+~").split("=")[0].split("@")[0]


@dataclass
class Calibration:
    """Types of ``calibration``."""

    decoys: int
    trials: int
    extra_seeds: dict[str, int]
    outsiders: dict[str, int]


@dataclass
class Data:
    """Types of ``data``."""

    name: str
    size: int
    limit: int | None
    parts: dict[str, float]


@dataclass
class Test:
    """Types of ``test``."""

    name: str
    limit: int | None


@dataclass
class Settings:
    """Types of the values that every configuration has, whatever it composes."""

    name: str
    paper: str
    seed: int
    alpha: float
    fpr_alpha: float
    tolerance: float
    attacked_tasks: list[str]
    population: int
    aligned: bool
    unfit: str
    parts: list[str]
    calibration: Calibration
    data: Data
    test: Test
    store: str
    results: str
    data_root: str | None
    download: bool
    budget: Any
    plan: bool


UNFIT = ("refuse", "note")
"""What becomes of a pair that makes no sense."""

_COMPOSED = (
    *("scale", "host", "scheme", "trainer", "logger", "variants", "embedding_data"),
    *("pretrains", "downstreams", "tasks", "attacks", "detectors", "histograms", "surveys"),
)


def resolve(config: DictConfig) -> dict[str, Any]:
    """Plain containers with every interpolation resolved.

    Raises:
        ConfigError: A value is missing or an interpolation leads nowhere.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        missing = [name for name in (*_COMPOSED, *(f.name for f in fields(Settings))) if name not in content]
        if missing:
            raise ConfigError(f"the configuration lacks {', '.join(missing)}; it cannot be taken out")
        if not isinstance(content["parts"], list):
            raise ConfigError(f"parts is a list, got {content['parts']!r}; write e.g. parts=[matrix/images]")
        typed = OmegaConf.merge(OmegaConf.structured(Settings), {f.name: content[f.name] for f in fields(Settings)})
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from None
    for name in ("alpha", "fpr_alpha", "tolerance"):
        if not 0 < typed[name] < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, got {typed[name]}")
    if typed.seed < 0:
        raise ConfigError(f"seed must be at least 0, got {typed.seed}")
    if typed.unfit not in UNFIT:
        raise ConfigError(allowed(typed.unfit, UNFIT, "unfit"))
    for name in ("decoys", "trials"):
        if typed.calibration[name] < (name == "decoys"):
            raise ConfigError(f"calibration.{name} cannot be {typed.calibration[name]}; ask for more")
    return {**content, **OmegaConf.to_container(typed)}


def one_line(error: BaseException) -> str:
    """Hydra's message of several lines as one, with the options it lists."""
    while not str(error).strip() and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    lines = [re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(_NOISE)]
    text = "; ".join(kept).replace(":;", ":")
    key = getattr(error, "full_key", None)
    if key and str(key) not in text:
        text = f"{key}: {text}"
    if "Could not find 'experiment/" in text:  # Hydra lists one level only
        return text.split("; Available")[0] + f"; available: {', '.join(experiments())}"
    if text.startswith("Could not override"):
        return text + " There is no such key; hallmark --cfg job, with the same experiment, prints all there are"
    if "missing EQUAL" in text:
        return text + "; write key=value, such as experiment=matrix"
    return text


def experiments() -> list[str]:
    """Names of all experiments, e.g. ``wpe/main``."""
    folder = CONF / "experiment"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


_NOISE = (
    "Config search path",
    "provider=",
    "full_key:",
    "reference_type=",
    "object_type=",
    "See https://",
    "Set the environment variable",
    "To append to your config",
)


def fingerprinter(config: dict[str, Any]) -> Callable[[str], str]:
    """Digests of data sets by name, cached beside the store; downloads what is missing if the run may."""
    root = Path(config["data_root"]) if config["data_root"] else None
    remembered = Path(config["store"]) / "fingerprints.json"

    @cache
    def digest(name: str) -> str:
        try:
            return fingerprint(name, root=root, cache=remembered)
        except DataError:
            if not config["download"] or name.startswith(FILE):
                raise
        from hallmark.data.catalogue import load  # slow to import, and needed for a first download only

        for split in ("train", "test"):
            load(name, split, root=root, limit=1, download=True)
        return fingerprint(name, root=root, cache=remembered)

    return digest
