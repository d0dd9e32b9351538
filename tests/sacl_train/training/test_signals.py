"""SIGTERM and Ctrl-C as a request to stop: the first signal, its echo, other threads."""

import signal
import threading
import time

import pytest

import sacl_train.training.signals
from sacl_train.training.signals import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_sets_event_and_old_handlers_are_restored(number: signal.Signals) -> None:
    usual = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with stop_on_signal() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == usual


def test_signals_are_ignored_outside_main_thread() -> None:
    heard = []

    def work() -> None:
        with stop_on_signal() as stop:
            heard.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]


@pytest.mark.parametrize(
    ("torchrun", "echo", "waits"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_torchrun_waits_for_second_signal(
    torchrun: bool, echo: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(sacl_train.training.signals, "ECHO_SECONDS", 0.5)
    begin = time.monotonic()
    with stop_on_signal():
        signal.raise_signal(signal.SIGINT)
        if echo:
            signal.raise_signal(signal.SIGINT)
    assert (time.monotonic() - begin > 0.5) == waits
