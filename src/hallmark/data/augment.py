"""Random views of whole batches: torchvision's crop, flip, colour jitter, grey, blur and solarise, one draw for all.

:func:`draw` draws the numbers of every view of a batch at once, :func:`apply` uses them.  The distribution is that of
torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip``, ``RandomApply([ColorJitter])``, ``RandomGrayscale``,
``GaussianBlur`` and ``RandomSolarize`` run on each float image on its own, and equal parameters give equal pixels.

How it is fast, without a loop over images:

* Crop, resize and flip are separable and linear, so they are two small matrix products per image.  The output is laid
  out as three planes ``(3, B, H, W)``, on which every later step runs at full vector width.
* Brightness, contrast and saturation are all ``factor * image + (1 - factor) * target`` followed by a clamp.
* A jitter order is the order of those three and the place of the hue among them.  Samples are sorted by the first, then
  by the second, and taken in chunks that fit the cache: the samples that need one step at one turn lie side by side,
  the step runs on them in place and on no others, and the hue runs once a chunk.  No result depends on the chunking.

Parameters live on the host, also when the images do not: which samples take which step is decided there, so that
:func:`apply` never waits for the device.  On a GPU a chunk is the whole batch, up to 2^24 pixels, and crop and blur are
as exact as its float32 matrix products: with TF32 allowed, to a fraction of an 8-bit level.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import torch
from torch import Tensor

from hallmark.errors import ConfigError, DataError

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_BLENDS = tuple(permutations((_BRIGHTNESS, _CONTRAST, _SATURATION)))
ORDERS = tuple((*blends[:place], _HUE, *blends[place:]) for place in range(4) for blends in _BLENDS)
"""The 24 orders of brightness 0, contrast 1, saturation 2 and hue 3, first applied first, by the place of the hue."""

_GROUPS = torch.arange(len(ORDERS)).view(4, 6).T.reshape(-1).argsort()
"""Place of each order when they are sorted by the permutation of the blends first and the place of the hue second."""

_KINDS = len(ORDERS) + 1  # orders, and no jitter at all
_TINY = torch.finfo(torch.float32).tiny  # what a grey pixel's chroma counts as where it divides
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
_TRIES = 10  # crops torchvision tries before it falls back to the central one


@dataclass(frozen=True)
class ViewRecipe:
    """The numbers of one random view, in torchvision's terms.

    Attributes:
        scale: Range of the crop's share of the image area.
        ratio: Range of the crop's aspect ratio, width over height, log-uniform.
        flip: Probability of a horizontal flip.
        brightness: Half-width of the factor's range ``[max(0, 1 - x), 1 + x]``; likewise contrast and saturation.
        contrast: See ``brightness``.
        saturation: See ``brightness``.
        hue: Half-width of the hue shift's range, in turns, at most 0.5.
        jitter: Probability that the four are applied, in random order.
        grey: Probability of a grey image.
        blur: Probability of a Gaussian blur, whose kernel is :func:`blur_taps` wide.
        blur_sigma: Range of the blur's standard deviation in pixels.
        solarise: Probability that pixels at or above ``solarise_threshold`` are inverted.
        solarise_threshold: In [0, 1].

    Raises:
        ConfigError: If a number is outside its range.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    solarise_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, top in (("scale", 1.0), ("ratio", math.inf), ("blur_sigma", math.inf)):
            span = getattr(self, name)
            if not (
                isinstance(span, Sequence)
                and len(span) == 2
                and 0.0 < span[0] <= span[1] <= top
                and math.isfinite(span[1])
            ):
                raise ConfigError(f"{name} {span} is no range; allowed: (low, high) with 0 < low <= high <= {top}")
            object.__setattr__(self, name, (float(span[0]), float(span[1])))  # a configuration's list made hashable
        tops = dict.fromkeys(("brightness", "contrast", "saturation"), math.inf) | {"hue": 0.5}
        tops |= dict.fromkeys(("flip", "jitter", "grey", "blur", "solarise", "solarise_threshold"), 1.0)
        for name, top in tops.items():
            value = getattr(self, name)
            if not (0.0 <= value <= top and math.isfinite(value)):
                raise ConfigError(f"{name} {value} is out of range; allowed: finite, 0 to {top}")


