"""Published recipes: complete, typed, overridden by explicit settings, as docs/training.md lists them, and applied."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sacl_train.config import Config, dump_config, load_config
from sacl_train.methods import METHODS
from sacl_train.methods.mocov2 import MoCoV2, queue_for
from sacl_train.methods.recipes import Linear
from sacl_train.nets import build_encoder
from sacl_train.nets.blocks import zero_init_residual
from sacl_train.nets.heads import mlp, projector
from sacl_train.training.setup import resolve
from sacl_train.training.state import make_state
from texturegen.errors import UserError
from texturegen.shards import open_shards

DOCS = Path(__file__).parents[3] / "docs" / "training.md"
RECIPES = [(method, name) for method, entry in METHODS.items() for name in entry.load().recipes]
CPU = torch.device("cpu")
TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "device": "cpu"}
HEADS = {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8}
# Columns of the table in the docs; what is left goes into its last column.
COLUMNS = ("optimizer", "lr", "weight_decay", "warmup_epochs", "weak", "crop_scale", "jitter")


def tiny(method: str, recipe: str, **changes: Any) -> Config:
    known = load_config(None, {"method": method}).flat()
    heads = {key: value for key, value in HEADS.items() if key in known}
    return load_config(None, {**TINY, **heads, "method": method, "recipe": recipe, **changes})


def show(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{number:g}" for number in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def rows() -> list[list[str]]:
    """Return the cells of the docs' table."""
    found = []
    for method, name in RECIPES:
        recipe = METHODS[method].load().recipes[name]
        others = ", ".join(f"`{key}={show(value)}`" for key, value in recipe.items() if key not in COLUMNS)
        found.append([f"`{method}`", f"`{name}`", *(show(recipe.get(key, "")) for key in COLUMNS), others])
    return found


@pytest.mark.parametrize(("method", "name"), RECIPES)
def test_recipe_holds_typed_settings_and_survives_config_file(method: str, name: str, tmp_path: Path) -> None:
    config = load_config(None, {"method": method, "recipe": name})
    given = {key: value for key, value in METHODS[method].load().recipes[name].items() if not isinstance(value, Linear)}
    assert load_config(None, {"method": method, "recipe": name, **given}) == config  # as if the user had given them
    flat = config.flat()
    assert all(flat[key] == (list(value) if isinstance(value, tuple) else value) for key, value in given.items())
    (tmp_path / "config.toml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.toml", {}) == config


def test_every_method_has_recipe_for_imagenet_and_all_but_pirl_for_cifar() -> None:
    assert {method for method, name in RECIPES if name == "imagenet"} == {*METHODS}
    assert {method for method, name in RECIPES if name == "cifar"} == {*METHODS} - {"pirl"}
    assert [method for method, name in RECIPES if name == "paper"] == ["sacl"]


def test_learning_rate_grows_with_batch() -> None:
    for batch, lr in ((256, 0.3), (4096, 4.8)):
        config = load_config(None, {"method": "simclr", "recipe": "imagenet", "batch_size": batch})
        assert config.lr == pytest.approx(lr)


