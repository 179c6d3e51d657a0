"""``hallmark-lock``: make a trained model useless without a secret patch, find the lock again, and stamp images."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hallmark.core import Access, HostKind, Key, Suspect
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.command import options, output
from hallmark.schemes.stain_lock.command.choice import bearing, for_lock, patch_side
from hallmark.schemes.stain_lock.command.folder import require_free, staged
from hallmark.schemes.stain_lock.command.host import Host, load
from hallmark.schemes.stain_lock.command.stamp import stamp
from hallmark.schemes.stain_lock.command.verdict import Clock, Verdict, require_alpha, show
from hallmark.schemes.stain_lock.detector import Levels, response
from hallmark.schemes.stain_lock.evidence import code_surprises
from hallmark.schemes.stain_lock.lock import DIRECTIONS, KINDS, Lock
from hallmark.schemes.stain_lock.locking import draw_lock_key, logit_moves, surprises, unlock, write_locks
from hallmark.schemes.stain_lock.site import Site

_COMPARED = 64
_TRIES = 4


def write(given: argparse.Namespace) -> int:
    """Lock a model."""
    require_free(given.out, force=given.force)
    host = load(options.request(given))
    clock = Clock()
    layers = [given.layer] if given.layer else for_lock(host.model)[:_TRIES]
    same = ("kind", "behind", "locks", "start", "spacing", "patch", "directions", "draws", "strength")
    settings = Lock(
        layers[0],
        **{name: getattr(given, name) for name in same},
        levels=Levels(given.tau, given.response),
        search=options.search(given, host),
        natural=0 if given.images is None else given.count,
    )
    images, described = options.natural(given, host)
    half = len(images) // 2
    edited, key = _first(host, settings, layers, images[:half], images[half:], options.randomness(given))
    key = output.remember(key, host)
    looked = images[half:][: _COMPARED if host.size <= _COMPARED else _COMPARED // 2]
    told = {
        "images": described,
        "held": len(images) - half,
        "looked_at": len(looked),
        "behaviour": _behaviour(host, edited, key, looked),
    }
    patches = [key.tensors[f"patch.{lock}"] for lock in range(given.locks)]
    pictures = {f"patch{k + 1 if given.locks > 1 else ''}.png": patch for k, patch in enumerate(patches)}
    with staged(given.out, force=given.force) as folder:
        facts = output.write(folder, host, edited, key, pictures, told)
    output.show(given.out, facts, clock.told())
    return options.FOUND


def _first(
    host: Host, settings: Lock, layers: Sequence[str], natural: Tensor, held: Tensor, generator: torch.Generator
) -> tuple[nn.Module, Key]:
    """Lock at the first layer where it can be done."""
    for layer in layers:
        here = dataclasses.replace(settings, layer=layer)
        try:
            key = draw_lock_key(host.pipeline, here, natural[: settings.queries], natural, generator=generator)
            return write_locks(host.pipeline, key, here, natural, held, generator=generator)
        except ConfigError as error:
            if layer == layers[-1]:
                raise
            Console(stderr=True, highlight=False).print(f"{layer}: {options.in_options(str(error))}; trying the next")
    raise ConfigError("there is no layer to try")


def _behaviour(host: Host, edited: nn.Module, key: Key, images: Tensor) -> dict[str, float]:
    """Share of labels that are as before: locked, with a random patch, unlocked."""
    noise = torch.Generator().manual_seed(0)
    wrong = {
        name: torch.randint(0, 256, tensor.shape, generator=noise, dtype=torch.uint8)
        for name, tensor in key.tensors.items()
        if name.startswith("patch.")
    }
    mistaken = dataclasses.replace(key, tensors={**key.tensors, **wrong})
    before = options.answers(host, images)
    asked = {"locked": images, "with a wrong patch": unlock(images, mistaken), "unlocked": unlock(images, key)}
    return {
        f"labels unchanged, {name}": float((options.answers(host, seen, edited) == before).float().mean())
        for name, seen in asked.items()
    }


def verify(given: argparse.Namespace) -> int:
    """Look for a lock in a suspect."""
    require_alpha(given.alpha)
    key = Key.load(given.key, scheme="lock")
    host = load(options.request(given), key)
    clock = Clock()
    read = {"weights": surprises(host.model, key)}
    if key.meta["kind"] == "internal":
        suspect = Suspect(_Asked(host), HostKind.CLASSIFIER, Access.LOGITS)
        read["answers"] = code_surprises(logit_moves(suspect, key), -key.tensors["disruptors"], draws=key.meta["draws"])
    site = Site.recorded(key.meta["site"], host.model)
    patched = unlock(key.tensors["queries"], key)
    maps = [response(host.pipeline, site, neuron, patched).flatten(1).amax(1) for neuron in key.meta["neurons"]]
    found = Verdict(read, [float(values.median()) for values in maps], key.meta["response"])
    return show(found, given.alpha, clock)


class _Asked(nn.Module):
    """A network behind its normalisation."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.model, self.feed = host.model, host.pipeline.feed

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.feed(self.model, images)
        return answer