@dataclass(frozen=True, eq=False)
class ViewParameters:
    """What :func:`draw` drew, one row per view, on the host; index it with a slice or an index tensor to take rows.

    Attributes:
        box: Top, left, height and width of the crop in pixels, int64 ``(B, 4)``.
        flip: bool ``(B,)``.
        jitter: bool ``(B,)``; where false, ``factors`` and ``order`` are not used.
        factors: Brightness, contrast and saturation factor and the hue shift in turns, float32 ``(B, 4)``.
        order: Index into :data:`ORDERS`, int64 ``(B,)``.
        grey: bool ``(B,)``.
        sigma: Standard deviation of the blur in pixels, float32 ``(B,)``; 0 for none.
        threshold: Solarisation threshold, float32 ``(B,)``; infinity for none.
    """

    box: Tensor
    flip: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor
    threshold: Tensor

    def __len__(self) -> int:
        return len(self.box)

    def __getitem__(self, rows: slice | Tensor) -> "ViewParameters":
        return ViewParameters(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def cat(cls, *parts: "ViewParameters") -> "ViewParameters":
        """The rows of all ``parts``, one after the other."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def blur_taps(pixels: int) -> int:
    """Width of the blur's kernel for a side of ``pixels``: SimCLR's tenth of the image, made odd, at least 3."""
    return max(3, pixels // 10 | 1)


def draw(recipe: ViewRecipe, count: int, size: tuple[int, int], *, generator: torch.Generator) -> ViewParameters:
    """Draw the parameters of ``count`` views.

    A rank of several draws for the whole batch and keeps its rows, so the number of ranks changes nothing.

    Args:
        recipe: The view's numbers.
        count: Number of views.
        size: Height and width of the images.
        generator: Source of all randomness; draws are made on its device.

    Returns:
        ``count`` rows, on the host.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(count, *shape, generator=generator, device=generator.device, dtype=torch.float64)
        return drawn.mul_(high - low).add_(low)

    def chance(probability: float) -> Tensor:
        return uniform(0.0, 1.0) < probability

    strengths = (recipe.brightness, recipe.contrast, recipe.saturation)
    ranges = [(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths] + [(-recipe.hue, recipe.hue)]
    drawn = ViewParameters(
        box=_boxes(recipe, size, uniform),
        flip=chance(recipe.flip),
        jitter=chance(recipe.jitter),
        factors=torch.stack([uniform(*span) for span in ranges], dim=1).float(),
        order=torch.randint(len(ORDERS), (count,), generator=generator, device=generator.device),
        grey=chance(recipe.grey),
        sigma=torch.where(chance(recipe.blur), uniform(*recipe.blur_sigma), 0.0).float(),
        threshold=torch.where(chance(recipe.solarise), recipe.solarise_threshold, torch.inf).float(),
    )
    return ViewParameters(*(getattr(drawn, field.name).cpu() for field in fields(drawn)))


def _boxes(recipe: ViewRecipe, size: tuple[int, int], uniform: Callable[..., Tensor]) -> Tensor:
    """Crops as ``RandomResizedCrop.get_params`` draws them: the first of ten tries that fits, else the central one."""
    height, width = size
    area = height * width * uniform(*recipe.scale, _TRIES)
    ratio = uniform(*map(math.log, recipe.ratio), _TRIES).exp_()
    tries = torch.stack(((area / ratio).sqrt_().round_(), (area * ratio).sqrt_().round_()), dim=2)  # (B, tries, 2)
    fits = ((tries > 0) & (tries <= tries.new_tensor(size))).all(2)
    first = fits.int().argmax(1)
    chosen = tries[torch.arange(len(tries), device=tries.device), first]
    room = chosen.new_tensor(size) - chosen
    corner = torch.stack((uniform(0.0, 1.0), uniform(0.0, 1.0)), dim=1).mul_(room + 1).floor_()

    low, high = recipe.ratio
    central = (min(height, round(width / low)), min(width, round(height * high)))
    fallback = ((height - central[0]) // 2, (width - central[1]) // 2, *central)
    box = torch.where(fits.any(1, keepdim=True), torch.cat((corner, chosen), 1), chosen.new_tensor(fallback))
    return box.long()


@torch.no_grad()
def apply(
    images: Tensor, parameters: ViewParameters, *, size: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Make one view of each image.

    Args:
        images: uint8, or float in [0, 1], ``(B, 3, H, W)``.
        parameters: ``B`` rows drawn for images of this size.
        size: Side of the square views; the images' own height and width if absent.
        dtype: Type of the result; the arithmetic is float32 throughout.

    Returns:
        Views in [0, 1] on the images' device, ``(B, 3, H', W')``, channels last.

    Raises:
        DataError: If the images have another shape or type, or are not as many as the parameters.
    """
    _check(images, len(parameters))
    device, (count, _, *pixels) = images.device, images.shape
    outputs = [*pixels] if size is None else [size, size]
    group = torch.where(parameters.jitter, _GROUPS[parameters.order], len(ORDERS))
    group, order = group.add_(parameters.grey * _KINDS).sort(stable=True)
    edges = torch.searchsorted(group, torch.arange(2 * _KINDS + 1))
    parameters, order = parameters[order], order.to(device, non_blocking=True)
    rulers, factors = _rulers(parameters, pixels, outputs, device), _factors(parameters).to(device, non_blocking=True)
    blurred, solarised = parameters.sigma > 0, parameters.threshold <= 1
    views = torch.empty(count, *outputs, 3, dtype=dtype, device=device)
    # index_copy_ moves one element after the other, so the fewer and wider they are the better
    wide = torch.complex128 if views.stride(0) * dtype.itemsize % 16 == 0 else dtype
    rows_of_views = views.view(count, -1).view(wide)
    chunk = _chunk(device, max(math.prod(pixels), math.prod(outputs)))
    # The training loop's autocast is not meant for pixels; the views are made outside and stay ordinary tensors.
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for rows in (slice(start, start + chunk) for start in range(0, count, chunk)):
            here = order[rows]
            planes = _crop(images.index_select(0, here), *(ruler[rows] for ruler in rulers))
            turns = (edges - rows.start).clamp_(0, len(here)).tolist()
            _jitter(planes, factors[:, rows], turns[:_KINDS])
            _jitter(planes, factors[:, rows], turns[_KINDS : 2 * _KINDS])
            _make_grey(planes[:, turns[_KINDS] :])
            planes = _on(planes, blurred[rows], _blur, parameters.sigma[rows])
            planes = _on(planes.clamp_(0.0, 1.0), solarised[rows], _solarise, parameters.threshold[rows])
            done = planes.permute(1, 2, 3, 0).to(dtype).contiguous()
            rows_of_views.index_copy_(0, here, done.view(len(here), -1).view(wide))
    return views.permute(0, 3, 1, 2)


def two_views(
    images: Tensor,
    recipes: tuple[ViewRecipe, ViewRecipe],
    *,
    generator: torch.Generator,
    size: int | None = None,
    total: int | None = None,
    start: int = 0,
) -> Tensor:
    """Two independent views of each image, by the first and the second recipe.

    Args:
        images: uint8, or float in [0, 1], ``(B, 3, H, W)``: rows ``start`` to ``start + B - 1`` of the whole batch.
        recipes: One recipe a view.
        generator: Source of all randomness.
        size: Side of the square views; the images' own height and width if absent.
        total: Rows of the whole batch, for which the parameters are drawn whatever part of it is here; ``B`` if absent.
        start: First row of the whole batch that is here.

    Returns:
        float32 views in [0, 1], ``(2 B, 3, H', W')``, channels last: rows 0 to B - 1 are view one, the rest view two.

    Raises:
        DataError: If the images have another shape or type, or are not rows of the whole batch.
    """
    total, rows = len(images) if total is None else total, slice(start, start + len(images))
    _check(images, len(range(total)[rows]))
    height, width = images.shape[2:]
    drawn = [draw(recipe, total, (height, width), generator=generator)[rows] for recipe in recipes]
    return apply(torch.cat((images, images)), ViewParameters.cat(*drawn), size=size)


def _check(images: Tensor, count: int) -> None:
    """Refuse images that are not uint8 or float ``(count, 3, H, W)``."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != count:
        raise DataError(f"images of shape {tuple(images.shape)} for {count} views; needed: ({count}, 3, H, W)")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"images of type {images.dtype}; needed: uint8, or float in [0, 1]")


def _chunk(device: torch.device, pixels: int) -> int:
    """Images a chunk: on a CPU three planes and their temporaries fit the cores' caches, elsewhere memory bounds it."""
    return max(1, (torch.get_num_threads() << 16 if device.type == "cpu" else 1 << 24) // pixels)


def _column(host: Tensor, planes: Tensor) -> Tensor:
    """One number a sample, ``(B,)`` on the host, as ``(B, 1, 1)`` beside the planes."""
    return host.to(planes.device, non_blocking=True).view(-1, 1, 1)


def _on(planes: Tensor, chosen: Tensor, step: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """``step(planes, *numbers)`` on the chosen samples alone; ``chosen`` and ``numbers`` are ``(B,)`` on the host."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(chosen):
        return step(planes, *(_column(number, planes) for number in numbers))
    if len(rows):
        index = rows.to(planes.device, non_blocking=True)
        done = step(planes.index_select(1, index), *(_column(number[rows], planes) for number in numbers))
        planes.index_copy_(1, index, done)
    return planes


def _rulers(drawn: ViewParameters, pixels: Sequence[int], outputs: Sequence[int], device: torch.device) -> list[Tensor]:
    """Where input and output pixels lie along each crop: two rulers ``(B, n)`` down the image and two across it.

    The unit is the reach of an output pixel's triangle: one input pixel, or one output pixel where that is more.  On a
    side that may shrink, input pixels outside the crop are infinitely far away.  On one that does not, an output pixel
    beyond the centre of the crop's last input pixel takes that one's place, so that no pixel outside is in its reach.
    """
    box, flip = drawn.box.to(device, torch.float32, non_blocking=True), drawn.flip.to(device, non_blocking=True)
    rulers = []
    for axis in range(2):
        start, length = box[:, axis, None], box[:, axis + 2, None]
        places = torch.arange(0.5, pixels[axis], device=device) - start
        step = length / outputs[axis]
        centres = torch.arange(0.5, outputs[axis], device=device) * step
        if axis:
            centres = torch.where(flip[:, None], length - centres, centres)
        if outputs[axis] < pixels[axis]:
            reach = step.clamp(min=1.0)
            places = torch.where((places > 0) & (places < length), places / reach, torch.inf)
            centres = centres / reach
        else:
            centres = torch.minimum(centres.clamp_(min=0.5), length - 0.5)
        rulers += [places, centres]
    return rulers


def _crop(images: Tensor, rows: Tensor, rows_out: Tensor, columns: Tensor, columns_out: Tensor) -> Tensor:
    """Crop, resize bilinearly (antialiased where it shrinks) and flip: ``(B, 3, H, W)`` to planes in [0, 1].

    Rounding may lead out of [0, 1] by as much as itself.
    """
    count, _, height, width = images.shape
    down, across = _triangles(rows_out, rows), _triangles(columns_out, columns).transpose(1, 2)
    if not images.is_floating_point():
        down.mul_(1 / 255)
    narrow = torch.bmm(images.float().view(count, 3 * height, width), across).view(count, 3, height, -1)
    planes = narrow.new_empty(3, count, rows_out.shape[1], columns_out.shape[1])
    for channel, plane in zip(narrow.unbind(1), planes.unbind(), strict=True):
        torch.bmm(down, channel, out=plane)
    return planes


def _triangles(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Weights ``(B, outputs, inputs)`` of input pixels: one minus the distance, at least 0; each row sums to 1."""
    weights = (outputs[:, :, None] - inputs[:, None, :]).abs_()
    torch.sub(1.0, weights, out=weights).clamp_(min=0.0)
    if outputs.shape[1] < inputs.shape[1]:  # else they are of the two nearest pixels, which share the whole
        weights.div_(weights.sum(2, keepdim=True))
    return weights


def _factors(drawn: ViewParameters) -> Tensor:
    """What the steps of the jitter multiply by, ``(7, B, 1, 1)``.

    The weights of the image in the three blends and the turn of the hue in sixths, then the blends' other weights.
    """
    factors = drawn.factors.T * torch.tensor([1.0, 1.0, 1.0, 6.0])[:, None]
    return torch.cat((factors, 1.0 - factors[:_HUE]))[..., None, None]


def _jitter(planes: Tensor, factors: Tensor, edges: Sequence[int]) -> None:
    """Brightness, contrast, saturation and hue, in place, each sample in its own order.

    Args:
        planes: ``(3, B, H, W)``, sorted by :data:`_GROUPS`.
        factors: See :func:`_factors`.
        edges: First row of each of the 24 groups, and of the samples without jitter.
    """
    if edges[0] == edges[-1]:
        return
    weights = factors.unbind()

    def blend(turn: int, first: int, last: int) -> None:
        """Run each permutation's ``turn`` on the groups with the hue at the places from ``first`` up to ``last``."""
        for number, steps in enumerate(_BLENDS):
            rows = slice(edges[4 * number + first], edges[4 * number + last])
            if rows.start < rows.stop:
                step = steps[turn]
                _STEPS[step](planes[:, rows], weights[step][rows], weights[_HUE + 1 + step][rows])

    for turn in range(3):
        blend(turn, turn + 1, 4)
    _shift_hue(planes[:, edges[0] : edges[-1]], weights[_HUE][edges[0] : edges[-1]])
    for turn in range(3):
        blend(turn, 0, turn + 1)


def _brighten(planes: Tensor, weight: Tensor, rest: Tensor) -> None:
    """Blend with black, in place."""
    planes.mul_(weight).clamp_(0.0, 1.0)


def _contrast(planes: Tensor, weight: Tensor, rest: Tensor) -> None:
    """Blend with the mean grey, in place."""
    grey = _grey(planes.mean((2, 3), keepdim=True)).mul_(rest)
    planes.mul_(weight).add_(grey).clamp_(0.0, 1.0)


def _saturate(planes: Tensor, weight: Tensor, rest: Tensor) -> None:
    """Blend with the grey image, in place."""
    torch.addcmul(_grey(planes).mul_(rest), planes, weight, out=planes).clamp_(0.0, 1.0)


_STEPS = (_brighten, _contrast, _saturate)  # by number


def _grey(planes: Tensor) -> Tensor:
    """Luma of ``(3, B, ...)`` planes, ``(B, ...)``."""
    red, green, blue = planes.unbind()
    luma: Tensor = red * _LUMA[0]
    return luma.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _make_grey(planes: Tensor) -> None:
    """Write the grey image on all three planes."""
    if planes.shape[1]:
        planes.copy_(_grey(planes))


def _shift_hue(planes: Tensor, sixths: Tensor) -> None:
    """Turn the hue at equal value and chroma, in place, as the way through HSV does, without a branch on the largest.

    On the colour hexagon, in sixths of a turn, the distance from red is ``1 + (g + b - r - min) / chroma``, on blue's
    side if ``b > g``; a channel is full up to one sixth from its own colour and falls to the minimum at two.
    """
    red, green, blue = planes.unbind()
    low, high = torch.minimum(green, blue), torch.maximum(green, blue)
    side, hue = green - blue, (green + blue).sub_(red)
    torch.minimum(low, red, out=low)
    torch.maximum(high, red, out=high)
    chroma = high - low
    hue.sub_(low).div_(torch.clamp(chroma, min=_TINY, out=red)).add_(1.0)
    torch.copysign(hue, side, out=hue).add_(sixths)
    hue.sub_(torch.mul(hue, 1 / 6, out=side).floor_(), alpha=6.0)  # back into [0, 6)
    # Distances to cyan, green and blue: red is what cyan lacks, and unlike red's own, cyan's does not wrap around.
    for plane, centre in ((red, 3.0), (green, 2.0), (blue, 4.0)):
        torch.sub(hue, centre, out=plane)
    planes.abs_().clamp_(1.0, 2.0)
    torch.addcmul(low.sub_(chroma), chroma, red, out=red)
    high.add_(chroma)
    torch.addcmul(high, chroma, green, value=-1, out=green)
    torch.addcmul(high, chroma, blue, value=-1, out=blue)


def _blur(planes: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur with reflected borders."""
    down, across = (_blurring(sigma, pixels) for pixels in planes.shape[2:])
    return torch.stack([torch.bmm(torch.bmm(down, plane), across.transpose(1, 2)) for plane in planes])


def _blurring(sigma: Tensor, pixels: int) -> Tensor:
    """Matrices ``(B, pixels, pixels)`` that blur one side; ``sigma`` is ``(B, 1, 1)``."""
    radius = blur_taps(pixels) // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.softmax(-0.5 * (offsets / sigma).square(), dim=2)[:, 0]
    places = torch.arange(pixels, device=sigma.device)
    sources = (places[:, None] + offsets).abs()  # (pixels, taps), reflected at the near border and next at the far one
    sources = torch.where(sources < pixels, sources, 2 * (pixels - 1) - sources)
    matrices: Tensor = torch.einsum("bt,ots->bos", taps, (sources[:, :, None] == places).float())
    return matrices


def _solarise(planes: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is at or above the threshold."""
    return torch.where(planes >= threshold, 1.0 - planes, planes)
