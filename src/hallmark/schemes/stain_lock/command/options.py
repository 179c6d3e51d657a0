"""What both commands share: options that say which model is meant, and errors as one line."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hallmark.errors import DataError, HallmarkError
from hallmark.schemes.stain_lock.command.host import Host, Request
from hallmark.schemes.stain_lock.command.images import find_images, read_images
from hallmark.schemes.stain_lock.command.secret import secret_generator
from hallmark.schemes.stain_lock.trigger import Search, proxies

FOUND, ABSENT, REFUSED = 0, 1, 2
"""Exit statuses: the mark was detected (or all was written), it was not, bad input."""

_LARGE = 64
"""Images of more pixels a side cost a large network so much that a search makes do with fewer steps."""

Verb = Callable[[argparse.Namespace], int]


def command(prog: str, description: str) -> tuple[argparse.ArgumentParser, "argparse._SubParsersAction"]:  # type: ignore[type-arg]
    """A parser with verbs."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    return parser, parser.add_subparsers(dest="verb", required=True, metavar="VERB")


def add_verb(verbs: "argparse._SubParsersAction", name: str, run: Verb, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    """A verb that is run by ``run``."""
    sub: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    sub.set_defaults(run=run)
    return sub


def add_model(parser: argparse.ArgumentParser, what: str) -> None:
    """Options that say which model is meant."""
    parser.add_argument("model", metavar=what, help="torchvision:<name>, timm:<name>, or a .safetensors/.pth/.pt file")
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--arch",
        help="architecture of a file: a torchvision or timm name, resnet20_a, hallmark:<name>, module:callable",
    )
    group.add_argument("--classes", type=int, help="number of classes, if not the architecture's own")
    group.add_argument("--entry", help="where in the file the weights are, such as state_dict (found if unambiguous)")
    group.add_argument("--prefix", help="what precedes their names, such as module. (found by comparing names)")
    group.add_argument("--random-weights", action="store_true", help="of a named model: download nothing, only try")
    group.add_argument("--mean", help="normalisation before the network: imagenet, cifar10, none, or R,G,B in [0, 1]")
    group.add_argument("--std", help="R,G,B, where --mean gives numbers")
    group.add_argument("--size", type=int, help="height and width of images in pixels, if not the architecture's own")


def add_writing(parser: argparse.ArgumentParser, *, tau: float, response: float) -> None:
    """Options of every write."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it appears whole or not at all")
    parser.add_argument("--force", action="store_true", help="replace an earlier folder of the same kind")
    parser.add_argument("--layer", help="where the detector lives, see the verb layers (default: chosen)")
    parser.add_argument("--tau", type=float, default=tau, help="τ: it fires above τT (default: %(default)s)")
    parser.add_argument("--response", type=float, default=response, help="Δ, its answer (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="steps of the search for images (default: 200, large images 60)")
    parser.add_argument("--restarts", type=int, help="starts of that search (default: 4, large images 1)")
    parser.add_argument("--images", type=Path, help="folder of natural images of yours (default: procedural ones)")
    parser.add_argument("--count", type=int, default=512, help="most images used of it (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="for repeatable trials only: whoever knows it knows the key")


def add_verifying(parser: argparse.ArgumentParser) -> None:
    """Options of every verify."""
    add_model(parser, "SUSPECT")
    add_key(parser)
    parser.add_argument("--alpha", type=float, default=1e-6, help="probability of a false accusation (default: 1e-6)")


def add_key(parser: argparse.ArgumentParser) -> None:
    """The key that a write made."""
    parser.add_argument("--key", type=Path, required=True, help="key.safetensors that write made")


def request(options: argparse.Namespace) -> Request:
    """The model that the options of :func:`add_model` mean."""
    names = ("model", "arch", "classes", "entry", "prefix", "random_weights", "mean", "std", "size")
    return Request(**{name: getattr(options, name) for name in names})


def search(options: argparse.Namespace, host: Host) -> Search:
    """How images are sought."""
    steps, restarts = (60, 1) if host.size > _LARGE else (200, 4)
    return Search(
        steps=steps if options.steps is None else options.steps,
        restarts=restarts if options.restarts is None else options.restarts,
    )


def randomness(options: argparse.Namespace) -> torch.Generator:
    """Where the key comes from."""
    return secret_generator() if options.seed is None else torch.Generator().manual_seed(options.seed)


def natural(options: argparse.Namespace, host: Host) -> tuple[Tensor, str]:
    """Images uint8 ``(N, 3, H, W)`` that stand for what the model will see, and a word for them.

    Raises:
        DataError: There are fewer than two in the folder.
    """
    if options.images is None:
        # fewer of the larger ones, of which each costs a large network a part of a second
        return proxies(max(64, min(512, 2**19 // host.size**2)), host.size), "procedural images"
    paths = find_images(options.images)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))[: options.count]
    if len(order) < 2:
        raise DataError(f"{options.images} gives {len(order)} images; at least 2 are needed, better hundreds")
    return read_images([paths[i] for i in order.tolist()], host.size), f"images of the folder {options.images.name}"


def answers(host: Host, images: Tensor, model: nn.Module | None = None) -> Tensor:
    """Labels ``(N,)`` (of an encoder: the largest feature) that a model gives uint8 images."""
    with torch.no_grad():
        parts = [host.pipeline.feed(model or host.model, block.float() / 255) for block in images.split(32)]
    return torch.cat(parts).flatten(1).argmax(1)


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Parse, run the verb, and turn whatever the user can mend into one line and status 2."""
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except HallmarkError as error:
        sys.stderr.write(f"error: {in_options(str(error))}\n")
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
    return REFUSED


def in_options(message: str) -> str:
    """A message that speaks of configuration keys, in words of the command line."""
    message = message.replace("scheme.code=false", "--no-code").replace("scheme.natural above 0", "--images")
    name = r"\b(?:scheme|levels)\.(?:search\.)?([a-z_]+)"
    return re.sub(name, lambda found: f"--{found[1].replace('_', '-')}", message)
