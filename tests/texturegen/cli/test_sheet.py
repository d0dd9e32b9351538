"""Contact sheets: cells of a bounded size, captions that OpenCV can draw."""

import numpy as np
import pytest

from texturegen.cli.sheet import MAX_CELL, contact_sheet, fit_cell


@pytest.mark.parametrize(
    ("size", "cell"),
    [
        ((32, 32), (96, 96)),
        ((20, 30), (100, 150)),
        ((96, 100), (96, 100)),
        ((224, 224), (224, 224)),
        ((4000, 3000), (256, 192)),
        ((3000, 40), (256, 3)),
        ((16, 300), (14, 256)),
        ((16, 100), (32, 200)),
        ((1, 9000), (1, 256)),
    ],
)
def test_a_cell_keeps_the_aspect_ratio_within_bounds(size: tuple[int, int], cell: tuple[int, int]) -> None:
    assert fit_cell(np.zeros((*size, 3), np.uint8)).shape == (*cell, 3)


def test_small_images_are_enlarged_without_smoothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_cell(image)[1::3, 1::3], image)


def test_a_sheet_of_photographs_has_a_bounded_size() -> None:
    rows = [[np.zeros((3000, 4000, 3), np.uint8), np.zeros((3000, 4000, 3), np.uint8)]] * 8
    height, width = contact_sheet(rows, ["photo"] * 8, columns=4).shape[:2]
    assert height < 2 * (MAX_CELL + 40)
    assert width < 4 * (2 * MAX_CELL + 40)


def test_captions_are_escaped_to_printable_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("cv2.putText", lambda image, text, *rest: drawn.append(text))
    contact_sheet([[np.zeros((32, 32, 3), np.uint8)]] * 2, ["café\n\x1b[2J", "golden retriever"])
    assert drawn == [r"caf\xe9\n\x1b[2J", "golden retriever"]
