"""The captured step: what a CUDA graph reads must be written before each replay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sacl_train import train
from sacl_train.config import load_config
from sacl_train.methods import METHODS
from sacl_train.nets.ema import momentum_at, update_target
from sacl_train.training.capture import WARM_UP, CapturedStep
from sacl_train.training.checkpoint import list_checkpoints, read_checkpoint
from sacl_train.training.optim import build_optimizer
from sacl_train.training.setup import build_method
from sacl_train.training.step import is_captured, make_step
from texturegen.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = {
    "encoder": "se_resnet8",
    "width": 4,
    "stem": "cifar-stride2",
    "batch_size": 8,
    "mean": [0.5] * 3,
    "std": [0.2] * 3,
}
HEADS = {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "queue": 40}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is available")


class ReplayedGraph:
    """A CUDA graph for tests on a CPU: a replay calls the captured function again, with the arguments it had then."""

    def __init__(self) -> None:
        self.call: Callable[[], Any] | None = None
        self.outputs: Any = None
        self.replays = 0

    def replay(self) -> None:
        assert self.call is not None
        self.replays += 1
        if self.replays > 1:  # here, capturing has done the first step already
            self.outputs.values.copy_(self.call().values)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ReplayedGraph]]:
    """Replace torch's CUDA graphs; yield those that are made."""
    made: list[ReplayedGraph] = []
    capturing: list[ReplayedGraph] = []

    def graph() -> ReplayedGraph:
        made.append(ReplayedGraph())
        return made[-1]

    @contextmanager
    def capture(graph: ReplayedGraph, stream: object) -> Iterator[None]:
        capturing.append(graph)
        yield
        capturing.pop()

    class Stream:
        def __init__(self, device: torch.device) -> None: ...

        def wait_stream(self, other: object) -> None: ...

    recorded = CapturedStep.__init__

    def init(self: CapturedStep, update: Callable[..., Any], *rest: Any) -> None:
        def watched(*given: Any) -> Any:
            metrics = update(*given)
            if capturing:
                capturing[-1].call, capturing[-1].outputs = (lambda: update(*given)), metrics
            return metrics

        recorded(self, watched, *rest)

    monkeypatch.setattr(CapturedStep, "__init__", init)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(CPU))
    return made


def make(name: str, capturable: bool, **changes: Any) -> tuple[Any, Any, Any]:
    known = load_config(None, {"method": name}).flat()
    heads = {key: value for key, value in HEADS.items() if key in known}
    config = load_config(None, {**TINY, **heads, "method": name, **changes})
    method = build_method(config, (16, 16))
    return method, build_optimizer(method, config.optimizer, capturable=capturable), config


