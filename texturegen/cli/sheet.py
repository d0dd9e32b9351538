"""Contact sheets: each image beside its textures."""

import cv2
import numpy as np

GAP, BACKGROUND, TEXT = 4, 255, (40, 40, 40)
CELL = 96  # smallest side of a cell on the sheet; smaller images are enlarged without smoothing


def contact_sheet(rows: list[list[np.ndarray]], captions: list[str], columns: int = 2) -> np.ndarray:
    """Lay out rows of images, `columns` rows side by side, each under its caption.

    Parameters
    ----------
    rows : each a list of uint8 (h, w, 3) RGB images; sizes may differ.
    captions : one for each row, ASCII.

    Returns
    -------
    uint8 (H, W, 3) RGB.
    """
    strips = [_strip(row, caption) for row, caption in zip(rows, captions, strict=True)]
    height, width = (max(strip.shape[axis] for strip in strips) for axis in (0, 1))
    strips = [_pad(strip, height, width) for strip in strips]
    strips += [np.full((height, width, 3), BACKGROUND, np.uint8)] * (-len(strips) % columns)
    return np.vstack([np.hstack(strips[i : i + columns]) for i in range(0, len(strips), columns)])


def _strip(row: list[np.ndarray], caption: str) -> np.ndarray:
    cells = []
    for image in row:
        factor = max(1, -(-CELL // min(image.shape[:2])))
        cells.append(image.repeat(factor, 0).repeat(factor, 1))
    height = max(cell.shape[0] for cell in cells)
    line = np.hstack([_pad(cell, height + GAP, cell.shape[1] + GAP) for cell in cells])
    title = np.full((16, line.shape[1], 3), BACKGROUND, np.uint8)
    cv2.putText(title, caption, (1, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, TEXT, 1, cv2.LINE_AA)
    return _pad(np.vstack([title, line]), height + GAP + 20, line.shape[1] + 8)


def _pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    sheet = np.full((height, width, 3), BACKGROUND, np.uint8)
    sheet[: image.shape[0], : image.shape[1]] = image
    return sheet
