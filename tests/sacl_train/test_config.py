"""Settings: flags override the file, which overrides defaults; errors suggest the nearest key."""

from pathlib import Path

import pytest

from sacl_train.config import Config, dump_config, load_config
from texturegen.errors import UserError


def test_defaults_equal_the_papers() -> None:
    config = load_config(None, {})
    assert (config.lr, config.weight_decay, config.batch_size, config.epochs) == (0.1, 1e-4, 128, 200)
    assert (config.sgd_momentum, config.optimizer, config.warmup_epochs, config.clip) == (0.9, "sgd", 0, None)
    assert (config.weak, config.crop_scale, config.degrees) == ("colour-geometric", None, 15)
    own = config.method_settings
    assert (own.tau, own.momentum, own.grid, own.texture_role) == (0.2, 0.99, 2, "negative")


def test_flags_override_file_which_overrides_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("epochs = 7\nlr = 1\ntau = 0.5\nmean = [0.5, 0.5, 0.5]\n")
    config = load_config(path, {"epochs": 9, "alpha": 2})
    assert (config.epochs, config.lr, config.batch_size) == (9, 1.0, 128)
    assert (config.method_settings.tau, config.method_settings.alpha) == (0.5, 2.0)
    assert config.mean == (0.5, 0.5, 0.5)
    assert load_config(path, {"mean": "none"}).mean is load_config(path, {"mean": "None"}).mean is None
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "other.toml", {})


def test_dumped_config_can_be_loaded(tmp_path: Path) -> None:
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
        ({"mean": [123.7, 116.3, 103.5]}, r"mean is \[123.7, 116.3, 103.5\]; it must be 0 to 1 per channel"),
        ({"std": [58.4, 57.1, 57.4]}, "it must be 0 to 1 per channel, of pixels divided by 255"),
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
        ({"epochs": True}, "epochs is True; it must be a whole number"),
        ({"lr": "none"}, "lr is 'none'; it must be a finite number"),
        ({"epochs": 3, "warmup_epochs": 4}, "warmup_epochs is 4.0; it must be between 0 and epochs, 3"),
        ({"clip": 0}, "clip is 0.0; it must be above 0, or none"),
        ({"shuffle_cells": [0.3, 0.1]}, "shuffle_cells is"),
        ({"shuffle_cells": [0.1, 0.6]}, "shuffle_cells is"),
        ({"order": "shard"}, "unknown order 'shard' .did you mean 'shards'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"seed": 2**63}, "seed is 9"),
        ({"bad_share": 1}, "bad_share is 1.0; it must be at least 0 and below 1"),
        ({"sgd_momentum": 5}, "sgd_momentum is 5.0; it must be at least 0 and below 1"),
        *(
            ({key: least - 1}, f"{key} is {least - 1}.*; it must be at least {least}")
            for key, least in {
                **{"knn_every": 0, "threads": 1, "seed": 0, "save_every": 1, "keep": 1, "accumulate": 1},
                **{"shuffle_buffer": 1, "log_every": 0, "bad_share": 0, "sgd_momentum": 0, "degrees": 0, "shift": 0},
            }.items()
        ),
    ],
)
def test_mistake_is_reported(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, settings)


def test_minimum_of_every_setting_is_accepted() -> None:
    least = {"epochs": 0, "knn_every": 0, "threads": 1, "seed": 2**63 - 1, "cache_gb": 0, "save_every": 1, "keep": 1}
    least |= {"bad_share": 0, "log_every": 0, "weight_decay": 0, "batch_size": 2, "crop_scale": [1, 1]}
    assert load_config(None, least).bad_share == 0


def test_file_that_is_not_toml_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("epochs: 3")
    with pytest.raises(UserError, match=r"c.toml: not a TOML file"):
        load_config(path, {})


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({}, (2048, 2048, 512)),  # SACL section 3.2
        ({"encoder": "se_resnet18"}, (2048, 2048, 512)),
        ({"encoder": "se_resnet20"}, (256, 256, 64)),
        ({"encoder": "se_resnet8", "width": 4, "projector_out": 32}, (128, 32, 32)),
        ({"encoder": "se_resnet20", "recipe": "paper"}, (2048, 2048, 512)),
        ({"encoder": "se_resnet20", "method": "byol"}, (256, 256, 256)),
        ({"encoder": "timm:resnet18"}, (2048, 2048, 512)),
    ],
)
def test_heads_are_sized_to_the_encoder_by_default(settings: dict, widths: tuple[int, ...]) -> None:
    found = vars(load_config(None, settings).method_settings)
    assert tuple(found[name] for name in ("projector_hidden", "projector_out", "predictor_hidden")) == widths


def test_heads_of_other_methods_keep_what_follows_the_encoder() -> None:
    found = vars(load_config(None, {"encoder": "se_resnet20", "method": "simclr"}).method_settings)
    assert (found["projector_hidden"], found["projector_out"]) == (None, 128)
