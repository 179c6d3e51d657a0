"""A folder of results that is there as a whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hallmark.errors import ConfigError

CERTIFICATE = "certificate.json"
"""What a folder of ours always holds."""


def require_free(out: Path, *, force: bool, sign: str = CERTIFICATE) -> None:
    """Refuse to write where something is.

    Args:
        out: The folder to write.
        force: Whether an earlier folder of the same kind may be replaced.
        sign: The file by which such a folder is known.

    Raises:
        ConfigError: Something is there that may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise ConfigError(f"{out} exists; choose another --out, or replace it with --force")
    if not (out / sign).is_file():
        raise ConfigError(f"{out} holds no {sign}, so --force does not replace it; choose another --out")


@contextmanager
def staged(out: Path, *, force: bool, sign: str = CERTIFICATE) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` when all went well and vanishes when not.

    Raises:
        ConfigError: As :func:`require_free`.
    """
    require_free(out, force=force, sign=sign)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder = work / "new"
        folder.mkdir()
        yield folder
        require_free(out, force=force, sign=sign)
        if out.exists():
            os.replace(out, work / "old")
        os.replace(folder, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
