"""Encoders of other programs as subjects of the probes, with the settings of a run that they lack."""

from dataclasses import replace

from sacl_train.config import Config
from sacl_train.methods.method import Method
from sacl_train.methods.sacl import FastMoCoSettings
from sacl_train.nets.encoder_file import EncoderFile
from sacl_train.nets.foreign import open_encoder
from texturegen.console import note

METHOD = "external"  # what the figures give as the method


def load_foreign(file: EncoderFile) -> tuple[Method, Config, tuple[int, int] | None]:
    """Open an encoder and say on stderr what was found in its file.

    Parameters
    ----------
    file : EncoderFile
        Where it is, and what the user says about it.

    Returns
    -------
    method : Method
        With the encoder as its only network.
    config : Config
        Defaults, but method "external" without textures, the encoder's name, mean and std, and 0 epochs.
    image_size : tuple of int or None
        (H, W) in pixels of the images that it was trained with; None if unknown, or if images are resized to it.

    Raises
    ------
    UserError
        If it cannot be opened.
    """
    opened = open_encoder(file)
    for line in opened.notes:
        note(line)
    method = Method()
    method.encoder = opened.encoder
    size = "" if file.size is None else f" at {file.size} px"
    config = replace(
        Config(),
        method=METHOD,
        method_settings=FastMoCoSettings(),
        encoder=f"{opened.label}{size} ({file.source})",
        epochs=0,
        precision="fp32",
        compile="none",
        mean=opened.mean,
        std=opened.std,
    )
    trained = None if opened.size is None or file.size is not None else (opened.size, opened.size)
    return method, config, trained
