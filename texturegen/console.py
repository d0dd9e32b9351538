"""What all commands share: errors as one line on stderr, options in sections, KEY=VALUE options, progress, messages."""

import contextlib
import errno
import json
import os
import stat
import sys
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import click
from tqdm import tqdm

from texturegen.errors import UserError
from texturegen.system.interrupts import allow_interrupts

LINE_SECONDS = 10.0
RATE_LINES = 6  # lines whose rate is shown
KEPT = "finished work is kept; run the same command again"


class HasHelp(Protocol):
    """An entry of a registry that `--help` lists."""

    @property
    def help(self) -> str: ...


class SectionOption(click.Option):
    """An option that `--help` prints under a heading of its own, followed by the entries of a registry.

    The registry is read when the help is printed, so an entry added later is listed too.

    Parameters
    ----------
    section : the heading.
    registry : name -> entry; one line is printed for each.
    """

    def __init__(
        self, *args: Any, section: str = "Options", registry: Mapping[str, HasHelp] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.section, self.registry = section, registry or {}

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or not self.registry:
            return record
        width = max(map(len, self.registry))
        lines = [f"  {name:{width}}  {entry.help}" for name, entry in self.registry.items()]
        return record[0], "\n".join(["\b", record[1], *lines])  # \b keeps click from joining the lines


def option(*names: str, section: str, **attributes: Any) -> Callable[[Any], Any]:
    """Like `click.option`, but listed under the heading `section`; see `SectionOption`."""
    return click.option(*names, cls=SectionOption, section=section, **attributes)


class FriendlyCommand(click.Command):
    """A click command that reports errors as one line on stderr and an exit status, without a traceback.

    Exit status 1: an error of the user, a full disk, an unreadable file. 2: a wrong option. 130: Ctrl-C.
    """

    def __init__(self, name: str | None, context_settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], **(context_settings or {})}
        super().__init__(name, context_settings=settings, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            allow_interrupts()
            _prepare_streams()
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (UserError, MemoryError, OSError) as error:
            fail(describe_error(error))
        except (click.Abort, KeyboardInterrupt):
            print(f"stopped; {KEPT} to resume", file=sys.stderr)
            sys.exit(130)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the options in their sections; options without a section come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            section = parameter.section if isinstance(parameter, SectionOption) else "Options"
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(section, []).append(record)
        for section in sorted(sections, key=lambda name: name == "Options"):
            with formatter.section(section):
                formatter.write_dl(sections[section])


class FriendlyGroup(FriendlyCommand, click.Group):
    """A group of commands that reports errors like `FriendlyCommand`."""

    command_class = FriendlyCommand

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        # None if the parent process has closed the stream, as some services do; messages are then dropped.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        # A path that is not UTF-8, or not in the terminal's encoding, is printed with escapes.
        with contextlib.suppress(AttributeError):  # a stream that a test put there
            getattr(sys, name).reconfigure(errors="backslashreplace")


def plural(count: int, noun: str) -> str:
    """Return "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def escape_controls(text: str) -> str:
    """Return text with control characters escaped: the name of a file may hold newlines and terminal commands."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(line: str) -> None:
    """Print a line of the result on stdout, its control characters escaped."""
    print(escape_controls(line))


def fail(message: str) -> NoReturn:
    """Print an error on one line of stderr and exit with status 1."""
    print(f"error: {escape_controls(message)}", file=sys.stderr)
    sys.exit(1)


def describe_error(error: Exception) -> str:
    """Return the message of an error that ends a command."""
    if isinstance(error, MemoryError):
        return f"not enough memory{f' ({error})' if str(error) else ''}; {KEPT}, with fewer --workers"
    if isinstance(error, OSError) and error.filename:
        denial = explain_denial(error)
        return f"{error.filename}: {error.strerror}" + (f"; {denial}" if denial else "")
    return str(error)


def explain_denial(error: OSError) -> str:
    """Say whose file or directory denied access, and what to do; "" unless it belongs to another user."""
    known = error.errno in (errno.EACCES, errno.EPERM) and isinstance(error.filename, str | os.PathLike)
    if not known or not hasattr(os, "geteuid"):
        return ""
    path = Path(error.filename)
    for place in (path, *path.parents):  # of a file that could not be created, its directory
        with contextlib.suppress(OSError):
            found = place.stat()
            if found.st_uid == os.geteuid():
                break
            mode = stat.S_IMODE(found.st_mode)
            return f"{place} belongs to {_user_name(place, found.st_uid)} (mode {mode:03o}), ask that user for access"
    return ""


def _user_name(path: Path, number: int) -> str:
    try:
        return path.owner()
    except KeyError:  # an account of another machine that shares the disk
        return f"user {number}"


@contextlib.contextmanager
def error_events(as_json: bool, **content: Any) -> Iterator[None]:
    """With `as_json`, print what ends the block as an event on stdout: "error", or "stopped" after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if as_json:
            emit("stopped", **content)
        raise
    except Exception as error:
        if as_json:
            emit("error", **content, message=describe_error(error))
        raise


def read_pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Callback of a repeated KEY=VALUE option: return a dict; a value that is not valid TOML is kept as text."""
    pairs: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", context, parameter)
        pairs[key] = value
        with contextlib.suppress(ValueError, RecursionError):  # also of a number with thousands of digits
            pairs[key] = tomllib.loads(f"value = {value}")["value"]
    return pairs


class Progress:
    """Progress of a long job: a bar on a terminal, otherwise a line on stderr every ten seconds.

    The rate is that of the last minute.

    Parameters
    ----------
    total : how many units there are; None if unknown.
    unit : what is counted, in the plural: "images".
    already : how many were done before this process started; they do not count towards the rate.
    as_json : print JSON objects on stdout instead, one per line every ten seconds, with the keys event, done, total,
        unit, per_second, seconds_left and failed.
    """

    def __init__(self, total: int | None, unit: str, already: int = 0, as_json: bool = False) -> None:
        self.total, self.unit, self.done, self.failed = total, unit, already, 0
        self._last = time.monotonic()
        # The rate is that of the last minute: a start of a minute, such as compilation, would spoil it for an hour.
        self._marks = deque([(self._last, already)], maxlen=RATE_LINES)
        self._json, quiet = as_json, as_json or not isatty()
        self._bar = tqdm(total=total, initial=already, unit=f" {unit}", dynamic_ncols=True, disable=quiet)

    def __call__(self, made: int, failed: int = 0, note: str = "") -> None:
        """Add `made` units to the count, `failed` of them without a result; `note` is printed after the figures."""
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
        then, done = self._marks[0]
        rate = (self.done - done) / (self._last - then)
        self._marks.append((self._last, self.done))
        left = (self.total - self.done) / rate if self.total is not None and rate > 0 else None
        if self._json:
            figures = {"done": self.done, "total": self.total, "unit": self.unit, "failed": self.failed}
            emit("progress", **figures, per_second=round(rate, 2), seconds_left=left and round(left, 1))
            return
        shown = f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s"  # some methods take seconds per image
        line = f"{self.done} {self.unit}, {shown}"
        if left is not None:
            line = f"{self.done}/{self.total} {self.unit}, {shown}, {left:.0f} s left"
        print(line + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def emit(event: str, **content: Any) -> None:
    """Print an event as one line of JSON on stdout, without buffering."""
    print(json.dumps({"event": event, **content}), flush=True)


def isatty() -> bool:
    """Return True if stderr is a terminal."""
    return sys.stderr.isatty()


def warn(message: str) -> None:
    """Print a warning on one line of stderr."""
    tqdm.write(f"warning: {escape_controls(message)}", file=sys.stderr)  # keeps a progress bar intact


def note(message: str) -> None:
    """Print what a command is about to do on one line of stderr."""
    tqdm.write(escape_controls(message), file=sys.stderr)
