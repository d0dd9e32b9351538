"""The engine for a Ray cluster: a task per shard, on nodes that share the file system the shards are written to.

Core tasks and not Ray Data: a shard's bytes must depend on its number alone, and a bad image must cost itself only.
A job whose node or worker dies is tried again by this module, not by Ray, which would try one that runs out of memory
for ever and cannot tell at which image it was. A node that was only cut off from the others may still write its shard
beside the second attempt: both write the same bytes, each under a temporary name of its own, and rename.
"""

import contextlib
import os
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from texturegen import __version__
from texturegen.builds.engines.base import ATTEMPTS, POLL_SECONDS, Job, Lost, Outcome, Progress
from texturegen.builds.recipe import RECORDED
from texturegen.console import warn
from texturegen.errors import UserError
from texturegen.storage.atomic import temporary_name

CONNECT_SECONDS = 10.0
BEGIN_SECONDS = 60.0  # without a job begun in them, a word is said
STOP_SECONDS = 20

Counts = tuple[int, int]  # made, failed
Attempt = tuple[int, int]  # of job number, the how many-th, from 0


def run_on_ray(
    job: Job,
    numbers: list[int],
    workers: int | None,
    progress: Progress,
    directory: Path,
    address: str | None = None,
) -> Iterator[Outcome]:
    """Run jobs as Ray tasks of one CPU each; what it yields and raises is said in `engine`.

    Parameters
    ----------
    workers : jobs handed to Ray at once; None or 0: as many as the cluster has CPUs, and as many again that wait, from
        which an autoscaler sees that there is more to do.
    address : "ray://HOST:10001" (a cluster, from outside), "HOST:6379" (from one of its nodes), "auto" or None (what
        RAY_ADDRESS says, or else the cluster that this machine is a node of), "local" (one on this machine, for a
        trial: who meant a cluster and is not on it shall not get the work of one machine instead).
    directory : where the jobs write. A node that does not see it ends the build before it makes anything.

    Raises UserError when there is no Ray or no cluster, or a node has other versions or does not see `directory`.
    """
    ray = _import_ray()
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():  # a program of its own may have connected, and then stays so
            stack.enter_context(_silence(ray))
            _connect(ray, address)
            stack.callback(ray.shutdown)
        mark = stack.enter_context(_mark(directory))
        yield from _Tasks(ray, job, workers, progress, mark).run(numbers)


