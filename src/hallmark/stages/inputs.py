"""What stages are told: which images to load, which settings an attack or a scheme has.  Plain values throughout."""

from collections.abc import Mapping
from typing import Any

from hallmark.errors import ConfigError

Config = Mapping[str, Any]


def source_name(config: Config, name: str) -> str:
    """The data set that stands for ``name`` at this scale."""
    if not config["scale"]["standin"] or name in ("procedural", "samples", "scenes", "digits"):
        return name
    if name in ("photographs", "voc"):
        return "samples"
    return "scenes" if name.startswith("coco") else f"standin-{name}"


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


def downstream_data(config: Config, downstream: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Descriptions of the training and test images of a downstream set.

    Whoever builds on a host with images of its own data set takes the attacker's part: the owner's were never shown.
    """
    test = _images(config, downstream["name"], "test", downstream["test"])
    if downstream["name"] == config["data"]["name"]:
        return host_data(config, "attacker"), test
    return _images(config, downstream["name"], "train", downstream["train"]), test


def native_data(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Descriptions of the owner's training images and of the test images for tasks on the host's own data."""
    return host_data(config, "owner"), _images(config, config["test"]["name"], "test", config["test"]["limit"])


def embedding_data(config: Config, part: str = "owner") -> dict[str, Any]:
    """Description of the images that a mark is embedded with: the owner's own, unless another set is asked for.

    Args:
        config: The configuration.
        part: Whose mark it is.

    Raises:
        ConfigError: The set is no group of ``conf/data/downstream``.
    """
    return _instead(config, config["embedding_data"], part, "embedding_data")


def attack_data(config: Config, group: Config, where: str) -> dict[str, Any]:
    """Description of the images of an attack's group: the attacker's own, unless it names another set as ``data``.

    Raises:
        ConfigError: The set is no group of ``conf/data/downstream``.
    """
    return _instead(config, group.get("data"), "attacker", f"{where}.data")


def _instead(config: Config, other: Any, part: str, where: str) -> dict[str, Any]:
    """Another set than a part of the host's images; of the host's own set each has its part, and no other."""
    if not other:
        return host_data(config, part)
    if not isinstance(other, Mapping) or not {"name", "train"} <= set(other):
        raise ConfigError(f"{where} is {other!r}; write e.g. +data/downstream@{where}=gtsrb")
    if other["name"] == config["data"]["name"]:
        return host_data(config, part)
    return _images(config, other["name"], "train", other["train"])


def _images(config: Config, name: str, split: str, limit: int | None) -> dict[str, Any]:
    size, seed = config["data"]["size"], config["seed"]
    return {"name": source_name(config, name), "size": size, "seed": seed, "split": split, "limit": limit}


def len_of(data: Config) -> int:
    """Number of images of a data description at the most; taken as 50,000 where it has no limit."""
    share = data["parts"][data["part"]] if data.get("parts") else 1.0
    return int((data["limit"] or 50_000) * share)


def attack_settings(group: Config, strength: float, scheme: Config | None = None) -> dict[str, Any]:
    """The fields of one attack of a group: ``strength`` names the one that takes each of the ``strengths`` in turn.

    Where its ``scheme`` is null, it is ``scheme``, that of the mark under attack.
    """
    own = {"scheme": scheme} if by_own_kind(group) else {}
    fields = {name: value for name, value in group.items() if name not in ("strengths", "strength", "variants", "data")}
    return {**fields, **own, group["strength"]: strength}


def by_own_kind(group: Config) -> bool:
    """Whether an attack imitates each mark that it is made on: its ``scheme`` is null."""
    return "scheme" in group and group["scheme"] is None


def strengths(group: Config) -> list[float]:
    """The strengths that an attack's group lists.

    Raises:
        ConfigError: It lists none, or does not say which field they are for.
    """
    listed = group.get("strengths") if isinstance(group, Mapping) else None
    numbers = isinstance(listed, list) and all(isinstance(s, int | float) for s in listed)
    if not listed or not numbers or not group.get("strength"):
        raise ConfigError(
            "an attack needs strength (the field that varies) and strengths (a list of numbers, e.g. [0.5, 0.9]), got "
            f"{group.get('strength') if isinstance(group, Mapping) else None!r} and {listed!r}"
        )
    return list(group["strengths"])


def concerns(group: Config, mark: str) -> bool:
    """Whether an attack or survey is about a mark of this name: about all, unless the group lists ``variants``."""
    return not group.get("variants") or mark in group["variants"]


def variants(config: Config) -> dict[str, dict[str, Any]]:
    """Settings of every scheme an experiment compares, by what rows call them.

    Without ``variants`` that is ``scheme`` alone.  A variant is another scheme if it has a ``_target_``; otherwise it
    is ``scheme`` with some fields changed, a nested one by its dotted name.

    Raises:
        ConfigError: A variant is no mapping.
    """
    base = config["scheme"]
    found = {}
    for label, changes in (config["variants"] or {"": {}}).items():
        if not isinstance(changes, Mapping):
            raise ConfigError(f"variants.{label} is {changes!r}; give the scheme's fields that change, or a _target_")
        found[label] = dict(changes) if "_target_" in changes else _changed(base, changes)
    return found


def _changed(base: Config, changes: Config) -> dict[str, Any]:
    result = dict(base)
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        result[first] = _changed(result.get(first) or {}, {rest: value}) if rest else value
    return result
