"""The attack configurations that ship, and the experiment that composes them."""

from pathlib import Path
from typing import Any, cast

import pytest
from omegaconf import OmegaConf

from hallmark.components import instantiate
from hallmark.composition import CONF, compose
from hallmark.core import Attack
from hallmark.stages.inputs import attack_settings, strengths
from hallmark.stages.plan import plan

NEW = ("invert", "postprocess", "preprocess", "reestimate", "refit", "remove_neurons")


@pytest.mark.parametrize("name", NEW)
def test_shipped_settings_are_an_attack_at_every_strength(name: str) -> None:
    group = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(Path(CONF) / "attack" / f"{name}.yaml")))
    for strength in strengths(group):
        attack = instantiate(attack_settings(group, strength), f"attacks.{name}", Attack)
        assert (attack.name, attack.strength) == (name, strength)


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_the_experiment_asks_for_no_more_than_the_attacker_has(scale: str) -> None:
    config = compose(["experiment=stain_lock/attacks", f"scale={scale}"])
    subjects = plan(config, lambda name: name).subjects
    has = int(config["data"]["limit"] * config["data"]["parts"]["attacker"])
    attacked = [s for s in subjects if s.attack != "none"]
    assert {s.mark.variant for s in attacked} == {"replace", "add", "internal", "excite"}
    assert {*NEW, "finetune", "prune", "quantize", "perturb", "overwrite"} <= {s.attack for s in attacked}
    assert all(s.stage.config["attack"].get("images", 0) <= has for s in attacked)
    # every attack has its control: the same on the unmarked original
    for subject in attacked:
        twin = (subject.attack, subject.unit, "attacked_innocent")
        assert twin in {(s.attack, s.unit, s.suspect) for s in attacked if s.mark is subject.mark}
