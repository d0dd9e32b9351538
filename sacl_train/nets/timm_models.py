"""Encoders of the library timm, by name: timm:resnet50, timm:vit_small_patch16_224."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from sacl_train.nets.encoder import Encoder
from sacl_train.nets.encoder_file import PREFIX
from texturegen.errors import MissingError, UserError, nearest

MIN_MAP = 2  # positions per side of the last map, below which the note on small images is given


class TimmEncoder(Encoder):
    """A timm model without its classifier. Features: those that the classifier would get.

    Parameters
    ----------
    name : str
        Name of the model in timm, without "timm:".
    image_size : int or None
        Side of the images in pixels; None for the model's own. Vision transformers get position embeddings for this
        size, which are interpolated for others such as the cells of a grid.
    checkpointing : bool
        Recompute activations in the backward pass.
    pretrained : dict or None
        Passed on to timm as `pretrained_cfg_overlay`, and the weights that it names are loaded.

    Attributes
    ----------
    name : str
        As given.
    arguments : dict
        Keyword arguments of `timm.create_model`, besides the name.

    Raises
    ------
    UserError
        If timm has no such model, or the model does not allow `checkpointing`.
    """

    model: Any  # timm's models share no base class but nn.Module

    def __init__(
        self,
        name: str,
        image_size: int | None = None,
        checkpointing: bool = False,
        pretrained: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name.removeprefix(PREFIX)
        check_name(self.name)
        self.model, self.arguments = _create(self.name, image_size, pretrained)
        _remove_dropout(self.model)
        self.out_features = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
        if checkpointing:
            if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules()):
                raise UserError(
                    f"checkpointing would update the running statistics of {PREFIX}{self.name} twice per step; use "
                    "--set checkpointing=false, or an encoder of sacl-train such as se_resnet50"
                )
            self.model.set_grad_checkpointing(True)

    @property
    def config(self) -> dict[str, Any]:
        """timm's own description of the weights: "mean", "std", "input_size", "classifier" and others."""
        found: dict[str, Any] = dict(self.model.pretrained_cfg)
        return found

    @property
    def classifier(self) -> tuple[str, ...]:
        """Names of the modules of timm's classifier, which the model here lacks."""
        names = self.config.get("classifier") or ()
        return (names,) if isinstance(names, str) else tuple(names)

    @property
    def side(self) -> int | None:
        """Side in pixels of the images that timm's weights were trained with."""
        side: int | None = self.config.get("input_size", (3, None, None))[-1]
        return side

    @property
    def reduction(self) -> int | None:
        """Pixels per position of the last map; None if timm does not tell."""
        try:
            return int(self.model.feature_info[-1]["reduction"])
        except (AttributeError, KeyError, IndexError, TypeError):
            return None

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model(x)
        return features


def check_name(name: str) -> None:
    """Raise UserError unless timm has a model of this name; a tag of weights, as in resnet50.a1_in1k, may follow."""
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise UserError(
            f"timm {timm.__version__} has no model '{name}'{nearest(base, timm.list_models())}; list its models with "
            '`python -c "import timm; print(*timm.list_models())"`'
        )


def check_sizes(encoder: TimmEncoder, sizes: Iterable[tuple[int, int]]) -> None:
    """Try an encoder with images and cells of the sizes that training needs, and set its note on small images.

    Parameters
    ----------
    encoder : TimmEncoder
        The encoder; its mode and statistics are left as they were.
    sizes : iterable of tuple of int
        (H, W) in pixels: of whole images, then of the cells of a grid if there are any.

    Raises
    ------
    UserError
        If the model does not take images of one of these sizes.
    """
    was_training = encoder.training
    encoder.eval()
    smallest = 2**30
    try:
        for i, (height, width) in enumerate(sizes):
            smallest = min(smallest, height, width)
            try:
                with torch.no_grad():
                    features = encoder(torch.zeros(1, 3, height, width))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
                what, remedy = ("images", "build larger shards with --size") if i == 0 else ("cells", "set grid to 1")
                raise UserError(
                    f"{PREFIX}{encoder.name} does not take {what} of {height}x{width} px ({reason}); {remedy}, or "
                    "choose another encoder"
                ) from None
            if features.shape != (1, encoder.out_features):
                raise UserError(
                    f"{PREFIX}{encoder.name} returns {tuple(features.shape)} for an image, not a vector of features; "
                    "choose a model that timm lists as a classifier"
                )
    finally:
        encoder.train(was_training)
    reduction = encoder.reduction
    if reduction is not None and smallest < MIN_MAP * reduction:
        encoder.notes = (
            f"{PREFIX}{encoder.name} reduces {reduction} pixels to one position, so {smallest} px leave a map of "
            f"{-(-smallest // reduction)} per side; for small images use larger shards, grid=1, or an encoder with a "
            "3x3 stem such as se_resnet18 (--set attention=none for a plain ResNet)",
        )


def find_pretrained(name: str) -> dict[str, Any]:
    """Return the `pretrained_cfg_overlay` that makes timm load weights from its cache; nothing is downloaded.

    Parameters
    ----------
    name : str
        Name of the model in timm; it may carry a tag of weights.

    Raises
    ------
    MissingError
        If the weights are not in the cache of the Hugging Face hub or of torch.hub.
    """
    check_name(name)
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if config is not None and config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        for file in ("model.safetensors", "pytorch_model.bin"):
            cached = try_to_load_from_cache(config.hf_hub_id, file)
            if isinstance(cached, str):
                return {"file": cached}
    if config is not None and config.url:
        cached_file = Path(torch.hub.get_dir()) / "checkpoints" / str(config.url).rpartition("/")[2]
        if cached_file.is_file():
            return {"file": str(cached_file)}
    raise MissingError(
        f"{PREFIX}{name}: its weights are not in timm's cache, and nothing is downloaded here; fetch them once with "
        f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"`"
    )


def _create(
    name: str, image_size: int | None, pretrained: dict[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model, and those of the arguments that it takes; they decide its sizes of images."""
    loaded: dict[str, Any] = {}
    if pretrained is not None:
        loaded = {"pretrained": True, "pretrained_cfg_overlay": pretrained}
    size = {} if image_size is None else {"img_size": image_size}
    tries: list[dict[str, Any]] = [{**size, "dynamic_img_size": True}, size, {}]
    for arguments in tries:
        try:
            return timm.create_model(name, num_classes=0, **loaded, **arguments), arguments
        except TypeError as error:  # ResNets, for example, have neither argument
            if "unexpected keyword argument" not in str(error) or not arguments:
                raise
    raise AssertionError("unreachable: the last try has no arguments")


def _remove_dropout(model: nn.Module) -> None:
    """Switch off dropout and stochastic depth, which draw from torch's generator: a resumed run has to repeat a run."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
