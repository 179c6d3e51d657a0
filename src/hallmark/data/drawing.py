"""What drawn images are made of: shapes as signed distances, textures and patterns, colours.

Pixels are computed with +, −, ×, ÷, √, floor, min and max only, whose results do not depend on how a tensor is cut into
vectors and threads.  With any change here raise ``GENERATOR_VERSION``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def place(x: Tensor, y: Tensor, left: Tensor, top: Tensor, angle: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel coordinates ``(B, H, W)`` as seen from a unit frame that lies there, turned and scaled."""
    # Rounding to float32 removes what libraries' sines differ in.
    cos, sin = (angle.cos() / scale).float(), (angle.sin() / scale).float()
    x, y = x - left.float(), y - top.float()
    return x * cos + y * sin, y * cos - x * sin


def coverage(distance: Tensor, pixels_per_unit: Tensor) -> Tensor:
    """Return how much of each pixel lies inside, 0 to 1, from the signed distance to the edge."""
    return (0.5 - distance * pixels_per_unit).clamp_(0, 1)


def rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return HSV colours (hue in turns) of shape ``(B, 1, 1)`` as RGB, float32 ``(B, 3, 1, 1)``."""
    channels = []
    for offset in (5, 3, 1):
        k = (offset + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1).float()


def dispatch(functions: Sequence[Callable[[Tensor, Tensor], Tensor]], which: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return ``functions[which[b]](u[b], v[b])`` for every b."""
    out = torch.empty_like(u)
    for i in which.unique().tolist():
        at = (which == i).nonzero().squeeze(1)
        out[at] = functions[i](u[at], v[at])
    return out


# Signed distances to the edge of shapes of about unit radius: negative inside.


def _length(u: Tensor, v: Tensor) -> Tensor:
    return (u * u + v * v).sqrt()


def box(u: Tensor, v: Tensor, width: float, height: float) -> Tensor:
    """Return the signed distance to a rectangle of half sides ``width`` and ``height``."""
    return torch.maximum(u.abs() - width, v.abs() - height)


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return _length(u, v) - 0.85


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (_length(u, v) - 0.7).abs() - 0.22


def _square(u: Tensor, v: Tensor) -> Tensor:
    return box(u, v, 0.75, 0.75)


def _frame(u: Tensor, v: Tensor) -> Tensor:
    return (box(u, v, 0.65, 0.65)).abs() - 0.17


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v, (3**0.5 * u.abs() - v) / 2) - 0.5


def _star(u: Tensor, v: Tensor) -> Tensor:
    # Mirrored into the tenth from a tip at (0, 1) to the notch beside it, the edge is one straight line.
    sin, cos = 0.5877852523, 0.8090169944  # of 36 degrees
    u = u.abs()
    for side in (1, -1):
        beyond = 2 * (side * cos * u - sin * v).clamp(min=0)
        u, v = u - side * cos * beyond, v + sin * beyond
    u = u.abs()
    notch_u, notch_v = 0.45 * sin, 0.45 * cos
    length = (notch_u**2 + (1 - notch_v) ** 2) ** 0.5
    return ((1 - notch_v) * u + notch_u * (v - 1)) / length


def _plus(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(box(u, v, 0.95, 0.28), box(u, v, 0.28, 0.95))


def _bar(u: Tensor, v: Tensor) -> Tensor:
    return box(u, v, 1.0, 0.3)


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_length(u, v) - 0.95, 0.8 - _length(u - 0.45, v))


def _half_disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_length(u, v + 0.4) - 0.95, -v - 0.4)


def _pair(u: Tensor, v: Tensor) -> Tensor:
    return _length(u.abs() - 0.55, v) - 0.4


# Patterns with a period of 1 in both directions, 0 to 1.


def _triangle_wave(t: Tensor) -> Tensor:
    return 2 * (t - t.floor() - 0.5).abs()


def _solid(u: Tensor, v: Tensor) -> Tensor:
    return torch.zeros_like(u)


def _stripes(u: Tensor, v: Tensor) -> Tensor:
    return (2 * _triangle_wave(u) - 0.5).clamp_(0, 1)


def _checks(u: Tensor, v: Tensor) -> Tensor:
    return (4 * (_triangle_wave(u) - 0.5) * (_triangle_wave(v) - 0.5) * 4 + 0.5).clamp_(0, 1)


def _spots(u: Tensor, v: Tensor) -> Tensor:
    return (2 - 4 * _length(u - u.floor() - 0.5, v - v.floor() - 0.5)).clamp_(0, 1)


def _arcs(u: Tensor, v: Tensor) -> Tensor:
    return _stripes(_length(u, v), v)


def _ramp(u: Tensor, v: Tensor) -> Tensor:
    return (0.5 + 0.5 * u).clamp(0, 1)


def _glow(u: Tensor, v: Tensor) -> Tensor:
    return 1 / (1 + 3 * (u * u + v * v))


SHAPES = (_disc, _ring, _square, _frame, _triangle, _star, _plus, _bar, _crescent, _half_disc, _pair)
TEXTURES = (_solid, _stripes, _checks, _spots, _arcs)
PATTERNS = (_ramp, _glow, _stripes, _checks)
