"""Attacks on networks that map images to images: moved pairs, clean pairs afterwards, erasers, processed answers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hallmark.attacks.erase import Erase
from hallmark.attacks.finetune_pairs import FineTunePairs
from hallmark.attacks.preprocess import Postprocess
from hallmark.attacks.surrogate import Surrogate
from hallmark.components import identify
from hallmark.core import Access, Attack, HostKind, Suspect, generator
from hallmark.data.geometry import move
from hallmark.data.images import ImageSet
from hallmark.data.pairs import PairLaw
from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError
from hallmark.models import files
from hallmark.models.image_to_image import Architecture, Barrier, Barriered, fresh
from hallmark.models.steps import Filter
from hallmark.schemes.deep_watermark import DeepWatermark, Embedding, MarkLaw, Networks
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

SIDE = 32
GREY = PairLaw("grey", side=SIDE)
SMALL = Architecture("unet", 4, 2)
SCHEME = identify(
    DeepWatermark(
        pairs=GREY, mark=MarkLaw("bits", 8), queries=4, networks=Networks(SMALL, 4, 1, 4), embedding=Embedding(1, 4)
    )
)


def pictures(count: int = 8) -> Tensor:
    return procedural_images(count, size=SIDE)[0]


def marked() -> nn.Module:
    torch.manual_seed(0)
    return Barriered(fresh(SMALL, 0), Barrier(SMALL), torch.rand(3, SIDE, SIDE)).eval()


def attacked(attack: Attack, model: nn.Module, folder: Path) -> nn.Module:
    owner = ImageSet("drawn", pictures(), torch.full((8,), -1), 0)
    trainer = LightningTrainer(TrainerSettings(precision="32-true", progress=False), folder)
    suspect = Suspect(model, HostKind.IMAGE_TO_IMAGE, attack.access)
    return attack.apply(suspect, owner, trainer=trainer, generator=generator(5))


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(pictures().float() / 255)


def test_both_images_of_a_pair_move_together_and_stay_in_range() -> None:
    images = pictures().float() / 255
    moved = move(torch.cat([images, 1 - images], dim=1), generator=generator(1))
    first, second = moved.chunk(2, dim=1)
    assert torch.allclose(first, 1 - second, atol=1e-5)
    assert bool((first - images).abs().mean((1, 2, 3)).gt(0.01).all())  # every image was moved
    assert float(moved.min()) >= -1e-6
    assert float(moved.max()) <= 1 + 1e-6
    # each by an amount of its own: equal images become different ones
    same = move(images[:1].expand(6, -1, -1, -1), generator=generator(2))
    assert all(not torch.equal(same[0], other) for other in same[1:])


def test_a_share_of_a_batch_moves_as_it_does_in_the_whole() -> None:
    images = pictures().float() / 255
    whole = move(images, generator=generator(1))
    assert torch.equal(move(images[3:6], generator=generator(1), total=8, start=3), whole[3:6])


def test_a_plain_image_stays_plain_and_a_disc_keeps_its_size_within_the_zoom() -> None:
    assert torch.allclose(move(torch.full((4, 3, 16, 16), 0.25), generator=generator(0)), torch.tensor(0.25))
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    disc = ((x.square() + y.square()) < 12**2).float().expand(50, 1, 64, 64)
    areas = move(disc, generator=generator(3)).sum((1, 2, 3)) / disc[0].sum()
    assert float(areas.min()) > 0.97  # never smaller
    assert float(areas.max()) < 1.5**2 * 1.03


def test_settings_added_later_leave_the_surrogate_what_it_was() -> None:
    assert not {"geometric", "clean_epochs"} & set(identify(Surrogate(1.0, network=SMALL)))
    assert Surrogate(1.0, network=SMALL, pairs=GREY).unit == "fraction unet l2"
    later = Surrogate(1.0, network=SMALL, pairs=GREY, geometric=True, clean_epochs=2)
    assert later.unit == "fraction unet l2 geometric then 2 epochs clean"
    with pytest.raises(ConfigError, match="clean_epochs must be at least 0"):
        Surrogate(1.0, network=SMALL, clean_epochs=-1)


def test_moved_pairs_and_clean_pairs_make_other_surrogates_of_the_same_answers(tmp_path: Path) -> None:
    plain = {"fraction": 1.0, "epochs": 1, "pairs": GREY, "network": SMALL, "batch": 4, "lr": 1e-3}
    made = [
        attacked(Surrogate(**plain, **more), marked(), tmp_path / str(number))
        for number, more in enumerate(({}, {}, {"geometric": True}, {"clean_epochs": 1}))
    ]
    first, again, moved, tuned = map(answers, made)
    assert torch.equal(first, again)
    assert not torch.equal(first, moved)
    assert not torch.equal(first, tuned)


def test_an_eraser_is_trained_and_stored_and_leaves_the_victim_inside_alone(tmp_path: Path) -> None:
    attack = Erase(SCHEME, 1, {"family": 2}, SMALL, batch=4, lr=1e-3)
    victim = marked()
    before = answers(victim)
    made = attacked(attack, victim, tmp_path / "training")
    assert torch.equal(answers(victim), before)
    assert torch.equal(answers(made.model), before)
    assert not torch.equal(answers(made), before)
    (tmp_path / "model").mkdir()
    files.save(made, tmp_path / "model")
    assert torch.equal(answers(files.load(tmp_path / "model")), answers(made))
    assert (attack.unit, attack.knows) == ("epochs unet from 2 own marks", frozenset({"scheme"}))
    assert torch.equal(answers(attacked(Erase(SCHEME, 0, {}, SMALL), victim, tmp_path / "none")), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "whole number of at least 0, got -1"),
        ({"changes": {"variant": "absorbed"}}, "give it a deep_watermark scheme with variant=barrier"),
        ({"scheme": {"_target_": "hallmark.schemes.uchida.Uchida"}}, "erase undoes a barrier|overwrite.scheme"),
        ({"network": Architecture("unet", 4, 6)}, "each side must be a multiple of 64"),
    ],
)
def test_an_eraser_that_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Erase(**{"scheme": SCHEME, "epochs": 1, "network": SMALL, **settings})


@pytest.mark.parametrize("barriered", [False, True])
def test_fine_tuning_on_pairs_moves_every_layer_towards_clean_images(barriered: bool, tmp_path: Path) -> None:
    victim = marked() if barriered else fresh(SMALL, 0).eval()
    before = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    attack = FineTunePairs(30, GREY, batch=4, lr=5e-3)
    made = attacked(attack, victim, tmp_path / "training")
    assert all(torch.equal(tensor, before[name]) for name, tensor in victim.state_dict().items())
    moved = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved >= {name for name, _ in victim.named_parameters() if name.endswith("weight")}
    assert ("mark" in before) == barriered
    assert "mark" not in moved
    clean = pictures().float() / 255
    grey = clean.mean(1, keepdim=True).expand_as(clean)  # near to what the law makes of them

    def distance(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(grey) - clean).square().mean())

    assert distance(made) < distance(victim)
    (tmp_path / "model").mkdir()
    files.save(made, tmp_path / "model")
    assert torch.equal(answers(files.load(tmp_path / "model")), answers(made))
    assert torch.equal(answers(attacked(FineTunePairs(0, GREY), victim, tmp_path / "none")), answers(victim))
    assert (attack.name, attack.unit, attack.needs_labels) == ("finetune", "epochs all grey pairs l2", False)
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        FineTunePairs(-1)


@pytest.mark.parametrize(("name", "reach"), [("cnet", 21), ("res9", 93), ("res16", 149)])
def test_a_convolutional_surrogate_sees_no_further_than_the_method_card_says(name: str, reach: int) -> None:
    network = Architecture(name, 1, 2).network(3, 3)
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm2d | nn.ReLU):  # statistics of the whole image know of no place
            module.forward = lambda x: x
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    image = torch.zeros(1, 3, 192, 192, requires_grad=True)
    network(image)[0, 0, 96, 96].backward()
    seen = image.grad[0].abs().sum((0, 1)).nonzero().flatten()
    assert int(seen[-1] - seen[0]) + 1 == reach


@pytest.mark.parametrize(("operation", "amount"), [("jpeg", 60), ("gaussian", 1.0), ("resize", 0.5), ("depth", 4)])
def test_answers_that_are_images_are_processed_as_images_are(operation: str, amount: float, tmp_path: Path) -> None:
    attack = Postprocess(operation, amount)
    assert attack.hosts == {HostKind.IMAGE_TO_IMAGE}
    assert attack.access is Access.WEIGHTS
    victim = marked()
    assert torch.equal(answers(attacked(attack, victim, tmp_path)), Filter(operation, amount)(answers(victim)))
