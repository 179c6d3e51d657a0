"""From configuration to typed objects, with errors that name the value."""

import dataclasses
import importlib
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hallmark.errors import ConfigError

T = TypeVar("T")

TARGET, VERSION = "_target_", "_version_"
NEUTRAL = {"neutral": True}
"""Metadata of a field added later, at whose default a component does what it did before there was the field."""


def locate(target: str) -> type:
    """The class that ``_target_`` names, from this package or anyone's.

    Raises:
        ConfigError: There is no such class, or it is no dataclass.
    """
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(f"_target_ {target!r} names no class; give module.Class of something importable") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"_target_ {target!r} is no dataclass; make it one, so that its configuration is checked")
    return found


def build(cls: type[T], config: Mapping[str, Any], where: str) -> T:
    """An object of a dataclass from plain configuration, types and field names checked.

    Args:
        cls: The dataclass; nested dataclasses are built too.
        config: Its fields; ``_target_`` and ``_version_`` are ignored.
        where: Place in the configuration, for error messages.

    Raises:
        ConfigError: A field is unknown, missing, or of the wrong type, or the class refuses its values.
    """
    fields = {name: value for name, value in config.items() if name not in (TARGET, VERSION)}
    try:
        text = json.dumps(fields)
    except (TypeError, ValueError):  # no plain configuration
        return _built(cls, fields, where)
    return _known(cls, text, where)  # type: ignore[return-value]


@lru_cache(maxsize=4096)
def _known(cls: type, text: str, where: str) -> object:
    """Equal settings are one object, which is frozen: a sweep spells most of them again for every seed."""
    return _built(cls, json.loads(text), where)


def _built(cls: type[T], fields: Mapping[str, Any], where: str) -> T:
    try:
        built = OmegaConf.to_object(OmegaConf.merge(_schema(cls), fields))
    except OmegaConfBaseException as error:
        key = f"{where}.{error.full_key}" if getattr(error, "full_key", None) else where
        reason = str(error).splitlines()[0]
        allowed = ", ".join(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]
        raise ConfigError(f"{key}: {reason}; {cls.__name__} takes: {allowed}") from None
    return built  # type: ignore[return-value]


@cache
def _schema(cls: type) -> DictConfig:
    """A dataclass as OmegaConf sees it, open to values; kept, because planning builds a class hundreds of times."""
    schema: DictConfig = OmegaConf.structured(cls)
    _thaw(schema)
    return schema  # merging copies it


def _thaw(node: Any) -> None:
    """Let values into the schema: OmegaConf makes frozen dataclasses read-only, nested ones too."""
    if isinstance(node, DictConfig):
        OmegaConf.set_readonly(node, False)
        for name in node:
            if not OmegaConf.is_missing(node, str(name)):
                _thaw(node[name])


def instantiate(config: Mapping[str, Any], where: str, kind: type = object) -> Any:
    """Build the object that ``config["_target_"]`` names.

    Args:
        config: ``_target_`` and the fields.
        where: Place in the configuration, for error messages.
        kind: What the object has to be.

    Raises:
        ConfigError: It is of another kind; see also :func:`locate` and :func:`build`.
    """
    if TARGET not in config:
        raise ConfigError(f"{where} needs a _target_ that names its class")
    component = build(locate(str(config[TARGET])), config, where)
    if not isinstance(component, kind):
        raise ConfigError(f"{where} builds a {type(component).__name__}, which is no {kind.__name__}; see conf/{where}")
    return component


def identify(component: Any) -> dict[str, Any]:
    """Everything about a component that decides what it does, as configuration from which it can be built again.

    Fields left at their defaults are spelled out and the class's ``version`` is added, so that a changed default or
    changed code makes another document.  Only a field marked :data:`NEUTRAL` is left out while it holds its default.
    """
    cls = type(component)
    target = {TARGET: f"{cls.__module__}.{cls.__qualname__}", VERSION: getattr(cls, "version", 1)}
    return target | _spelled(component)


def _spelled(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {f.name: _spelled(v) for f, v in fields.items() if not (f.metadata == NEUTRAL and v == f.default)}
    if isinstance(value, dict):
        return {name: _spelled(item) for name, item in value.items()}
    return [_spelled(item) for item in value] if isinstance(value, list | tuple) else value
