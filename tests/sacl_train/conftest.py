"""Training without its figure, which takes longer to draw than a tiny run takes to train."""

import pytest


@pytest.fixture
def curves() -> None:
    """Request this fixture to have `train` draw curves.png."""


@pytest.fixture(autouse=True)
def _without_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "curves" not in request.fixturenames:
        monkeypatch.setattr("sacl_train.training.loop.draw_curves", lambda *_: None)
