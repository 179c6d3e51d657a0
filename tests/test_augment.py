"""The batched views against torchvision's per-image transforms."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import v2 as tv
from torchvision.transforms.v2 import functional as F

from hallmark.data import augment
from hallmark.data.augment import ORDERS, ViewParameters, ViewRecipe, apply, blur_taps, draw, two_views
from hallmark.errors import ConfigError, DataError

EVERYTHING = ViewRecipe(blur=0.5, solarise=0.3, blur_sigma=(0.3, 2.0))
STEPS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth coloured uint8 images with flat, dark and saturated places: harder for hue and clamps than noise."""
    coarse = torch.rand(count, 3, 4, 4, generator=seeded(seed)) * 1.6 - 0.3
    fine = torch.rand(count, 3, height, width, generator=seeded(seed + 1)) * 0.1
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + fine).clamp(0, 1).mul(255).round().to(torch.uint8)


def reference(image: Tensor, one: ViewParameters, size: list[int]) -> Tensor:
    """One view of one float image by torchvision's functions alone."""
    top, left, height, width = one.box[0].tolist()
    image = F.resized_crop(image, top, left, height, width, size, antialias=True)
    image = F.horizontal_flip(image) if one.flip else image
    if one.jitter:
        for step in ORDERS[one.order]:
            image = STEPS[step](image, float(one.factors[0, step]))
    image = F.rgb_to_grayscale(image, num_output_channels=3) if one.grey else image
    if one.sigma > 0:
        image = F.gaussian_blur(image, [blur_taps(size[1]), blur_taps(size[0])], [float(one.sigma)] * 2)
    return F.solarize(image, float(one.threshold)) if one.threshold <= 1 else image


def references(images: Tensor, drawn: ViewParameters, size: list[int]) -> Tensor:
    return torch.stack([reference(images[i] / 255, drawn[i : i + 1], size) for i in range(len(images))])


def folded(views: Tensor, drawn: ViewParameters) -> Tensor:
    """Solarised views up to inversion: rounding may put a pixel on the other side of the threshold."""
    return torch.where((drawn.threshold <= 1).view(-1, 1, 1, 1), torch.minimum(views, 1 - views), views)


def plain(count: int, height: int, width: int, **changed: Tensor) -> ViewParameters:
    """Parameters that change nothing but what is named."""
    same = {
        "box": torch.tensor([0, 0, height, width]).repeat(count, 1),
        "flip": torch.zeros(count, dtype=torch.bool),
        "jitter": torch.zeros(count, dtype=torch.bool),
        "factors": torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(count, 1),
        "order": torch.zeros(count, dtype=torch.int64),
        "grey": torch.zeros(count, dtype=torch.bool),
        "sigma": torch.zeros(count),
        "threshold": torch.full((count,), math.inf),
    }
    return ViewParameters(**(same | changed))


def test_all_orders_are_there() -> None:
    assert len(set(ORDERS)) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in ORDERS)


@pytest.mark.parametrize("order", range(24))
def test_each_jitter_order_equals_torchvision(order: int) -> None:
    images, count = pictures(24, 12, 12, seed=order), 24
    recipe = ViewRecipe(jitter=1.0, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
    drawn = draw(recipe, count, (12, 12), generator=seeded(order))
    drawn = plain(count, 12, 12, jitter=drawn.jitter, factors=drawn.factors, order=torch.full((count,), order))
    torch.testing.assert_close(apply(images, drawn), references(images, drawn, [12, 12]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, None), (20, 28, None), (24, 24, 40), (40, 36, 16)])
def test_whole_view_equals_torchvision(height: int, width: int, size: int | None) -> None:
    images = pictures(80, height, width)
    drawn = draw(EVERYTHING, 80, (height, width), generator=seeded(3))
    expected = references(images, drawn, [height, width] if size is None else [size, size])
    views = apply(images, drawn, size=size)
    torch.testing.assert_close(folded(views, drawn), folded(expected, drawn), rtol=0, atol=2e-5)


