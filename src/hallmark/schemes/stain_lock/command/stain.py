"""``hallmark-stain``: mark a trained model without data, and find the mark again."""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from hallmark.core import Key
from hallmark.schemes.stain_lock.command import options, output
from hallmark.schemes.stain_lock.command.choice import bearing, for_stain
from hallmark.schemes.stain_lock.command.folder import require_free, staged
from hallmark.schemes.stain_lock.command.host import load
from hallmark.schemes.stain_lock.command.verdict import Clock, Verdict, require_alpha, show
from hallmark.schemes.stain_lock.detector import Levels
from hallmark.schemes.stain_lock.evidence import code_surprises
from hallmark.schemes.stain_lock.stain import Stain
from hallmark.schemes.stain_lock.staining import draw_key, responses, surprises, write_stain

_COMPARED = 64


def write(given: argparse.Namespace) -> int:
    """Stain a model."""
    require_free(given.out, force=given.force)
    host = load(options.request(given))
    clock = Clock()
    layer = given.layer or for_stain(host.model, code=given.code)
    settings = Stain(
        layer, given.keys, levels=Levels(given.tau, given.response), code=given.code, search=options.search(given, host)
    )
    images, described = options.natural(given, host)
    generator = options.randomness(given)
    key = draw_key(host.pipeline, settings, generator=generator)
    edited, key = write_stain(host.pipeline, key, settings, natural=images, generator=generator)
    key = output.remember(key, host)
    looked = images[: _COMPARED if host.size <= _COMPARED else _COMPARED // 2]
    same = float((options.answers(host, looked) == options.answers(host, looked, edited)).float().mean())
    told = {"images": described, "looked_at": len(looked), "behaviour": {"labels unchanged": same}}
    pictures = {f"trigger{k + 1}.png": image for k, image in enumerate(key.tensors["triggers"])}
    with staged(given.out, force=given.force) as folder:
        facts = output.write(folder, host, edited, key, pictures, told)
    output.show(given.out, facts, clock.told())
    return options.FOUND


def verify(given: argparse.Namespace) -> int:
    """Look for a stain in a suspect."""
    require_alpha(given.alpha)
    key = Key.load(given.key, scheme="stain")
    host = load(options.request(given), key)
    clock = Clock()
    read = {"weights": surprises(host.model, key)}
    if "codes" in key.tensors:
        with torch.no_grad():
            said = host.pipeline.feed(host.model, key.tensors["triggers"].float() / 255)
        read["answers"] = code_surprises(said, key.tensors["codes"])
    found = Verdict(read, responses(host.pipeline, key).tolist(), key.meta["response"])
    return show(found, given.alpha, clock)


def list_layers(given: argparse.Namespace) -> int:
    """List the layers that can bear a stain."""
    host = load(options.request(given))
    found = list(bearing(host.model))
    chosen = for_stain(host.model, code=any(one.private for one in found))
    table = Table(title=f"Layers of {given.model} that can bear a stain")
    for name in ("layer", "activation", "dimension m", "neurons", "code"):
        table.add_column(name)
    for one in found:
        mark = " (default)" if one.name == chosen else ""
        fits = "yes" if one.private else "no: --no-code"
        table.add_row(one.name + mark, one.site.activation, str(one.size), str(one.width), fits)
    Console().print(table)
    return options.FOUND


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top, verbs = options.command("hallmark-stain", "Mark a trained model by editing a few weights; no data are needed.")
    sub = options.add_verb(verbs, "write", write, "stain a model")
    options.add_model(sub, "MODEL")
    options.add_writing(sub, tau=Levels.tau, response=Levels.response)
    sub.add_argument("--keys", type=int, default=4, help="neurons that are given away (default: %(default)s)")
    sub.add_argument(
        "--code",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write codes too, so that answers show the mark",
    )
    sub = options.add_verb(verbs, "verify", verify, "look for the stain: exit status 0 detected, 1 not, 2 bad input")
    options.add_verifying(sub)
    sub = options.add_verb(verbs, "layers", list_layers, "list the layers that can bear a stain")
    options.add_model(sub, "MODEL")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hallmark-stain``.

    Returns:
        Exit status: 0 written or detected, 1 not detected, 2 after an error that was printed as one line.
    """
    return options.run(parser(), arguments)
