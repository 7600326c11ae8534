"""The number format a device gets, and fingerprints of values."""

import pytest
import torch

from flamingo.backbones.fingerprint import fingerprint, weights_digest
from flamingo.backbones.precision import available_device, preferred_dtype, resolve_dtype
from flamingo.choices import Precision


@pytest.mark.parametrize(
    ("gpu", "flag", "device"),
    [(True, None, "cuda"), (True, "true", "cpu"), (True, "false", "cuda"), (False, None, "cpu")],
)
def test_the_device_at_hand_is_a_gpu_unless_the_cpu_is_asked_for(monkeypatch, gpu, flag, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if flag is not None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
    assert available_device() == torch.device(device)


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_cpu_gets_bf16_exactly_where_it_has_instructions_for_it(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    expected = torch.bfloat16 if avx512 or amx else torch.float32
    assert preferred_dtype("cpu") == expected
    assert resolve_dtype(Precision.auto, torch.device("cpu")) == expected


@pytest.mark.parametrize("native", [False, True])
def test_cuda_is_asked_without_emulation(monkeypatch, native):
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert preferred_dtype("cuda:1") == (torch.bfloat16 if native else torch.float32)


def test_a_named_precision_is_taken_as_it_is():
    assert resolve_dtype(Precision.bf16, "cpu") == torch.bfloat16
    assert resolve_dtype(Precision.fp32, "cpu") == torch.float32


def test_digest_ignores_order_and_width_but_not_values_and_shape():
    a, b = torch.arange(6.0), torch.tensor([0.5])
    assert weights_digest([a, b]) == weights_digest([b.bfloat16(), a])
    assert weights_digest([a, b]) != weights_digest([a.view(2, 3), b])
    assert weights_digest([a, b]) != weights_digest([a, b + 1e-6])
    assert weights_digest([a, a]) != weights_digest([a])


def test_fingerprint_depends_on_every_part_and_not_on_their_order():
    assert fingerprint(a=1, b=[2.0]) == fingerprint(b=[2.0], a=1)
    assert fingerprint(a=1, b=[2.0]) != fingerprint(a=1, b=[2.5])
