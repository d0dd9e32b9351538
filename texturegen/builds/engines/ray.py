"""The engine for a Ray cluster: one task per shard, on nodes that share the file system with the shards.

It uses core tasks rather than Ray Data, because the bytes of a shard must depend on its number alone, and a bad image
must not affect others. A job whose node or worker dies is retried by this module: Ray would retry one that runs out of
memory forever, and does not know at which image it died. A node that was only disconnected may finish its shard while
the second attempt runs: both write the same bytes to different temporary files, and rename them.
"""

import contextlib
import os
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from texturegen import __version__
from texturegen.builds.engines.base import ATTEMPTS, POLL_SECONDS, Job, Lost, Outcome, Progress
from texturegen.builds.recipe import RECORDED
from texturegen.console import warn
from texturegen.errors import MissingError, UserError
from texturegen.shards.publish import version_of
from texturegen.storage.atomic import temporary_name

CONNECT_SECONDS = 10.0
START_SECONDS = 60.0  # if no job has started by then, a warning is printed
STOP_SECONDS = 20

Counts = tuple[int, int, int]  # ticks, made, failed
Attempt = tuple[int, int]  # number of the job, number of the attempt from 0


def run_on_ray(
    job: Job,
    numbers: list[int],
    workers: int | None,
    progress: Progress,
    directory: Path,
    address: str | None = None,
) -> Iterator[Outcome]:
    """Run jobs as Ray tasks of one CPU each; see `base` for what it yields and raises.

    Parameters
    ----------
    job, numbers, progress
        See `base.Engine`.
    workers : int or None
        Tasks submitted at once. None or 0: twice the CPUs of the cluster, so that tasks are always waiting, from which
        an autoscaler sees that there is more work.
    directory : Path
        Where the jobs write. A node that does not see it ends the build before it makes anything.
    address : str, optional
        "ray://HOST:10001" for a cluster from outside, "HOST:6379" from one of its nodes, "local" for a cluster on this
        machine alone, as a trial. "auto" or None: the value of RAY_ADDRESS, or else the cluster that this machine is a
        node of. A local cluster is started only on request, so that a build meant for a cluster does not silently run
        on one machine.

    Raises
    ------
    MissingError
        Ray is not installed.
    UserError
        No cluster answers, or a node has other package versions or does not see `directory`.
    """
    ray = _import_ray()
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():  # if the calling program has connected, its connection is kept
            stack.enter_context(_silence(ray))
            _connect(ray, address)
            stack.callback(ray.shutdown)
        mark = stack.enter_context(_mark(directory))
        yield from _Tasks(ray, job, workers, progress, mark).run(numbers)


