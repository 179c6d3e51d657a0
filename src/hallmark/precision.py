"""Where bfloat16 is fast: in which numbers networks are trained and asked on the machine at hand.

Processors without instructions for bfloat16 emulate it, some thirty times slower than float32 on small networks.
"""

from functools import cache

import torch

AUTO = "auto"
"""The setting that leaves the choice to the machine."""
HALF = "bf16-mixed"
FULL = "32-true"

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


@cache
def native_bfloat16(device: str) -> bool:
    """Whether devices of a type compute in bfloat16 themselves.

    Args:
        device: A torch device type, ``cpu`` or ``cuda``; where torch sees no GPU, one that does is assumed, so that
            runs for another machine can be planned.
    """
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _INSTRUCTIONS)
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def chosen(accelerator: str) -> str:
    """Lightning's name of the fastest precision that is safe to train in: bfloat16 where it is native, else float32.

    Args:
        accelerator: ``cpu`` or ``gpu``.
    """
    return HALF if native_bfloat16("cpu" if accelerator == "cpu" else "cuda") else FULL


def fast(device: torch.device, *, enabled: bool = True) -> torch.autocast:
    """A context in which networks are asked in bfloat16 where that is native, and in float32 elsewhere.

    Args:
        device: Where the network is.
        enabled: False asks in float32 on every machine.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and native_bfloat16(device.type))
