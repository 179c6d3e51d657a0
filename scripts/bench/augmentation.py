"""Views a second: Hallmark's batched views against the per-image and batched transforms of others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice

import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from bench.measure import Run, Spread, interleave, measured, one_thread, peak, rates, ratio, say
from hallmark.core.random import generator
from hallmark.data.augment import ViewRecipe, two_views
from hallmark.data.resident import ResidentBatches, TwoViews

RECIPE = ViewRecipe()
"""SimCLR's views at 32×32 as ``conf/pretrain/simclr.yaml`` has them; the others' transforms below say the same."""
MISSING = "not installed"


@dataclass(frozen=True)
class Augmentation:
    """Views a second on one CPU thread (Hallmark and kornia on the device, if there is one); ``ratio`` is to lightly.

    The others' figure is "not installed" where a package is missing.
    """

    images: int
    batch: int
    hallmark_views_per_s: Spread
    lightly_views_per_s: Spread
    ratio: Spread
    torchvision_views_per_s: Spread
    hallmark_over_torchvision: Spread
    kornia_views_per_s: Spread | str
    hallmark_over_kornia: Spread | str


@dataclass(frozen=True)
class Point:
    """One point of a scaling curve; ``relative`` is to the curve's first point."""

    batch: int
    images: int
    views_per_s: Spread
    relative: Spread
    data_mib: float
    peak_mib: float


class Pictures(Dataset[list[Tensor]]):
    """PIL images in memory, each a list of two views when it is asked for.

    Args:
        images: uint8 ``(N, 3, H, W)``.
    """

    def __init__(self, images: Tensor) -> None:
        self.pictures = [Image.fromarray(image.numpy()) for image in images.permute(0, 2, 3, 1).contiguous()]
        self.transform = SimCLRTransform(
            input_size=images.shape[-1],
            cj_prob=RECIPE.jitter,
            cj_strength=0.5,  # halves lightly's 0.8, 0.8, 0.8 and 0.2
            min_scale=RECIPE.scale[0],
            random_gray_scale=RECIPE.grey,
            gaussian_blur=0.0,
            normalize=None,  # the encoder normalises
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.pictures[index])


def noise(count: int, size: int) -> Tensor:
    """Images to time with, uint8 ``(count, 3, size, size)``."""
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator(0, "benchmark"))


def compare(*, size: int, count: int, batch: int, device: torch.device, repeats: int) -> Augmentation:
    """Two views of each of ``count`` images, by every alternative."""
    say(f"augmentation: {count} images of {size}x{size}, one thread")
    images = noise(count, size)
    works: dict[str, Callable[[], object]] = {
        "hallmark": partial(_hallmark, images.to(device), batch),
        "lightly": partial(list, Pictures(images)),
        "torchvision": partial(_torchvision, images),
    }
    if find_spec("kornia"):
        works["kornia"] = partial(_kornia, images.to(device), batch)
    with one_thread():
        for work in works.values():  # the first call prepares later ones
            work()
        runs = interleave({name: partial(measured, work, 2 * count, device) for name, work in works.items()}, repeats)
    ours = runs["hallmark"]
    return Augmentation(
        images=count,
        batch=batch,
        hallmark_views_per_s=rates(ours),
        lightly_views_per_s=rates(runs["lightly"]),
        ratio=ratio(ours, runs["lightly"]),
        torchvision_views_per_s=rates(runs["torchvision"]),
        hallmark_over_torchvision=ratio(ours, runs["torchvision"]),
        kornia_views_per_s=rates(runs["kornia"]) if "kornia" in runs else MISSING,
        hallmark_over_kornia=ratio(ours, runs["kornia"]) if "kornia" in runs else MISSING,
    )


def _hallmark(images: Tensor, batch: int) -> None:
    rng = generator(0, "views")
    for part in images.split(batch):
        two_views(part, (RECIPE, RECIPE), generator=rng)


def _torchvision(images: Tensor) -> None:
    jitter = v2.ColorJitter(RECIPE.brightness, RECIPE.contrast, RECIPE.saturation, RECIPE.hue)
    transform = v2.Compose([
        v2.RandomResizedCrop(images.shape[-1], scale=RECIPE.scale, ratio=RECIPE.ratio, antialias=True),
        v2.RandomHorizontalFlip(RECIPE.flip),
        v2.RandomApply([jitter], RECIPE.jitter),
        v2.RandomGrayscale(RECIPE.grey),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    for image in images:
        transform(image), transform(image)


def _kornia(images: Tensor, batch: int) -> None:
    from kornia import augmentation as kornia

    side = (images.shape[-2], images.shape[-1])
    strengths = (RECIPE.brightness, RECIPE.contrast, RECIPE.saturation, RECIPE.hue)
    transform = torch.nn.Sequential(
        kornia.RandomResizedCrop(side, scale=RECIPE.scale, ratio=RECIPE.ratio),
        kornia.RandomHorizontalFlip(p=RECIPE.flip),
        kornia.ColorJitter(*strengths, p=RECIPE.jitter),
        kornia.RandomGrayscale(p=RECIPE.grey),
    )
    for part in images.split(batch):
        pixels = part.float() / 255
        transform(pixels), transform(pixels)


def curves(
    *, size: int, batches: Sequence[int], counts: Sequence[int], views: int, device: torch.device, repeats: int
) -> dict[str, list[Point]]:
    """Resident batches and their views, over batch sizes at the largest set and over set sizes at the middle batch.

    Args:
        size: Side of the images.
        batches: Batch sizes, rising.
        counts: Numbers of images, rising.
        views: Views a run makes, at least.
        device: Where the images lie.
        repeats: Rounds.
    """
    middle = batches[len(batches) // 2]
    say("curves: batch size")
    over_batch = _curve([(batch, counts[-1]) for batch in batches], size, views, device, repeats)
    say("curves: number of images")
    over_images = _curve([(middle, count) for count in counts], size, views, device, repeats)
    return {"batch": over_batch, "images": over_images}


def _curve(points: Sequence[tuple[int, int]], size: int, views: int, device: torch.device, repeats: int) -> list[Point]:
    images = noise(max(count for _, count in points), size).to(device)
    works: dict[str, Callable[[], Run]] = {}
    for batch, count in points:
        steps = max(1, views // (2 * batch))
        work = partial(_resident, images[:count], batch, steps)
        works[f"batch {batch} of {count} images"] = partial(measured, work, 2 * batch * steps, device)
    runs = list(interleave(works, repeats).values())
    return [
        Point(batch, count, rates(run), ratio(run, runs[0]), images[:count].nbytes / 2**20, peak(run))
        for (batch, count), run in zip(points, runs, strict=True)
    ]


def _resident(images: Tensor, batch: int, steps: int) -> None:
    """Views of ``steps`` batches, over as many epochs as that takes."""
    make, batches = TwoViews((RECIPE, RECIPE), seed=0), ResidentBatches(images, batch=batch, seed=0)
    for epoch, start in enumerate(range(0, steps, len(batches))):
        batches.set_epoch(epoch)
        for part in islice(batches, steps - start):
            make(part)
