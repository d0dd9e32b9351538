"""Losses: InfoNCE with texture negatives (SACL eq. 8-10; Ge et al. 2021, eq. 3), and those of the baselines."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SCOPES = ("batch", "own")


def info_nce(
    p: Tensor,
    z: Tensor,
    t: Tensor | None = None,
    tau: float = 0.2,
    alpha: float = 1.0,
    scope: str = "batch",
    first: int = 0,
    decoupled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of each query against its own key, among all keys and the texture keys (SACL eq. 10).

    The result is the mean over A and N of the loss of query p = p[a, i], with cosine similarities (eq. 8)::

        -log( exp(p.z_i / tau) / (sum_b exp(p.z_b / tau) + sum_b w_ib sum_k exp(alpha p.t_bk / tau)) )

    All similarities are computed in float32 (float64 for float64 input), even under autocast; with TF32 enabled, CUDA
    rounds the products to TF32. With M = 1 and no textures there are no negatives, and loss and gradient are 0.

    Parameters
    ----------
    p : Tensor (A, N, D)
        Queries: A combinations of each of N images. Need not be normalised.
    z : Tensor (M, D)
        Keys of all processes, M >= N. Query [a, i] belongs to key first + i.
    t : Tensor (M, P, D) or None
        P texture keys per image, always negatives.
    tau : float
        Temperature, above 0.
    alpha : float
        Factor of the similarities to textures.
    scope : str
        "batch": w = 1, all textures of the batch. "own": w_ib = 1 only for b = i, the image's own textures.
    first : int
        Index of this process's first key in z.
    decoupled : bool
        Leave the positive pair out of the denominator (DCL; Yeh et al. 2022, eq. 6).

    Returns
    -------
    loss : Tensor (0-d)
    stats : dict of str to Tensor (0-d, detached)
        Mean cosines: "positive_similarity"; if M > 1, "negative_similarity", to the keys of other images; if t is
        given, "texture_similarity", to the image's own textures.

    Raises
    ------
    ValueError
        If the scope is unknown.

    Examples
    --------
    A query that equals its key and is orthogonal to all others:

    >>> keys = torch.eye(4)
    >>> loss, stats = info_nce(keys[None], keys, tau=0.2)
    >>> round(loss.item(), 4), stats["positive_similarity"].item()
    (0.02, 1.0)
    """
    _check_scope(scope)
    with torch.autocast(p.device.type, enabled=False):
        p, z = _unit(p), _unit(z)
        combinations, images, _ = p.shape
        cosines = p @ z.T  # (A, N, M)
        positive = cosines.diagonal(first, dim1=1, dim2=2)  # (A, N)
        logits = cosines / tau
        stats = {"positive_similarity": positive.mean()}
        if len(z) > 1:
            negative_count = combinations * images * (len(z) - 1)
            stats["negative_similarity"] = (cosines.sum() - positive.sum()) / negative_count
        if t is not None:
            t = _unit(t)
            own = torch.einsum("and,nkd->ank", p, t[first : first + images])  # (A, N, P)
            stats["texture_similarity"] = own.mean()
            textures = own if scope == "own" else p @ t.flatten(0, 1).T  # (A, N, P) or (A, N, M*P)
            logits = torch.cat([logits, alpha * textures / tau], dim=2)
        target = torch.arange(first, first + images, device=p.device).repeat(combinations)  # (A*N,)
        loss = _cross_entropy(logits.flatten(0, 1), target, decoupled)
    return loss, {name: value.detach() for name, value in stats.items()}


