"""Setup of a run: every setting takes effect, and settings that change the result make it another run."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sacl_train.training.setup
from sacl_train import train
from sacl_train.config import Config, load_config
from sacl_train.data.stream import Plan
from sacl_train.data.weak import make_policy
from sacl_train.training.checkpoint import Checkpoint, exclusive
from sacl_train.training.dry_run import plan
from sacl_train.training.resume import comparable, load_networks, load_resumable, refuse_other_run
from sacl_train.training.setup import build_method, choose_device, describe, make_stream, resolve
from texturegen import open_shards
from texturegen.builds import Recipe, build
from texturegen.errors import BusyError, DamagedError, OtherBuildError, UserError

TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "device": "cpu"}
TINY |= {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "precision": "fp32", "compile": "none"}
CPU = torch.device("cpu")


def tiny(**changes: object) -> Config:
    return load_config(None, {**TINY, "mean": [0.5] * 3, "std": [0.2] * 3, **changes})


def checkpoint(step: int, config: Config) -> Checkpoint:
    """Return a checkpoint without networks, for shards with the digest "digest"."""
    return {
        "step": step,
        "epoch": 0,
        "running": {"number": 0},
        "method": {},
        "optimizer": {},
        "scaler": {},
        "metrics": [],
        "steps_bytes": 0,
        "damaged": {},
        "config": comparable(config),
        "shards": "digest",
        "image_size": (32, 32),
    }


def test_networks_depend_on_seed_and_leave_global_generator_unchanged() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    weights = [build_method(tiny(seed=seed), (32, 32)).encoder.conv1.weight for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_settings_of_views_and_smaller_side_reach_method() -> None:
    views = {"crop_scale": (0.3, 0.9), "degrees": 5.0, "shift": 0.2, "jitter": (0.1, 0.2, 0.3, 0.05), "grey": 0.4}
    method = build_method(tiny(weak="colour-geometric", stem="auto", **views), (32, 96))
    assert method.weak.policy == make_policy("colour-geometric", **views)
    assert (method.weak.mean, method.weak.std) == ((0.5,) * 3, (0.2,) * 3)
    assert method.encoder.conv1.kernel_size == (3, 3)
    assert method.weak.memory_format == torch.channels_last
    assert build_method(tiny(channels_last=False), (32, 32)).weak.memory_format == torch.contiguous_format


def test_policy_brings_its_published_strengths(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    found = [resolve(tiny(weak=name), shards, CPU) for name in ("mocov2", "simclr", "byol")]
    assert [config.crop_scale for config in found] == [(0.2, 1.0), (0.08, 1.0), (0.08, 1.0)]
    assert [config.jitter for config in found] == [(0.4, 0.4, 0.4, 0.1), (0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.2, 0.1)]
    chosen = resolve(tiny(weak="byol", jitter=(0.1, 0.1, 0.1, 0.0), crop_scale=(0.5, 1.0)), shards, CPU)
    assert (chosen.jitter, chosen.crop_scale) == ((0.1, 0.1, 0.1, 0.0), (0.5, 1.0))


def test_settings_of_order_reach_stream(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    order = {"order": "shards", "shuffle_buffer": 8, "remainder": "wrap", "accumulate": 2, "texture_draw": "all"}
    stream = make_stream(tiny(seed=3, bad_share=0.5, threads=3, cache="none", **order), shards, torch.device("cuda"))
    assert stream.plan == Plan(16, 3, "all", "shards", 8, "wrap", 0, 1, 2)
    assert (stream.pin, stream.threads, stream.place) == (True, 3, "decoded again in each epoch")
    stream.damaged.add(dict.fromkeys(range(32), "damaged"))
    assert not make_stream(tiny(), shards, CPU).pin
    for changes in ({"texture_role": "none"}, {"texture_source": "patch-shuffle"}):
        assert make_stream(tiny(**changes), shards, CPU).plan.textures == "none"


def test_every_process_needs_two_images_per_batch(shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sacl_train.training.setup, "count_processes", lambda: 4)
    make_stream(tiny(batch_size=16, accumulate=2), open_shards(shapes_shards), CPU)
    with pytest.raises(UserError, match=r"accumulate 2 on 4 processes is less than two images at a time.*at least 16"):
        make_stream(tiny(batch_size=8, accumulate=2), open_shards(shapes_shards), CPU)


@pytest.mark.parametrize(
    ("remainder", "line"),
    [
        ("drop", "of 5 batches of 12, 4 left out of each epoch"),
        ("wrap", "of 6 batches of 12, 8 used twice per epoch, resum"),
    ],
)
def test_description_of_run_names_remainder(remainder: str, line: str, shapes_shards: Path) -> None:
    config = tiny(batch_size=12, remainder=remainder)
    assert line in describe(config, make_stream(config, open_shards(shapes_shards), CPU), 7)


def test_given_mean_and_std_are_kept_and_missing_ones_measured(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    measured = resolve(tiny(mean="none", std="none"), shards, CPU)
    assert resolve(tiny(std="none"), shards, CPU) == resolve(tiny(std=measured.std), shards, CPU)
    assert resolve(tiny(mean="none"), shards, CPU) == resolve(tiny(mean=measured.mean), shards, CPU)
    there = checkpoint(1, tiny(mean=[0.1] * 3, std=[0.3] * 3))
    kept = resolve(tiny(mean="none", std="none"), shards, CPU, there)
    assert (kept.mean, kept.std) == ((0.1,) * 3, (0.3,) * 3)


RESUME_MAY_CHANGE = {
    "device": "auto",
    "threads": 1,
    "cache": "none",
    "cache_gb": 1,
    "bad_share": 0.5,
    "save_every": 5,
    "keep": 3,
}
RESUME_MAY_CHANGE |= {"log_every": 7, "tensorboard": True}
BOUND = {"seed": 1, "batch_size": 8, "epochs": 7, "lr": 0.2, "precision": "bf16", "accumulate": 2, "order": "shards"}
BOUND |= {"tau": 0.5, "width": 8, "knn_every": 1, "online": True, "deterministic": True}


def test_resumed_run_may_change_only_settings_that_do_not_change_its_figures(tmp_path: Path) -> None:
    state = checkpoint(1, tiny())
    refuse_other_run(tmp_path, state, tiny(**RESUME_MAY_CHANGE), "digest")
    for key, value in BOUND.items():
        with pytest.raises(UserError, match=rf"holds another run \({key}: "):
            refuse_other_run(tmp_path, state, tiny(**{key: value}), "digest")
    with pytest.raises(UserError, match="other shards"):
        refuse_other_run(tmp_path, state, tiny(), "other")


# Settings that a run refuses before its first step, and how it says so.
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"grid": 3}, "32x32 pixels do not split into a 3x3 grid"),
    ({"device": "cuda:99"}, "device 'cuda:99' is not available"),
    ({"device": "meta"}, "device 'meta' is not supported"),
    ({"batch_size": 100}, "batch_size is 100"),
    ({"held_out": 0.9}, "held out"),
    ({"accumulate": 3}, "batch_size 16 is not divisible"),
    ({"accumulate": 16}, "less than two images at a time"),
    ({"cache": "ram", "cache_gb": 1e-6}, "cache ram: the pixels take"),
    ({"cuda_graph": True}, "cuda_graph is true, but the device is not a CUDA GPU"),
    ({"encoder": "se_resnet18", "stem": "auto"}, "encoder 'se_resnet18' has a fixed width"),
    ({"attention": "none", "placement": "pre"}, "placement 'pre' does not apply"),
    ({"weak": "nothing"}, "unknown weak policy 'nothing'"),
    ({"weak": "none", "queries": "crops"}, "crops need a weak policy that crops"),
    ({"init": "missing.pt"}, "missing.pt: no such file"),
    ({"init": "other.pt"}, "other.pt"),
    ({"method": "mocov2", "queue": 65}, "queue is 65, but the data set has 64 images"),
    ({"tensorboard": True}, "tensorboard is not installed"),
    ({"compile": "default"}, "compile needs a C.. compiler"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(settings) for settings, _ in REFUSED])
def test_dry_run_raises_the_errors_of_the_run(
    settings: dict[str, object], message: str, shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-compiler")
    monkeypatch.setattr("sacl_train.training.metrics.importlib.util.find_spec", lambda name: None)
    torch.save({"weight": torch.zeros(2)}, "other.pt")
    kept = {} if settings.get("method") else {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8}
    base = {
        key: value
        for key, value in TINY.items()
        if key not in ("projector_hidden", "projector_out", "predictor_hidden")
    }
    config = load_config(None, {**base, **kept, **settings})
    with pytest.raises(UserError, match=message) as planned:
        plan(config, shapes_shards, tmp_path / "run")
    with pytest.raises(UserError) as trained:
        train(config, shapes_shards, tmp_path / "run")
    assert str(planned.value) == str(trained.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pt"]


def test_textures_that_cannot_be_made_are_refused_before_the_first_step(
    shapes_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(shapes_shards)
    monkeypatch.setattr(type(shards), "image_size", lambda self: (24, 32))
    settings = {**TINY, "texture_source": "shards-and-rotations"}
    with pytest.raises(UserError, match="rotations need square images, and these have 32x24 px"):
        make_stream(load_config(None, settings), shards, CPU)
    assert len(make_stream(load_config(None, {**settings, "texture_role": "none"}), shards, CPU)) == 4


def test_dry_run_refuses_what_the_run_finds_in_its_directory(shapes_shards: Path, tmp_path: Path) -> None:
    config = resolve(tiny(), open_shards(shapes_shards), CPU)
    run, file = tmp_path / "run", tmp_path / "file"
    file.touch()
    for out, error, message in (
        (file, UserError, "file: is not a directory; choose another --out"),
        (file / "run", NotADirectoryError, "Not a directory"),
        (shapes_shards, UserError, "holds shards; choose another --out"),
    ):
        for command in (plan, train):
            with pytest.raises(error, match=message):
                command(config, shapes_shards, out)
    with exclusive(run), pytest.raises(BusyError, match=f"{run}: process .* is training there"):
        plan(config, shapes_shards, run)
    run.mkdir()
    (run / "lock").write_text("left by a process that was killed")
    plan(config, shapes_shards, run)
    assert [path.name for path in run.iterdir()] == ["lock"]
    found = checkpoint(1, config)
    torch.save(found, run / "checkpoint-00000001.pt")
    with pytest.raises(UserError, match=r"holds another run \(seed: 0 there, 1 here; other shards\)"):
        plan(tiny(seed=1), shapes_shards, run)
    newer = {**found, "config": {**found["config"], "spectral_norm": True}}
    torch.save(newer, run / "checkpoint-00000001.pt")
    for refused in (lambda: plan(config, shapes_shards, run), lambda: load_networks(run)):
        with pytest.raises(
            OtherBuildError, match=rf"{run}: .* does not know \(.*'spectral_norm'.*the version that wrote it"
        ):
            refused()
    torch.save({**found, "shards": open_shards(shapes_shards).digest}, run / "checkpoint-00000001.pt")
    with pytest.raises(DamagedError, match="the checkpoint's weights do not fit its networks"):
        plan(config, shapes_shards, run)


def test_dry_run_refuses_online_probe_without_labels(image_folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(image_folder.rglob("*.png"))):
        path.rename(flat / f"{number}.png")
    build(Recipe("folder", size=32), tmp_path / "shards", root=str(flat))
    plan(tiny(batch_size=2), tmp_path / "shards", tmp_path / "run")
    with pytest.raises(UserError, match="no labelled images"):
        plan(tiny(batch_size=2, online=True), tmp_path / "shards", tmp_path / "run")


def test_run_without_finished_step_may_start_over(tmp_path: Path) -> None:
    for step, epochs, kept in ((0, 5, False), (0, 0, True), (1, 5, True)):
        torch.save(checkpoint(step, tiny(epochs=epochs)), tmp_path / "checkpoint-00000000.pt")
        assert (load_resumable(tmp_path) is not None) == kept
    assert load_resumable(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_unavailable_device_is_reported(name: str) -> None:
    with pytest.raises(UserError, match=f"device '{name}' is not available"):
        choose_device(name)


def test_devices_other_than_cpu_and_cuda_are_refused() -> None:
    with pytest.raises(UserError, match="device 'mps' is not supported; use --device cpu or cuda"):
        choose_device("mps")


def test_device_decides_what_is_left_to_it(shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, cuda = open_shards(shapes_shards), torch.device("cuda")

    def chosen(device: torch.device, saved: dict[str, Any] | None = None, **changes: Any) -> tuple[str, str]:
        checkpoint: Any = None if saved is None else {"config": saved}
        config = resolve(tiny(**{"precision": "auto", "compile": "auto", **changes}), shards, device, checkpoint)
        return config.precision, config.compile

    monkeypatch.setattr("sacl_train.training.setup.can_compile", lambda _: True)
    assert chosen(CPU) == ("fp32", "none")
    assert chosen(cuda) == ("bf16", "default")
    assert chosen(cuda, precision="fp16", compile="none") == ("fp16", "none")
    assert chosen(cuda, checkpointing=True) == ("bf16", "none")
    with monkeypatch.context() as torchrun:
        torchrun.setenv("WORLD_SIZE", "2")
        assert chosen(cuda) == ("bf16", "none")
    # A run that began on a CPU stays in fp32, with networks that are not compiled, also in the words of version 0.1.
    assert chosen(cuda, {"precision": "fp32", "compile": False}) == ("fp32", "none")
    assert chosen(CPU, {"precision": "bf16", "compile": True}) == ("bf16", "default")
    monkeypatch.setattr("sacl_train.training.setup.can_compile", lambda _: False)
    assert chosen(cuda) == ("bf16", "none")


def test_pixels_stay_on_a_device_with_room_for_them(shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, cuda = open_shards(shapes_shards), torch.device("cuda")
    for free, place in ((10**9, "kept on the device"), (10**5, "kept decoded in memory")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        assert make_stream(tiny(), shards, cuda).place == place
    with pytest.raises(UserError, match="cache device: the pixels of 64 samples do not fit into half of the free"):
        make_stream(tiny(cache="device"), shards, cuda)
    assert make_stream(tiny(cache="device"), shards, CPU).place == "kept decoded in memory"
    assert make_stream(tiny(cache="none"), shards, cuda).place == "decoded again in each epoch"
