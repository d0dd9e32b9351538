"""Names from outside are escaped in messages and checked before they become keys."""

import pytest

from texturegen.errors import ImageError, UserError
from texturegen.storage.names import key_pattern, printable, to_text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a/b.png", "a/b.png"),
        (b"a/b.png", "a/b.png"),
        ("caf\u00e9", "caf\\xe9"),
        ("caf\u00e9".encode(), "caf\\xe9"),
        (b"\xff.png", "\\udcff.png"),
        ("\x1b[2J\n", "\\x1b[2J\\n"),
        ("\u202e.png", "\\u202e.png"),
        ("", ""),
        ("a" * 121, "a" * 120 + "..."),
    ],
)
def test_printable_escapes_everything_but_plain_ascii(name: str | bytes, shown: str) -> None:
    assert printable(name) == shown
    assert shown.isascii()
    assert shown.isprintable()


def test_text_replaces_bytes_that_are_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsencode", lambda name: name.encode("latin-1", "surrogateescape"))  # another locale
    assert to_text("caf\u00e9/\udcff.png") == "caf\u00e9/\ufffd.png"
    to_text("\udcff").encode()


@pytest.mark.parametrize("key", ["a", "a-b_C/9", "a" * 80, "/".join("abc")])
def test_keys(key: str) -> None:
    assert key_pattern(80).fullmatch(key)


@pytest.mark.parametrize("key", ["", "a" * 81, "a.b", "..", "/a", "a/", "a//b", "a b", "a\n", "\u00e9", "a\\b"])
def test_unsafe_keys(key: str) -> None:
    assert not key_pattern(80).fullmatch(key)


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(UserError("a\nb\x1b[2J\udcff: \u00e9")) == r"a\nb\x1b[2J\udcff: " + "\u00e9"
    assert str(ImageError("k\n", "r")) == r"k\n: r"