def batches(count: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        pixels = torch.randint(0, 256, (8, 2, 16, 16, 3), dtype=torch.uint8, generator=generator)
        images, textures = pixels[:, 0].permute(0, 3, 1, 2), pixels[:, 1:].permute(0, 1, 4, 2, 3)
        yield {"image": images, "texture": textures, "index": torch.arange(8) + 8 * number}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sacl", {"momentum_schedule": "cosine", "clip": 1.0}),
        ("mocov2", {"texture_role": "negative", "optimizer": "lars"}),
        ("byol", {}),
    ],
)
def test_replayed_steps_equal_eager_ones(
    name: str, changes: dict[str, Any], graphs: list[ReplayedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, found = WARM_UP + 3, []
    for captured in (False, True):
        monkeypatch.setattr("sacl_train.training.step.is_captured", lambda *_, captured=captured: captured)
        method, optimizer, config = make(name, captured, **changes)
        step, metrics = make_step(method, optimizer, config, CPU), []
        for number, batch in enumerate(batches(steps)):
            done = step(batch, number // 3, number, steps, 0.1 * (1 - number / steps))
            metrics.append(done.values.clone())
        found.append((torch.stack(metrics), method.state_dict()))
    (eager, weights), (replayed, others) = found
    assert [graph.replays for graph in graphs] == [steps - WARM_UP]
    torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-6)
    for key, weight in weights.items():
        torch.testing.assert_close(others[key], weight, rtol=1e-4, atol=1e-5, msg=key)


def test_batches_of_another_shape_are_refused(graphs: list[ReplayedGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sacl_train.training.step.is_captured", lambda *_: True)
    method, optimizer, config = make("byol", True)
    step, batch = make_step(method, optimizer, config, CPU), next(batches(1))
    step(batch, 0, 0, 10, 0.1)
    with pytest.raises(ValueError, match=r"image is \(4, 3, 16, 16\), and was \(8, 3, 16, 16\)"):
        step({key: values[:4] for key, values in batch.items()}, 0, 1, 10, 0.1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"accumulate": 2}, "accumulate is 2"),
        ({"precision": "fp16"}, "precision is fp16"),
        ({"method": "pirl"}, "method pirl is not made for it"),
    ],
)
def test_steps_that_no_graph_can_hold_run_eagerly(settings: dict[str, Any], reason: str) -> None:
    def decide(device: torch.device = CUDA, **changes: Any) -> bool:
        config = load_config(None, {**settings, **changes})
        return is_captured(METHODS[config.method].load(), config, device)  # type: ignore[arg-type]

    assert not decide()
    with pytest.raises(UserError, match=f"cuda_graph is true, but {reason}; set cuda_graph to none or false"):
        decide(cuda_graph=True)


def test_steps_are_captured_on_cuda_unless_switched_off() -> None:
    method = METHODS["sacl"].load()
    decisions = [
        is_captured(method, load_config(None, {"cuda_graph": choice}), device)  # type: ignore[arg-type]
        for choice, device in ((None, CUDA), (True, CUDA), (False, CUDA), (None, CPU), (False, CPU))
    ]
    assert decisions == [True, True, False, False, False]
    with pytest.raises(UserError, match="the device is not a CUDA GPU"):
        is_captured(method, load_config(None, {"cuda_graph": True}), CPU)  # type: ignore[arg-type]


def test_target_follows_tensor_momentum_like_number() -> None:
    online, target = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    other = torch.nn.Linear(5, 3)
    other.load_state_dict(target.state_dict())
    update_target(target, online, momentum_at(3, 10, 0.9, "cosine"))
    m = momentum_at(torch.tensor(3), 10, 0.9, "cosine")
    assert isinstance(m, Tensor)
    update_target(other, online, m)
    torch.testing.assert_close(other.weight, target.weight)


@needs_gpu
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sacl", {"momentum_schedule": "cosine"}),
        ("mocov2", {"texture_role": "negative"}),
        ("simclr", {"optimizer": "lars"}),
        ("byol", {}),
        ("simsiam", {"clip": 1.0}),
        ("barlow", {"optimizer": "adamw"}),
    ],
)
def test_graph_equals_eager_steps_on_gpu(
    name: str, changes: dict[str, Any], shapes_shards: Path, tmp_path: Path
) -> None:
    known = load_config(None, {"method": name}).flat()
    heads = {key: value for key, value in HEADS.items() if key in known}
    settings = {**TINY, **heads, "method": name, "batch_size": 16, "epochs": 3, "knn_every": 0, "device": "cuda"}
    settings |= {"deterministic": True, "compile": "none", **changes}
    weights = []
    for graph in (True, False):
        train(load_config(None, {**settings, "cuda_graph": graph}), shapes_shards, tmp_path / str(graph))
        weights.append(read_checkpoint(list_checkpoints(tmp_path / str(graph))[0])["method"])
    assert [key for key in weights[0] if not torch.equal(weights[0][key], weights[1][key])] == []


@needs_gpu
def test_resumed_graph_equals_uninterrupted_one_on_gpu(shapes_shards: Path, tmp_path: Path) -> None:
    settings = {**TINY, **HEADS, "batch_size": 16, "epochs": 3, "knn_every": 0, "device": "cuda", "compile": "none"}
    del settings["queue"]
    config = load_config(None, {**settings, "deterministic": True, "save_every": 5, "keep": 9})
    train(config, shapes_shards, tmp_path / "whole")
    middle = list_checkpoints(tmp_path / "whole")[1]
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / middle.name).write_bytes(middle.read_bytes())
    train(config, shapes_shards, tmp_path / "resumed")
    whole, resumed = (read_checkpoint(list_checkpoints(tmp_path / run)[0])["method"] for run in ("whole", "resumed"))
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
