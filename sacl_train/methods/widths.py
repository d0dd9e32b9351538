"""Default widths of the heads, for encoders that are smaller than those of the papers."""

from collections.abc import Mapping

from sacl_train.nets import ENCODERS

HEADS = ("projector_hidden", "projector_out", "predictor_hidden")
# Largest default width of a head: a multiple of the encoder's features, but not less than MIN_WIDTH.
EXPANSION, MIN_WIDTH = 4, 128


def head_widths(published: Mapping[str, object], encoder: str, width: int | None) -> dict[str, int]:
    """Return the default widths of a method's heads for an encoder.

    Parameters
    ----------
    published : mapping
        The defaults of the method's settings; widths among them that are None follow the encoder by themselves.
    encoder : str
        Name of the encoder, which may be unknown.
    width : int or None
        Channels of its first stage.
    """
    entry = ENCODERS.get(encoder)
    features = None if entry is None else entry.features(width)
    if features is None:
        return {}
    return default_widths({name: w for name in HEADS if isinstance(w := published.get(name), int)}, features)


def default_widths(published: Mapping[str, int], features: int) -> dict[str, int]:
    """Return the widths of the heads for an encoder that is smaller than those of the papers.

    Papers give heads of 2048 and more for encoders of 512 to 2048 features. On 64 features they would be most of the
    network, so a width is at most four times the features, or 128, and the predictor's bottleneck shrinks as its output
    does.

    Parameters
    ----------
    published : mapping of str to int
        A method's default widths: "projector_hidden", "projector_out", "predictor_hidden", or some of them.
    features : int
        Dimensions of the encoder's features.

    Examples
    --------
    >>> widths = {"projector_hidden": 2048, "projector_out": 2048, "predictor_hidden": 512}
    >>> default_widths(widths, 64)
    {'projector_hidden': 256, 'projector_out': 256, 'predictor_hidden': 64}
    >>> default_widths(widths, 512) == widths
    True
    """
    largest = max(EXPANSION * features, MIN_WIDTH)
    widths = {name: min(width, largest) for name, width in published.items()}
    if "predictor_hidden" in widths:
        out = published["projector_out"]
        widths["predictor_hidden"] = min(largest, published["predictor_hidden"] * widths["projector_out"] // out)
    return widths
