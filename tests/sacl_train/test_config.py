"""Settings: defaults under a file under flags; mistakes named with the nearest key."""

from pathlib import Path

import pytest

from sacl_train.config import Config, dump_config, load_config
from texturegen.errors import UserError


def test_defaults_are_the_papers() -> None:
    config = load_config(None, {})
    assert (config.lr, config.weight_decay, config.batch_size, config.epochs) == (0.1, 1e-4, 128, 200)
    own = config.method_settings
    assert (own.tau, own.momentum, own.grid, own.texture_role) == (0.2, 0.99, 2, "negative")


def test_flags_win_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("epochs = 7\nlr = 1\ntau = 0.5\nmean = [0.5, 0.5, 0.5]\n")
    config = load_config(path, {"epochs": 9, "alpha": 2})
    assert (config.epochs, config.lr, config.batch_size) == (9, 1.0, 128)
    assert (config.method_settings.tau, config.method_settings.alpha) == (0.5, 2.0)
    assert config.mean == (0.5, 0.5, 0.5)


def test_a_dumped_config_reads_back(tmp_path: Path) -> None:
    config = load_config(None, {"width": 8, "std": [0.1, 0.2, 0.3], "scope": "own", "channels_last": False})
    path = tmp_path / "c.toml"
    path.write_text(dump_config(config))
    assert load_config(path, {}) == config
    assert config != Config()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "no setting 'epoch' .did you mean 'epochs'"),
        ({"method": "mocov2", "grid": 1}, "method mocov2 has no setting 'grid'; it belongs to sacl, fast-moco"),
        ({"queue": 1}, "method sacl has no setting 'queue'; it belongs to mocov2"),
        ({"cache_gb": -1}, "cache_gb is -1.0; it must be at least 0"),
        ({"texturerole": "none"}, "did you mean 'texture_role'"),
        ({"epochs": "many"}, "epochs is 'many'; it must be a whole number"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
        ({"epochs": -1}, "epochs is -1; it must be at least 0"),
        ({"lr": 0}, "lr is 0.0; it must be above 0"),
        ({"channels_last": 1}, "channels_last is 1; it must be true or false"),
        ({"mean": [0.5]}, "mean has 1 values"),
        ({"method": "scal"}, "no method 'scal' .did you mean 'sacl'"),
        ({"texture_role": "negativ"}, "did you mean 'negative'"),
        ({"cells": 5}, "cells"),
        ({"crop_scale": [0.5, 0.2]}, "crop_scale is"),
        ({"jitter": [0.4, 0.4, 0.4]}, "jitter is"),
        ({"jitter": [0.4, 0.4, 0.4, 0.6]}, "jitter is"),
        ({"grey": 1.5}, "grey is 1.5"),
        ({"lr": float("inf")}, "lr is inf; it must be a finite number"),
        ({"std": [0, 0, 0]}, "std is"),
        ({"projector_hidden": 0}, "projector_hidden"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"seed": 10**20}, "seed is 1"),
        ({"method": [1]}, "no method"),
        ({"batch_size": 1}, "batch_size is 1"),
    ],
)
def test_a_mistake_is_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, settings)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("epochs: 3")
    with pytest.raises(UserError, match=r"c.toml: not a TOML file"):
        load_config(path, {})
