"""The loss of a batch, from uint8 images and indices on, is one graph without host work for every method."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.paste import paste_inside
from sacl_train.data.shuffle import shuffle_patches
from sacl_train.data.weak import WeakAugment
from sacl_train.methods import METHODS
from sacl_train.methods.method import Method
from sacl_train.methods.shift import Shifts
from sacl_train.nets import build_encoder
from sacl_train.nets.norms import stop_counting
from texturegen.errors import UserError

pytestmark = pytest.mark.usefixtures("untraced")
SIDE, COUNT = 16, 4
ROLES = {"negative", "instance", "positive", "none"}
SMALL: dict[str, object] = {
    "projector_hidden": 8,
    "projector_out": 8,
    "predictor_hidden": 8,
    "queue": 12,
    "negatives": 5,
    "images": 10,
}
# Every role of every method (fast-moco's are sacl's), every policy and both precisions; not their product, because each
# graph takes seconds.
CASES: list[tuple[str, dict[str, object], str, bool]] = [
    ("sacl", {"texture_role": "negative"}, "colour-geometric", False),
    (
        "sacl",
        {"texture_role": "negative", "texture_view": "query", "scope": "own", "texture_query": "whole"},
        "none",
        True,
    ),
    ("sacl", {"texture_role": "instance"}, "mocov2", False),
    ("sacl", {"texture_role": "positive", "queries": "crops"}, "geometric", True),
    ("fast-moco", {"texture_role": "none", "decoupled": True}, "mocov2", True),
    ("mocov2", {"texture_role": "none"}, "mocov2", False),
    ("mocov2", {"texture_role": "negative"}, "colour-geometric", True),
    ("simclr", {"texture_role": "instance", "shift_head": 0.5}, "simclr", True),
    ("simclr", {"texture_role": "negative", "texture_view": "query"}, "geometric", False),
    ("simclr", {"texture_role": "none", "decoupled": True}, "none", False),
    ("byol", {}, "byol", False),
    ("simsiam", {}, "mocov2", True),
    ("barlow", {}, "byol", True),
    ("pirl", {"texture_role": "none"}, "mocov2", True),
    ("pirl", {"texture_role": "negative"}, "geometric", False),
]


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_numpy=False):  # a call of NumPy would be traced as torch's imitation of it
        yield
    torch._dynamo.reset()


def make(name: str, settings: dict[str, object], policy: str) -> Method:
    torch.manual_seed(0)
    kind = METHODS[name].load()
    known = {key: value for key, value in SMALL.items() if key in kind.Settings.__dataclass_fields__}
    encoder = build_encoder("se_resnet8", "cifar-stride2", width=4, attention="se" if name == "sacl" else "none")
    weak = WeakAugment(policy, (0.5,) * 3, (0.25,) * 3, channels_last=True)
    method = kind(encoder, weak, (SIDE, SIDE), kind.Settings(**{**known, **settings}))
    method.add_shift_head(Shifts(shuffled=True))
    stop_counting(method)  # as `build_method` does
    return method.to(memory_format=torch.channels_last)


def make_batch(textures: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, textures, the epoch and the indices of the samples."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (COUNT, 1 + textures, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    return pixels[:, 0], pixels[:, 1:], torch.tensor(3), torch.tensor([2, 0, 7, 5])


@pytest.mark.parametrize(("name", "settings", "policy", "bf16"), CASES, ids=str)
def test_loss_is_one_graph(name: str, settings: dict[str, object], policy: str, bf16: bool) -> None:
    method = make(name, settings, policy)
    eager = copy.deepcopy(method)  # a pass changes queues and the statistics of BatchNorm

    def total(method: Method) -> Callable[..., Tensor]:
        def loss(images: Tensor, textures: Tensor, epoch: Tensor, samples: Tensor) -> Tensor:
            return method({"image": images, "texture": textures}, Draws(5, epoch, samples))[0]

        return loss

    batch = make_batch(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        compiled = torch.compile(total(method), backend="eager", fullgraph=True, dynamic=False)(*batch)
        expected = total(eager)(*batch)
    torch.testing.assert_close(compiled, expected)
    for found, wanted in zip(method.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_every_method_role_and_policy_is_covered() -> None:
    assert {name for name, *_ in CASES} == set(METHODS)
    tried = {(name.replace("fast-moco", "sacl"), settings.get("texture_role", "none")) for name, settings, *_ in CASES}
    assert {role for _, role in tried} == ROLES
    for name in {name for name, _ in tried}:
        for role in ROLES:
            try:
                METHODS[name].load().Settings(texture_role=role)
            except UserError:
                continue
            assert (name, role) in tried
    assert {policy for *_, policy, _ in CASES} >= {"geometric", "mocov2", "simclr", "byol", "colour-geometric", "none"}


def test_views_of_large_images_and_textures_made_on_device_are_one_graph() -> None:
    weak = WeakAugment("byol", (0.5,) * 3, (0.25,) * 3, channels_last=True)  # above 64 px the views are blurred

    def views(images: Tensor, epoch: Tensor, samples: Tensor) -> tuple[Tensor, ...]:
        draws = Draws(5, epoch, samples)
        textures = shuffle_patches(images, draws.of(7), (8, 24))[:, None]
        return weak.view(images, draws, 0), weak.view(images, draws, 1), paste_inside(images, textures, draws.of(8))

    images = torch.randint(0, 256, (3, 72, 80, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    batch = images, torch.tensor(3), torch.tensor([2, 0, 7])
    # The backend of the other tests takes graphs that inductor refuses: those with two constants of one name.
    compiled = torch.compile(views, backend="aot_eager", fullgraph=True, dynamic=False)(*batch)
    torch.testing.assert_close(compiled, views(*batch))


@pytest.mark.parametrize("name", METHODS)
def test_loss_uses_neither_numpy_nor_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    role = {} if name in ("byol", "simsiam", "barlow") else {"texture_role": "negative"}
    method, (images, textures, epoch, samples) = make(name, role, "byol"), make_batch(2)
    draws = Draws(5, epoch, samples)

    def step() -> None:
        shuffled = shuffle_patches(images, draws.of(7), (3, 8))[:, None]
        content = {"image": images, "texture": paste_inside(images, torch.cat([textures, shuffled], 1), draws.of(8))}
        loss, _ = method(content, draws)
        loss.backward()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the loss reads a tensor on the host, or calls NumPy")

    step()  # constants are copied to the device once
    for attribute in ("numpy", "item", "tolist", "cpu", "__array__", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(Tensor, attribute, refuse)
    monkeypatch.setattr(torch, "from_numpy", refuse)
    monkeypatch.setattr(torch, "tensor", refuse)  # on CUDA, a copy from the host
    step()
