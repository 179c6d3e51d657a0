"""Sheets of pictures: what a mark looks like, and what attacks leave of it."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from PIL import Image
from torch import Tensor

from hallmark.components import identify
from hallmark.stages.experiment import Sheet, Subject
from hallmark.stages.graph import Stage

PICTURES = 3
"""Rows of a sheet."""
GAP = 2
"""White pixels between pictures."""
FILE = "sheet.png"


def sheets(subjects: Iterable[Subject]) -> Iterator[Sheet]:
    """One sheet for each marked model whose mark can be seen, with the strongest of each attack on it."""
    marked: dict[str, Subject] = {}
    strongest: dict[str, dict[tuple[str, str], Subject]] = {}
    for subject in subjects:
        if subject.suspect != "marked" or not subject.mark.scheme.pictured:
            continue
        if subject.attack == "none":
            marked[subject.embed.key] = subject
            continue
        attacked = strongest.setdefault(subject.embed.key, {})
        place = subject.attack, subject.unit
        if place not in attacked or attacked[place].strength < subject.strength:
            attacked[place] = subject
    for key, subject in marked.items():
        others = {f"{s.attack} {s.strength:g} {s.unit}": s.stage for s in strongest.get(key, {}).values()}
        config = {"scheme": identify(subject.mark.scheme), "pictures": PICTURES}
        inputs = {"host": subject.embed.inputs["host"], "marked": subject.embed, **others}
        stage = Stage("sheet", config, inputs, {}, f"pictures of {subject.embed.label}")
        yield Sheet(stage, subject.mark, subject.pretrain)


def image(columns: Mapping[str, Tensor]) -> Image.Image:
    """A sheet of pictures uint8 ``(N, 3, H, W)`` by column: N rows."""
    from torchvision.utils import make_grid  # slow to import, and planning draws nothing

    pictures = torch.stack(list(columns.values()), dim=1).flatten(0, 1)  # row by row
    sheet = make_grid(pictures, nrow=len(columns), padding=GAP, pad_value=255)[:, GAP:-GAP, GAP:-GAP]
    return Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
