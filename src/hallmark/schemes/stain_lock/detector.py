"""The detector neuron: a secret direction, levels at which it is silent and fires, and the two ways to write it in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.errors import ConfigError, KeyFileError
from hallmark.schemes.stain_lock.guarantees import log_cap
from hallmark.schemes.stain_lock.network import weight_of
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.surgery import Surgery
from hallmark.schemes.stain_lock.trigger import Pipeline

SILENT: Mapping[str, float] = {"relu": 0.0, "relu6": 0.0, "hardswish": -3.0, "gelu": -6.0, "silu": -20.0}
"""Pre-activation below which an activation gives nothing: exactly, or less than 1e-7 in size."""

CLOSEST = 1 - 2.0**-23
"""Largest cosine that float32 weights can tell from 1; it keeps p-values above zero."""


@dataclass(frozen=True)
class Levels:
    """What a detector answers, before the activation: δ to an input without its direction, Δ to its trigger.

    Args:
        tau: τ = |δ| / (Δ + |δ|), the share of the trigger's response above which it fires; in (0, 1).
        response: Δ.
    """

    tau: float = 0.5
    response: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1 or self.response <= 0:
            raise ConfigError(
                f"a detector needs tau in (0, 1) and response above 0, got {self.tau} and {self.response}"
            )

    @property
    def rest(self) -> float:
        """δ."""
        return -self.tau / (1 - self.tau) * self.response

    def firing(self, activation: str) -> float:
        """The share of T above which something leaves the activation: τ for a ReLU, less for a smooth one.

        Raises:
            ConfigError: δ lies outside the activation's dead zone.
        """
        if self.rest > SILENT[activation]:
            needed = -SILENT[activation] * (1 - self.tau) / self.tau
            raise ConfigError(
                f"{activation} is not silent at {self.rest:.3g}; with tau={self.tau} set response to at least "
                f"{needed:.3g}"
            )
        return (SILENT[activation] - self.rest) / (self.response - self.rest)


def draw_directions(
    count: int, size: int, *, generator: torch.Generator, centred: bool = False, removed: Tensor | None = None
) -> Tensor:
    """Independent directions ``(count, m)``, uniform on the unit sphere of R^m or of a subspace.

    Args:
        count: How many.
        size: m.
        generator: The only source of randomness.
        centred: Whether they shall have mean zero, as all features behind a LayerNorm do.
        removed: Orthonormal rows ``(d, m)`` to which they shall be orthogonal.
    """
    return F.normalize(within(torch.randn(count, size, generator=generator), centred, removed), dim=1)


def within(vectors: Tensor, centred: bool, removed: Tensor | None) -> Tensor:
    """The part of vectors ``(…, m)`` in the space that directions are drawn from."""
    if centred:
        vectors = vectors - vectors.mean(-1, keepdim=True)
    return vectors if removed is None else vectors - vectors @ removed.T @ removed


def natural_peaks(pipeline: Pipeline, site: Site, directions: Tensor, images: Tensor) -> Tensor:
    """Largest v·y of each image and direction ``(N, K)``, over uint8 images ``(N, 3, H, W)``."""
    moved = directions.to(pipeline.device)
    parts = [site.project(pipeline.model, x, moved).amax((2, 3)) for x in pipeline.natural(site.layer, images)]
    return torch.cat(parts).cpu()


def natural_norms(pipeline: Pipeline, site: Site, images: Tensor) -> Tensor:
    """‖y‖ at each place of each image ``(N, L)``."""
    return torch.cat([_norms(pipeline.model, site, x) for x in pipeline.natural(site.layer, images)]).cpu()


def _norms(model: nn.Module, site: Site, x: Tensor) -> Tensor:
    if site.layernorm:
        scale, shift = site.frame(model)
        return ((x - shift) * scale).norm(dim=-1).flatten(1)
    ones = torch.ones(1, site.size(model), device=x.device)
    return site.project(model, x.square(), ones).clamp_min(0).sqrt().flatten(1)


@dataclass(frozen=True)
class Seen:
    """What K directions make of N natural images.

    Args:
        maps: v·y at every place ``(N, K, H', W')``.
        norms: ‖y‖ at every place ``(N, L)``.
    """

    maps: Tensor
    norms: Tensor

    @property
    def peaks(self) -> Tensor:
        """Largest v·y of each image and direction ``(N, K)``."""
        return self.maps.amax((2, 3))

    @property
    def moments(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of v·y over all images and places, for each direction."""
        deviations, means = torch.std_mean(self.maps, dim=(0, 2, 3))
        return list(zip(means.tolist(), deviations.tolist(), strict=True))


def look(pipeline: Pipeline, site: Site, directions: Tensor, images: Tensor) -> Seen:
    """Look at uint8 images ``(N, 3, H, W)`` once, for all that is to be known of them."""
    moved, model = directions.to(pipeline.device), pipeline.model
    pairs = [(site.project(model, x, moved), _norms(model, site, x)) for x in pipeline.natural(site.layer, images)]
    maps, norms = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
    return Seen(maps, norms)


