import re

import numpy as np
import pytest
from numba import njit

from texturegen.texture.kernels.simd import LANES, run_distance


@njit
def _call(left, left_start, right, right_start, mask, mask_start):
    return run_distance(left, np.uint64(left_start), right, np.uint64(right_start), mask, np.uint64(mask_start))


@pytest.mark.parametrize("seed", range(20))
def test_run_distance_equals_masked_sum_of_differences(seed):
    random = np.random.default_rng(seed)
    left, right = random.integers(0, 256, (2, 100), dtype=np.uint8)
    mask = random.choice(np.array([0, 255], dtype=np.uint8), 2 * LANES)
    i, j, k = random.integers(0, 100 - LANES), random.integers(0, 100 - LANES), random.integers(0, LANES)
    runs = left[i : i + LANES].astype(int), right[j : j + LANES].astype(int)
    expected = np.abs(runs[0] - runs[1])[mask[k : k + LANES] == 255].sum()
    assert _call(left, i, right, j, mask, k) == expected


def test_largest_distance_does_not_overflow():
    white, black = np.full(LANES, 255, dtype=np.uint8), np.zeros(LANES, dtype=np.uint8)
    assert _call(white, 0, black, 0, white, 0) == _call(black, 0, white, 0, white, 0) == 255 * LANES


def test_compiles_to_psadbw_on_x86():
    vector = np.zeros(LANES, dtype=np.uint8)
    _call(vector, 0, vector, 0, vector, 0)
    code = "".join(_call.inspect_asm().values())
    if not re.search(r"%[xyz]mm\d", code):
        pytest.skip("not an x86 processor: its vector instructions have other names")
    assert "psadbw" in code
