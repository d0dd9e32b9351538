"""Linear evaluation: one linear layer on frozen features, trained by LARS (SACL section 3.2; You et al. 2017)."""

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F

from sacl_train.evaluate.interface import Classifier
from sacl_train.evaluate.standardise import feature_scale
from sacl_train.training.optim import cosine_lr
from texturegen.errors import UserError

RATES = (0.03, 0.1, 0.3, 0.9, 2.7, 8.1)  # learning rates of the sweep
HELD_OUT = 0.1  # fraction of the training images that the sweep is scored on


def fit_linear(
    features: Tensor, labels: Tensor, epochs: int = 200, lr: float = 0.9, batch_size: int = 128, seed: int = 0
) -> dict[str, Classifier]:
    """Train a linear classifier of features.

    Features are standardised per dimension by the training set's mean and standard deviation. A linear layer can
    represent this affine map itself, so standardising makes the probe neither stronger nor weaker; it lets one learning
    rate suit every encoder.

    Parameters
    ----------
    features : Tensor float (M, C)
        Features of the training images.
    labels : Tensor int64 (M,)
        Their classes, 0 or above.
    epochs, lr, batch_size : int, float, int
        SACL section 3.2: 200 epochs, learning rate 0.9 with cosine decay, batches of 128.
    seed : int
        Seed of the order of the batches.

    Returns
    -------
    dict of str to Classifier
        One classifier, named "".

    Examples
    --------
    >>> features = torch.eye(4).repeat(32, 1)
    >>> labels = torch.arange(4).repeat(32)
    >>> classify = fit_linear(features, labels, epochs=10)[""]
    >>> classify(torch.eye(4)).argmax(1)
    tensor([0, 1, 2, 3])
    """
    mean, std = (values.to(features.dtype) for values in feature_scale(features))
    layer = LinearLayer(features.shape[1], int(labels.max()) + 1, lr, features.device)
    generator = torch.Generator().manual_seed(seed)  # on the host: the order of the batches is the same on any device
    batches = max(len(features) // batch_size, 1)
    for epoch in range(epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for i in range(batches):
            batch = order[i * batch_size : (i + 1) * batch_size]
            # Batch by batch: standardised features of all of ImageNet would take 20 GB more.
            layer.learn((features[batch] - mean) / std, labels[batch], epoch * batches + i, epochs * batches)
    return {"": layer.classifier(mean, std)}


class LinearLayer:
    """A linear layer that starts from zero, and its optimizer: LARS with momentum 0.9 and cosine decay.

    Parameters
    ----------
    features, classes : int
        Widths of its input and output.
    lr : float
        Initial learning rate.
    device : torch.device
    """

    def __init__(self, features: int, classes: int, lr: float, device: torch.device) -> None:
        self.lr, self.layer = lr, nn.Linear(features, classes, device=device)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        # Without always_adapt, timm's LARS is plain SGD for parameters without weight decay.
        self.optimizer = Lars(self.layer.parameters(), lr=lr, momentum=0.9, weight_decay=0.0, always_adapt=True)

    def learn(self, features: Tensor, labels: Tensor, step: int, steps: int) -> None:
        """Do step number `step` of `steps` on standardised features float (N, C) and labels int64 (N,)."""
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_lr(step, steps, self.lr)
        loss = F.cross_entropy(self.layer(features), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def classifier(self, mean: Tensor, std: Tensor) -> Classifier:
        """Return the classifier of features that are not standardised yet; `mean` and `std` are (C,).

        Raises
        ------
        UserError
            If the weights are not finite.
        """
        weight, bias = self.layer.weight.detach(), self.layer.bias.detach()
        if not bool(weight.isfinite().all()):
            raise UserError(f"the linear probe diverged at lr {self.lr:g}; lower its lr")
        return lambda queries: F.linear((queries - mean) / std, weight, bias)


def sweep_rates(
    features: Tensor, labels: Tensor, epochs: int = 200, batch_size: int = 128, seed: int = 0
) -> dict[float, float]:
    """Return the held-out accuracy of `fit_linear` at each learning rate of `RATES`.

    A tenth of the training images is held out; the test set is not used. The caller then fits again on all
    training images at the best rate.

    Parameters
    ----------
    features, labels, epochs, batch_size, seed
        As in `fit_linear`.

    Returns
    -------
    dict of float to float
        Learning rate -> accuracy, 0..1.

    Raises
    ------
    UserError
        If there is only one image.
    """
    if len(features) < 2:
        raise UserError("the sweep holds training images out, and there is only one; set lr to a number")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed + 1))
    count = max(round(HELD_OUT * len(order)), 1)
    held, kept = order.to(features.device).split([count, len(order) - count])
    found = {}
    for rate in RATES:
        classify = fit_linear(features[kept], labels[kept], epochs, rate, batch_size, seed)[""]
        found[rate] = (classify(features[held]).argmax(1) == labels[held]).float().mean().item()
    return found
