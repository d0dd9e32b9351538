"""The contrastive loss with texture negatives (SACL eq. 8-10; Ge et al. 2021 eq. 3), the baselines' own, and a collapse
monitor.
"""

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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of each query against its own key, among all keys and the texture keys.

    p: queries (A, N, D), A combinations of N images. z: keys (M, D), M >= N; query [a, i] belongs to key first + i
    (the keys of several processes follow each other). t: P texture keys per image (M, P, D), always negatives.
    All are L2-normalised here (eq. 8) and kept in float32 (or in float64 if given so), also under autocast; with TF32
    on, CUDA rounds their products to it. Per query (eq. 10):
        -log( exp(p.z_i / tau) / (sum_b exp(p.z_b / tau) + sum_b w_ib sum_k exp(alpha p.t_bk / tau)) )
    averaged over A and N. scope "batch": w = 1, every texture of the batch; "own": w_ib = 1 only for b = i.
    alpha multiplies the similarity to textures.

    Returns the loss (0-d) and detached 0-d statistics, mean cosines: "positive_similarity"; "negative_similarity"
    to the other images' keys, where N > 1; "texture_similarity" to the image's own textures, where t is given.
    With M = 1 and no textures there is nothing to tell apart: the loss is 0, and so is its gradient.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, not '{scope}'")
    with torch.autocast(p.device.type, enabled=False):
        p, z = _unit(p), _unit(z)
        combinations, images, _ = p.shape
        cosines = p @ z.T  # (A, N, M)
        positive = cosines.diagonal(first, dim1=1, dim2=2)  # (A, N)
        logits = cosines / tau
        stats = {"positive_similarity": positive.mean()}
        if len(z) > 1:
            others = combinations * images * (len(z) - 1)
            stats["negative_similarity"] = (cosines.sum() - positive.sum()) / others
        if t is not None:
            t = _unit(t)
            own = torch.einsum("and,nkd->ank", p, t[first : first + images])  # (A, N, P)
            stats["texture_similarity"] = own.mean()
            textures = own if scope == "own" else p @ t.flatten(0, 1).T  # (A, N, P) or (A, N, M*P)
            logits = torch.cat([logits, alpha * textures / tau], dim=2)
        target = torch.arange(first, first + images, device=p.device).repeat(combinations)  # (A*N,)
        loss = F.cross_entropy(logits.flatten(0, 1), target)
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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of each query against its own key, among it and a bank of earlier keys (He et al. 2020, eq. 1).

    q, z: queries and their keys (N, D). bank: (K, D). t, alpha, scope, first: texture keys (M, P, D) as in `info_nce`.
    Returns and statistics as there.
    """
    with torch.autocast(q.device.type, enabled=False):
        q, z, bank = _unit(q), _unit(z), _unit(bank)
        positive = (q * z).sum(1, keepdim=True)  # (N, 1)
        against = q @ bank.T  # (N, K)
        logits = torch.cat([positive, against], dim=1) / tau
        stats = {"positive_similarity": positive.mean(), "negative_similarity": against.mean()}
        if t is not None:
            textures, stats["texture_similarity"] = _texture_cosines(q, _unit(t), scope, first)
            logits = torch.cat([logits, alpha * textures / tau], dim=1)
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))
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
    """-log h of the image's own feature - sum of log(1 - h) of the others', h a softmax (Misra & van der Maaten 2020,
    eq. 3, 4).

    v: features (N, D). own: theirs in the bank (N, D). bank: others (K, D). same: (N, K), those that are no negatives.
    t, alpha, scope, first: texture keys (M, P, D) as in `info_nce`. Returns and statistics as there.
    """
    with torch.autocast(v.device.type, enabled=False):
        v, own, bank = _unit(v), _unit(own), _unit(bank)
        positive = (v * own).sum(1, keepdim=True)  # (N, 1)
        against = v @ bank.T  # (N, K)
        logits = torch.cat([positive, against.masked_fill(same, -torch.inf)], dim=1) / tau
        others = against.masked_fill(same, 0).sum() / (~same).sum()
        stats = {"positive_similarity": positive.mean(), "negative_similarity": others}
        if t is not None:
            textures, stats["texture_similarity"] = _texture_cosines(v, _unit(t), scope, first)
            logits = torch.cat([logits, alpha * textures / tau], dim=1)
        log_h = F.log_softmax(logits, dim=1)
        # A negative that has all of h would make the loss infinite: its share is taken as a rounding error from 1.
        shares = log_h[:, 1:].exp().clamp(max=1 - torch.finfo(log_h.dtype).eps)
        loss = (-log_h[:, 0] - torch.log1p(-shares).sum(1)).mean()
    return loss, {name: value.detach() for name, value in stats.items()}


def nt_xent(
    z: Tensor,
    everyone: Tensor,
    t: Sequence[Tensor] | None = None,
    tau: float = 0.5,
    alpha: float = 1.0,
    scope: str = "batch",
    first: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of each view against the same image's other view, among all but itself (Chen et al. 2020, eq. 1).

    z: both views of this process's images (2, N, D). everyone: those of all processes (2, M, D), these from `first` on.
    t: texture keys (M, P, D) for each of the two views. alpha, scope, returns and statistics: as in `info_nce`.
    """
    with torch.autocast(z.device.type, enabled=False):
        z, everyone = _unit(z), _unit(everyone)
        images, total = z.shape[1], everyone.shape[1]
        cosines = z.flatten(0, 1) @ everyone.flatten(0, 1).T  # (2N, 2M)
        rows = torch.arange(2 * images, device=z.device)
        mine = first + torch.arange(images, device=z.device)
        own, other = torch.cat([mine, mine + total]), torch.cat([mine + total, mine])  # (2N,)
        positive = cosines[rows, other]
        logits = (cosines / tau).index_put((rows, own), cosines.new_full((), -torch.inf))
        stats = {"positive_similarity": positive.mean()}
        if total > 1:
            rest = cosines.sum() - positive.sum() - cosines[rows, own].sum()
            stats["negative_similarity"] = rest / (2 * images * (2 * total - 2))
        if t is not None:
            of_views, similarities = zip(
                *(_texture_cosines(view, _unit(keys), scope, first) for view, keys in zip(z, t, strict=True)),
                strict=True,
            )
            stats["texture_similarity"] = torch.stack(similarities).mean()
            logits = torch.cat([logits, alpha * torch.cat(of_views) / tau], dim=1)
        loss = F.cross_entropy(logits, other)
    return loss, {name: value.detach() for name, value in stats.items()}


