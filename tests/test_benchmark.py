"""The benchmark at tiny settings: what it writes and how its figures hang together, not how fast anything is."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch):
    """The scripts importable, and torch's threads as they were."""
    monkeypatch.syspath_prepend(SCRIPTS)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def figures(tmp_path: Path, command: str, *arguments: str) -> dict[str, Any]:
    import benchmark

    words = [command, "--repeats", "2", "--threads", "1", "--out", str(tmp_path / "deep"), *arguments]
    path = benchmark.main(words)
    assert path == tmp_path / "deep" / f"{command}.json"
    document = json.loads(path.read_text())
    machine = document["machine"]
    assert document["benchmark"] == command
    assert document["settings"]["repeats"] == 2
    assert (machine["threads"], machine["device"]) == (1, "cpu")
    assert machine["cores"] >= 1
    assert machine["packages"]["torch"] == torch.__version__
    for spread in spreads(document):
        assert len(spread["rounds"]) == 2
        assert spread["median"] == statistics.median(spread["rounds"])
        assert 0 < spread["min"] == min(spread["rounds"]) <= max(spread["rounds"]) == spread["max"]
    return document


def spreads(node: Any) -> list[dict[str, Any]]:
    """Every spread anywhere in a document."""
    if isinstance(node, dict) and "rounds" in node:
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [found for child in children for found in spreads(child)]


def quotient(top: dict[str, Any], bottom: dict[str, Any]) -> Any:
    return pytest.approx([a / b for a, b in zip(top["rounds"], bottom["rounds"], strict=True)], rel=1e-4)


def test_pretrain(tmp_path):
    small = ["--width", "4", "--batch", "16", "--steps", "3", "--warmup", "1", "--size", "16", "--images", "32"]
    document = figures(tmp_path, "pretrain", "--networks", "resnet_small", *small, "--curves", "--curve-images", "3500")
    assert set(document["networks"]) == {"resnet_small"}
    network = document["networks"]["resnet_small"]
    assert (network["batch"], network["steps"]) == (16, 3)
    suite = network["suite_pairs_per_s"]
    assert network["suite_over_bare"]["rounds"] == quotient(suite, network["bare_pairs_per_s"])
    for name in ("lightly", "lightly_example"):
        assert network[f"suite_over_{name}"]["rounds"] == quotient(suite, network[f"{name}_pairs_per_s"])
    rates = network["bare_pairs_per_s"], network["lightly_pairs_per_s"]
    assert network["bare_over_lightly"]["rounds"] == quotient(*rates)

    views = document["augmentation"]
    assert views["ratio"]["rounds"] == quotient(views["hallmark_views_per_s"], views["lightly_views_per_s"])
    for other in ("torchvision", "kornia"):
        rate, over = views[f"{other}_views_per_s"], views[f"hallmark_over_{other}"]
        missing = rate == over == "not installed"
        assert missing or over["rounds"] == quotient(views["hallmark_views_per_s"], rate)

    batches, images = document["curves"]["batch"], document["curves"]["images"]
    assert [(p["batch"], p["images"]) for p in batches] == [(64, 3500), (128, 3500)]
    assert [(p["batch"], p["images"]) for p in images] == [(128, n) for n in (140, 350, 1400, 3500)]
    for curve in (batches, images):
        assert all(p["relative"]["rounds"] == quotient(p["views_per_s"], curve[0]["views_per_s"]) for p in curve)
        assert all(p["data_mib"] == p["images"] * 3 * 16 * 16 / 2**20 for p in curve)


def test_lightlys_example_trains_its_plain_network(monkeypatch):
    """The peer takes its steps in float32 on contiguous images, and its weights move."""
    import pytorch_lightning as pl

    from bench import pretrain
    from bench.augmentation import Pictures, noise

    network = pretrain.Network(pretrain.HostRecipe("resnet_small", 2), batch=4, steps=2)
    setup = pretrain.Setup(network, 8, 1, 0, torch.device("cpu"))
    seen = []
    fit = pl.Trainer.fit

    def spied(trainer, module, loader):
        before = [p.detach().clone() for p in module.parameters()]
        module.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        fit(trainer, module, loader)
        assert trainer.precision == "32-true"
        seen.append(any(not torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True)))

    monkeypatch.setattr(pl.Trainer, "fit", spied)
    run = pretrain.lightly_example(setup, Pictures(noise(8, 8)))
    *views, moved = seen
    assert run.units == 2 * 4
    assert run.seconds > 0
    assert moved
    assert len(views) == 2 * 3, "two views a step, one after the other; one step to warm up"
    assert all(view.dtype == torch.float32 and view.is_contiguous() for view in views)


