"""What the three commands share: mistakes as one line on stderr, KEY=VALUE options, progress."""

import contextlib
import json
import sys
import time
import tomllib
from typing import Any

import click
from tqdm import tqdm

from texturegen.errors import UserError

LINE_SECONDS = 10.0
KEPT = "what is finished is kept: run the same command again"


class FriendlyCommand(click.Command):
    """A click command that ends with one line on stderr and an exit status, not with a traceback.

    1: the user's mistake, a full disk, a file that cannot be read. 2: a wrong option. 130: Ctrl-C.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except UserError as error:
            fail(str(error))
        except MemoryError as error:
            what = f" for {error}" if str(error) else ""
            fail(f"not enough memory{what}; {KEPT}, with fewer --workers")
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except (click.Abort, KeyboardInterrupt):
            print(f"stopped; {KEPT} to go on", file=sys.stderr)
            sys.exit(130)


class FriendlyGroup(FriendlyCommand, click.Group):
    """A group of commands with the same manners."""


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def read_pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Callback of a repeated KEY=VALUE option: a dict, its values read as TOML reads them, else as plain text."""
    pairs: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", context, parameter)
        pairs[key] = value
        with contextlib.suppress(tomllib.TOMLDecodeError):
            pairs[key] = tomllib.loads(f"value = {value}")["value"]
    return pairs


class Progress:
    """Counts `unit`s up to `total` (None: not known), `already` of them there at the start.

    A bar on a terminal; elsewhere a plain line every ten seconds. With `as_json` neither, but a JSON object per line
    on stdout, as often: event, done, total, unit, per_second, seconds_left, failed.
    """

    def __init__(self, total: int | None, unit: str, already: int = 0, as_json: bool = False) -> None:
        self.total, self.unit, self.already, self.done, self.failed = total, unit, already, already, 0
        self._start = self._last = time.monotonic()
        self._json, quiet = as_json, as_json or not isatty()
        self._bar = tqdm(total=total, initial=already, unit=f" {unit}", dynamic_ncols=True, disable=quiet)

    def __call__(self, made: int, failed: int = 0, note: str = "") -> None:
        """Count `made` more, `failed` of them in vain; `note` is shown behind the figures."""
        self.done += made
        self.failed += failed
        if self.failed:
            note = f"{self.failed} failed{', ' if note else ''}{note}"
        if note and not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(made)
        if self._bar.disable and time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self._report(note)

    def _report(self, note: str) -> None:
        rate = (self.done - self.already) / (self._last - self._start)
        left = (self.total - self.done) / rate if self.total is not None and rate > 0 else None
        if self._json:
            figures = {"done": self.done, "total": self.total, "unit": self.unit, "failed": self.failed}
            emit("progress", **figures, per_second=round(rate, 2), seconds_left=left and round(left, 1))
            return
        line = f"{self.done} {self.unit}, {rate:.0f}/s"
        if left is not None:
            line = f"{self.done}/{self.total} {self.unit}, {rate:.0f}/s, {left:.0f} s left"
        print(line + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()


def emit(event: str, **content: Any) -> None:
    """Print one event as a JSON object on a line of stdout, at once."""
    print(json.dumps({"event": event, **content}), flush=True)


def isatty() -> bool:
    return sys.stderr.isatty()


def warn(message: str) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)  # does not break a bar
