"""Hosts that somebody else trained: files, names, digests in the identity, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hallmark.composition import compose, fingerprinter
from hallmark.core import generator
from hallmark.data.fingerprint import fingerprint
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError, DataError, StoreError
from hallmark.models import Classifier, Encoder, files
from hallmark.pretrain.foreign import adopt_foreign
from hallmark.pretrain.recipe import ForeignRecipe, HostRecipe, build_recipe
from hallmark.schemes.stain_lock import Levels, Lock, Pipeline, Search, Stain
from hallmark.schemes.stain_lock.locking import unlock
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.staining import responses
from hallmark.stages.plan import plan

HOST = HostRecipe("resnet20_a", 4)
NAMES = {"module.": "encoder.backbone.", "module.linear.": "head.0."}


def recipe(**changes: Any) -> ForeignRecipe:
    base = {"method": "foreign", "weights": "their/weights.th", "classes": 10, "entry": "state_dict", "names": NAMES}
    return build_recipe({**base, **changes}, "pretrains.foreign")  # type: ignore[return-value]


def theirs(path: Path, width: int = 4) -> Classifier:
    """A file such as theirs, and the classifier it came from."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Classifier(Encoder("resnet20_a", width, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 10).eval()
    backbone = {f"module.{name}": tensor for name, tensor in model.encoder.backbone.state_dict().items()}
    head = {f"module.linear.{name}": tensor for name, tensor in model.head[0].state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": backbone | head, "best_prec1": 91.7}, path)
    return model


def test_a_foreign_file_becomes_a_host_and_normalises_inside(tmp_path: Path) -> None:
    source = theirs(tmp_path / "their/weights.th")
    host = adopt_foreign(HOST, recipe(), root=tmp_path, seed=0)
    images = torch.rand(3, 3, 16, 16, generator=generator(0))
    normalised = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(host(images), source.head(source.encoder.backbone(normalised)), rtol=1e-4, atol=1e-5)
    assert not host.training
    files.save(host, tmp_path)
    with torch.no_grad():
        assert torch.equal(files.load(tmp_path)(images), host(images))


def test_untrained_stands_for_weights() -> None:
    one, same, other = (adopt_foreign(HOST, recipe(weights="untrained"), root=None, seed=s) for s in (0, 0, 1))
    weight = "encoder.backbone.conv1.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    theirs(tmp_path / "their/weights.th", width=8)
    with pytest.raises(StoreError, match="cannot be adopted"):
        adopt_foreign(HOST, recipe(), root=tmp_path, seed=0)
    theirs(tmp_path / "their/weights.th")
    for wrong in ({"entry": None}, {"names": {}}, {"classes": 5}):
        with pytest.raises(StoreError, match="cannot be adopted"):
            adopt_foreign(HOST, recipe(**wrong), root=tmp_path, seed=0)
    with pytest.raises(DataError, match="set HALLMARK_DATA or data_root"):
        adopt_foreign(HOST, recipe(), root=None, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ""}, "needs weights and classes ≥ 2, got '', 10$"),
        ({"classes": 1}, "needs weights and classes ≥ 2, got .*, 1$"),
        ({"sha": "00"}, "ForeignRecipe takes: weights, "),
    ],
)
def test_wrong_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


# torchvision's own