def test_supervised(tmp_path):
    small = ["--width", "1", "--batch", "8", "--steps", "3", "--warmup", "1", "--size", "8"]
    found = figures(tmp_path, "supervised", *small)["supervised"]
    assert [found[name] for name in ("backbone", "width", "batch", "steps")] == ["wrn10", 1, 8, 3]
    eager = found["eager"]
    assert eager["suite_over_bare"]["rounds"] == quotient(eager["suite_images_per_s"], eager["bare_images_per_s"])
    assert found["compiled"] is None


def test_parity(tmp_path, monkeypatch):
    monkeypatch.delenv("HALLMARK_DATA", raising=False)
    small = ["--width", "2", "--batch", "16", "--epochs", "1", "--images", "40", "--size", "8", "--workers", "1"]
    found = figures(tmp_path, "parity", *small, "--seeds", "3")["parity"]
    assert [found[name] for name in ("data", "images", "test_images", "seeds")] == ["procedural", 40, 20, 3]
    ways = found["suite_accuracies"], found["lightly_accuracies"]
    assert found["differences"] == [a - b for a, b in zip(*ways, strict=True)]
    mean, half = statistics.mean(found["differences"]), 4.302653 * statistics.stdev(found["differences"]) / 3**0.5
    assert found["mean_difference"] == pytest.approx(mean)
    assert [found["low"], found["high"]] == pytest.approx([mean - half, mean + half], abs=1e-6)
    assert found["equal"] == (found["low"] <= 0 <= found["high"])
    assert all(0 <= accuracy <= 1 for accuracy in (*found["untrained_accuracies"], *ways[0], *ways[1]))


def test_parity_of_one_seed_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HALLMARK_DATA", str(tmp_path))  # where no CIFAR-10 is
    small = ["--width", "2", "--batch", "8", "--epochs", "1", "--images", "16", "--size", "8", "--workers", "1"]
    found = figures(tmp_path, "parity", *small, "--seeds", "1")["parity"]
    assert (found["data"], found["low"], found["high"], found["equal"]) == ("procedural", None, None, None)