def test_explicit_settings_win_over_recipe(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('method = "fast-moco"\nrecipe = "imagenet"\ntau = 0.3\nlr = 0.7\n')
    config = load_config(path, {"clip": "none", "lr": 0.5})
    assert (config.recipe, config.method_settings.tau, config.lr, config.clip) == ("imagenet", 0.3, 0.5, None)
    assert config.zero_init_residual
    path.write_text(dump_config(config))
    assert load_config(path, {}) == config  # clip is written, or the recipe's would come back
    assert load_config(path, {"recipe": "none"}).recipe is None


def test_short_run_warms_up_for_a_tenth() -> None:
    assert load_config(None, {"method": "byol", "recipe": "imagenet"}).warmup_epochs == 10
    assert load_config(None, {"method": "byol", "recipe": "imagenet", "epochs": 3}).warmup_epochs == pytest.approx(0.3)


@pytest.mark.parametrize(("method", "name"), [("pirl", "cifar"), ("byol", "paper"), ("sacl", "cifr")])
def test_missing_recipe_lists_what_there_is(method: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"method {method} has no recipe '{name}'.*it has: .*imagenet") as error:
        load_config(None, {"method": method, "recipe": name})
    assert "\n" not in str(error.value)


def test_sacls_default_views_have_colour_and_papers_do_not() -> None:
    assert load_config(None, {}).weak == load_config(None, {"recipe": "cifar"}).weak == "colour-geometric"
    paper = load_config(None, {"recipe": "paper"})
    assert (paper.weak, paper.sgd_momentum, paper.lr, paper.clip) == ("geometric", 0.99, 0.1, None)


def test_docs_list_recipes() -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert [row for row in table if row[:2] in [list(r[:2]) for r in rows()]] == rows()


def rates(method: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return each trained parameter's group by name."""
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in method.named_parameters() if p.requires_grad}


def test_recipe_reaches_networks_and_optimizer(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    state = make_state(resolve(tiny("simsiam", "cifar"), shards, CPU), shards, CPU, 4)
    assert not any(block.bn2.weight.any() for stage in state.method.encoder.stages() for block in stage)
    linear = [layer for layer in state.method.projector if isinstance(layer, torch.nn.Linear)]
    assert (len(linear), state.method.projector[-1].affine) == (2, False)
    constant = {name: group["constant_lr"] for name, group in rates(state.method, state.optimizer).items()}
    assert all(value == name.startswith("predictor.") for name, value in constant.items())

    state = make_state(resolve(tiny("barlow", "imagenet"), shards, CPU), shards, CPU, 4)
    groups = rates(state.method, state.optimizer)
    lr = {name: group["lr"] for name, group in groups.items()}
    assert lr["encoder.conv1.weight"] == pytest.approx(0.2 * 16 / 256)
    assert lr["encoder.bn1.weight"] == lr["encoder.bn1.bias"] == pytest.approx(0.0048 * 16 / 256)
    assert (groups["encoder.conv1.weight"]["decay"], groups["encoder.bn1.bias"]["decay"]) == (1e-6, 0)
    assert (groups["encoder.conv1.weight"]["adapt"], groups["encoder.bn1.bias"]["adapt"]) == (True, False)

    optimizer = make_state(resolve(tiny("barlow", "cifar"), shards, CPU), shards, CPU, 4).optimizer
    assert (optimizer.trust, optimizer.clip) == (0.02, True)
    adamw = {"optimizer": "adamw", "betas": [0.8, 0.95]}
    optimizer = make_state(resolve(tiny("simclr", "cifar", **adamw), shards, CPU), shards, CPU, 4).optimizer
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_queue_follows_data_set_and_may_not_exceed_it() -> None:
    settings = MoCoV2.Settings
    assert MoCoV2.resolve_settings(settings(), 50_000).queue == 4096
    assert MoCoV2.resolve_settings(settings(), 10**7).queue == 65536
    assert MoCoV2.resolve_settings(settings(queue=64), 64).queue == 64
    assert queue_for(5) == 1
    with pytest.raises(UserError, match=r"queue is 65, but the data set has 64 images.*set queue to 8") as error:
        MoCoV2.resolve_settings(settings(queue=65), 64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["se_resnet8", "se_resnet18", "se_resnet50"])
def test_zero_init_makes_residual_blocks_shortcuts(name: str) -> None:
    encoder = build_encoder(name, "cifar").eval()
    block = encoder.stages()[-1][-1]
    x = torch.randn(2, block.conv1.in_channels, 4, 4).relu()
    shortcut = x if block.downsample is None else block.downsample(x)
    assert not torch.equal(block(x), shortcut)
    zero_init_residual(encoder)
    torch.testing.assert_close(block(x), shortcut)


def test_zero_init_of_encoder_without_residual_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="zero_init_residual does not apply to this encoder"):
        zero_init_residual(torch.nn.Linear(2, 2))


def test_heads_have_layers_and_norms_of_recipes() -> None:
    def kinds(head: torch.nn.Sequential) -> str:
        return "".join({"Linear": "L", "BatchNorm1d": "B", "ReLU": "R"}[type(layer).__name__] for layer in head)

    assert kinds(projector(8, 16, 12, layers=2)) == "LBRLB"
    assert kinds(projector(8, 16, 12, layers=1)) == "LB"
    assert [projector(8, 16, 12, affine=affine)[-1].affine for affine in (True, False)] == [True, False]
    assert kinds(mlp(8, 16, 12, norm=True, out_norm=True)) == "LBRLB"
    assert kinds(mlp(8, 16, 12)) == "LRL"
