import logging
import sys

import pandas as pd
import pytest

from hallmark import cli
from hallmark.cli import STOPPED, parse_duration
from hallmark.composition import experiments
from hallmark.errors import ConfigError
from hallmark.stages.reach import reachable_keys
from smoke import TINY, reduced


def invoke(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["hallmark", *words])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


BAD = {
    "an unknown experiment": (["experiment=wpe/man"], ["wpe/man", "wpe/main", "demo"]),
    "an unknown scheme": (["scheme=wep"], ["scheme/wep", "wpe"]),
    "a long option with one dash": (["-plan"], ["-plan", "--plan"]),
    "a word without a value": (["matrix"], ["key=value"]),
    "a negative seed": (["seed=-1"], ["seed", "-1"]),
    "parts that are no list": (["experiment=matrix", "parts=matrix/images"], ["parts=[matrix/images]"]),
    "a results folder that cannot be": (["results=/proc/rows", "plan=false"], ["results=/proc/rows"]),
    "an unknown key": (["sead=1"], ["sead"]),
    "an unknown nested key": (["scheme.trigger.sise=5"], ["sise"]),
    "an integer that is none": (["seed=x"], ["'x'", "Integer"]),
    "a nested integer that is none": (["scheme.embedding.epochs=many"], ["scheme.embedding.epochs", "many"]),
    "an unknown reading": (["scheme.reading=magic"], ["magic", "cluster"]),
    "a patch without a pixel": (["scheme.trigger.size=0"], ["trigger", "0"]),
    "a patch larger than the image": (["scheme.trigger.size=64"], ["scheme.trigger.size=64", "32x32"]),
    "more queries than images": (["scheme.queries=100000"], ["100000", "lower"]),
    "decoys too few to detect anything": (["calibration.decoys=99"], ["99", "0.01", "alpha=0.001"]),
    "no decoys": (["calibration.decoys=0"], ["decoys", "0"]),
    "decoys that are no number": (["calibration.decoys=many"], ["calibration.decoys", "many"]),
    "a task that is not run": (["attacked_tasks=[linear_prob]"], ["linear_prob", "linear_probe"]),
    "a precision that is none": (["trainer.precision=bf8"], ["bf8", "bf16-mixed"]),
    "no downstream set": (["downstreams={}", "~downstreams.digits", "~downstreams.procedural"], ["downstream"]),
    "a configuration without a scheme": (["~scheme"], ["scheme"]),
    "strengths that are no list": (["attacks.prune.strengths=0.5"], ["strengths", "list"]),
    "strengths that are no numbers": (["attacks.prune.strengths=[a]"], ["strengths", "list"]),
    "scratch without a contrastive utility": (["scheme.embedding.start=scratch"], ["utility=contrastive"]),
    "an unknown method": (["pretrains.simclr.method=simsiam"], ["simsiam", "byol"]),
    "an option of another method": (["+pretrains.simclr.options.queue=1"], ["queue", "temperature"]),
    "a batch larger than the data": (["pretrains.simclr.batch=100000"], ["100000", "lower the batch"]),
    "a class that is not there": (["scheme._target_=hallmark.schemes.wpe.Nothing"], ["Nothing"]),
    "a component of the wrong kind": (
        ["attacks.prune._target_=hallmark.tasks.probe.NearestNeighbours"],
        ["attack"],
    ),
    "a level outside (0, 1)": (["alpha=2"], ["alpha", "2"]),
    "a budget that is no duration": (["budget=soon"], ["soon", "9m"]),
    "a strength out of range": (["attacks.prune.strengths=[1.5]"], ["1.5"]),
    "a missing data set": (["experiment=wpe/main", "scale=cpu", "data_root=/nowhere"], ["cifar10", "/nowhere"]),
    "no data folder at all": (["experiment=wpe/main", "scale=cpu", "data_root=null"], ["cifar10", "HALLMARK_DATA"]),
    "a GPU that is not there": (["trainer=gpu"], ["trainer=cpu"]),
    "an unknown logger": (["logger.kind=paper"], ["paper", "wandb"]),
    "an unknown backbone": (["host.backbone=alexnet"], ["alexnet", "resnet_small"]),
    "a perturbation of no size": (
        ["scheme=awencoder", "scheme.perturbation.epsilon=0"],
        ["epsilon", "(0, 1]"],
    ),
    "a perturbation below nothing": (["scheme=awencoder", "scheme.perturbation.epsilon=-0.1"], ["(0, 1]", "-0.1"]),
    "a perturbation beyond white": (["scheme=awencoder", "scheme.perturbation.epsilon=8"], ["(0, 1]", "8", "0 to 1"]),
    "a key image outside the data": (["scheme=awencoder", "scheme.key_image=4000"], ["key_image=4000", "0 to 3999"]),
    "an encoder of another input size": (
        ["scheme=awencoder", "host.backbone=torchvision:vit_b_16", "host.width=null"],
        ["224x224", "data.size=224"],
    ),
    "queries of data that is none": (["+attack@attacks.e=extract", "+attacks.e.data=svhn"], ["attacks.e.data", "svhn"]),
    "a thief's network that is none": (["+attack@attacks.e=extract", "attacks.e.backbone=alexnet"], ["alexnet"]),
    "fewer than no answers withheld": (
        ["+attack@attacks.e=postprocess", "attacks.e.operation=top", "attacks.e.strengths=[-1]"],
        ["top", "answers withheld"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_clear_line(name, monkeypatch, capsys, tmp_path):
    overrides, expected = BAD[name]
    where = [f"store={tmp_path / 'store'}", f"results={tmp_path / 'results'}"]
    code, _, err = invoke(monkeypatch, capsys, *where, *overrides)
    lines = err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    for word in expected:
        assert word in lines[0]
    assert not (tmp_path / "results").exists()
    left = [p for p in (tmp_path / "store").rglob("*") if p.is_file() and p.suffix not in (".lock", ".json")]
    assert not left, "nothing half-written stays behind"


def test_plan_runs_nothing_and_shows_every_stage(monkeypatch, capsys, tmp_path):
    code, out, _ = invoke(monkeypatch, capsys, *TINY, f"store={tmp_path / 's'}", "--plan")
    assert code == 0
    assert out.count(" miss ") == int(out.split(" stages")[0].rsplit(" ", 1)[1])
    assert not (tmp_path / "s" / "objects").exists()


@pytest.mark.slow
def test_budget_stops_and_the_same_command_finishes(monkeypatch, capsys, tmp_path):
    words = [*TINY, f"store={tmp_path / 's'}", f"results={tmp_path / 'r'}"]
    monkeypatch.setattr(cli, "STARTED", cli.STARTED - 1e6)
    code, out, _ = invoke(monkeypatch, capsys, *words, "budget=1s")
    assert code == STOPPED
    assert "run the same command" in out
    code, out, _ = invoke(monkeypatch, capsys, *words)
    assert code == 0
    again = invoke(monkeypatch, capsys, *words)
    assert "0 to run" in again[1]
    assert "0 of them new or changed" in again[1]


def test_nan_loss_is_one_line_and_leaves_no_stage(monkeypatch, capsys, tmp_path):
    words = [*TINY, f"store={tmp_path / 's'}", f"results={tmp_path / 'r'}", "pretrains.simclr.optimisation.lr=1e30"]
    code, _, err = invoke(monkeypatch, capsys, *words)
    assert code == 2
    assert "loss became" in err
    assert "learning rate" in err
    assert len(err.strip().splitlines()) == 1
    assert not list((tmp_path / "s").glob("objects/*"))
    assert not list((tmp_path / "s").glob("work/*"))


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_composes_and_plans_at_smoke_scale(name, monkeypatch, capsys, tmp_path):
    words = [f"experiment={name}", "scale=smoke", f"store={tmp_path}", "plan=true"]
    code, out, err = invoke(monkeypatch, capsys, *words)
    assert code == 0, err
    assert f"{name} seed=0 scale=smoke" in out


def test_durations():
    assert [parse_duration(t) for t in ("90s", "9m", "1.5h", 30, None)] == [90, 540, 5400, 30, None]
    with pytest.raises(ConfigError, match="soon"):
        parse_duration("soon")


@pytest.mark.parametrize(
    "change", ["scale.epochs=1", "~downstreams.digits", "+attacks.x={}", "scheme.reading=divergence"]
)
def test_a_variant_cannot_replace_the_rows_of_the_record(change, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = invoke(monkeypatch, capsys, f"store={tmp_path / 's'}", change)
    assert code == 2
    assert change in err
    assert "name=..." in err
    assert not list(tmp_path.iterdir())


def test_the_store_can_still_warn(monkeypatch, capsys, tmp_path):
    """Hydra's own settings would silence every logger there is when it starts."""
    invoke(monkeypatch, capsys, *TINY, f"store={tmp_path / 's'}", "--plan")
    assert logging.getLogger("hallmark.stages.store").isEnabledFor(logging.WARNING)


# Experiments that are made of parts


def test_a_plan_of_parts_ends_in_their_sum(monkeypatch, capsys, tmp_path):
    words = ["experiment=matrix", "scale=smoke", "parts=[demo,uchida/table5]", f"store={tmp_path}", "--plan"]
    code, out, err = invoke(monkeypatch, capsys, *words)
    assert code == 0, err
    heads = [line for line in out.splitlines() if "seed=0 scale=smoke" in line]
    assert [line.split()[0] for line in heads] == ["demo", "uchida/table5", "matrix"]
    assert "2 parts in all" in heads[-1]
    stages = [int(line.split(" stages")[0].rsplit(" ", 1)[1]) for line in heads]
    assert stages[-1] == stages[0] + stages[1] == out.count("  miss ")


BAD_PARTS = {
    "an unknown part": (["parts=[wpe/man]"], ["wpe/man, a part of matrix", "available", "wpe/main"]),
    "a part that is made of parts": (["parts=[matrix]"], ["matrix, a part of matrix", "parts of its own"]),
    "parts that are no list": (["parts=wpe/main"], ["parts", "list"]),
    "a key that a part lacks": (
        ["parts=[demo,uchida/table5]", "attacks.quantize.strengths=[24]", "name=mine"],
        ["a part of mine", "attacks.quantize", "no such key", "experiment=demo takes overrides of its own"],
    ),
    "a key that the whole lacks": (["pretrains.simclr.epochs=1"], ["pretrains.simclr", "no such key"]),
    "another experiment than the record has": (
        ["attacks.prune.strengths=[0.5]"],
        ["matrix", "name=...", "results=..."],
    ),
    "a value that a part refuses": (["parts=[demo]", "calibration.decoys=9", "name=mine"], ["mine/demo", "decoys=9"]),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_bad_input_of_parts_ends_in_one_clear_line(name, monkeypatch, capsys, tmp_path):
    overrides, expected = BAD_PARTS[name]
    words = ["experiment=matrix", "scale=smoke", f"store={tmp_path / 's'}", *overrides]
    code, _, err = invoke(monkeypatch, capsys, *words)
    (line,) = err.strip().splitlines()
    assert code == 2
    assert line.startswith("error: ")
    for word in expected:
        assert word in line
    assert not (tmp_path / "s" / "objects").exists()


@pytest.mark.slow
def test_parts_run_one_after_another_for_every_seed(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [*reduced("prune", "finetune", "surrogate"), f"store={tmp_path / 's'}", f"results={tmp_path / 'r'}"]
    code, out, err = invoke(monkeypatch, capsys, *words)
    assert code == 0, err
    found = pd.read_csv(tmp_path / "r" / "runs.csv", keep_default_na=False)
    assert set(found["experiment"]) == {"matrix/images"}
    assert set(found["paper"]) == {"matrix"}
    cells = found[found["metric"] == "not_applicable"]
    assert cells[["scheme", "attack", "strength", "value"]].values.tolist() == [["deep_watermark", "finetune", 0, 1]]
    rates = found[(found["metric"] == "fpr") & found["suspect"].isin(["innocent", "attacked_innocent"])]
    assert set(rates["n"].astype(int)) == {120}  # 60 keys each of two innocents, and of two attacked ones
    again = invoke(monkeypatch, capsys, *words)
    assert "1 parts in all" in again[1]
    assert " 0 to run" in again[1]
    assert "0 of them new or changed" in again[1]
    monkeypatch.setattr(cli, "STARTED", cli.STARTED - 1e6)
    code, out, _ = invoke(monkeypatch, capsys, "-m", *words, "seed=1,2", "budget=1s")
    assert code == STOPPED
    assert "run the same command" in out


def test_what_experiments_of_parts_reach_is_kept(tmp_path):
    few = ["experiment=matrix", "scale=smoke", f"store={tmp_path}"]
    both = reachable_keys([[*few, "parts=[demo,uchida/table5]"]])
    assert both == reachable_keys([[f"experiment={name}", *few[1:]] for name in ("demo", "uchida/table5")])