class _Tasks:
    """The tasks under way, and how far each is known to be."""

    def __init__(self, ray: Any, job: Job, workers: int | None, progress: Progress, mark: Path) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.workers, self.progress = ray, workers, progress
        # On this process's node, to be lost with it only. If it is lost, it starts again and the tasks tell it anew.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.board = ray.remote(_make_board()).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        versions = {name: version(name) for name in RECORDED}
        # The job goes as bytes, for a node with another texturegen must not try to read it.
        payload = ray.cloudpickle.dumps(job)
        fixed = payload, __version__, versions, os.getcwd(), str(mark.absolute()), self.board
        task = ray.remote(_make_task()).options(num_cpus=1, max_retries=0)
        self.submit: Callable[[Attempt], Any] = lambda attempt: task.remote(*fixed, attempt)
        self.running: dict[Any, Attempt] = {}
        self.told: dict[Attempt, Counts] = {}

    def run(self, numbers: list[int]) -> Iterator[Outcome]:
        waiting = deque((number, 0) for number in numbers)
        deaths: defaultdict[int, list[int | None]] = defaultdict(list)
        begun, start, listened = False, time.monotonic(), 0.0
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self._room():
                    attempt = waiting.popleft()
                    self.running[self.submit(attempt)] = attempt
                done, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS)
                now = time.monotonic()
                if now - listened >= POLL_SECONDS:
                    listened = now
                    begun = bool(self._poll([*self.running.values()]) or done) or begun
                if not begun and now - start > BEGIN_SECONDS:
                    begun = True  # said once
                    warn("no shard is begun yet: the Ray cluster has no free CPU (`ray status` says more)")
                for task in done:
                    attempt = self.running.pop(task)
                    number, tries = attempt[0], attempt[1] + 1
                    try:
                        refusal, counts, result = self._get(task)
                    except _Died:
                        deaths[number].append(self._poll([attempt]).get(attempt, (None, 0))[0])
                        self._report(attempt, (0, 0))  # it is not there: that shard has to be begun again
                        if tries < ATTEMPTS:
                            waiting.append((number, tries))
                        else:
                            # The first attempt told twice a second only: it is not known where it was in the end.
                            known = deaths[number][1:]
                            yield Lost(number, () if None in known else tuple(made or 0 for made in known))
                    else:
                        if refusal:
                            raise UserError(refusal)
                        self._report(attempt, counts)
                        del self.told[attempt]
                        yield result
        finally:
            self._stop()

    def _room(self) -> int:
        # Asked each time: nodes come and go.
        return self.workers or max(2 * int(self.ray.cluster_resources().get("CPU", 0)), 1)

    def _get(self, task: Any) -> tuple[str | None, Counts, Any]:
        """A finished task's result; the job's own exception; _Died when none is known."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(task)
        except errors.RayTaskError as error:
            raise (error.cause or error) from error
        except (errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            raise UserError(f"the Ray cluster cannot run the build's tasks: {_one_line(error)}") from None
        except errors.RayError:
            raise _Died from None

    def _poll(self, attempts: list[Attempt]) -> dict[Attempt, Counts]:
        """What the board has of `attempts`, after it was told on; nothing while the board is lost or busy."""
        try:
            news: dict[Attempt, Counts] = self.ray.get(self.board.read.remote(attempts), timeout=5)
        except self.ray.exceptions.RayError:
            return {}
        for attempt, counts in news.items():
            self._report(attempt, counts)
        return news

    def _report(self, attempt: Attempt, counts: Counts) -> None:
        made, failed = self.told.get(attempt, (0, 0))
        self.told[attempt] = counts
        if (made, failed) != counts:
            self.progress(counts[0] - made, counts[1] - failed)

    def _stop(self) -> None:
        """Let what is under way end at its next image. Not by `ray.cancel`, which now and then aborts this process.

        (Ray 2.60, "Check failed: it != submissible_tasks_.end()", when a cancelled task is just about to end.)
        What has not begun, or does not end in time, ends with this process's connection to the cluster.
        """
        with contextlib.suppress(self.ray.exceptions.RayError, ConnectionError):
            begun = self.ray.get(self.board.stop.remote(), timeout=5)
            under_way = [task for task, attempt in self.running.items() if attempt in begun]
            if under_way:
                self.ray.wait(under_way, num_returns=len(under_way), timeout=STOP_SECONDS)
        with contextlib.suppress(self.ray.exceptions.RayError, ConnectionError):
            self.ray.kill(self.board)


class _Died(Exception):
    """A task's worker, or its node, ended before the task did."""


def _make_task() -> Callable[..., Any]:
    # Defined in here, Ray sends their code along: a node without texturegen, or with another one, can then say so.
    def task(
        payload: bytes,
        texturegen_version: str,
        versions: dict[str, str],
        working_directory: str,
        mark: str,
        board: Any,
        attempt: tuple[int, int],
    ) -> tuple[str | None, tuple[int, int], Any]:
        import contextlib
        import importlib.metadata
        import os
        import pickle
        import socket
        import sys
        import time

        os.environ["NUMBA_NUM_THREADS"] = "1"  # before Numba is imported
        host = socket.gethostname()

        def refuse(why: str) -> tuple[str, tuple[int, int], None]:
            return f"Ray node {host}: {why}", (0, 0), None

        try:
            import cv2

            import texturegen

            there = {name: importlib.metadata.version(name) for name in versions}
        except ImportError as error:
            return refuse(f"{error}, for {sys.executable}; install sacl-texture {texturegen_version} on every node")
        there["texturegen"] = texturegen.__version__
        for name, wanted in {"texturegen": texturegen_version, **versions}.items():
            if there[name] != wanted:
                return refuse(f"has {name} {there[name]}, but the build was started with {wanted}; install the same")
        with contextlib.suppress(OSError):  # for relative paths; where they lead elsewhere, the next line says it
            os.chdir(working_directory)
        if not os.path.exists(mark):
            shared = os.path.dirname(mark)
            return refuse(f"does not see {shared}; choose an --out on a file system that all nodes share")
        cv2.setNumThreads(1)

        import ray

        from texturegen.builds.engines.base import Stopped

        made = failed = 0
        last = time.monotonic()

        def tick(more: int, more_failed: int) -> bool:
            nonlocal made, failed, last
            made, failed = made + more, failed + more_failed
            # Where something has died before, it is to be known at which image if it does so again.
            if attempt[1] == 0 and time.monotonic() - last < 0.5:
                return True
            last = time.monotonic()
            return report()

        def report() -> bool:
            """Tell the board, and whether to go on."""
            try:
                return ray.get(board.write.remote(attempt, (made, failed)), timeout=5)
            except ray.exceptions.ActorDiedError:  # it was taken away: the build is over
                return False
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                return True  # it was lost with its node, and will be back

        result = None
        with contextlib.suppress(Stopped):
            if report():
                result = pickle.loads(payload)(attempt[0], tick)
        return None, (made, failed), result

    return task


