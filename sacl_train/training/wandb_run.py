"""Metrics in Weights & Biases, in one run of theirs however often ours is resumed."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from texturegen.errors import UserError
from texturegen.storage.atomic import write_atomically

NAME = "wandb.json"  # in RUN: the identity of the run there
PROJECT = "sacl-texture"  # unless WANDB_PROJECT names another


class WandbRun:
    """A run of Weights & Biases; its environment variables (WANDB_MODE, WANDB_PROJECT, ...) apply.

    The metrics are plotted over "trained/step", not over the order of logging: after a resume the steps since the last
    checkpoint are logged once more, under the same numbers.

    Parameters
    ----------
    run : Path
        Directory of our run. The identity is stored in RUN/wandb.json, and their files in RUN/wandb.
    settings : dict
        All settings of the run, JSON-serialisable.

    Raises
    ------
    UserError
        If wandb refuses to start, for example without an API key.
    """

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        import wandb

        try:
            identity = json.loads((run / NAME).read_text())["id"]
        except (OSError, ValueError, KeyError, TypeError):  # a new run, or the file is damaged
            identity = secrets.token_hex(4)
            write_atomically(run / NAME, json.dumps({"id": identity}) + "\n")
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        name = run.resolve().name
        try:
            self._run = wandb.init(
                project=project, id=identity, resume="allow", name=name, dir=str(run), config=settings
            )
        except Exception as error:  # of their server, their login or their configuration
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"wandb cannot start ({reason}); run `wandb login`, or set WANDB_MODE=offline, or train with --set "
                "wandb=false"
            ) from None
        for group in ("step", "epoch"):
            self._run.define_metric(f"{group}/*", step_metric="trained/step")

    def write(self, group: str, values: dict[str, float], step: int) -> None:
        """Log numbers as GROUP/NAME at a step of our run."""
        self._run.log({**{f"{group}/{name}": value for name, value in values.items()}, "trained/step": step})

    def close(self) -> None:
        """Mark the run as finished there and wait until everything is written or sent."""
        self._run.finish()
