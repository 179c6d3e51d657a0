"""Marking a trained classifier: editing a stain in against fine-tuning another mark in."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.augmentation import noise
from bench.measure import Spread, interleave, measured, ratio, say, seconds
from hallmark.core import Access, HostKind, Key, Suspect, generator
from hallmark.data.images import ImageSet
from hallmark.models import Classifier, Encoder
from hallmark.schemes.stain_lock import Pipeline, Search, Stain
from hallmark.schemes.stain_lock.command.choice import for_stain
from hallmark.schemes.stain_lock.guarantees import combined
from hallmark.schemes.stain_lock.staining import draw_key, surprises, write_stain
from hallmark.schemes.uchida import Embedding, Uchida
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

CLASSES = 10


@dataclass(frozen=True)
class Staining:
    """Seconds to mark one host, both ways; fine-tuning makes one pass over ``images``.

    ``log_p`` and ``right_bits`` show that both marks are there to be found; bits may want more than one pass.
    """

    network: str
    layer: str
    neurons: int
    images: int
    stain_seconds: Spread
    verify_seconds: Spread
    finetune_seconds: Spread
    times_faster: Spread
    log_p: float
    bits: int
    right_bits: int


def compare(
    network: str, *, neurons: int, images: int, size: int, search_steps: int, bits: int, repeats: int
) -> Staining:
    """Both ways in turn, on the CPU."""
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host = Classifier(Encoder(network), CLASSES).eval()
    layer = for_stain(host, code=True)
    labels = torch.randint(CLASSES, (images,), generator=generator(0, "labels"))
    owner = ImageSet("noise", noise(images, size), labels, CLASSES)
    scheme = Uchida(bits=bits, layer=layer, embedding=Embedding("finetune", epochs=1, batch=min(64, images)))
    secret = scheme.keygen(host, None, generator=generator(0, "key"))
    say(f"stain: {neurons} neurons of {layer} in {network}, against one pass over {images} images")
    edit = partial(_stain, host, layer, neurons, size, search_steps)
    marked = edit()  # the first pass through a network prepares it
    runs = interleave(
        {
            "stain": lambda: measured(edit, 1, device),
            "verify": lambda: measured(partial(surprises, *marked), 1, device),
            "fine-tune": lambda: measured(partial(_finetune, host, scheme, secret, owner), 1, device),
        },
        repeats,
    )
    suspect = Suspect(runs["fine-tune"][-1].result, HostKind.CLASSIFIER, Access.WEIGHTS)
    return Staining(
        network=network,
        layer=layer,
        neurons=neurons,
        images=images,
        stain_seconds=seconds(runs["stain"]),
        verify_seconds=seconds(runs["verify"]),
        finetune_seconds=seconds(runs["fine-tune"]),
        times_faster=ratio(runs["stain"], runs["fine-tune"]),
        log_p=combined(surprises(*runs["stain"][-1].result)),
        bits=bits,
        right_bits=int(scheme.extract(suspect, secret).statistic()),
    )


def _stain(host: nn.Module, layer: str, neurons: int, size: int, steps: int) -> tuple[nn.Module, Key]:
    """From nothing to a marked copy and its key: directions, images, codes, edits and bounds."""
    pipeline = Pipeline(host, size)
    settings = Stain(layer, keys=neurons, search=Search(steps=steps, restarts=1))
    drawn = draw_key(pipeline, settings, generator=generator(0, "key"))
    return write_stain(pipeline, drawn, settings, generator=generator(0, "embed"))


def _finetune(host: nn.Module, scheme: Uchida, key: Key, owner: Any) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        trainer = LightningTrainer(TrainerSettings(precision="32-true", progress=False), Path(folder))
        return scheme.embed(host, key, owner, trainer=trainer, generator=generator(0, "embed"))[0]