def _make_board() -> type:
    class Board:
        """An actor on which tasks write how far they are. Totals and not steps: one that is lost does no harm."""

        def __init__(self) -> None:
            self.counts: dict[tuple[int, int], tuple[int, int]] = {}
            self.stopped = False

        def write(self, attempt: tuple[int, int], counts: tuple[int, int]) -> bool:
            self.counts[attempt] = counts
            return not self.stopped

        def stop(self) -> set[tuple[int, int]]:
            """Let every task end; tell which have begun."""
            self.stopped = True
            return set(self.counts)

        def read(self, attempts: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
            return {attempt: self.counts[attempt] for attempt in attempts if attempt in self.counts}

    return Board


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here tells nobody of it
    try:
        import ray
    except ImportError:
        raise UserError("the engine 'ray' needs Ray, which is not installed: pip install 'sacl-texture[ray]'") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address == "local":
        ray.init("local", include_dashboard=False, **quiet)
        return
    place = address or "auto"
    if place == "auto":
        place = _find_cluster()
    advice = "is it up, and the address (--ray-address or RAY_ADDRESS) right?"
    try:
        # Ray itself would try for minutes, and end this process without an exception.
        host, _, port = place.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except ValueError:
        raise UserError(
            f"the Ray address {place!r} is none; give auto, HOST:PORT, ray://HOST:PORT, or local for a trial"
        ) from None
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {place} ({error.strerror or error}); {advice}") from None
    try:
        ray.init(place, **quiet)
    except Exception as error:  # Ray raises plain ones too, for other versions and for a machine that is no node
        raise UserError(f"the Ray cluster at {place} cannot be used: {_one_line(error)}; {advice}") from None


@contextlib.contextmanager
def _silence(ray: Any) -> Iterator[None]:
    """Keep Ray's messages about lost nodes off stdout, where they would stand between the lines of --log-json.

    Ray has no public way: `log_to_driver=False` is for the workers' output only.
    """
    printer = ray._private.worker
    before = getattr(printer, "_worker_logs_enabled", True)
    printer._worker_logs_enabled = False
    try:
        yield
    finally:
        printer._worker_logs_enabled = before


def _find_cluster() -> str:
    """The HOST:PORT of RAY_ADDRESS, or of the cluster that this machine is a node of."""
    from ray._private.services import canonicalize_bootstrap_address_or_die as find  # there is no public way

    try:
        return os.environ.get("RAY_ADDRESS") or find("auto")
    except (ConnectionError, ValueError):
        raise UserError(
            "no Ray cluster found: RAY_ADDRESS is not set, and this machine is no node of one; give --ray-address "
            "(HOST:PORT, ray://HOST:PORT, or local for a trial), or leave out --engine ray to use this machine alone"
        ) from None


@contextlib.contextmanager
def _mark(directory: Path) -> Iterator[Path]:
    """A file by which a node knows `directory`, and not another one of the same name on a disk of its own."""
    path = temporary_name(directory / "ray")
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".:") or type(error).__name__