class _Tasks:
    """The running tasks, and their progress as last reported."""

    def __init__(self, ray: Any, job: Job, workers: int | None, progress: Progress, mark: Path) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.workers, self.progress = ray, workers, progress
        # On this process's node, so that losing another node does not lose the board. A restarted board is empty, and
        # the tasks report their totals again.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.board = ray.remote(_make_board()).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        versions = {name: found for name in RECORDED if (found := version_of(name)) != "unknown"}
        # The job is sent as bytes: a node with another version of texturegen must not unpickle it.
        payload = ray.cloudpickle.dumps(job)
        fixed = payload, __version__, versions, os.getcwd(), str(mark.absolute()), self.board
        task = ray.remote(_make_task()).options(num_cpus=1, max_retries=0)
        self.submit: Callable[[Attempt], Any] = lambda attempt: task.remote(*fixed, attempt)
        self.running: dict[Any, Attempt] = {}
        self.reported: dict[Attempt, Counts] = {}

    def run(self, numbers: list[int]) -> Iterator[Outcome]:
        waiting = deque((number, 0) for number in numbers)
        deaths: Counter[int] = Counter()
        places: defaultdict[int, list[int | None]] = defaultdict(list)  # textures made at a death, None: unknown
        failed_starts: Counter[int] = Counter()
        has_started, start, last_poll = False, time.monotonic(), 0.0
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self._max_running():
                    attempt = waiting.popleft()
                    self.running[self.submit(attempt)] = attempt
                done, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS)
                now = time.monotonic()
                if now - last_poll >= POLL_SECONDS:
                    last_poll = now
                    has_started = bool(self._poll([*self.running.values()]) or done) or has_started
                if not has_started and now - start > START_SECONDS:
                    has_started = True  # warn once
                    warn("no shard has started yet: the Ray cluster has no free CPU (see `ray status`)")
                for task in done:
                    attempt = self.running.pop(task)
                    number, tries = attempt
                    try:
                        refusal, counts, result = self._get(task)
                    except _Died:
                        last = self._poll([attempt]).get(attempt)
                        self._report(attempt, (0, 0, 0))  # lost with the worker: the shard starts again
                        if last is not None and last[0] == 0:
                            failed_starts[number] += 1
                        else:
                            deaths[number] += 1
                            if tries > 0:  # the first attempt reports only twice a second
                                places[number].append(None if last is None else last[1])
                        if deaths[number] == ATTEMPTS:
                            known = [made for made in places[number] if made is not None]
                            yield Lost(number, tuple(known) if len(known) == len(places[number]) else ())
                        elif failed_starts[number] == ATTEMPTS:
                            yield Lost(number)
                        else:
                            waiting.append((number, tries + 1))
                    else:
                        if refusal:
                            raise UserError(refusal)
                        self._report(attempt, counts)
                        del self.reported[attempt]
                        yield result
        finally:
            self._stop()

    def _max_running(self) -> int:
        # Asked each time, because nodes join and leave.
        return self.workers or max(2 * int(self.ray.cluster_resources().get("CPU", 0)), 1)

    def _get(self, task: Any) -> tuple[str | None, Counts, Any]:
        """Return the result of a finished task; raise the exception of its job, or _Died if the worker died."""
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
        """Report what the board knows about `attempts`, and return it; nothing while the board is lost or busy."""
        try:
            news: dict[Attempt, Counts] = self.ray.get(self.board.read.remote(attempts), timeout=5)
        except self.ray.exceptions.RayError:
            return {}
        for attempt, counts in news.items():
            self._report(attempt, counts)
        return news

    def _report(self, attempt: Attempt, counts: Counts) -> None:
        _, made, failed = self.reported.get(attempt, (0, 0, 0))
        self.reported[attempt] = counts
        if (made, failed) != counts[1:]:
            self.progress(counts[1] - made, counts[2] - failed)

    def _stop(self) -> None:
        """Ask running tasks to stop at their next image.

        `ray.cancel` sometimes aborts this process (Ray 2.60, "Check failed: it != submissible_tasks_.end()", if the
        cancelled task is about to end). Tasks that have not started, or do not stop in time, end with the connection
        to the cluster.
        """
        with contextlib.suppress(self.ray.exceptions.RayError, ConnectionError):
            started = self.ray.get(self.board.stop.remote(), timeout=5)
            running = [task for task, attempt in self.running.items() if attempt in started]
            if running:
                self.ray.wait(running, num_returns=len(running), timeout=STOP_SECONDS)
        with contextlib.suppress(self.ray.exceptions.RayError, ConnectionError):
            self.ray.kill(self.board)


class _Died(Exception):
    """The worker of a task, or its node, died."""


def _make_task() -> Callable[..., Any]:
    # Ray sends the code of nested functions along, so a node without texturegen, or with another version, can say so.
    def task(
        payload: bytes,
        texturegen_version: str,
        versions: dict[str, str],
        working_directory: str,
        mark: str,
        board: Any,
        attempt: tuple[int, int],
    ) -> tuple[str | None, tuple[int, int, int], Any]:
        import contextlib
        import importlib.metadata
        import os
        import pickle
        import socket
        import sys
        import time

        os.environ["NUMBA_NUM_THREADS"] = "1"  # before Numba is imported
        host = socket.gethostname()

        def refuse(why: str) -> tuple[str, tuple[int, int, int], None]:
            return f"Ray node {host}: {why}", (0, 0, 0), None

        try:
            import cv2

            import texturegen

            there = {name: importlib.metadata.version(name) for name in versions}
        except ImportError as error:
            return refuse(f"{error}, for {sys.executable}; install sacl-texture {texturegen_version} on every node")
        there["texturegen"] = texturegen.__version__
        for name, wanted in {"texturegen": texturegen_version, **versions}.items():
            if there[name] != wanted:
                return refuse(f"has {name} {there[name]}, but the build was started with {wanted}; install the latter")
        with contextlib.suppress(OSError):  # for relative paths; if it fails, the check below reports it
            os.chdir(working_directory)
        if not os.path.exists(mark):
            shared = os.path.dirname(mark)
            return refuse(f"does not see {shared}; choose an --out on a file system that all nodes share")
        cv2.setNumThreads(1)

        import ray

        from texturegen.builds.engines.base import Stopped

        ticks = made = failed = 0
        last = time.monotonic()

        def tick(more: int, more_failed: int) -> bool:
            nonlocal ticks, made, failed, last
            ticks, made, failed = ticks + 1, made + more, failed + more_failed
            # The first tick says that the job has begun. After a death, every image is reported, to know at which one
            # the next attempt dies.
            if attempt[1] == 0 and ticks > 1 and time.monotonic() - last < 0.5:
                return True
            last = time.monotonic()
            return report()

        def report() -> bool:
            """Report to the board; return False if the build was stopped."""
            try:
                return ray.get(board.write.remote(attempt, (ticks, made, failed)), timeout=5)
            except ray.exceptions.ActorDiedError:  # killed by `_stop`: the build has ended
                return False
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                return True  # lost with its node; Ray restarts it

        result = None
        with contextlib.suppress(Stopped):
            if report():
                result = pickle.loads(payload)(attempt[0], tick)
        return None, (ticks, made, failed), result

    return task


