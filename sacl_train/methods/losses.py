"""The contrastive loss with texture negatives (SACL eq. 8-10; Ge et al. 2021 eq. 3), and a collapse monitor."""

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
    All are L2-normalised here (eq. 8) and computed in float32 (or in float64 if given so), also under autocast. Per
    query (eq. 10):
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


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """Collapse monitor of embeddings (N, D): 1 for well spread, 0 when all are the same (Chen & He 2021 §4.1).

    Standard deviation over the batch of the L2-normalised embeddings, mean over dimensions, times sqrt(D): unit
    vectors without a preferred direction have 1/sqrt(D) in each. It sees embeddings that became constant; a BatchNorm
    before them hides a collapse that leaves any noise to blow up, which a kNN score at chance then shows.
    """
    return _unit(z).std(dim=0, correction=0).mean() * z.shape[1] ** 0.5


def _unit(x: Tensor) -> Tensor:
    """L2-normalised along the last dimension, in float32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
