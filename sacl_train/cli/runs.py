"""Where `sacl-train` writes without --out, and which run `sacl-eval` takes without --run."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from texturegen.errors import MissingError

if TYPE_CHECKING:
    from sacl_train.config import Config

RUNS = Path("runs")


def default_out(config: "Config", shards_digest: str) -> Path:
    """Return runs/METHOD-ENCODER-DIGEST, the same for every command that resumes the same run.

    The digest is of the shards and of the settings that differ from the defaults, so a release that adds settings still
    finds its predecessor's run. Settings that may change on resuming are left out.
    """
    from sacl_train.config import load_config  # loads torch, which --help must not
    from sacl_train.training.resume import comparable

    defaults = comparable(load_config(None, {"method": config.method}))
    chosen = {key: value for key, value in comparable(config).items() if value != defaults[key]}
    content = json.dumps([shards_digest, config.method, chosen], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return RUNS / "-".join([config.method, re.sub(r"[^A-Za-z0-9_.]+", "-", config.encoder), digest])


def newest_run() -> Path:
    """Return the run below runs/ that wrote a checkpoint last; MissingError if there is none."""
    from sacl_train.training.checkpoint import is_checkpoint

    found = [path for path in RUNS.glob("*/*") if is_checkpoint(path)]
    if not found:
        raise MissingError(f"there is no run in {RUNS.absolute()}; give one with --run, or train one with `sacl-train`")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent
