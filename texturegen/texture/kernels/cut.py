"""Minimum error boundary cut: the cheapest path through the overlap of two images, by dynamic programming.

Efros and Freeman, "Image quilting for texture synthesis and transfer", SIGGRAPH 2001, section 2.1. Errors are integers,
so sums are exact; of equally cheap predecessors, the one with the smaller column wins.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def accumulate(errors: np.ndarray) -> np.ndarray:
    """Return the cost of the cheapest path from row 0 to every cell.

    A path has one cell in each row and moves by at most one column from row to row.

    Parameters
    ----------
    errors : int64 (L, W), cost of each cell.

    Returns
    -------
    int64 (L, W).
    """
    totals = errors.copy()
    length, width = errors.shape
    for row in range(1, length):
        for column in range(width):
            totals[row, column] += totals[row - 1, _cheapest_above(totals, row, column)]
    return totals


@njit(nogil=True, cache=True)
def trace(totals: np.ndarray, column: int) -> np.ndarray:
    """Return the columns, int64 (L,), of the cheapest path that ends at `column` of the last row.

    totals : int64 (L, W), from `accumulate`.
    """
    path = np.empty(len(totals), dtype=np.int64)
    path[-1] = column
    for row in range(len(totals) - 1, 0, -1):
        path[row - 1] = _cheapest_above(totals, row, path[row])
    return path


@njit(nogil=True, cache=True)
def _cheapest_above(totals: np.ndarray, row: int, column: int) -> int:
    best = max(column - 1, 0)
    for other in range(best + 1, min(column + 2, totals.shape[1])):
        if totals[row - 1, other] < totals[row - 1, best]:
            best = other
    return best
