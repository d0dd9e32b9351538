"""Linear evaluation: one linear layer on frozen features, trained by LARS (SACL §3.2; You et al. 2017)."""

from collections.abc import Callable

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F

from sacl_train.training.optim import cosine_lr

RATES = (0.03, 0.1, 0.3, 0.9, 2.7, 8.1)  # of the sweep
HELD_OUT = 0.1  # of the training images, to choose among them


def fit_linear(
    features: Tensor, labels: Tensor, epochs: int = 200, lr: float = 0.9, batch_size: int = 128, seed: int = 0
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Train a linear classifier, queries float (N, C) -> logits float (N, classes).

    Features are standardised with the training set's mean and deviation per dimension: an affine map that a linear
    layer can undo, so the probe is as strong as without it and one learning rate serves every encoder.

    Parameters
    ----------
    features : float (M, C); labels : int64 (M,), 0 or above.
    epochs, lr, batch_size : SACL §3.2 (200 epochs, lr 0.9, batch 128); the rate falls along a cosine.
    seed : of the batches' order.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    features = (features - mean) / std
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
    weight, bias = layer.weight.detach(), layer.bias.detach()
    return {"": lambda queries: F.linear((queries - mean) / std, weight, bias)}


def sweep_rates(
    features: Tensor, labels: Tensor, epochs: int = 200, batch_size: int = 128, seed: int = 0
) -> dict[float, float]:
    """Accuracy (0..1) of `fit_linear` with each of RATES on a tenth of the training images that it does not see.

    The test set has no part in it. The best rate is to be fitted again on all of them.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed + 1))
    held, kept = order.split([max(round(HELD_OUT * len(order)), 1), len(order) - max(round(HELD_OUT * len(order)), 1)])
    found = {}
    for rate in RATES:
        classify = fit_linear(features[kept], labels[kept], epochs, rate, batch_size, seed)[""]
        found[rate] = (classify(features[held]).argmax(1) == labels[held]).float().mean().item()
    return found