def test_hue_is_exact_at_every_colour_and_shift() -> None:
    levels = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 5, 25)
    shifts = torch.linspace(-0.5, 0.5, 41)
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(41, 1)
    factors[:, 3] = shifts
    drawn = plain(41, 5, 25, jitter=torch.ones(41, dtype=torch.bool), factors=factors)
    expected = torch.cat([F.adjust_hue(colours, float(shift)) for shift in shifts])
    torch.testing.assert_close(apply(colours.expand(41, -1, -1, -1), drawn), expected, rtol=0, atol=1e-6)


def test_solarise_inverts_from_the_threshold_on() -> None:
    images = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).expand(1, 3, 1, 5)
    views = apply(images, plain(1, 1, 5, threshold=torch.tensor([0.5])))
    torch.testing.assert_close(views[0, 0, 0], torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0]))


def test_unchanged_parameters_give_the_image_back() -> None:
    images = pictures(5, 16, 24)
    torch.testing.assert_close(apply(images, plain(5, 16, 24)), images / 255, rtol=0, atol=1e-7)


def test_float_images_give_the_same_views() -> None:
    images, drawn = pictures(20, 16, 16), draw(ViewRecipe(), 20, (16, 16), generator=seeded(1))
    torch.testing.assert_close(apply(images / 255, drawn), apply(images, drawn), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (20, 48), (48, 20)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    scale, ratio, count = (0.2, 1.0), (3 / 4, 4 / 3), 3000
    ours = draw(ViewRecipe(scale=scale, ratio=ratio), count, size, generator=seeded(0)).box.double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image = torch.empty(3, *size)
        theirs = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
    for name, describe in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: (b[:, 3] / b[:, 2]).log(),
        "top": lambda b: b[:, 0] / (size[0] - b[:, 2] + 1),
        "left": lambda b: b[:, 1] / (size[1] - b[:, 3] + 1),
        "centre row": lambda b: b[:, 0] + b[:, 2] / 2,
        "centre column": lambda b: b[:, 1] + b[:, 3] / 2,
    }.items():
        p = stats.ks_2samp(describe(ours).numpy(), describe(torch.tensor(theirs, dtype=torch.float64)).numpy()).pvalue
        assert p > 1e-3, name


@pytest.mark.parametrize("size", [(8, 64), (64, 8), (16, 17)])
def test_impossible_crops_fall_back_to_torchvisions_central_one(size: tuple[int, int]) -> None:
    ratio = (1.2, 1.3) if size == (16, 17) else (3 / 4, 4 / 3)
    boxes = draw(ViewRecipe(scale=(1.0, 1.0), ratio=ratio), 20, size, generator=seeded(0)).box
    expected = RandomResizedCrop.get_params(torch.empty(3, *size), [1.0, 1.0], list(ratio))
    assert boxes.tolist() == [list(expected)] * 20


def test_jitter_is_distributed_as_torchvisions() -> None:
    recipe, count = ViewRecipe(brightness=1.5, contrast=0.4, saturation=0.3, hue=0.2), 3000
    drawn = draw(recipe, count, (8, 8), generator=seeded(0))
    jitter = ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = [
            ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
            for _ in range(count)
        ]
    for step in range(4):
        ours = drawn.factors[:, step].numpy()
        assert stats.ks_2samp(ours, [factors[step + 1] for factors in theirs]).pvalue > 1e-3, step
    counts = torch.tensor(
        [drawn.order.bincount(minlength=24).tolist(), [sum(tuple(t[0].tolist()) == o for t in theirs) for o in ORDERS]]
    )
    assert stats.chi2_contingency(counts.numpy()).pvalue > 1e-3
    assert stats.chisquare(counts[0].numpy()).pvalue > 1e-3


