"""What a write leaves behind: the edited model, the key, pictures and the certificate."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.models.excite import additions
from hallmark.schemes.stain_lock.command.folder import CERTIFICATE
from hallmark.schemes.stain_lock.command.host import Host, fingerprint
from hallmark.schemes.stain_lock.command.images import write_png
from hallmark.schemes.stain_lock.command.markdown import render
from hallmark.schemes.stain_lock.evidence import certificate

PACKAGES = ("hallmark", "torch", "torchvision", "timm")

Facts = dict[str, Any]


def remember(key: Key, host: Host) -> Key:
    """The key with what is needed to ask a suspect of the host's kind."""
    return replace(key, meta={**key.meta, "host": host.record})


def write(folder: Path, host: Host, edited: nn.Module, key: Key, pictures: Mapping[str, Tensor], told: Facts) -> Facts:
    """Write everything.

    Args:
        folder: An empty folder.
        host: The model before.
        edited: The model after.
        key: Its key, with the host remembered.
        pictures: uint8 ``(3, H, W)`` by file name.
        told: Facts that only the caller knows: what images were used, how the edited model behaves.

    Returns:
        The certificate.
    """
    state, before = host.state(edited), host.state(host.model)
    grown = additions(edited)
    named = state if host.file is None or grown else host.file.named(state)
    (folder / "model.safetensors").write_bytes(save(_unshared(named)))
    if host.file is not None and host.file.pickled and not grown:
        torch.save(host.file.replaced(state), folder / "model.pth")
    files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    path = folder / "key.safetensors"
    path.touch(mode=0o600)
    key.save(path)
    for name, picture in pictures.items():
        write_png(picture, folder / name)
    changed = [name for name in state if name not in before or not torch.equal(before[name], state[name])]
    entries = sum(tensor.numel() for tensor in before.values())
    count = key.meta["figures"]["changed_weights"]
    facts = {
        **certificate(key),
        **told,
        "neurons": len(key.meta["neurons"]),
        "model": {
            **host.record,
            "source": str(host.arch) if host.file is None else host.file.path.name,
            "weights_before": fingerprint(before),
            "weights_after": fingerprint(state),
        },
        "edit": {"changed": count, "entries": entries, "share": count / entries, "tensors": changed},
        "additions": grown,
        "files": files,
        "versions": {name: version(name) for name in PACKAGES},
    }
    (folder / CERTIFICATE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    (folder / "CERTIFICATE.md").write_text(render(facts))
    return facts


def show(out: Path, facts: Facts, taken: str) -> None:
    """Say what was written."""
    console, edit = Console(highlight=False, soft_wrap=True), facts["edit"]
    share = f"{edit['changed']} of {edit['entries']} weights ({edit['share']:.3%})"
    console.print(f"[bold]{facts['scheme']}[/] in {facts['site']['layer']}: {share} in {taken}")
    for name, value in facts["behaviour"].items():
        console.print(f"{name}: {value:.1%} of {facts['looked_at']} {facts['images']}")
    console.print(f"commitment, to publish: {facts['commitment']}")
    console.print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    console.print(
        "[yellow]key.safetensors and the pictures are secret; what the edit guarantees is in CERTIFICATE.md[/]"
    )


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that share no memory, as safetensors demands."""
    seen: set[int] = set()
    free = {}
    for name, tensor in state.items():
        plain = tensor.detach().contiguous()
        place = plain.untyped_storage().data_ptr()
        free[name] = plain.clone() if place in seen or plain.untyped_storage().nbytes() > plain.nbytes else plain
        seen.add(place)
    return free


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
