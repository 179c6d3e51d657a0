"""The README's block of benchmarks."""

import json
from pathlib import Path

import pytest

from hallmark.errors import DataError
from hallmark.report import speed

MACHINE = {"cpu": "Some CPU", "threads": 2}


def spread(median: float) -> dict[str, object]:
    return {"median": median, "min": median / 2, "max": 2 * median, "rounds": [median]}


def write(folder: Path, name: str, **figures: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"benchmark": name, "machine": MACHINE, **figures}))


def test_every_ratio_says_what_it_is_of(tmp_path) -> None:
    network = {"batch": 256, "suite_over_bare": spread(0.96), "compiled": {"suite_over_bare": spread(0.9)}}
    write(tmp_path, "pretrain", networks={"resnet_small": network}, augmentation={"ratio": spread(14)})
    text = speed.block(tmp_path)
    alone = "forward, backward and update alone"
    assert f"| SimCLR pretraining of resnet_small | {alone} | 0.96 | 0.48 … 1.92 |" in text
    assert f"| SimCLR pretraining of resnet_small compiled | {alone} | 0.9 | 0.45 … 1.8 |" in text
    assert "| views of 32×32 images, one thread | lightly's transform | 14 | 7 … 28 |" in text
    assert "Some CPU, 2 threads" in text


def test_parity_and_planning_are_told_in_sentences(tmp_path) -> None:
    found = {"epochs": 8, "images": 5000, "mean_difference": -0.004, "confidence": 0.95, "seeds": 3}
    write(tmp_path, "parity", parity={**found, "low": -0.01, "high": 0.002})
    write(tmp_path, "sweep", sweep={"stages": 10065, "entries": 20130, "planning_seconds": spread(1.8)})
    text = speed.block(tmp_path)
    assert "by −0.4 points (95 % interval −1.0 … +0.2, 3 seeds)" in text
    assert "Planning 10,065 stages against a store of 20,130 takes 1.8 s." in text


def test_without_measurements_it_says_so(tmp_path) -> None:
    assert speed.block(tmp_path) == "*Nothing has been measured yet.*\n"


@pytest.mark.parametrize("content", ["no json", "{}"])
def test_other_files_are_refused_in_one_line(tmp_path, content) -> None:
    (tmp_path / "probe.json").write_text(content)
    with pytest.raises(DataError, match=r"probe\.json .* measure it again"):
        speed.block(tmp_path)
