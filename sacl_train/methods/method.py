"""The interface between the training loop and a method."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.methods.losses import embedding_std
from sacl_train.methods.shift import ShiftHead, Shifts
from sacl_train.methods.textures import draw_views
from sacl_train.nets.encoder import Encoder

# A term of a batch's loss (0-d) and its metrics (detached, 0-d).
LossTerm = tuple[Tensor, dict[str, Tensor]]


class Part(nn.Module):
    """A function as a part of a method, so that `training.compilation` compiles it as it does the networks."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        return self.function(*args, **kwargs)


class Method(nn.Module):
    """Base class of the training methods: the networks, the loss of a batch, and the update after an optimizer step.

    A method is constructed as Method(encoder, weak, image_size, settings), with image_size (H, W) in pixels. The
    optimizer updates the parameters that require a gradient; a checkpoint holds the state_dict.

    Attributes
    ----------
    encoder : Encoder
        The encoder to evaluate.
    weak : WeakAugment
        The augmentation that makes the views.
    settings : Settings
        The method's own settings.
    """

    # A frozen dataclass with a default for every field; `texture_role` is one of the fields.
    Settings: ClassVar[type[Any]]
    # Overrides of `Config` defaults, where the method's paper differs from SACL.
    defaults: ClassVar[dict[str, Any]] = {}
    # Published settings by the name that --recipe takes; see `recipes`.
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}
    # False keeps the step out of CUDA graphs (`training.capture`), which hold nothing that the host computes.
    is_capturable: ClassVar[bool] = True
    encoder: Encoder
    weak: WeakAugment
    settings: Any
    shift_head: ShiftHead | None  # tells an image from its textures, if the settings ask for it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_module("shift_head", None)
        self.embedding_std = Part(embedding_std)

    @classmethod
    def resolve_settings(cls, settings: Any, images: int) -> Any:
        """Return the method's settings with the values that depend on the data set, a number of images."""
        return settings

    def loss_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the terms of a batch's loss, which is their sum.

        The loop backpropagates each term before it asks for the next, so memory holds the activations of one term only.

        Parameters
        ----------
        batch : dict of str to Tensor
            "image" uint8 (N, 3, H, W) and, if the shards have textures, "texture" uint8 (N, P, 3, H, W).
        draws : Draws
            The random numbers of the batch's samples.

        Yields
        ------
        LossTerm
            A term (0-d) and its metrics (detached, 0-d), among them "embedding_std".
        """
        raise NotImplementedError

    def add_shift_head(self, shifts: Shifts) -> None:
        """Add the head that tells images from their textures, which are of these kinds, if the settings ask for it."""
        if getattr(self.settings, "shift_head", 0):
            self.shift_head = ShiftHead(self.encoder.out_features, shifts)

    def all_terms(self, batch: dict[str, Tensor], draws: Draws) -> Iterator[LossTerm]:
        """Yield the terms of `loss_terms`, then that of the shift head, if there is one.

        The head has a pass of its own, in which images and textures share the statistics of BatchNorm: with statistics
        for each kind, BatchNorm would remove what tells the kinds apart.

        Parameters
        ----------
        batch, draws
            As in `loss_terms`.
        """
        yield from self.loss_terms(batch, draws)
        if self.shift_head is not None:
            (images,), (textures,) = draw_views(self.weak, batch, draws, "own", numbers=(0,))
            views = torch.cat([images[None], textures.unflatten(0, (len(images), -1)).transpose(0, 1)])
            features = self.encoder(views.flatten(0, 1)).unflatten(0, views.shape[:2])  # (1 + P, N, C)
            loss, metrics = self.shift_head.term(features)
            yield self.settings.shift_head * loss, metrics

    def constant_lr(self) -> list[nn.Module]:
        """Return the networks whose learning rate does not follow the schedule: the predictor, if it is so set."""
        is_constant = getattr(self.settings, "predictor_lr", "schedule") == "constant"
        return [self.get_submodule("predictor")] if is_constant else []

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> LossTerm:
        """Return the total loss of a batch and its metrics, which include "loss".

        Parameters
        ----------
        batch, draws
            As in `loss_terms`.
        """
        terms = list(self.all_terms(batch, draws))
        return torch.stack([loss for loss, _ in terms]).sum(), merge(terms)

    def after_step(self, step: int | Tensor, steps: int) -> dict[str, float | Tensor]:
        """Update the method after an optimizer step; return metrics of the update.

        Parameters
        ----------
        step : int, or Tensor int64 (0-d)
            The step, 0 <= step < steps. In a captured step it is a tensor on the device, and so are the metrics that
            depend on it.
        steps : int
            Number of steps of the run.
        """
        return {}


def merge(terms: list[LossTerm]) -> dict[str, Tensor]:
    """Merge the metrics of a batch's terms: "loss" is the sum of the losses, every other metric is a mean.

    Parameters
    ----------
    terms : list of LossTerm
        At least one.
    """
    total = torch.stack([loss.detach() for loss, _ in terms]).sum()
    by_name: dict[str, list[Tensor]] = {}
    for _, metrics in terms:
        for name, value in metrics.items():
            by_name.setdefault(name, []).append(value)
    means: dict[str, Tensor] = {}
    for count in sorted({len(values) for values in by_name.values()}):  # few operations: usually all have one of each
        names = [name for name, values in by_name.items() if len(values) == count]
        stacked = torch.stack([value for name in names for value in by_name[name]]).view(-1, count)
        means |= zip(names, stacked.mean(dim=1).unbind(), strict=True)
    return {"loss": total, **{name: means[name] for name in by_name}}
