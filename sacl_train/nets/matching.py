"""Which tensors of a file are those of an encoder, whatever its program put before their names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from texturegen.errors import UserError
from texturegen.storage.names import printable

MAX_NAMED = 3  # tensors named in a message
# Of two copies of an encoder in one file, the one that is trained is taken: MoCo's encoder_q, lightly's backbone. The
# exception is DINO, which evaluates its teacher.
_COPIES = re.compile(r"(encoder_k|momentum|target|ema|student|_m)(?![a-z])")


@dataclass(frozen=True)
class Match:
    """The tensors below one prefix, compared with those of an encoder.

    Attributes
    ----------
    prefix : str
        What comes before the names: "" or "module.encoder_q.".
    weights : dict of str to Tensor
        The tensors that fit, by the encoder's names.
    missing : list of str
        The encoder's tensors that are not below the prefix.
    misshapen : list of str
        Those of another shape, with both shapes.
    extra : list of str
        Tensors below the prefix that belong to parts of the encoder, but that it does not have.
    ignored : list of str
        All other tensors of the file, by their full names: classifiers, projectors, optimizers.
    """

    prefix: str
    weights: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """True if every tensor of the encoder is there and none of its parts is larger."""
        return not (self.missing or self.misshapen or self.extra)

    def differences(self) -> str:
        """Return what does not fit, in one line."""
        parts = [
            f"{len(names)} {what} ({_some(names)})"
            for what, names in (
                ("missing", self.missing),
                ("of another shape", self.misshapen),
                ("that it does not have", self.extra),
            )
            if names
        ]
        return f"{len(self.weights)} tensors fit; {', '.join(parts)}"

    def summary(self) -> str:
        """Return what was taken and what was left, in one line."""
        prefix = f" below '{printable(self.prefix)}'" if self.prefix else ""
        left = f"; not used: {len(self.ignored)} ({_some(self.ignored)})" if self.ignored else ""
        return f"{len(self.weights)} tensors{prefix}{left}"


def match_weights(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    classifier: tuple[str, ...] = (),
    prefix: str | None = None,
) -> Match:
    """Find the prefix below which a file has the tensors of an encoder.

    The children of the encoder may also be numbered, as those of `nn.Sequential(*list(resnet.children())[:-1])`.

    Parameters
    ----------
    expected : mapping of str to Tensor
        State dict of the encoder.
    found : mapping of str to Tensor
        All tensors of the file.
    classifier : tuple of str
        Names of modules of the architecture that the encoder lacks; their tensors are ignored.
    prefix : str or None
        The prefix, if the user says it, or its end: "module.encoder_q" for "state_dict.module.encoder_q.".

    Returns
    -------
    Match
        The best one; it may not fit.

    Raises
    ------
    UserError
        If no tensor has `prefix`, or it is the end of several.
    """
    if prefix is not None:
        prefix = _complete(prefix, found)
    matches = []
    for start in _prefixes(expected, found) if prefix is None else [prefix]:
        matches.append(_compare(expected, _below(found, start), start, classifier))
    for start in _numbered_prefixes(expected, found) if prefix is None else [prefix]:
        renamed = _name_children(expected, _below(found, start))
        if renamed is not None:
            matches.append(_compare(expected, renamed, start, classifier))
    best = max(
        matches,
        key=lambda match: (len(match.weights), -len(_COPIES.findall(match.prefix)), -len(match.prefix)),
        default=Match("", missing=[*expected]),
    )
    # Tensors outside the prefix, such as those of a momentum copy, are left too.
    best.ignored.extend(name for name in found if not name.startswith(best.prefix))
    return best


def _complete(prefix: str, found: Mapping[str, Tensor]) -> str:
    """Return a prefix of tensors' names that ends with the one that a user gave."""
    prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    if any(name.startswith(prefix) for name in found):
        return prefix
    inner = [name[: name.index(f".{prefix}") + 1] + prefix for name in found if f".{prefix}" in name]
    longer = list(dict.fromkeys(inner))
    if len(longer) > 1:
        raise UserError(f"several prefixes end with '{prefix}': {_some(longer)}; give one of them as a whole")
    if not longer:
        raise UserError(f"no tensor has the prefix '{prefix}'; there are {_some([*found])}")
    return longer[0]


def _below(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}


def _compare(
    expected: Mapping[str, Tensor], inner: Mapping[str, Tensor], prefix: str, classifier: tuple[str, ...]
) -> Match:
    match = Match(prefix)
    for name, tensor in expected.items():
        other = inner.get(name)
        if other is None:
            if not name.endswith("num_batches_tracked"):  # only momentum None reads it, and old files lack it
                match.missing.append(name)
        elif other.shape != tensor.shape:
            match.misshapen.append(f"{name} {_shape(other)} there, {_shape(tensor)} here")
        else:
            match.weights[name] = other
    parts = {name.partition(".")[0] for name in expected}
    for name in inner:
        if name in expected:
            continue
        is_classifier = any(name == module or name.startswith(f"{module}.") for module in classifier)
        if name.partition(".")[0] in parts and not is_classifier:
            match.extra.append(name)
        else:
            match.ignored.append(f"{prefix}{name}")
    return match


def _prefixes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return what precedes the encoder's names in the file, at a dot."""
    prefixes: dict[str, None] = {}
    for name in found:
        end = 0
        while True:
            if name[end:] in expected:
                prefixes[name[:end]] = None
            end = name.find(".", end) + 1
            if not end:
                break
    return [*prefixes]


def _numbered_prefixes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes below which the names begin with at least as many numbers as the encoder has children."""
    children = len({name.partition(".")[0] for name in expected})
    numbers: dict[str, set[str]] = {}
    for name in found:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                numbers.setdefault("".join(f"{p}." for p in parts[:i]), set()).add(part)
    return [prefix for prefix, there in numbers.items() if len(there) >= children > 1]


def _name_children(expected: Mapping[str, Tensor], inner: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return `inner` with its leading numbers replaced by the encoder's children that have tensors, in order."""
    numbers = sorted({int(first) for name in inner if (first := name.partition(".")[0]).isdigit()})
    children = list(dict.fromkeys(name.partition(".")[0] for name in expected))
    if len(numbers) < len(children):
        return None
    names = dict(zip(map(str, numbers), children, strict=False))
    return {
        f"{names.get(first := name.partition('.')[0], first)}.{name.partition('.')[2]}": tensor
        for name, tensor in inner.items()
    }


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > MAX_NAMED else ""
    return ", ".join(printable(name) for name in islice(names, MAX_NAMED)) + more


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
