import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_effnn.formats import (
    BF16,
    FP8_E4M3,
    FP16,
    FP32,
    Binary,
    FixedPoint,
    PowerOfTwo,
    RecentralizedPowerOfTwo,
    Ternary,
)
from lightning_effnn.hardware.energy import OperationEnergies

CHIP = OperationEnergies.of({"int8_mac_pJ": 0.3})
INT8 = FixedPoint(8)


def test_published_energies_come_back():
    # Horowitz, ISSCC 2014: multiply + add
    assert CHIP.mac_pJ(INT8, INT8) == pytest.approx(0.2 + 0.1)
    assert CHIP.mac_pJ(FixedPoint(32), FixedPoint(32)) == pytest.approx(3.1 + 0.1)
    assert CHIP.mac_pJ(FP32, FP32) == pytest.approx(3.7 + 0.9)
    assert CHIP.mac_pJ(FP16, FP16) == pytest.approx(1.1 + 0.9)
    assert CHIP.vector_pJ(FP16) == pytest.approx(0.4)
    assert CHIP.vector_pJ(INT8) == pytest.approx(0.03)


def test_a_power_of_two_is_a_shift_and_a_sign_is_an_addition():
    assert CHIP.mac_pJ(PowerOfTwo(4), INT8) == pytest.approx(0.024 + 0.1)
    assert CHIP.mac_pJ(INT8, PowerOfTwo(4)) == CHIP.mac_pJ(PowerOfTwo(4), INT8)
    for free in (Binary(), Ternary()):
        assert CHIP.mac_pJ(free, INT8) == pytest.approx(0.1)


def test_a_recentralised_power_of_two_is_two_shifts_and_an_addition_more_than_a_sign():
    focus5 = RecentralizedPowerOfTwo(5, scale=1.3)  # the scale is not charged
    assert CHIP.mac_pJ(focus5, INT8) == CHIP.mac_pJ(INT8, focus5) == pytest.approx(2 * 0.024 + 0.1 + 0.1)
    assert CHIP.mac_pJ(PowerOfTwo(5), INT8) < CHIP.mac_pJ(focus5, INT8) < CHIP.mac_pJ(INT8, INT8)
    assert CHIP.mac_pJ(focus5, FP32) == pytest.approx(2 * 0.03 + 0.9 + 0.9)  # exponents are added
    assert CHIP.mac_pJ(focus5, Binary()) == CHIP.mac_pJ(Binary(), focus5) == pytest.approx(0.1)
    assert CHIP.mac_pJ(focus5, PowerOfTwo(4)) == CHIP.mac_pJ(PowerOfTwo(4), focus5)


def test_narrower_formats_never_cost_more():
    floats = [CHIP.mac_pJ(f, f) for f in (FP8_E4M3, BF16, FP16, FP32)]
    integers = [CHIP.mac_pJ(FixedPoint(b), INT8) for b in range(1, 33)]
    assert floats == sorted(floats)
    assert integers == sorted(integers)


def test_another_chip_scales_the_whole_table():
    tpu = OperationEnergies.of({"int8_mac_pJ": 0.04})
    assert tpu.mac_pJ(INT8, INT8) == pytest.approx(0.04)
    assert tpu.mac_pJ(FP32, FP32) / tpu.mac_pJ(INT8, INT8) == pytest.approx(4.6 / 0.3)


@given(st.floats(1, 32), st.floats(1, 32))
def test_energy_is_differentiable_and_rises_with_either_width(w, i):
    w_bits, i_bits = (torch.tensor(v, requires_grad=True) for v in (w, i))
    CHIP.mac_pJ(INT8, INT8, w_bits, i_bits).backward()
    assert w_bits.grad > 0
    assert i_bits.grad > 0