def test_both_ways_of_parity_learn_and_repeat():
    """Each way's run depends on its seed alone, and moves the weights it starts from."""
    from bench import parity
    from hallmark.data.catalogue import load
    from hallmark.pretrain.train import build_module

    data = load("procedural", "train", size=8, limit=16)
    scene = parity.Scene(parity.HostRecipe("resnet_small", 2), data, data, 8, 1, 1)
    begun = build_module(scene.host, scene.recipe, seed=0).encoder.state_dict()
    for way in (parity.suite, parity.lightly):
        first, again, other = (way(scene, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)
        assert any(not torch.equal(first[name], begun[name]) for name in first)


def test_probe(tmp_path):
    settings = ["--tasks", "2", "--epochs", "3", "--features", "8", "--images", "1200", "--classes", "3"]
    probes = figures(tmp_path, "probe", *settings, "--rates", "0.001", "0.1")["probes"]
    assert (probes["tasks"], probes["rates"]) == (2, [0.001, 0.1])
    assert probes["speed_up"]["rounds"] == quotient(probes["one_by_one_seconds"], probes["batched_seconds"])
    assert probes["speed_up_over_loader"]["rounds"] == quotient(probes["loader_seconds"], probes["batched_seconds"])
    ways = probes["batched_accuracies"], probes["one_by_one_accuracies"]
    differences = [abs(a - b) for a, b in zip(*ways, strict=True)]
    assert probes["largest_difference"] == max(differences)
    assert max(differences) <= 2 / 300, "the two ways train the same heads"
    assert min(ways[0]) > 0.5, "a probe learns three classes"
    assert probes["mean_difference_to_loader"] <= 0.05, "other batches, the same heads"


def test_verify(tmp_path):
    sizes = ["--keys", "30", "--queries", "6", "--one-by-one-keys", "4", "--heads", "2", "--width", "4", "--size", "16"]
    found = figures(tmp_path, "verify", *sizes)["verification"]
    assert [found[name] for name in ("keys", "queries", "suspects", "one_by_one_keys")] == [30, 6, 5, 4]
    rate, seconds = found["extract_all_keys_per_s"], found["extract_all_seconds"]
    assert rate["rounds"] == pytest.approx([30 / s for s in seconds["rounds"]], rel=1e-4)
    assert found["speed_up"]["rounds"] == quotient(rate, found["one_by_one_keys_per_s"])
    assert found["largest_difference"] < 0.02
    assert [(p["keys"], p["queries"]) for p in found["over_keys"]] == [(3, 6), (9, 6), (30, 6)]
    assert [(p["keys"], p["queries"]) for p in found["over_queries"]] == [(3, 2), (3, 3), (3, 6), (3, 12)]
    for point in found["over_keys"] + found["over_queries"]:
        keys, images = point["keys_per_s"]["rounds"], point["images_per_s"]["rounds"]
        assert images == pytest.approx([k * point["queries"] for k in keys], rel=1e-4)


def test_stain(tmp_path):
    small = ["--network", "resnet_small", "--neurons", "1", "--search-steps", "2", "--images", "16", "--size", "16"]
    marking = figures(tmp_path, "stain", *small, "--bits", "8")["marking"]
    assert marking["times_faster"]["rounds"] == quotient(marking["finetune_seconds"], marking["stain_seconds"])
    assert (marking["neurons"], marking["images"], marking["bits"]) == (1, 16, 8)
    assert marking["log_p"] < -100  # the weights are the committed direction
    assert 0 <= marking["right_bits"] <= 8


def test_sweep(tmp_path):
    sweep = figures(tmp_path, "sweep", "--experiment", "demo", "--stages", "40")["sweep"]
    one = sweep["finished_stages"]
    assert sweep["experiments"] == -(-40 // one)
    assert sweep["stages"] == one * sweep["experiments"] >= 40
    assert sweep["entries"] == sweep["stages"], "every stage of every seed has a key of its own"
    built, looked_up = (torch.tensor(sweep[name]["rounds"]) for name in ("graph_seconds", "survey_full_seconds"))
    assert sweep["planning_seconds"]["rounds"] == pytest.approx((built + looked_up).tolist(), rel=1e-4)
    assert [point["stages"] for point in sweep["over_stages"]] == sorted(p["stages"] for p in sweep["over_stages"])
    assert sweep["over_stages"][-1]["stages"] == sweep["stages"]
    assert sweep["survey_over_graph"]["rounds"] == quotient(sweep["survey_full_seconds"], sweep["graph_seconds"])


def test_alternatives_take_turns():
    from bench.measure import Run, interleave, ratio

    order, pace = [], iter(range(1, 7))

    def alternative(name: str) -> Run:
        order.append(name)
        return Run(units=12, seconds=next(pace))

    runs = interleave({name: lambda name=name: alternative(name) for name in "AB"}, 3)
    assert "".join(order) == "ABABAB"
    assert [run.seconds for run in runs["B"]] == [2, 4, 6]
    spread = ratio(runs["A"], runs["B"])  # rounds 2 / 1, 4 / 3 and 6 / 5
    assert spread.rounds == pytest.approx((2, 4 / 3, 1.2), rel=1e-5)
    assert (spread.median, spread.min, spread.max) == pytest.approx((4 / 3, 1.2, 2), rel=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
def test_peak_is_of_the_run_alone():
    from bench.measure import measured

    cpu = torch.device("cpu")
    large = measured(lambda: torch.ones(64 << 18).sum(), 1, cpu)
    small = measured(lambda: torch.ones(16 << 18).sum(), 1, cpu)
    assert large.peak_mib == pytest.approx(64, abs=8)
    assert small.peak_mib == pytest.approx(16, abs=8)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["pretrain", "--steps", "2", "--warmup", "3"], "--warmup 3 must lie between 1 and the 2 steps"),
        (["pretrain", "--networks", "resnet18", "--width", "8"], "width"),
        (["supervised", "--steps", "2", "--warmup", "3"], "--warmup 3 must lie between 1 and the 2 steps"),
        (["parity", "--images", "1"], "--batch 2 is larger than the 1 images"),
    ],
)
def test_impossible_settings_end_in_one_line(tmp_path, words, complaint):
    import benchmark
    from hallmark.errors import ConfigError

    with pytest.raises(ConfigError, match=complaint) as raised:
        benchmark.main([*words, "--batch", "2", "--size", "8", "--out", str(tmp_path)])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