def bank_nce(
    q: Tensor,
    z: Tensor,
    bank: Tensor,
    t: Tensor | None = None,
    tau: float = 0.2,
    alpha: float = 1.0,
    scope: str = "batch",
    first: int = 0,
    decoupled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE of each query, with a bank of earlier keys as negatives (He et al. 2020, eq. 1).

    Parameters
    ----------
    q, z : Tensor (N, D)
        Queries and their keys.
    bank : Tensor (K, D)
        Earlier keys, all negatives.
    t, tau, alpha, scope, first, decoupled
        As in `info_nce`.

    Returns
    -------
    loss, stats
        As in `info_nce`; "negative_similarity" is the mean cosine to the bank.
    """
    with torch.autocast(q.device.type, enabled=False):
        q, z, bank = _unit(q), _unit(z), _unit(bank)
        positive = (q * z).sum(1, keepdim=True)  # (N, 1)
        negatives = q @ bank.T  # (N, K)
        logits = torch.cat([positive, negatives], dim=1) / tau
        stats = {"positive_similarity": positive.mean(), "negative_similarity": negatives.mean()}
        if t is not None:
            textures, stats["texture_similarity"] = _texture_cosines(q, _unit(t), scope, first)
            logits = torch.cat([logits, alpha * textures / tau], dim=1)
        loss = _cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device), decoupled)
    return loss, {name: value.detach() for name, value in stats.items()}


def pirl_nce(
    v: Tensor,
    own: Tensor,
    bank: Tensor,
    same: Tensor,
    t: Tensor | None = None,
    tau: float = 0.07,
    alpha: float = 1.0,
    scope: str = "batch",
    first: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise-contrastive loss of PIRL against a memory bank (Misra & van der Maaten 2020, eq. 3, 4).

    The loss is -log h(own) - sum log(1 - h(other)), summed over the features of other images; h is the softmax over all
    candidates.

    Parameters
    ----------
    v : Tensor (N, D)
        Features of the images, or of their jigsaws.
    own : Tensor (N, D)
        The same images' features in the bank.
    bank : Tensor (K, D)
        Features drawn from the bank as negatives.
    same : Tensor bool (N, K)
        True where a feature drawn from the bank belongs to the image itself and must be masked.
    t, tau, alpha, scope, first
        As in `info_nce`.

    Returns
    -------
    loss, stats
        As in `info_nce`; "negative_similarity" is the mean cosine to the negatives drawn from the bank.
    """
    with torch.autocast(v.device.type, enabled=False):
        v, own, bank = _unit(v), _unit(own), _unit(bank)
        positive = (v * own).sum(1, keepdim=True)  # (N, 1)
        negatives = v @ bank.T  # (N, K)
        logits = torch.cat([positive, negatives.masked_fill(same, -torch.inf)], dim=1) / tau
        mean_negative = negatives.masked_fill(same, 0).sum() / (~same).sum()
        stats = {"positive_similarity": positive.mean(), "negative_similarity": mean_negative}
        if t is not None:
            textures, stats["texture_similarity"] = _texture_cosines(v, _unit(t), scope, first)
            logits = torch.cat([logits, alpha * textures / tau], dim=1)
        log_h = F.log_softmax(logits, dim=1)
        # A negative that takes all the probability would make the loss infinite, so h is clamped below 1.
        h = log_h[:, 1:].exp().clamp(max=1 - torch.finfo(log_h.dtype).eps)
        loss = (-log_h[:, 0] - torch.log1p(-h).sum(1)).mean()
    return loss, {name: value.detach() for name, value in stats.items()}


def nt_xent(
    z: Tensor,
    all_views: Tensor,
    t: Sequence[Tensor] | None = None,
    tau: float = 0.5,
    alpha: float = 1.0,
    scope: str = "batch",
    first: int = 0,
    decoupled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of each view against the other view of its image (Chen et al. 2020, eq. 1).

    The candidates are all views of all images except the view itself, and the texture keys.

    Parameters
    ----------
    z : Tensor (2, N, D)
        Both views of this process's images.
    all_views : Tensor (2, M, D)
        Both views of the images of all processes.
    t : sequence of two Tensor (M, P, D), or None
        Texture keys for each of the two views.
    tau, alpha, scope, first, decoupled
        As in `info_nce`; `first` is the index of this process's first image in `all_views`.

    Returns
    -------
    loss, stats
        As in `info_nce`.
    """
    with torch.autocast(z.device.type, enabled=False):
        z, all_views = _unit(z), _unit(all_views)
        images, total = z.shape[1], all_views.shape[1]
        cosines = z.flatten(0, 1) @ all_views.flatten(0, 1).T  # (2N, 2M)
        rows = torch.arange(2 * images, device=z.device)
        index = first + torch.arange(images, device=z.device)  # columns of this process's first views
        itself, partner = torch.cat([index, index + total]), torch.cat([index + total, index])  # (2N,)
        positive = cosines[rows, partner]
        logits = (cosines / tau).index_put((rows, itself), cosines.new_full((), -torch.inf))
        stats = {"positive_similarity": positive.mean()}
        if total > 1:
            negative_sum = cosines.sum() - positive.sum() - cosines[rows, itself].sum()
            stats["negative_similarity"] = negative_sum / (2 * images * (2 * total - 2))
        if t is not None:
            cosines_to_textures, similarities = zip(
                *(_texture_cosines(view, _unit(keys), scope, first) for view, keys in zip(z, t, strict=True)),
                strict=True,
            )
            stats["texture_similarity"] = torch.stack(similarities).mean()
            logits = torch.cat([logits, alpha * torch.cat(cosines_to_textures) / tau], dim=1)
        loss = _cross_entropy(logits, partner, decoupled)
    return loss, {name: value.detach() for name, value in stats.items()}


def negative_cosine(p: Tensor, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative cosine similarity, -cos(p, z), averaged over N (Chen & He 2021, eq. 1).

    The squared distance of the normalised vectors, BYOL's loss (Grill et al. 2020, eq. 2), is 2 + 2 times this value.

    Parameters
    ----------
    p, z : Tensor (N, D)
        Predictions and the projections they predict.

    Returns
    -------
    loss : Tensor (0-d)
    stats : dict of str to Tensor
        "positive_similarity".
    """
    with torch.autocast(p.device.type, enabled=False):
        cosine = (_unit(p) * _unit(z)).sum(1).mean()
    return -cosine, {"positive_similarity": cosine.detach()}


def cross_correlation(first: Tensor, second: Tensor, redundancy: float = 5e-3) -> tuple[Tensor, dict[str, Tensor]]:
    """Redundancy-reduction loss of Barlow Twins (Zbontar et al. 2021, eq. 1, 2).

    sum_i (1 - C_ii)^2 + redundancy * sum_ij C_ij^2 (i != j), with C the cross-correlation matrix (D, D) over the batch.

    Parameters
    ----------
    first, second : Tensor (N, D)
        Embeddings of the two views.
    redundancy : float
        Weight of the off-diagonal terms (lambda).

    Returns
    -------
    loss : Tensor (0-d)
    stats : dict of str to Tensor
        "positive_similarity".
    """
    with torch.autocast(first.device.type, enabled=False):
        a, b = (
            F.batch_norm(x.to(torch.promote_types(x.dtype, torch.float32)), None, None, training=True)
            for x in (first, second)
        )
        c = a.T @ b / len(a)  # (D, D)
        invariance = (c.diagonal() - 1).square().sum()
        redundant = c.square().sum() - c.diagonal().square().sum()
    similarity = F.cosine_similarity(a, b).mean().detach()
    return invariance + redundancy * redundant, {"positive_similarity": similarity}


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """Collapse monitor: 1 for well-spread embeddings, 0 if all are equal (Chen & He 2021, section 4.1).

    The standard deviation over the batch of the L2-normalised embeddings, averaged over dimensions, times sqrt(D): unit
    vectors without a preferred direction have 1/sqrt(D) in each dimension. It detects embeddings that have become
    constant. It misses a collapse before a BatchNorm, because BatchNorm amplifies the remaining noise; a kNN score at
    chance level reveals that one.

    Parameters
    ----------
    z : Tensor (N, D)
        Embeddings.

    Returns
    -------
    Tensor (0-d)
    """
    return _unit(z).std(dim=0, correction=0).mean() * z.shape[1] ** 0.5


def _cross_entropy(logits: Tensor, target: Tensor, decoupled: bool) -> Tensor:
    """Return the mean loss of rows of logits (Q, C) whose positives are the columns `target`, int64 (Q,)."""
    if not decoupled:
        return F.cross_entropy(logits, target)
    columns = target[:, None]
    negatives = logits.scatter(1, columns, -torch.inf)
    return (negatives.logsumexp(dim=1, keepdim=True) - logits.gather(1, columns)).mean()


def _texture_cosines(q: Tensor, t: Tensor, scope: str, first: int) -> tuple[Tensor, Tensor]:
    """Return the cosines of queries to texture keys, and the mean cosine to each query's own textures (0-d).

    q: unit vectors (N, D). t: unit vectors (M, P, D), where t[first + i] are the textures of query i. The cosines are
    (N, P) for scope "own", else (N, M*P).
    """
    _check_scope(scope)
    if scope == "own":
        own = torch.einsum("nd,nkd->nk", q, t[first : first + len(q)])
        return own, own.mean()
    cosines = q @ t.flatten(0, 1).T
    return cosines, cosines.unflatten(1, t.shape[:2]).diagonal(first, dim1=0, dim2=1).mean()


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, not '{scope}'")


def _unit(x: Tensor) -> Tensor:
    """L2-normalise along the last dimension, in float32 or wider."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