def open_images(given: argparse.Namespace) -> int:
    """Stamp the patch on images."""
    written = stamp(given.images, Key.load(given.key, scheme="lock"), given.out, fit=given.resize, force=given.force)
    Console(highlight=False, soft_wrap=True).print(f"{written} stamped: {given.out}")
    return options.FOUND


def list_layers(given: argparse.Namespace) -> int:
    """List the layers that can bear a lock."""
    host = load(options.request(given))
    tried = for_lock(host.model)[:_TRIES]
    table = Table(title=f"Layers of {given.model} that can bear a lock's detector")
    for name in ("layer", "activation", "dimension m", "neurons", "patch / pixels"):
        table.add_column(name)
    everything = False
    for one in (one for one in bearing(host.model) if one.private):
        side = host.size if everything else patch_side(host.pipeline, one.site)
        everything = everything or side >= host.size  # so do all that follow
        mark = f" (tried: {tried.index(one.name) + 1})" if one.name in tried else ""
        patch = "all: give --patch" if side >= host.size else str(side)
        table.add_row(one.name + mark, one.site.activation, str(one.size), str(one.width), patch)
    Console().print(table)
    return options.FOUND


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top, verbs = options.command("hallmark-lock", "Lock a trained model by editing it; no data are needed.")
    sub = options.add_verb(verbs, "write", write, "lock a model")
    options.add_model(sub, "MODEL")
    options.add_writing(sub, tau=0.7, response=20.0)
    sub.add_argument("--kind", choices=KINDS, default="internal", help="disrupt the logits, or gates that are appended")
    sub.add_argument("--behind", default="", help="with --kind excite: the block behind which gates are appended")
    sub.add_argument("--locks", type=int, default=1, help="locks, each with a patch of its own")
    sub.add_argument("--start", type=int, default=0, help="place of the first detector in its map's top row")
    sub.add_argument("--spacing", type=int, default=8, help="places from one lock's detector to the next")
    sub.add_argument("--patch", type=int, default=0, help="side of the patch (default: all that the detector sees)")
    sub.add_argument("--directions", choices=DIRECTIONS, default="sphere", help="orthogonal needs --images")
    sub.add_argument("--draws", type=int, default=16, help="directions tried (default: %(default)s)")
    sub.add_argument("--strength", type=float, default=3.0, help="of the disruptor, in logit ranges (default: 3)")
    sub = options.add_verb(verbs, "verify", verify, "look for the lock: exit status 0 detected, 1 not, 2 bad input")
    options.add_verifying(sub)
    sub = options.add_verb(verbs, "unlock", open_images, "stamp the patch on an image or a folder of images, as PNG")
    sub.add_argument("images", type=Path, metavar="IMAGE|FOLDER")
    options.add_key(sub)
    sub.add_argument("--out", type=Path, required=True, help="PNG file, or folder for a folder")
    sub.add_argument("--resize", action="store_true", help="bring images of other sizes to the lock's")
    sub.add_argument(
        "--force", action="store_true", help="replace an earlier file, or an earlier folder of stamped ones"
    )
    sub = options.add_verb(verbs, "layers", list_layers, "list the layers that can bear a lock's detector")
    options.add_model(sub, "MODEL")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hallmark-lock``.

    Returns:
        Exit status: 0 written or detected, 1 not detected, 2 after an error that was printed as one line.
    """
    return options.run(parser(), arguments)
