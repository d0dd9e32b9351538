"""Linear evaluation: one linear layer on frozen features, trained by LARS (SACL §3.2; You et al. 2017)."""

import torch
from timm.optim import Lars
from torch import nn
from torch.nn import functional as F

from sacl_train.optim import cosine_lr


def linear_predict(
    features: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    epochs: int = 200,
    lr: float = 0.9,
    batch_size: int = 128,
    seed: int = 0,
) -> torch.Tensor:
    """Train a linear classifier on (features, labels) and return its logits on `queries`.

    Features are standardised with the training set's mean and deviation per dimension: an affine map that a linear
    layer can undo, so the probe is as strong as without it and one learning rate serves every encoder.

    Parameters
    ----------
    features : float (M, C); labels : int64 (M,), 0 or above; queries : float (N, C).
    epochs, lr, batch_size : SACL §3.2 (200 epochs, lr 0.9, batch 128); the rate falls along a cosine.
    seed : of the batches' order.

    Returns
    -------
    float (N, classes).
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    features, queries = (features - mean) / std, (queries - mean) / std
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    # timm's LARS is plain SGD at weight decay 0 unless told to adapt always.
    optimizer = Lars(layer.parameters(), lr=lr, momentum=0.9, weight_decay=0.0, always_adapt=True)
    generator = torch.Generator().manual_seed(seed)
    batches = max(len(features) // batch_size, 1)
    for epoch in range(epochs):
        order = torch.randperm(len(features), generator=generator)
        for i in range(batches):
            for group in optimizer.param_groups:
                group["lr"] = cosine_lr(epoch * batches + i, epochs * batches, lr)
            batch = order[i * batch_size : (i + 1) * batch_size]
            loss = F.cross_entropy(layer(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        return layer(queries)
