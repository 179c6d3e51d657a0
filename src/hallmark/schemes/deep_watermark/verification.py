"""What R reads from a suspect's outputs, and how much that looks like a mark."""

from typing import NamedTuple

import torch
from torch import Tensor

from hallmark.core import Key, Suspect
from hallmark.data.pairs import to_bytes
from hallmark.errors import KeyFileError
from hallmark.models.image_to_image import Extractor
from hallmark.models.inference import Answering, block_size
from hallmark.schemes.deep_watermark.marks import BLANK, read_bits
from hallmark.tasks.restoration import likeness

SUCCESS = 0.95
"""Normalised correlation above which the paper calls an extraction a success."""
SHOWN = 0.5
"""Centred correlation above which a reading is taken to show a mark in a verdict: recognisable, also through a poor
surrogate, and far out of a foreign mark's reach."""
FAINT = 0.1
"""Contrast, as a share of the mark's, below which a reading counts as the blank that it nearly is."""

PREFIX = "extractor."
"""Before the names of R's weights in a key."""


class Reading(NamedTuple):
    """What a suspect answers to a key's queries, and what R reads from that.

    Attributes:
        answers: The suspect's outputs, uint8 ``(Q, 3, H, W)``.
        marked: Read from them; float ``(Q, 3, H, W)`` in [0, 1], as are the others.
        clean: Read from the unmarked host's outputs to the same queries.
        inputs: Read from the queries themselves.
    """

    answers: Tensor
    marked: Tensor
    clean: Tensor
    inputs: Tensor


def read(suspect: Suspect, key: Key) -> Reading:
    """Ask a suspect a key's queries and extract.

    Raises:
        KeyFileError: The key holds no extractor; embedding trains it.
        AccessError: The suspect's outputs cannot be seen.
    """
    extractor = extractor_of(key).to(suspect.device)
    queries = key.tensors["queries"]
    answers = to_bytes(
        torch.cat([suspect.images(part.float() / 255) for part in torch.split(queries, block_size(queries))])
    )
    with torch.no_grad():
        readings = [
            extractor((images.float() / 255).to(suspect.device)).float().clamp(0, 1).cpu()
            for images in (answers, key.tensors["clean"], queries)
        ]
    return Reading(answers, *readings)


def extractor_of(key: Key) -> Answering:
    """R, as a key holds it.

    Raises:
        KeyFileError: The key holds none.
    """
    weights = {name.removeprefix(PREFIX): t for name, t in key.tensors.items() if name.startswith(PREFIX)}
    if not weights:
        raise KeyFileError("this deep_watermark key holds no extractor; use the key that embedding returned")
    extractor = Extractor(**key.meta["extractor"])
    extractor.load_state_dict(weights)
    return Answering(extractor)


def nc(readings: Tensor, marks: Tensor) -> Tensor:
    """The paper's normalised correlation ⟨r, m⟩ / (‖r‖ ‖m‖), which blank images pass for bright marks.

    Args:
        readings: ``(Q, 3, H, W)``.
        marks: ``(M, 3, H, W)``.

    Returns:
        ``(Q, M)``; 0 where either is black.
    """
    r, m = readings.flatten(1).double(), marks.flatten(1).double()
    return r @ m.T / (r.norm(dim=1)[:, None] * m.norm(dim=1)).clamp_min(1e-12)


def nc_centred(readings: Tensor, marks: Tensor) -> Tensor:
    """Pearson's correlation of readings ``(Q, 3, H, W)`` with marks ``(M, 3, H, W)``, as ``(Q, M)``.

    Correlation knows no contrast: a reading that is white up to a thousandth of the mark would correlate perfectly.  A
    reading whose contrast is below :data:`FAINT` of the mark's is therefore weighed as if it had that much.
    """
    r, m = readings.flatten(1).double(), marks.flatten(1).double()
    r, m = r - r.mean(1, keepdim=True), m - m.mean(1, keepdim=True)
    contrast = m.norm(dim=1)
    return r @ m.T / (torch.maximum(r.norm(dim=1)[:, None], FAINT * contrast) * contrast).clamp_min(1e-12)


def figures_of(reading: Reading, key: Key) -> dict[str, float]:
    """What the paper reports of a suspect, with what keeps it honest beside it.

    Args:
        reading: Of the suspect.
        key: The key it was read with.

    Returns:
        * ``psnr`` in dB and ``ssim`` of the suspect's outputs against the unmarked host's, to the same queries;
        * ``nc`` and ``nc_centred``, means over the queries, and ``nc_blank``: what a white image scores in ``nc``;
        * ``nc_centred_input`` and ``nc_centred_clean``, of what is read from the queries and from clean outputs;
        * ``success_rate``, the share of queries with ``nc`` above 0.95, and ``success_rate_centred`` likewise;
        * ``bit_accuracy``, the share of bits read correctly over all queries, for grids.
    """
    mark = key.tensors["mark"].float()[None] / 255
    plain, centred = nc(reading.marked, mark), nc_centred(reading.marked, mark)
    found = {
        "nc": plain.mean(),
        "nc_blank": nc(torch.full_like(mark, BLANK), mark).mean(),
        "nc_centred": centred.mean(),
        "nc_centred_input": nc_centred(reading.inputs, mark).mean(),
        "nc_centred_clean": nc_centred(reading.clean, mark).mean(),
        "success_rate": (plain > SUCCESS).double().mean(),
        "success_rate_centred": (centred > SUCCESS).double().mean(),
    }
    if key.meta["mark"] == "bits":
        cells = int(key.meta["cells"])
        found["bit_accuracy"] = (read_bits(reading.marked, cells) == read_bits(mark, cells)).double().mean()
    return likeness(reading.answers, key.tensors["clean"]) | {name: float(value) for name, value in found.items()}
