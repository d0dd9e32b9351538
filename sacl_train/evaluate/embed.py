"""Features of a set as Parquet, with a two-dimensional map and a sheet of nearest neighbours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.images import Images, open_images
from sacl_train.evaluate.norm import DEFAULT_STATISTICS, estimate_statistics
from sacl_train.evaluate.subject import open_model
from texturegen.errors import MissingError, UserError, nearest
from texturegen.storage.atomic import write_atomically
from texturegen.storage.image import encode_png

MAPS = ("pca", "tsne")
QUERIES, NEIGHBOURS = 10, 8  # default number of queries (rows of the sheet), and neighbours of each
GAP, MIN_SIDE = 4, 64  # pixels: gap between the images of the sheet; smaller images are enlarged to at least this side


def embed(
    run: str | Path,
    place: str | Path,
    out: str | Path,
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    method: str = "pca",
    seed: int = 0,
    queries: Sequence[str] = (),
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
) -> dict[str, Any]:
    """Write the features of a set of images to OUT.parquet and a sheet of nearest neighbours to OUT.png.

    The table has the columns key, label, class, x, y and features (a fixed-size list of float32). Each row of the sheet
    is a query image and, to the right, its 8 nearest neighbours by cosine similarity.

    Parameters
    ----------
    run, device, network, norm_statistics
        As in `subject.open_model`; with "images", the BatchNorm statistics are estimated on the images of the set.
    place, root, size
        The images; see `images.open_images`.
    out : str or Path
        OUT; its suffix is replaced.
    method : str
        Method for x and y: "pca", or "tsne" (needs scikit-learn).
    seed : int
        Seed of t-SNE.
    queries : sequence of str
        Keys of the query images; by default ten, evenly spaced over the set.

    Returns
    -------
    dict
        A summary, JSON-serialisable. "queries": "key", "class" and "neighbours" of each query, nearest first.

    Raises
    ------
    MissingError
        If scikit-learn is not installed.
    UserError
        If a key or the method is unknown, or there are fewer than two images.

    Examples
    --------
    >>> figures = embed("run", "test-shards", "embedding", device="cpu")
    >>> figures["images"], figures["files"]
    (40, ['embedding.parquet', 'embedding.png'])
    """
    if method not in MAPS:
        raise UserError(f"unknown map '{method}'{nearest(method, MAPS)}; known: {', '.join(MAPS)}")
    with open_model(run, device, network, norm_statistics) as model:
        images = open_images(place, root, size)
        model.warn_of_size(images)
        if model.norm_statistics == "images" and len(images) > 1:
            estimate_statistics(model.encoder, images, model.config, model.device)
        features, indices = extract_features(model.encoder, images, model.config, model.device)
        features = features.cpu()
    if len(indices) < 2:
        raise UserError(f"{place}: one image; a map and neighbours need at least 2")
    keys = [images.key(i) for i in indices.tolist()]
    classes = [_class_name(images.classes, label) for label in images.labels[indices.numpy()].tolist()]
    picked = _find_queries(keys, queries, str(place))
    neighbours, cosines = find_neighbours(features, picked, NEIGHBOURS)
    points = map_pca(features) if method == "pca" else map_tsne(features, seed)
    values = pa.FixedSizeListArray.from_arrays(pa.array(features.numpy().reshape(-1)), features.shape[1])
    columns = {
        "key": pa.array(keys),
        "label": pa.array(images.labels[indices.numpy()]),
        "class": pa.array(classes),
        "x": pa.array(points[:, 0]),
        "y": pa.array(points[:, 1]),
        "features": values,
    }
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = out.with_suffix(".parquet")
    write_atomically(table, lambda file: pq.write_table(pa.table(columns), file))
    sheet = out.with_suffix(".png")
    sheet_rows = indices[torch.cat([picked[:, None], neighbours], 1)]
    write_atomically(sheet, encode_png(draw_neighbours(images, sheet_rows)))
    rows = [
        {
            "key": keys[query],
            "class": classes[query],
            "neighbours": [
                {"key": keys[i], "class": classes[i], "cosine": cosine}
                for i, cosine in zip(row, row_cosines, strict=True)
            ],
        }
        for query, row, row_cosines in zip(picked.tolist(), neighbours.tolist(), cosines.tolist(), strict=True)
    ]
    return {
        "probe": "embed",
        "protocol": "features of whole images, neighbours by cosine",
        **model.about(),
        "set": images.place,
        "split": images.split,
        "images": len(indices),
        "dimensions": features.shape[1],
        "map": method,
        "files": [str(table), str(sheet)],
        "queries": rows,
    }


def _find_queries(keys: list[str], queries: Sequence[str], place: str) -> Tensor:
    """Return the positions of the query images among `keys`, int64 (Q,)."""
    if not queries:
        return torch.from_numpy(np.unique(np.linspace(0, len(keys) - 1, min(QUERIES, len(keys))).astype(int)))
    position = {key: i for i, key in enumerate(keys)}
    if unknown := [key for key in queries if key not in position]:
        raise UserError(f"{place}: no image has the key {unknown[0]!r}{nearest(unknown[0], keys)}")
    return torch.tensor([position[key] for key in queries])


def _class_name(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def map_pca(features: Tensor) -> np.ndarray:
    """Project features onto the two directions of largest variance.

    The sign of each axis is chosen so that the coordinate of largest magnitude is positive.

    Parameters
    ----------
    features : Tensor float (N, C)

    Returns
    -------
    ndarray float32 (N, 2)
    """
    centred = (features - features.mean(0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    points = (left * values)[:, :2].numpy()
    signs = np.sign(points[np.abs(points).argmax(0), range(points.shape[1])])
    return np.pad(points * signs, ((0, 0), (0, 2 - points.shape[1]))).astype(np.float32)


def map_tsne(features: Tensor, seed: int = 0) -> np.ndarray:
    """Embed features in the plane by t-SNE on cosine distances (van der Maaten & Hinton 2008), by scikit-learn.

    Parameters
    ----------
    features : Tensor float (N, C)
    seed : int

    Returns
    -------
    ndarray float32 (N, 2)

    Raises
    ------
    MissingError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise MissingError("t-SNE needs scikit-learn; pip install 'sacl-texture[maps]'") from None
    perplexity = min(30.0, (len(features) - 1) / 3)
    points: np.ndarray = TSNE(metric="cosine", perplexity=perplexity, random_state=seed).fit_transform(features.numpy())
    return points.astype(np.float32)


