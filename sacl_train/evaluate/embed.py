"""Features of a set to Parquet, a map of them in the plane, and a sheet of nearest neighbours."""

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
from sacl_train.training.resume import load_encoder
from sacl_train.training.setup import choose_device
from texturegen.errors import UserError, nearest
from texturegen.storage.atomic import write_atomically
from texturegen.storage.image import encode_png

MAPS = ("pca", "tsne")
QUERIES, NEIGHBOURS, GAP, SIDE = 10, 8, 4, 64  # of the sheet; least side of an image on it, in pixels


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
) -> dict[str, Any]:
    """Write OUT.parquet (key, label, class, x, y, features: a fixed-size list of float32) and OUT.png.

    method : "pca", or "tsne" by scikit-learn (the extra `maps`). The sheet shows the images with the keys `queries` (or
    ten, evenly over the set) and to the right of each its 8 nearest by cosine. Returns, ready for JSON, what was done,
    and of each query its "key", "class" and "neighbours", nearest first. UserError when a package is missing, there is
    no such key, or there are fewer than two images.
    """
    if method not in MAPS:
        raise UserError(f"unknown map '{method}'{nearest(method, MAPS)}; known: {', '.join(MAPS)}")
    encoder, config, epochs = load_encoder(Path(run))
    chosen = choose_device(device)
    images = open_images(place, root, size)
    features, numbers = extract_features(encoder.to(chosen), images, config, chosen)
    if len(numbers) < 2:
        raise UserError(f"{place}: one image; a map and neighbours take two at least")
    keys = [images.key(i) for i in numbers.tolist()]
    classes = [_class(images.classes, label) for label in images.labels[numbers.numpy()].tolist()]
    picked = _pick(keys, queries, str(place))
    rows, cosines = find_neighbours(features, picked, NEIGHBOURS)
    flat = map_pca(features) if method == "pca" else map_tsne(features, seed)
    values = pa.FixedSizeListArray.from_arrays(pa.array(features.numpy().reshape(-1)), features.shape[1])
    columns = {
        "key": pa.array(keys),
        "label": pa.array(images.labels[numbers.numpy()]),
        "class": pa.array(classes),
        "x": pa.array(flat[:, 0]),
        "y": pa.array(flat[:, 1]),
        "features": values,
    }
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = out.with_suffix(".parquet")
    write_atomically(table, lambda file: pq.write_table(pa.table(columns), file))
    sheet = out.with_suffix(".png")
    write_atomically(sheet, encode_png(draw_neighbours(images, numbers[torch.cat([picked[:, None], rows], 1)])))
    near = [
        [{"key": keys[i], "class": classes[i], "cosine": cosine} for i, cosine in zip(row, of, strict=True)]
        for row, of in zip(rows.tolist(), cosines.tolist(), strict=True)
    ]
    about: dict[str, Any] = {"probe": "embed", "run": str(run), "method": config.method, "encoder": config.encoder}
    about |= {"trained_epochs": epochs, "planned_epochs": config.epochs, "set": images.place, "split": images.split}
    told = zip(picked.tolist(), near, strict=True)
    return {
        **about,
        "images": len(numbers),
        "dimensions": features.shape[1],
        "map": method,
        "files": [str(table), str(sheet)],
        "queries": [{"key": keys[i], "class": classes[i], "neighbours": found} for i, found in told],
    }


def _pick(keys: list[str], queries: Sequence[str], place: str) -> Tensor:
    """int64 (Q,): where the images of the sheet are among `keys`."""
    if not queries:
        return torch.from_numpy(np.unique(np.linspace(0, len(keys) - 1, min(QUERIES, len(keys))).astype(int)))
    at = {key: i for i, key in enumerate(keys)}
    if unknown := [key for key in queries if key not in at]:
        raise UserError(f"{place}: no image has the key {unknown[0]!r}{nearest(unknown[0], keys)}")
    return torch.tensor([at[key] for key in queries])


def _class(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def map_pca(features: Tensor) -> np.ndarray:
    """float32 (N, 2): features (N, C) along their two directions of largest variance, the largest value positive."""
    centred = (features - features.mean(0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    flat = (left * values)[:, :2].numpy()
    signs = np.sign(flat[np.abs(flat).argmax(0), range(flat.shape[1])])
    return np.pad(flat * signs, ((0, 0), (0, 2 - flat.shape[1]))).astype(np.float32)


def map_tsne(features: Tensor, seed: int = 0) -> np.ndarray:
    """float32 (N, 2), by scikit-learn with its own defaults, from the cosine distances of features (N, C)."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE needs scikit-learn: pip install 'sacl-texture[maps]'") from None
    perplexity = min(30.0, (len(features) - 1) / 3)
    found: np.ndarray = TSNE(metric="cosine", perplexity=perplexity, random_state=seed).fit_transform(features.numpy())
    return found.astype(np.float32)


def draw_neighbours(images: Images, wanted: Tensor) -> np.ndarray:
    """uint8 (H, W, 3): a row per query, images of the numbers int64 (Q, 1 + neighbours): itself, then its nearest."""
    order = np.unique(wanted.numpy())
    batches = list(images.batches(order))
    pixels = torch.cat([batch["image"] for batch in batches])
    at = {number: i for i, number in enumerate(torch.cat([batch["index"] for batch in batches]).tolist())}
    factor = max(1, -(-SIDE // pixels.shape[-1]))
    lines = []
    for line in wanted.tolist():
        cells = pixels[[at[number] for number in line]]
        cells = cells.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        cells = F.pad(cells, (0, GAP, 0, GAP), value=255)
        first = F.pad(cells[0], (0, 3 * GAP), value=255)
        lines.append(torch.cat([first, *cells[1:]], -1))
    return torch.cat(lines, -2).permute(1, 2, 0).contiguous().numpy()


def find_neighbours(features: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The features (N, C) most like each of those at `queries`, itself left out: their places int64 (Q, count), nearest
    first, and cosines; fewer if N is.
    """
    unit = F.normalize(features, dim=1)
    similarity = unit[queries] @ unit.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    cosines, rows = similarity.topk(min(count, len(features) - 1), dim=1)
    return rows, cosines