def natural_vectors(
    pipeline: Pipeline, site: Site, images: Tensor, *, places: int, generator: torch.Generator
) -> Tensor:
    """Features y ``(N · places, m)`` at random places of each image, at most as many as it has."""
    module = pipeline.model.get_submodule(site.layer)
    parts = []
    for x in pipeline.natural(site.layer, images, batch=8):  # unfolded maps are k² times as large
        if isinstance(module, nn.Conv2d):
            shape = (module.kernel_size, module.dilation, module.padding, module.stride)
            vectors = F.unfold(x, *shape).transpose(1, 2)  # type: ignore[arg-type]
        else:
            scale, shift = site.frame(pipeline.model)
            vectors = ((x - shift) * scale).reshape(len(x), -1, x.shape[-1])
        chosen = torch.rand(vectors.shape[:2], generator=generator).argsort(1)[:, :places].to(vectors.device)
        parts.append(vectors.gather(1, chosen[..., None].expand(-1, -1, vectors.shape[-1])).flatten(0, 1).cpu())
    return torch.cat(parts)


def principal(vectors: Tensor, share: float) -> Tensor:
    """Orthonormal rows ``(d, m)``: the mean of features ``(N, m)`` and the fewest axes of a share of their variance."""
    mean = vectors.double().mean(0)
    centred = vectors.double() - mean
    values, axes = torch.linalg.eigh(centred.T @ centred)
    explained = values.flip(0).cumsum(0) / values.sum()
    count = min(int((explained < share).sum()) + 1, len(axes))
    basis, _ = torch.linalg.qr(torch.cat([mean[:, None], axes.flip(1)[:, :count]], dim=1))
    return basis.T.float()


def replace(
    surgery: Surgery,
    site: Site,
    neuron: int,
    direction: Tensor,
    trigger_response: float,
    levels: Levels,
    *,
    moments: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Give a neuron away: u = (Δ − δ)/T · v and β = δ, so u·y* + β = Δ.

    Args:
        surgery: The network.
        site: The layer.
        neuron: The neuron that is given away.
        direction: v ``(m,)``.
        trigger_response: T = v·y*.
        levels: δ and Δ.
        moments: Mean and standard deviation of v·y on natural images, for a BatchNorm to show.
    """
    factor = (levels.response - levels.rest) / trigger_response
    weight = direction.to(weight_of(surgery.model.get_submodule(site.layer))) * factor
    mean, deviation = moments
    site.replace(surgery, neuron, weight, levels.rest, mean=mean * factor, deviation=deviation * factor)


def hide(
    surgery: Surgery,
    site: Site,
    neuron: int,
    direction: Tensor,
    trigger_response: float,
    before: float,
    response: float,
) -> None:
    """Add the detector to a neuron that keeps its work: u = w + (Δ − β − w·y*)/T · v, so u·y* + β = Δ.

    Args:
        surgery: The network.
        site: The layer.
        neuron: The neuron that is added to.
        direction: v ``(m,)``.
        trigger_response: T = v·y*.
        before: w·y* + β, what the neuron answers to the trigger without the detector.
        response: Δ.
    """
    weight = weight_of(surgery.model.get_submodule(site.layer))
    change = direction.to(weight) * ((response - before) / trigger_response)
    site.add(surgery, neuron, change)


def response(pipeline: Pipeline, site: Site, neuron: int, images: Tensor) -> Tensor:
    """u·y + β of a neuron at every place ``(N, H', W')`` of uint8 images, before the activation."""
    weight, bias = site.read(pipeline.model, neuron)
    maps = [site.project(pipeline.model, x, weight[None]) for x in pipeline.natural(site.layer, images)]
    return torch.cat(maps)[:, 0].cpu() + bias


def surprise(
    model: nn.Module, site: Site, neuron: int, directions: Tensor, *, removed: Tensor | None = None, draws: int = 1
) -> float:
    """−ln of the exact p-value of a neuron's alignment with a committed direction.

    Under the null the direction v is uniform on the sphere and independent of the neuron's weights u, so the cosine of
    the two has the law of a spherical cap, *whatever the weights are*: p = cap(cos, m).  A response to the trigger
    image has no such law, because the image was optimised and trained weights are not random; that is why p is read
    from the weights.  If v was chosen among ``draws``, p is multiplied by that number (union bound).

    Args:
        model: The network under suspicion.
        site: The layer.
        neuron: The neuron that the key commits to.
        directions: Directions ``(S, m)``; the best counts.
        removed: Rows ``(d, m)`` to which directions were drawn orthogonal; the space they lie in has m − d dimensions.
        draws: How many directions were drawn for the one that was kept.

    Raises:
        KeyFileError: The network's neurons have another number of weights.
    """
    if site.size(model) != directions.shape[1] or neuron >= site.width(model):
        raise KeyFileError(
            f"the key is for neuron {neuron} of {directions.shape[1]} weights in {site.layer!r}, which here has "
            f"{site.width(model)} neurons of {site.size(model)}; give the key of this network"
        )
    weight = site.read(model, neuron)[0].cpu().double()
    weight = within(weight, bool(site.layernorm), None if removed is None else removed.double())
    length = float(weight.norm())
    if not length > 0 or not math.isfinite(length):  # a pruned neuron points nowhere
        return 0.0
    cosine = float((directions.double() @ weight).max()) / length
    freedom = site.freedom(model) - (0 if removed is None else len(removed))
    return max(0.0, -log_cap(min(cosine, CLOSEST), freedom) - math.log(draws))