def draw_neighbours(images: Images, rows: Tensor) -> np.ndarray:
    """Draw a sheet with one row per query: the query image, then its neighbours.

    Parameters
    ----------
    images : Images
        The set.
    rows : Tensor int64 (Q, 1 + neighbours)
        Indices of the images in each row, the query first.

    Returns
    -------
    ndarray uint8 (H, W, 3)
    """
    order = np.unique(rows.numpy())
    batches = list(images.batches(order))
    pixels = torch.cat([batch["image"] for batch in batches])
    position = {index: i for i, index in enumerate(torch.cat([batch["index"] for batch in batches]).tolist())}
    factor = max(1, -(-MIN_SIDE // pixels.shape[-1]))
    strips = []
    for row in rows.tolist():
        cells = pixels[[position[index] for index in row]]
        cells = cells.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        cells = F.pad(cells, (0, GAP, 0, GAP), value=255)
        query = F.pad(cells[0], (0, 3 * GAP), value=255)
        strips.append(torch.cat([query, *cells[1:]], -1))
    return torch.cat(strips, -2).permute(1, 2, 0).contiguous().numpy()


def find_neighbours(features: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbours of queries by cosine similarity, excluding the query itself.

    Parameters
    ----------
    features : Tensor float (N, C)
        Features of all images.
    queries : Tensor int64 (Q,)
        Positions of the queries in `features`.
    count : int
        Number of neighbours; at most N - 1 are returned.

    Returns
    -------
    neighbours : Tensor int64 (Q, count)
        Positions in `features`, nearest first.
    cosines : Tensor float (Q, count)
        Cosine similarities of the neighbours to their query.
    """
    unit = F.normalize(features, dim=1)
    similarity = unit[queries] @ unit.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    cosines, neighbours = similarity.topk(min(count, len(features) - 1), dim=1)
    return neighbours, cosines