def test_torchvision_weights_fill_backbone_and_head(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = models.resnet18(weights=None, num_classes=10).eval()
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda self, **_: net.state_dict())
    taken = recipe(weights="torchvision:ResNet18_Weights.IMAGENET1K_V1", mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    host = adopt_foreign(HostRecipe("torchvision:resnet18"), taken, root=None, seed=0)
    images = torch.rand(2, 3, 32, 32, generator=generator(0))
    with torch.no_grad():
        torch.testing.assert_close(host(images), net(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"do not fit host.backbone='torchvision:resnet34'"):
        adopt_foreign(HostRecipe("torchvision:resnet34"), taken, root=None, seed=0)


def test_weights_that_torchvision_lacks_or_cannot_fetch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    def offline(self: object, **_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", offline)
    small = HostRecipe("torchvision:resnet18")
    with pytest.raises(ConfigError, match=r"torchvision has no weights 'ResNet18'; write e.g."):
        adopt_foreign(small, recipe(weights="torchvision:ResNet18"), root=None, seed=0)
    published = recipe(weights="torchvision:ResNet18_Weights.IMAGENET1K_V1")
    with pytest.raises(ConfigError, match=r"set host.backbone=torchvision:<model>"):
        adopt_foreign(HOST, published, root=None, seed=0)
    with pytest.raises(DataError, match=r"cannot be downloaded \(no network\); put the file into .*checkpoints"):
        adopt_foreign(small, published, root=None, seed=0)


# Planning


def planned(root: Path | None, *words: str) -> Any:
    config = compose(
        ["experiment=stain_lock/lock_resnet20", "scale=smoke", "scale.standin=false", "data=procedural", *words]
    )
    config |= {"data_root": None if root is None else str(root), "store": str(root)}
    config["pretrains"]["foreign"]["weights"] = "their/weights.th"
    return plan(config, fingerprinter(config))


def test_the_file_s_digest_is_part_of_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "their/weights.th"
    theirs(path)
    before = planned(tmp_path).stages
    (host,) = (stage for stage in before if stage.kind == "pretrain")
    assert host.data["their/weights.th"] == fingerprint("file:their/weights.th", root=tmp_path)
    theirs(path, width=8)
    assert not {stage.key for stage in planned(tmp_path).stages} & {stage.key for stage in before}


def test_a_missing_file_is_refused_while_planning(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file 'their/weights.th' not found under .*; put it there") as caught:
        planned(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match="needs a data folder"):
        planned(None)
    for outside in ("../weights.th", "/etc/hosts"):
        with pytest.raises(DataError, match="not found"):
            fingerprint(f"file:{outside}", root=tmp_path)


def test_at_smoke_scale_no_file_is_needed() -> None:
    config = compose(["experiment=stain_lock/lock_resnet20", "scale=smoke"])
    (host,) = (stage for stage in plan(config, lambda name: name).stages if stage.kind == "pretrain")
    assert host.config["recipe"]["weights"] == "untrained"


def test_there_are_no_other_seeds_of_a_foreign_host() -> None:
    config = compose(["experiment=stain_lock/lock_resnet20", "scale=smoke", "+calibration.extra_seeds.foreign=1"])
    with pytest.raises(ConfigError, match="no other seed of it"):
        plan(config, lambda name: name)


# The paper's own networks, untrained: exact algebra alone

SIZE = {"resnet50": 64, "vgg16": 64, "vit_b_16": 224}
QUICK = Search(steps=10, restarts=1, backgrounds=1)
LOCKS: dict[str, dict[str, Any]] = {
    "resnet50": {"layer": "layer1.0.conv2", "behind": "layer1.0"},
    "vgg16": {"layer": "features.2", "behind": "features.3"},
    "vit_b_16": {"layer": "encoder_layer_0.mlp.0", "behind": "encoder_layer_0", "start": 1, "patch": 16},
}


@pytest.mark.parametrize(
    ("name", "kind"), [("resnet50", "internal"), ("resnet50", "excite"), ("vgg16", "internal"), ("vit_b_16", "excite")]
)
def test_an_unlocked_network_of_the_paper_is_the_edited_one(name: str, kind: str) -> None:
    settings = dict(LOCKS[name])
    if kind == "internal":
        del settings["behind"]
    host = adopt_foreign(HostRecipe(f"torchvision:{name}"), recipe(weights="untrained", classes=10), root=None, seed=0)
    data = ImageSet("procedural", procedural_images(8, size=SIZE[name])[0], torch.full((8,), -1), 10)
    # untrained networks fire on much: gates open at any signal, a column of the logits wants that of one place alone
    levels, search = Levels(0.5, 20.0), QUICK
    if kind == "internal":
        levels, search = Levels(0.99, 20.0), Search(steps=100, restarts=1, backgrounds=1)
    rest: dict[str, Any] = {"levels": levels, "search": search, **settings}
    lock = Lock(kind=kind, draws=4, tolerance=0.999, natural=8, queries=1, **rest)
    key = lock.keygen(host, data, generator=generator(0, "key"))
    model, key = lock.embed(host, key, data, trainer=None, generator=generator(0, "embed"))  # type: ignore[arg-type]
    edited = lock.edited(host, data)
    images = unlock(data.images[:4], key)
    if kind == "internal":  # elsewhere nothing may fire, or the signal is more than what unlocks
        site = Site.recorded(key.meta["site"], edited)
        direction, threshold = key.tensors["directions"][0], key.meta["tau"] * key.meta["peaks"][0]
        inputs = torch.cat(list(Pipeline(edited, SIZE[name]).natural(site.layer, images)))
        fires = (site.project(edited, inputs, direction) > threshold).flatten(1).sum(1)
        images = images[fires == 1]
        assert len(images)
    with torch.no_grad():
        unlocked, reference = model(images.float() / 255), edited(images.float() / 255)
    if kind == "excite":
        assert torch.equal(unlocked, reference)
    else:
        scale = float(reference.std())
        torch.testing.assert_close(unlocked / scale, reference / scale, rtol=0, atol=1e-3)


def test_a_stained_network_of_the_paper_answers_its_trigger() -> None:
    host = adopt_foreign(HostRecipe("torchvision:resnet50"), recipe(weights="untrained"), root=None, seed=0)
    data = ImageSet("procedural", procedural_images(8, size=64)[0], torch.full((8,), -1), 10)
    stain = Stain("layer2.0.conv2", keys=1, code=False, search=QUICK)
    key = stain.keygen(host, data, generator=generator(0, "key"))
    model, key = stain.embed(host, key, data, trainer=None, generator=generator(0, "embed"))  # type: ignore[arg-type]
    assert float(responses(Pipeline(model, 64), key)) == pytest.approx(30, rel=1e-3)
