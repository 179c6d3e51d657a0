"""bfloat16 only where the machine computes in it."""

import types

import pytest
import torch

from hallmark import precision
from hallmark.training_settings import TrainerSettings


@pytest.fixture(autouse=True)
def _forget():
    precision.native_bfloat16.cache_clear()
    yield
    precision.native_bfloat16.cache_clear()


def processor(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: types.MappingProxyType(capabilities))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "amx_bf16": True}, "bf16-mixed"),
        ({"avx512_f": True, "avx512_bf16": True}, "bf16-mixed"),
        ({"neon": True, "bf16": True}, "bf16-mixed"),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False, "amx_tile": True}, "32-true"),
        ({"avx2": True}, "32-true"),
    ],
)
def test_the_processor_decides_what_auto_is(monkeypatch, capabilities, expected) -> None:
    processor(monkeypatch, **capabilities)
    settings = TrainerSettings()
    assert settings.precision == expected
    assert settings.semantic()["precision"] == expected  # stages are named by what it became
    with precision.fast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") is (expected == "bf16-mixed")
    with precision.fast(torch.device("cpu"), enabled=False):
        assert not torch.is_autocast_enabled("cpu")


def test_a_gpu_that_emulates_is_not_asked_for_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        precision.native_bfloat16.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert TrainerSettings(accelerator="gpu").precision == expected


def test_what_is_named_is_what_is_used(monkeypatch) -> None:
    processor(monkeypatch, avx2=True)
    assert TrainerSettings(precision="bf16-mixed").precision == "bf16-mixed"