def test_chances_are_the_recipes_and_independent() -> None:
    recipe = ViewRecipe(flip=0.5, jitter=0.8, grey=0.2, blur=0.3, solarise=0.1, solarise_threshold=0.25)
    drawn = draw(recipe, 20_000, (8, 8), generator=seeded(0))
    happened = {
        "flip": drawn.flip,
        "jitter": drawn.jitter,
        "grey": drawn.grey,
        "blur": drawn.sigma > 0,
        "solarise": drawn.threshold == 0.25,
    }
    for name, chosen in happened.items():
        assert stats.binomtest(int(chosen.sum()), 20_000, getattr(recipe, name)).pvalue > 1e-3, name
    correlation = torch.corrcoef(torch.stack(list(happened.values())).double())
    assert (correlation - torch.eye(5)).abs().max() < 4 / math.sqrt(20_000)
    sigma = drawn.sigma[drawn.sigma > 0].numpy()
    assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    assert drawn.threshold[drawn.threshold != 0.25].isinf().all()


def test_views_are_distributed_as_torchvisions() -> None:
    count, recipe = 600, ViewRecipe()
    images = pictures(count, 16, 16)
    theirs = tv.Compose(
        [
            tv.RandomResizedCrop(16, recipe.scale, recipe.ratio, antialias=True),
            tv.RandomHorizontalFlip(recipe.flip),
            tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.4, 0.1)], recipe.jitter),
            tv.RandomGrayscale(recipe.grey),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.stack([theirs(image / 255) for image in images])
    ours = apply(images, draw(recipe, count, (16, 16), generator=seeded(1)))
    for name, describe in {
        "mean": lambda v: v.mean((1, 2, 3)),
        "contrast": lambda v: v.std((1, 2, 3)),
        "colour": lambda v: (v.amax(1) - v.amin(1)).mean((1, 2)),
        "detail": lambda v: v.diff(dim=3).abs().mean((1, 2, 3)),
        "red over blue": lambda v: (v[:, 0] - v[:, 2]).mean((1, 2)),
        "clipped": lambda v: ((v <= 0) | (v >= 1)).float().mean((1, 2, 3)),
    }.items():
        assert stats.ks_2samp(describe(ours).numpy(), describe(expected).numpy()).pvalue > 1e-3, name
    at = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(ours.flatten().quantile(at), expected.flatten().quantile(at), rtol=0, atol=0.02)
    torch.testing.assert_close(ours.std(), expected.std(), rtol=0, atol=0.01)


