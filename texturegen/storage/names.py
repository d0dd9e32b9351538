"""Names from outside: which may be keys, and how any of them is shown.

A tar or a file system can hold names with control characters, which a terminal would obey, and with bytes that are no
text. `printable` is for messages; `to_text` is for what is stored.
"""

import re

MAX_SHOWN = 120  # characters of a name in a message
# A key's segments. WebDataset takes everything behind the first dot for the extension, so a key has no dot, and without
# dots no path can lead upwards.
KEY_SEGMENTS = r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*"


def key_pattern(max_length: int) -> re.Pattern[str]:
    """Return the pattern that a whole key matches (`fullmatch`): segments with "/" between, up to `max_length`."""
    return re.compile(rf"(?=.{{1,{max_length}}}\Z){KEY_SEGMENTS}")


def printable(name: str | bytes, max_length: int = MAX_SHOWN) -> str:
    r"""Return a name as plain ASCII for a message, with everything else escaped.

    Parameters
    ----------
    name : bytes are taken for UTF-8; bytes that are not become escapes.
    max_length : characters shown; "..." stands for the rest.

    Examples
    --------
    >>> printable("cat.png")
    'cat.png'
    >>> print(printable("caf\u00e9\x1b[2J"))
    caf\xe9\x1b[2J
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    escaped = ascii(text)[1:-1]
    return escaped if len(escaped) <= max_length else f"{escaped[:max_length]}..."


def to_text(name: str) -> str:
    """Return a name as valid Unicode: bytes that are not UTF-8, and lone surrogates from JSON, become U+FFFD."""
    try:
        # Not os.fsencode, which depends on the locale; most names come from tars and JSON.
        return name.encode("utf-8", "surrogateescape").decode(errors="replace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