def negative_cosine(p: Tensor, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """-cos(p, z), mean over (N, D) (Chen & He 2021, eq. 1). BYOL's eq. 2 is 2 + 2 times this: the same minimum."""
    with torch.autocast(p.device.type, enabled=False):
        cosine = (_unit(p) * _unit(z)).sum(1).mean()
    return -cosine, {"positive_similarity": cosine.detach()}


def cross_correlation(first: Tensor, second: Tensor, redundancy: float = 5e-3) -> tuple[Tensor, dict[str, Tensor]]:
    """sum (1 - C_ii)^2 + redundancy * sum C_ij^2, of embeddings (N, D) of two views (Zbontar et al. 2021, eq. 1, 2)."""
    with torch.autocast(first.device.type, enabled=False):
        a, b = (
            F.batch_norm(x.to(torch.promote_types(x.dtype, torch.float32)), None, None, training=True)
            for x in (first, second)
        )
        c = a.T @ b / len(a)  # (D, D)
        on = (c.diagonal() - 1).square().sum()
        off = c.square().sum() - c.diagonal().square().sum()
    similarity = F.cosine_similarity(a, b).mean().detach()
    return on + redundancy * off, {"positive_similarity": similarity}


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """Collapse monitor of embeddings (N, D): 1 for well spread, 0 when all are the same (Chen & He 2021 §4.1).

    Standard deviation over the batch of the L2-normalised embeddings, mean over dimensions, times sqrt(D): unit
    vectors without a preferred direction have 1/sqrt(D) in each. It sees embeddings that became constant; a BatchNorm
    before them hides a collapse that leaves any noise to blow up, which a kNN score at chance then shows.
    """
    return _unit(z).std(dim=0, correction=0).mean() * z.shape[1] ** 0.5


def _texture_cosines(q: Tensor, t: Tensor, scope: str, first: int) -> tuple[Tensor, Tensor]:
    """Unit queries (N, D), texture keys (M, P, D), of which `first` + i are query i's: cosines (N, P) with those alone
    (scope "own") or (N, M*P) with all, and the mean (0-d) over the queries' own.
    """
    if scope == "own":
        own = torch.einsum("nd,nkd->nk", q, t[first : first + len(q)])
        return own, own.mean()
    cosines = q @ t.flatten(0, 1).T
    return cosines, cosines.unflatten(1, t.shape[:2]).diagonal(first, dim1=0, dim2=1).mean()


def _unit(x: Tensor) -> Tensor:
    """L2-normalised along the last dimension, in float32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
