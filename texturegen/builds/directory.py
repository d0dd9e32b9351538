"""The state of a build on disk, and the lock that guards it.

A directory is in one of three states:

    empty      it may also be missing
    begun      a build is under way: parts/recipe.json exists and build.json does not
    finished   build.json exists, whatever else does

A change of state writes all files of the new state before it removes the file that marks the old one. A process that
is killed on the way leaves one state or the other, never something in between.

    DIR/.texturegen.lock          held by the process at work, or shared by the parts of an array
    DIR/build.json                marks the directory as finished
    DIR/manifest.parquet
    DIR/shard-NNNNNN.tar
    DIR/parts/recipe.json         the plan, marks the directory as begun
    DIR/parts/files-DIGEST.arrow  paths, sizes and times of the source's files
    DIR/parts/NNNNNN.parquet      the manifest rows of a shard
    DIR/parts/NNNNNN.json         its stats, mark the shard as committed
    DIR/parts/lock-A-B            held by the array part that builds shards A to B - 1
    DIR/repair/                   rebuilt shards before they replace the damaged ones
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from texturegen import __version__
from texturegen.builds.differences import refuse_other_build
from texturegen.builds.listing import read_listing, write_listing
from texturegen.builds.recipe import RECORDED, Plan
from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.shards.build_json import check_size, read_build, read_description
from texturegen.shards.card import CARD
from texturegen.shards.layout import BUILD, MANIFEST, PARTS, SHARD_FILE, shard_name
from texturegen.shards.manifest import read_manifest
from texturegen.shards.publish import publish
from texturegen.shards.reader import Shards
from texturegen.shards.writer import read_stats, rows_file, stats_file, write_stats
from texturegen.sources import Source
from texturegen.storage.arrow import open_for_arrow
from texturegen.storage.atomic import as_json, sha256_of, write_atomically, write_once
from texturegen.storage.lock import LOCK, DirectoryLock, acquire
from texturegen.storage.sealed import seal

RECIPE = "recipe.json"
REPAIR = "repair"
# What a process that was killed before it wrote recipe.json, or an array part that starts now, may leave beside shards.
_OWN_PART = re.compile(r"lock.*|recipe\.json.*|files-.*|\d{6,}\.(parquet|json)(\.[0-9a-f]+\.tmp)?")


class BuildDirectory:
    """A shard directory while it is locked, as a context manager.

    Everything that reads or changes the state is a method, so nothing is decided before the lock is held.

    Parameters
    ----------
    path : Path
        The directory.
    activity : str
        What this process does, for the error message of others: "building", "repairing".
    part : range, optional
        The shards of one part of an array. Parts share the lock; without `part` the lock is exclusive.
    create : bool
        Create the directory if missing.

    Raises
    ------
    BusyError
        Another process holds the lock.
    MissingError
        The directory is missing, with `create` False.
    UserError
        `path` is not a directory.
    """

    def __init__(self, path: Path, activity: str = "building", part: range | None = None, create: bool = True) -> None:
        self.path, self.part = path, part
        self.parts = path / PARTS
        self._lock = DirectoryLock(path, activity, shared=part is not None, create=create)
        self._held = ExitStack()

    def __enter__(self) -> "BuildDirectory":
        try:
            self._held.enter_context(self._lock)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            if self._lock.create:
                raise UserError(f"{self.path}: is not a directory; choose another --out") from None
            raise MissingError(f"{self.path}: no shards here; make some with `texturegen build`") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._held.__exit__(kind, error, tb)

    @property
    def is_finished(self) -> bool:
        """Whether build.json exists."""
        return (self.path / BUILD).is_file()

    @property
    def is_begun(self) -> bool:
        """Whether an unfinished build is here."""
        return not self.is_finished and (self.parts / RECIPE).is_file()

    def check_finished(self, plan: Plan | None = None) -> None:
        """Check that this is a finished build (of `plan`) with all its files; remove leftovers of killed processes.

        Raises
        ------
        OtherBuildError
            It is a build of another plan.
        MissingError, DamagedError
            A shard or the manifest is missing or damaged.
        """
        content = read_build(self.path)  # first, because damage must not pass for another build
        if plan is not None:
            refuse_other_build(self.path / BUILD, plan)
        for shard in content["shards"]:
            check_size(self.path / shard["name"], shard["bytes"])
        manifest = self.path / MANIFEST
        remedy = "copy it from a backup, or build again into another directory"
        if not manifest.is_file():
            raise MissingError(f"{manifest}: missing; {remedy}")
        if sha256_of(manifest) != content.get("manifest_sha256"):
            raise DamagedError(f"{manifest}: damaged, its checksum differs from build.json; {remedy}")
        self.remove_leftovers()

    def read_plan(self) -> tuple[Plan, int]:
        """Return the plan of an unfinished build, and the number of files its source ignored."""
        path = self.parts / RECIPE
        content = read_description(path)
        try:
            plan, ignored = Plan.from_description(content), int(content["ignored"])
        except (ValueError, KeyError, TypeError, UserError):
            raise DamagedError(f"{path}: damaged; run the same `texturegen build` into another directory") from None
        if not plan.matches(content):
            made_by = f"format {content.get('format')}, texturegen {content.get('texturegen')}"
            raise UserError(f"{self.path}: started by another version ({made_by}); finish it with that version")
        return plan, ignored

    def claim(self, plan: Plan, ignored: int, source: Source) -> Plan:
        """Begin the build of `plan`, or take up the one that is here.

        Returns
        -------
        Plan
            `plan` as recipe.json describes it, so with the fingerprint of the shards that are here.

        Raises
        ------
        OtherBuildError
            A build of another plan is here.
        BusyError
            Another process builds the same part of an array.
        UserError
            The directory holds files of someone else.
        """
        recipe = self.parts / RECIPE
        if recipe.is_file():
            refuse_other_build(recipe, plan, source)
        else:
            self._refuse_foreign_files()
        self._begin(plan, ignored, source)
        if self.part:  # two parts without shards, of an array with more parts than shards, do not exclude each other
            # Part locks stay until the build is finished: removing one would race with the next holder.
            name = f"lock-{self.part.start}-{self.part.stop}"
            self._held.enter_context(acquire(self.parts / name, location=self.path))
        return replace(self.read_plan()[0], algorithms=plan.algorithms)

    def reopen(self, plan: Plan, ignored: int, source: Source) -> None:
        """Turn a finished build into an unfinished one whose shards are all committed.

        The manifest is cut into the rows of each shard again. Call `check_finished` first.
        """
        content = Shards(self.path).build  # checks the manifest, whose rows go into the next one
        self.remove_leftovers()
        self.parts.mkdir(exist_ok=True)
        seconds = content["run"]["seconds"]
        rows: dict[int, list[pa.Table]] = {}
        for group in range(pq.read_metadata(open_for_arrow(self.path / MANIFEST)).num_row_groups):
            table = read_manifest(self.path / MANIFEST, group=group)
            numbers = pc.divide(table["position"], plan.recipe.shard_size)
            for number in numbers.unique().to_pylist():
                rows.setdefault(number, []).append(table.filter(pc.equal(numbers, number)))
        if rows.keys() != {*range(plan.shards)}:
            raise DamagedError(f"{self.path / MANIFEST}: damaged, its positions do not fit the shards")
        for number, stats in enumerate(content["shards"]):
            table = pa.concat_tables(rows.pop(number))
            write_atomically(rows_file(self.path, number), partial(pq.write_table, table))
            # build.json holds the total over all shards; the first shard carries it.
            spent = seconds if number == 0 else dict.fromkeys(seconds, 0.0)
            write_stats(self.path, number, plan.fingerprint, {**stats, "seconds": spent})
        self._begin(plan, ignored, source)
        (self.path / BUILD).unlink()
        (self.path / MANIFEST).unlink()

    def finish(self, plan: Plan, ignored: int, shards: Sequence[dict[str, Any]], run: dict[str, Any]) -> None:
        """Finish a build whose shards have these stats."""
        publish(self.path, _describe(plan), shards, ignored, RECORDED, run=run)
        shutil.rmtree(self.parts, ignore_errors=True)

    def discard(self, plan: Plan) -> None:
        """Remove an unfinished build of `plan`; other files, which its user may have put there, stay."""
        for number in range(plan.shards):
            (self.path / shard_name(number, plan.prefix)).unlink(missing_ok=True)
        # recipe.json is removed last: until then the same command can resume.
        for path in sorted(self.parts.iterdir(), key=lambda path: path.name == RECIPE):
            path.unlink()
        self.parts.rmdir()

    def read_stats(self, plan: Plan, number: int) -> dict[str, Any] | None:
        """Return the stats of a shard; None if the shard has to be built."""
        return read_stats(self.path, number, plan.fingerprint)

    def forget_failed(self, plan: Plan, numbers: range) -> None:
        """Mark the shards that hold failed images as not committed, so that they are built again."""
        for number in numbers:
            stats = self.read_stats(plan, number)
            if stats is not None and stats["failed"]:
                stats_file(self.path, number).unlink()

    def remove_leftovers(self) -> None:
        """Remove what killed processes left. An array part removes only files of its own shards."""
        if self.part is None:
            shutil.rmtree(self.path / REPAIR, ignore_errors=True)
            for name in (MANIFEST, CARD, BUILD):
                for path in self.path.glob(f"{name}.*.tmp"):
                    path.unlink()
            if self.is_finished:  # killed between writing build.json and removing parts/
                shutil.rmtree(self.parts, ignore_errors=True)
        tars = [path for path in self.path.glob("*.tmp") if SHARD_FILE.fullmatch(path.name)]
        for path in [*tars, *self.parts.glob("*.tmp")]:
            number = path.name.partition(".")[0].rpartition("-")[2]
            if self.part is None or (number.isdecimal() and int(number) in self.part):
                path.unlink()

    @contextmanager
    def scratch(self, source: Source) -> Iterator[Path]:
        """Directory for jobs that rebuild shards of a finished build; removed on exit."""
        path = self.path / REPAIR
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            prepare_jobs(path, source)
            yield path
        finally:
            shutil.rmtree(path)

    def _begin(self, plan: Plan, ignored: int, source: Source) -> None:
        """Write the listing, then recipe.json if it is missing.

        A listing that is here may hold the times of another copy of the files, so one that is not shared is replaced.
        """
        recipe = self.parts / RECIPE
        if self.part is None or not self._has_listing(plan):
            prepare_jobs(self.path, source, compare_times=self.part is None)
        content = as_json(seal({**_describe(plan), "ignored": ignored}))
        if self.part is None:
            if not recipe.is_file():
                write_atomically(recipe, content)
        elif not write_once(recipe, content):  # another part was first, and decided the plan
            refuse_other_build(recipe, plan, source)

    def _has_listing(self, plan: Plan) -> bool:
        """Return whether there is a readable listing: texturegen 0.1.0 began builds with one that lacks the sizes."""
        try:
            return read_listing(self.path, plan.source) is not None
        except DamagedError:
            return False

    def _refuse_foreign_files(self) -> None:
        """Raise UserError if the directory holds anything but what our own processes leave before recipe.json."""
        has_parts = self.parts.is_dir()
        names = {entry.name for entry in self.path.iterdir()} - {PARTS, LOCK}
        if (
            any(not has_parts or not SHARD_FILE.fullmatch(name) for name in names)
            or (not has_parts and self.parts.exists())
            or (has_parts and any(not _OWN_PART.fullmatch(entry.name) for entry in self.parts.iterdir()))
        ):
            raise UserError(f"{self.path}: holds other files; choose another --out")


def _describe(plan: Plan) -> dict[str, Any]:
    """Return the description of a plan, and the release of texturegen that wrote it, which nothing depends on."""
    return {**plan.describe(), "texturegen": __version__}


def prepare_jobs(directory: Path, source: Source, compare_times: bool = True) -> None:
    """Create DIR/parts/, with the list of the source's files: what jobs need to write shards in a directory."""
    (directory / PARTS).mkdir(exist_ok=True)
    write_listing(directory, source, compare_times)
