"""Stamping a lock's patches on pictures."""

import os
from pathlib import Path

from torch import Tensor

from hallmark.core import Key
from hallmark.data.images import resize
from hallmark.data.readers import decode
from hallmark.errors import ConfigError, DataError
from hallmark.schemes.stain_lock.command.folder import staged
from hallmark.schemes.stain_lock.command.images import find_images, write_png
from hallmark.schemes.stain_lock.locking import unlock


def stamp(source: Path, key: Key, out: Path, *, fit: bool, force: bool) -> int:
    """Write pictures with the patches in, as PNG, which loses nothing.

    Args:
        source: A picture, or a folder of pictures.
        key: A lock's key.
        out: A ``.png`` file, or a folder, in which pictures keep their places.
        fit: Whether pictures of other sizes are brought to the lock's: the middle square, resized.
        force: Whether a file, or a folder that an earlier call wrote, may be replaced.

    Returns:
        How many were written.

    Raises:
        DataError: There is no picture, or one is damaged or of another size.
        ConfigError: ``out`` is taken or no PNG, or two pictures would get the same name.
    """
    size = key.tensors["queries"].shape[-1]
    if source.is_file():
        if out.suffix.lower() != ".png":
            raise ConfigError(f"--out {out} must end in .png: other formats may lose what the patch needs")
        if out.exists() and not force:
            raise ConfigError(f"{out} exists; choose another --out, or replace it with --force")
        stamped = _stamped(source, key, size, fit=fit)
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f".{out.name}.part")
        try:
            write_png(stamped, unfinished)
            os.replace(unfinished, out)
        finally:
            unfinished.unlink(missing_ok=True)
        return 1
    paths = find_images(source)
    targets = [path.relative_to(source).with_suffix(".png") for path in paths]
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise ConfigError(f"two pictures of {source} would become {twice}; rename one")
    with staged(out, force=force, sign=STAMPED) as folder:
        for path, target in zip(paths, targets, strict=True):
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            write_png(_stamped(path, key, size, fit=fit), folder / target)
        (folder / STAMPED).write_text(f"stamped for the lock {key.commitment()}\n")
    return len(paths)


STAMPED = "stamped.txt"
"""What a folder of stamped pictures always holds."""


def _stamped(path: Path, key: Key, size: int, *, fit: bool) -> Tensor:
    image = decode(path, crop=float(fit))
    if tuple(image.shape[1:]) != (size, size):
        if not fit:
            height, width = image.shape[1:]
            raise DataError(
                f"{path} is {width}x{height} and the lock is for images as the network gets them, {size}x{size}; bring "
                "them there before, or let --resize do it"
            )
        image = resize(image[None], size)[0]
    return unlock(image[None], key)[0]
