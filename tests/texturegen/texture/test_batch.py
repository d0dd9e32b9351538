"""Batches of textures in threads: order, independence of the number of threads, errors with the texture's index."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import texturegen
from tests.texturegen.texture.laws import check_law
from texturegen.errors import UserError
from texturegen.system.threads import count_cpus, run_in_threads
from texturegen.texture import METHODS, synthesize, synthesize_batch


def lists_of_patches(count, side=12):
    generator = np.random.default_rng(0)
    return [
        [generator.integers(0, 256, (side + n % 3, side, 3), dtype=np.uint8) for _ in range(1 + n % 3)]
        for n in range(count)
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_batch_equals_synthesize(method, threads):
    lists, seeds = lists_of_patches(9), [7, 7, 1, 0, 2**63 - 1, 3, 4, 5, 6]
    textures = synthesize_batch(lists, (14, 11), seeds, method, threads)
    assert len(textures) == 9
    for texture, patches, seed in zip(textures, lists, seeds, strict=True):
        check_law(texture, patches, (14, 11))
        np.testing.assert_array_equal(texture.source, synthesize(patches, (14, 11), method, seed).source)


def test_batch_accepts_grey_rgb_arrays_and_settings():
    (patch,), (other, _) = lists_of_patches(2)
    stack = np.stack([patch[..., :1], other[:12, ..., :1]])
    grey, coloured = synthesize_batch([stack, (patch,)], (9, 9), np.array([3, 4]), "wei-levoy", window=7)
    assert (grey.image.shape, coloured.image.shape) == ((9, 9), (9, 9, 3))
    np.testing.assert_array_equal(coloured.source, synthesize([patch], (9, 9), "wei-levoy", 4, window=7).source)
    assert not np.array_equal(coloured.source, synthesize([patch], (9, 9), "wei-levoy", 4).source)


def test_empty_batch():
    assert synthesize_batch([], (8, 8), []) == []


def test_synthesize_batch_is_exported():
    assert texturegen.synthesize_batch is synthesize_batch


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_error_names_first_invalid_texture(threads):
    lists = lists_of_patches(40)
    lists[30] = []
    lists[11] = [lists[11][0].astype(float)]
    with pytest.raises(UserError, match=r"^texture 11: patch 0 is float64, not uint8"):
        synthesize_batch(lists, (8, 8), range(40), threads=threads)
    lists[5] = [np.zeros((3, 3, 3), np.uint8)]
    with pytest.raises(UserError, match=r"^texture 5: patch 0 is 3x3 pixels, too small"):
        synthesize_batch(lists, (8, 8), range(40), threads=threads)
    lists[2] = None
    with pytest.raises(UserError, match=r"^texture 2: patches is a NoneType"):
        synthesize_batch(lists, (8, 8), range(40), threads=threads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [0]}, r"seeds must be a list of 2, one per list of patches, not \[0\]"),
        ({"seeds": 5}, "seeds must be a list of 2, .*not 5"),
        ({"seeds": [0, -1]}, r"^texture 1: seed must be"),
        ({"threads": 0}, "threads must be an integer of at least 1"),
        ({"threads": 1.5}, "threads must be"),
        ({"threads": True}, "threads must be"),
        ({"size": (0, 4)}, r"^size must be"),
        ({"method": "coherant"}, r"^unknown method 'coherant'"),
        ({"windw": 5}, "did you mean 'window'"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        synthesize_batch(lists_of_patches(2), **{"size": (8, 8), "seeds": [0, 1], **arguments})


def test_jobs_run_in_parallel_and_results_are_in_order():
    both = threading.Barrier(2)

    def job(number):
        both.wait(timeout=30)
        time.sleep(0.01 * (number % 2))
        return number

    assert run_in_threads(job, 8, 2) == list(range(8))


def test_no_job_starts_after_failure():
    begun = []

    def job(number):
        begun.append(number)
        if number == 3:
            raise UserError("the third")
        time.sleep(0.01)

    with pytest.raises(UserError, match="the third"):
        run_in_threads(job, 1000, 2)
    assert len(begun) < 20


def test_failure_of_first_job_is_raised():
    second = threading.Event()

    def job(number):
        if number == 0:
            assert second.wait(timeout=30)
            raise UserError("the first")
        second.set()
        raise UserError("the second")

    with pytest.raises(UserError, match="the first"):
        run_in_threads(job, 2, 2)


def test_count_cpus_is_positive():
    assert 1 <= count_cpus() <= 4096


def test_ctrl_c_ends_call_and_process():
    # This takes hours in two kernels if not interrupted.
    code = """
import numpy as np
from texturegen.texture import synthesize, synthesize_batch

patches = [np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)]
synthesize([patches[0][:9, :9]], (4, 4), "efros-leung")
print("compiled", flush=True)
try:
    synthesize_batch([patches] * 50, (600, 600), range(50), "efros-leung", threads=2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "compiled\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "interrupted\n"
        assert process.returncode == 0
    finally:
        process.kill()
