"""The laws of synthesis, for every method and any arguments that Hypothesis thinks of."""

from dataclasses import astuple
from typing import get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.texturegen.texture.laws import check_law, in_a_thread
from texturegen.errors import UserError
from texturegen.texture import METHODS, synthesize
from texturegen.texture.quality import measure
from texturegen.texture.settings import Choice, Integer, Real

every_method = pytest.mark.parametrize("method", METHODS)
# Derandomised: every run tries the same examples. No deadline: the first call compiles. A hang fails in `in_a_thread`.
examples = settings(max_examples=60, derandomize=True, deadline=None)

SIZES = st.tuples(st.integers(1, 33), st.integers(1, 33))
SEEDS = st.integers(0, 2**63 - 1)
LAYOUTS = {
    "C": lambda patch: patch,
    "Fortran": np.asfortranarray,
    "backwards": lambda patch: patch[::-1, ::-1].copy()[::-1, ::-1],
    "every second pixel": lambda patch: patch.repeat(2, axis=0).repeat(2, axis=1)[::2, ::2],
    "part of a larger one": lambda patch: np.pad(patch, [(2, 1), (1, 3)] + [(0, 0)] * (patch.ndim - 2))[2:-1, 1:-3],
}


@st.composite
def patch_lists(draw, least=8, most=24, channels=((), (1,), (3,))):
    """One to four patches of one kind, their sides unequal: noise of few or many colours, in any memory layout."""
    kind = draw(st.sampled_from(channels))
    side = st.integers(least, most)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    colours = draw(st.sampled_from([1, 2, 5, 256]))
    patches = []
    for sides in draw(st.lists(st.tuples(side, side), min_size=1, max_size=4)):
        noise = generator.integers(0, colours, (*sides, *kind)) * (255 // max(colours - 1, 1))
        patches.append(LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](noise.astype(np.uint8)))
        patches[-1].flags.writeable = draw(st.booleans())
    return patches


def attempt(call):
    """(what it returns, "") or (None, the UserError's sentence)."""
    try:
        return in_a_thread(call), ""
    except UserError as error:
        return None, str(error)


@every_method
@examples
@given(patches=patch_lists(), size=SIZES, seed=SEEDS)
def test_pixels_come_from_where_the_source_says_and_again_in_another_thread(method, patches, size, seed):
    before = [patch.copy() for patch in patches]
    texture = in_a_thread(lambda: synthesize(patches, size, method, seed))
    check_law(texture, patches, size)
    again = synthesize(patches, size, method, seed)
    np.testing.assert_array_equal(again.source, texture.source)
    np.testing.assert_array_equal(again.image, texture.image)
    for patch, copy in zip(patches, before, strict=True):
        np.testing.assert_array_equal(patch, copy)


@every_method
@examples
@given(patches=patch_lists(), size=SIZES, seed=SEEDS)
def test_memory_layout_does_not_matter(method, patches, size, seed):
    plain = [np.ascontiguousarray(patch) for patch in patches]
    expected = synthesize(plain, size, method, seed)
    np.testing.assert_array_equal(synthesize(patches, size, method, seed).source, expected.source)


@every_method
@examples
@given(patches=patch_lists(channels=((), (1,))), size=SIZES, seed=SEEDS)
def test_grey_is_rgb_with_equal_channels(method, patches, size, seed):
    rgb = [np.dstack([patch] * 3) for patch in patches]
    grey, texture = synthesize(patches, size, method, seed), synthesize(rgb, size, method, seed)
    np.testing.assert_array_equal(grey.source, texture.source)
    np.testing.assert_array_equal(np.dstack([grey.image] * 3), texture.image)
    figures = astuple(measure(patches, grey.image, samples=4))
    np.testing.assert_array_equal(figures, astuple(measure(rgb, texture.image, samples=4)))


def values(domain):
    """Settings of a range, the large ones left out that only take time."""
    if isinstance(domain, Choice):
        return st.sampled_from(domain.names)
    if isinstance(domain, Real):
        return st.floats(domain.low, domain.high)
    assert isinstance(domain, Integer)
    whole = st.integers(domain.low, min(domain.high, 40)).filter(lambda value: value % 2 or not domain.odd)
    return st.none() | whole if domain.automatic else whole


@every_method
@examples
@given(data=st.data(), patches=patch_lists(most=40), seed=SEEDS)
def test_any_settings_in_their_ranges_give_a_texture_or_one_sentence(method, data, patches, seed):
    hints = get_type_hints(METHODS[method].load(), include_extras=True)
    domains = {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    chosen = data.draw(st.fixed_dictionaries({}, optional={name: values(domain) for name, domain in domains.items()}))
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    texture, error = attempt(lambda: synthesize(patches, size, method, seed, **chosen))
    if texture is None:
        assert "too small" in error or "setting" in error
        return
    check_law(texture, patches, size)
    np.testing.assert_array_equal(synthesize(patches, size, method, seed, **chosen).source, texture.source)


@every_method
@examples
@given(patches=patch_lists(least=1, most=9), size=SIZES)
def test_small_patches_give_a_texture_or_are_named(method, patches, size):
    texture, error = attempt(lambda: synthesize(patches, size, method))
    if texture is None:
        assert any(f"patch {n} is {patch.shape[0]}x{patch.shape[1]}" in error for n, patch in enumerate(patches))
        return
    check_law(texture, patches, size)


RIGHT_SHAPES = st.tuples(st.integers(3, 9), st.integers(3, 9), st.just(3))
ANY_SHAPES = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 4)) | arrays.array_shapes(max_dims=5)
RIGHT_KINDS = st.tuples(st.just(np.dtype(np.uint8)), RIGHT_SHAPES)
WRONG_KINDS = st.tuples(arrays.scalar_dtypes(), RIGHT_SHAPES) | st.tuples(st.just(np.dtype(np.uint8)), ANY_SHAPES)


@settings(examples, max_examples=200)
@given(kinds=st.lists(RIGHT_KINDS, max_size=2), others=st.lists(WRONG_KINDS, max_size=1), first=st.booleans())
def test_arrays_of_any_kind_give_a_texture_or_one_sentence(kinds, others, first):
    kinds = others + kinds if first else kinds + others
    patches = [np.zeros(shape, dtype) for dtype, shape in kinds]
    channels = {shape[2:] or (1,) for _, shape in kinds}
    right = channels in ({(1,)}, {(3,)}) and all(
        dtype == np.uint8 and len(shape) > 1 and min(shape[:2]) >= 3 for dtype, shape in kinds
    )
    texture, error = attempt(lambda: synthesize(patches, (5, 5), window=3))
    assert (texture is not None) == right, error
    if right:
        check_law(texture, patches, (5, 5))
