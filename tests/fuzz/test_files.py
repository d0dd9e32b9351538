"""Mutated files: FUZZ_CASES in total (default 260), from FUZZ_SEED on. `make fuzz` runs 20,000 and prints a summary."""

import faulthandler
import json
import os
import random
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.fuzz.targets import TARGETS

CASES = int(os.environ.get("FUZZ_CASES", "260"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
REPORT = os.environ.get("FUZZ_REPORT")  # JSON lines: outcomes of each target
SECONDS = 30  # a case that takes longer hangs


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TimeoutError in code that hangs; end the process, with its stacks, if C code does."""

    def stop(*_: int | FrameType | None) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_are_read_as_they_were_or_refused(name: str, tmp_path: Path) -> None:
    target, total = TARGETS[name], sum(target.weight for target in TARGETS.values())
    (tmp_path / "sound").mkdir()
    run = target.prepare(tmp_path / "sound")
    outcomes: Counter[str] = Counter()
    findings = []
    for number in range(SEED, SEED + CASES * target.weight // total):
        work = tmp_path / "work"
        work.mkdir()
        try:
            with time_limit():
                outcomes[run(random.Random(f"{name} {number}"), work)] += 1
        except (Exception, SystemExit) as error:
            outcomes["finding"] += 1
            findings.append(f"FUZZ_SEED={number}: {error!r}\n{''.join(traceback.format_exc(limit=-6))}")
        shutil.rmtree(work)
    if REPORT:
        with open(REPORT, "a") as f:
            f.write(json.dumps({"target": name, "seed": SEED, **outcomes, "findings": findings}) + "\n")
    assert not findings, f"{len(findings)} of {sum(outcomes.values())} cases\n" + "\n".join(findings[:5])
    assert outcomes["refused"] > 0
