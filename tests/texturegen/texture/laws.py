"""Assertions that hold for every texture of every method."""

import threading

import numpy as np


def check_law(texture, patches, size):
    grey = patches[0].ndim == 2 or patches[0].shape[2] == 1
    assert texture.image.dtype == np.uint8
    assert texture.source.dtype == np.int32
    assert texture.image.shape == (size if grey else (*size, 3))
    assert texture.source.shape == (*size, 3)
    assert texture.source.min() >= 0
    assert texture.source[..., 0].max() < len(patches)
    for number, patch in enumerate(patches):
        here = texture.source[..., 0] == number
        _, y, x = texture.source[here].T
        np.testing.assert_array_equal(texture.image[here], (patch.reshape(patch.shape[:2]) if grey else patch)[y, x])


def in_a_thread(call, seconds=60):
    """Run `call` in a thread; return its value or raise its exception, and fail after `seconds` instead of hanging."""
    outcome = []

    def run():
        try:
            outcome.append((call(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"not done after {seconds} s"
    ((result, error),) = outcome
    if error is not None:
        raise error
    return result