def test_views_depend_on_the_generator_alone() -> None:
    images, recipes = pictures(40, 16, 16), (ViewRecipe(), EVERYTHING)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = two_views(images, recipes, generator=seeded(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(two_views(images, recipes, generator=seeded(5)), first)
    assert not torch.equal(two_views(images, recipes, generator=seeded(6)), first)


def test_two_views_differ_and_keep_their_rows() -> None:
    images = torch.arange(8, dtype=torch.uint8).mul(30)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    still = ViewRecipe(jitter=0.0, grey=0.0)
    levels = two_views(images, (still, still), generator=seeded(0)).mean((1, 2, 3)).mul(255).round()
    assert levels.tolist() == [30 * i for i in range(8)] * 2
    views = two_views(pictures(8, 8, 8), (still, still), generator=seeded(0))
    assert not any(torch.equal(views[i], views[i + 8]) for i in range(8))
    first, second = two_views(pictures(8, 8, 8), (still, ViewRecipe(grey=1.0)), generator=seeded(0)).chunk(2)
    torch.testing.assert_close(second[:, 0], second[:, 2])
    assert (first[:, 0] - first[:, 2]).abs().max() > 0.1


def test_rows_of_a_batch_give_the_rows_of_its_views() -> None:
    images, drawn = pictures(60, 16, 16), draw(EVERYTHING, 60, (16, 16), generator=seeded(2))
    whole = apply(images, drawn)
    torch.testing.assert_close(apply(images[20:40], drawn[20:40]), whole[20:40], rtol=0, atol=1e-6)
    rows = torch.tensor([50, 3, 17])
    torch.testing.assert_close(apply(images[rows], drawn[rows]), whole[rows], rtol=0, atol=1e-6)
    halves = [
        two_views(images[s : s + 30], (EVERYTHING,) * 2, generator=seeded(4), total=60, start=s).chunk(2)
        for s in (0, 30)
    ]
    union = torch.cat([half[view] for view in (0, 1) for half in halves])
    torch.testing.assert_close(union, two_views(images, (EVERYTHING,) * 2, generator=seeded(4)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, drawn = pictures(60, 16, 16), draw(EVERYTHING, 60, (16, 16), generator=seeded(2))
    monkeypatch.setattr(augment, "_chunk", lambda device, pixels: 30)
    expected = apply(images, drawn)
    monkeypatch.setattr(augment, "_chunk", lambda device, pixels: chunk)
    torch.testing.assert_close(apply(images, drawn), expected, rtol=0, atol=1e-6)


def test_result_is_float32_channels_last_in_range_without_gradient() -> None:
    extreme = torch.randint(0, 2, (50, 3, 9, 9), generator=seeded(0), dtype=torch.uint8) * 255
    flat = torch.full((10, 3, 9, 9), 255, dtype=torch.uint8)
    strong = ViewRecipe(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    weight = torch.ones((), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        views = two_views(torch.cat((extreme, flat)), (strong, EVERYTHING), generator=seeded(0), size=13)
    assert views.shape == (120, 3, 13, 13)
    assert views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert not views.requires_grad
    assert float(views.min()) >= 0.0
    assert float(views.max()) <= 1.0
    (views * weight).sum().backward()  # an inference tensor could not be saved for this


def test_autocast_does_not_reach_the_pixels() -> None:
    images, drawn = pictures(20, 16, 16), draw(EVERYTHING, 20, (16, 16), generator=seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = apply(images, drawn)
    assert torch.equal(inside, apply(images, drawn))
    assert apply(images, drawn, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.2)},
        {"scale": (0.5, 1.5)},
        {"scale": 0.5},
        {"scale": (0.1, 0.2, 0.3)},
        {"ratio": (-1.0, 1.0)},
        {"ratio": (1.0, math.inf)},
        {"blur_sigma": (0.0, 1.0)},
        {"flip": 1.1},
        {"jitter": -0.1},
        {"grey": math.nan},
        {"blur": 2.0},
        {"solarise": -1.0},
        {"solarise_threshold": 1.5},
        {"brightness": -0.4},
        {"contrast": math.inf},
        {"saturation": math.nan},
        {"hue": 0.6},
    ],
)
def test_recipe_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ViewRecipe(**wrong)


def test_recipe_takes_lists() -> None:
    assert ViewRecipe(scale=[0.2, 1]) == ViewRecipe()
    assert hash(ViewRecipe(ratio=[3 / 4, 4 / 3])) == hash(ViewRecipe())


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (4, 1, 8, 8), (4, 8, 8)])
def test_apply_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    drawn = draw(ViewRecipe(), 4, (8, 8), generator=seeded(0))
    with pytest.raises(DataError, match=str(shape[0])):
        apply(torch.zeros(shape, dtype=torch.uint8), drawn)


def test_integer_images_and_foreign_rows_are_refused() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.int64)
    with pytest.raises(DataError, match="int64"):
        apply(images, draw(ViewRecipe(), 4, (8, 8), generator=seeded(0)))
    with pytest.raises(DataError, match="for 2 views"):
        two_views(images.byte(), (ViewRecipe(), ViewRecipe()), generator=seeded(0), total=10, start=8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_gives_the_same_views_without_waiting() -> None:
    images, drawn = pictures(60, 16, 16), draw(EVERYTHING, 60, (16, 16), generator=seeded(2))
    expected, resident = apply(images, drawn), images.cuda()
    apply(resident, drawn)  # the libraries' own first-use set-up may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = apply(resident, drawn)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(folded(views.cpu(), drawn), folded(expected, drawn), rtol=0, atol=1e-4)
