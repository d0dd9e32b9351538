"""The ten outlines of `shapes`, and drawing one at a random position, size and rotation."""

from typing import Protocol

import cv2
import numpy as np

SUPERSAMPLE = 8
# Objects in photographs are roughly upright; shapes at any angle take far longer to learn.
TILT = np.pi / 6


class Draws(Protocol):
    """The random numbers that `draw_mask` needs."""

    def between(self, low: float, high: float) -> float: ...


def draw_mask(outlines: list[np.ndarray], size: int, draws: Draws) -> np.ndarray:
    """Draw a silhouette that lies completely inside the image.

    Parameters
    ----------
    outlines : float64 (N, 2) polygons in the unit disc, x to the right and y upwards.
    size : side of the mask in pixels.
    draws : random numbers for size, rotation and position, in this order.

    Returns
    -------
    uint8 (size, size): 255 inside, 0 outside, antialiased between.
    """
    radius = draws.between(0.30, 0.45) * size
    angle = draws.between(-TILT, TILT)
    # One pixel more than the radius, for the antialiased edge.
    margin = min(radius + 1, size / 2)
    centre = np.array([draws.between(margin, size - margin), draws.between(margin, size - margin)])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * radius
    points = [np.rint((outline * (1, -1) @ turn + centre) * SUPERSAMPLE - 0.5).astype(np.int32) for outline in outlines]
    large = np.zeros((size * SUPERSAMPLE, size * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(large, points, 255)  # the even-odd rule makes an inner outline a hole
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)


def _arc(start: float, end: float, radius: float = 1.0, x: float = 0.0) -> np.ndarray:
    """Return 64 points of a circular arc about (x, 0); angles in turns."""
    angles = np.linspace(start, end, 64) * 2 * np.pi
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float64)


def _star() -> np.ndarray:
    angles = (np.arange(10) / 10 + 0.25) * 2 * np.pi
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.where(np.arange(10) % 2, 0.4, 1.0)[:, None]


def _crescent() -> np.ndarray:
    # An arc of the unit circle, and back along a circle about (0.6, 0) through the same two ends.
    rim = _arc(0.11, 0.89)
    radius = float(np.hypot(rim[0, 0] - 0.6, rim[0, 1]))
    end = float(np.arctan2(rim[0, 1], rim[0, 0] - 0.6)) / (2 * np.pi)
    return np.concatenate([rim, _arc(1 - end, end, radius, 0.6)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, y], axis=1)


def _fit(*outlines: np.ndarray) -> list[np.ndarray]:
    """Centre the bounding box of the first outline on the origin and scale it into the unit disc."""
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    moved = [outline - (low + high) / 2 for outline in outlines]
    reach = np.hypot(*moved[0].T).max()
    return [outline / reach for outline in moved]


SILHOUETTES = {
    "disc": _fit(_arc(0, 1)),
    "square": _fit(_polygon((-1, -1), (1, -1), (1, 1), (-1, 1))),
    "triangle": _fit(_arc(0.25, 1.25)[[0, 21, 42]]),
    "star": _fit(_star()),
    "cross": _fit(
        _polygon(
            (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1), (-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1)
        )
    ),
    "ring": _fit(_arc(0, 1), _arc(0, 1, 0.55)),
    "crescent": _fit(_crescent()),
    "heart": _fit(_heart()),
    "arrow": _fit(_polygon((4, 0), (1, 3), (1, 1.2), (-4, 1.2), (-4, -1.2), (1, -1.2), (1, -3))),
    "hourglass": _fit(_polygon((-3, 4), (3, 4), (0.6, 0), (3, -4), (-3, -4), (-0.6, 0))),
}