def _make_board() -> type:
    class Board:
        """An actor to which tasks report their progress: totals, so that a lost report does not matter."""

        def __init__(self) -> None:
            self.counts: dict[tuple[int, int], tuple[int, int, int]] = {}
            self.stopped = False

        def write(self, attempt: tuple[int, int], counts: tuple[int, int, int]) -> bool:
            self.counts[attempt] = counts
            return not self.stopped

        def stop(self) -> set[tuple[int, int]]:
            """Ask every task to stop, and return those that have started."""
            self.stopped = True
            return set(self.counts)

        def read(self, attempts: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int, int]]:
            return {attempt: self.counts[attempt] for attempt in attempts if attempt in self.counts}

    return Board


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # for a cluster started here
    try:
        import ray
    except ImportError:
        raise MissingError(
            "the engine 'ray' needs Ray, which is not installed: pip install 'sacl-texture[ray]'"
        ) from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address == "local":
        ray.init("local", include_dashboard=False, **quiet)
        return
    if address in (None, "auto"):
        address = _find_cluster()
    advice = "check that it is running, and the address (--ray-address or RAY_ADDRESS)"
    try:
        # Checked first: Ray itself retries for minutes, then ends this process without an exception.
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except ValueError:
        raise UserError(
            f"invalid Ray address {address!r}; use auto, HOST:PORT, ray://HOST:PORT, or local for a trial"
        ) from None
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {address} ({error.strerror or error}); {advice}") from None
    try:
        ray.init(address, **quiet)
    except Exception as error:  # Ray raises bare exceptions, for other versions or a machine that is not a node
        raise UserError(f"the Ray cluster at {address} cannot be used: {_one_line(error)}; {advice}") from None


@contextlib.contextmanager
def _silence(ray: Any) -> Iterator[None]:
    """Keep Ray's messages about lost nodes off stdout, where they would mix with the lines of --log-json.

    Ray offers no public setting: `log_to_driver=False` covers the output of workers only.
    """
    printer = ray._private.worker
    before = getattr(printer, "_worker_logs_enabled", True)
    printer._worker_logs_enabled = False
    try:
        yield
    finally:
        printer._worker_logs_enabled = before


def _find_cluster() -> str:
    """Return HOST:PORT from RAY_ADDRESS, or of the cluster that this machine is a node of."""
    from ray._private.services import canonicalize_bootstrap_address_or_die as find  # no public function

    try:
        return os.environ.get("RAY_ADDRESS") or find("auto")
    except (ConnectionError, ValueError):
        raise UserError(
            "no Ray cluster found: RAY_ADDRESS is not set, and this machine is not a node of one; give --ray-address "
            "(HOST:PORT, ray://HOST:PORT, or local for a trial), or omit --engine ray to use this machine alone"
        ) from None


@contextlib.contextmanager
def _mark(directory: Path) -> Iterator[Path]:
    """Create a file that tells `directory` from a directory of the same name on a node's own disk."""
    path = temporary_name(directory / "ray")
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".:") or type(error).__name__
