"""The lines of a long job's progress."""

import pytest

from texturegen import console
from texturegen.console import LINE_SECONDS, Progress


def test_rate_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    progress = Progress(10_000, "images", already=100)

    def work(seconds: float, images: int) -> str:
        now[0] += seconds
        progress(images)
        return capsys.readouterr().err

    assert work(LINE_SECONDS / 2, 1) == ""
    assert work(95, 99) == "200/10000 images, 1/s, 9800 s left\n"  # a slow start
    assert work(1000, 330) == "530/10000 images, 0.39/s, 24226 s left\n"
    for _ in range(5):
        work(LINE_SECONDS, 1000)
    assert work(LINE_SECONDS, 1000) == "6530/10000 images, 100/s, 35 s left\n"
