"""Save the loss, gradients and statistics of one step of each method; the tests start it alone and under torchrun.

gradients.py OUT "METHOD [SETTING=VALUE ...]" ...
"""

import sys
from dataclasses import fields

import numpy as np
import torch

from sacl_train import distributed
from sacl_train.data.draws import Draws
from sacl_train.data.weak import WeakAugment
from sacl_train.methods import METHODS
from sacl_train.methods.method import merge
from sacl_train.nets import build_encoder

BATCH = 16


def one_step(name: str, *settings: str) -> dict[str, torch.Tensor]:
    """Return them in float64, for this process's part of a batch of 16, averaged over the processes."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    encoder = build_encoder("se_resnet8", "cifar-stride2", width=4)
    kind = METHODS[name].load()
    widths = {
        "projector_hidden": 16,
        "projector_out": 16,
        "predictor_hidden": 8,
        "queue": 32,
        "negatives": 20,
        "images": BATCH,
    }
    known = {field.name for field in fields(kind.Settings)}
    chosen = {key: value for key, value in widths.items() if key in known} | dict(s.split("=") for s in settings)
    weak = _Double("geometric", (0.5,) * 3, (0.25,) * 3)
    method = kind(encoder, weak, (16, 16), kind.Settings(**chosen)).double()
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (BATCH, 3, 16, 16), np.uint8))
    count = 1 if "texture_role=instance" in settings else 2
    textures = torch.from_numpy(random.integers(0, 256, (BATCH, count, 3, 16, 16), np.uint8))
    share = torch.arange(BATCH).tensor_split(distributed.count_processes())[distributed.process_rank()]
    distributed.synchronise_batch_norm(method, torch.device("cpu"))
    parts = []
    for loss, metrics in method.loss_terms({"image": images[share], "texture": textures[share]}, Draws(0, 0, share)):
        loss.backward()
        parts.append((loss.detach(), metrics))
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    distributed.average_gradients(trained.values())
    found = {name: distributed.average(value) for name, value in merge(parts).items()}
    found |= {f"gradient of {name}": p.grad for name, p in trained.items() if p.grad is not None}
    return found | {name: buffer for name, buffer in method.named_buffers() if buffer.is_floating_point()}


class _Double(WeakAugment):
    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        kind = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return super().forward(*args, **kwargs).to(kind)
        finally:
            torch.set_default_dtype(kind)


if __name__ == "__main__":
    with distributed.join_processes(torch.device("cpu")):
        found = {case: one_step(*case.split()) for case in sys.argv[2:]}
        if distributed.process_rank() == 0:
            torch.save(found, sys.argv[1])
