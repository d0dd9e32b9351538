"""Contact sheets: each image beside its textures."""

import cv2
import numpy as np

from texturegen.storage.names import printable

GAP, BACKGROUND, TEXT = 4, 255, (40, 40, 40)
# Cells are between these sides in pixels, so a sheet has a bounded size whatever the images are.
MIN_CELL, MAX_CELL = 96, 256


def contact_sheet(rows: list[list[np.ndarray]], captions: list[str], columns: int = 2) -> np.ndarray:
    """Lay out rows of images in columns, each row under its caption.

    An image whose long side exceeds MAX_CELL is reduced to it. An image whose short side is below MIN_CELL is enlarged
    by a whole factor, without smoothing, as far as MAX_CELL allows.

    Parameters
    ----------
    rows : lists of uint8 (h, w, 3) RGB images; sizes may differ.
    captions : one per row; characters that are not printable ASCII are escaped, because OpenCV draws "?" for them.
    columns : how many rows are placed side by side.

    Returns
    -------
    uint8 (H, W, 3) RGB.
    """
    strips = [_strip(row, caption) for row, caption in zip(rows, captions, strict=True)]
    height, width = (max(strip.shape[axis] for strip in strips) for axis in (0, 1))
    strips = [_pad(strip, height, width) for strip in strips]
    strips += [np.full((height, width, 3), BACKGROUND, np.uint8)] * (-len(strips) % columns)
    return np.vstack([np.hstack(strips[i : i + columns]) for i in range(0, len(strips), columns)])


def fit_cell(image: np.ndarray) -> np.ndarray:
    """Scale an image uint8 (h, w, 3) to the size of its cell, keeping the aspect ratio."""
    height, width = image.shape[:2]
    if max(height, width) > MAX_CELL:
        scale = MAX_CELL / max(height, width)
        sides = max(1, round(width * scale)), max(1, round(height * scale))
        return cv2.resize(image, sides, interpolation=cv2.INTER_AREA)
    factor = max(1, min(-(-MIN_CELL // min(height, width)), MAX_CELL // max(height, width)))
    return image.repeat(factor, 0).repeat(factor, 1)


def _strip(row: list[np.ndarray], caption: str) -> np.ndarray:
    cells = [fit_cell(image) for image in row]
    height = max(cell.shape[0] for cell in cells)
    line = np.hstack([_pad(cell, height + GAP, cell.shape[1] + GAP) for cell in cells])
    title = np.full((16, line.shape[1], 3), BACKGROUND, np.uint8)
    cv2.putText(title, printable(caption), (1, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, TEXT, 1, cv2.LINE_AA)
    return _pad(np.vstack([title, line]), height + GAP + 20, line.shape[1] + 8)


def _pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    sheet = np.full((height, width, 3), BACKGROUND, np.uint8)
    sheet[: image.shape[0], : image.shape[1]] = image
    return sheet
