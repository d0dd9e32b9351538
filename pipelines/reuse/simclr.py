"""SimCLR with texture negatives, from torch, torchvision and webdataset alone, without importing this project.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020: NT-Xent (eq. 1).
Ge et al., "Robust Contrastive Learning Using Negative Samples with Diminished Semantics", NeurIPS 2021: the texture of
the query's own image is one more negative, with its similarity multiplied by alpha (2 in their texture runs).

Shows that the shards are plain WebDataset tars, and that a texture negative is one more column of logits.

    texturegen build --dataset shapes --limit 4000 --out shards/
    python -m pipelines.reuse.simclr --shards shards/ --epochs 1

SimCLR has no target network, so the texture passes through the trained encoder, with its gradient. `--no-textures` is
plain SimCLR; `--alpha 0` is not, because a logit of 0 still counts as a negative.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
import webdataset as wds
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models import resnet18
from torchvision.transforms import v2

IMAGE = "png;jpg;webp"  # the first of these members that exists
TEXTURE = "texture0.png;texture0.webp;texture0.jpg"


def nt_xent(z1: Tensor, z2: Tensor, zt: Tensor | None, tau: float, alpha: float) -> Tensor:
    """Return NT-Xent over 2N views; negatives are the 2N - 2 views of other images and, if given, the own texture."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # (2N, D)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / tau).masked_fill(itself, float("-inf"))  # (2N, 2N)
    if zt is not None:
        t = F.normalize(torch.cat([zt, zt]), dim=1)  # (2N, D), the texture of each view's own image
        own = alpha * (z * t).sum(dim=1, keepdim=True) / tau  # (2N, 1)
        logits = torch.cat([logits, own], dim=1)  # (2N, 2N + 1)
    target = torch.arange(len(z), device=z.device).roll(len(z1))  # view i of 2N belongs to view i + N
    return F.cross_entropy(logits, target)


def decode(data: bytes) -> Tensor:
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)  # uint8 (3, H, W)


def batches(tars: list[str], size: int, args: argparse.Namespace) -> Iterator[list[Tensor]]:
    """Yield two views and a view of the texture, each float (N, 3, size, size), determined by seed and workers."""
    view = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )

    def views(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return view(pair[0]), view(pair[0]), view(pair[1])

    for epoch in range(args.epochs):
        seed = 1000 * args.seed + epoch  # webdataset restarts its shuffles from the seed in every epoch
        # Workers divide the shards among them; a worker without a shard (more workers than shards) is not an error.
        data = wds.WebDataset(tars, shardshuffle=len(tars), seed=seed, empty_check=False)
        # to_tuple first: .decode() would also unpickle members that are not used.
        data = data.shuffle(1000, seed=seed).to_tuple(IMAGE, TEXTURE).map_tuple(decode, decode).map(views)
        loader = wds.WebLoader(data.batched(16), batch_size=None, num_workers=args.workers)
        # Batch here, not in the workers, so that at most one incomplete batch is dropped per epoch.
        yield from loader.unbatched().batched(args.batch_size, partial=False)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = parse(argv)
    tars = sorted(str(path) for path in args.shards.glob("*.tar"))
    if not tars:
        raise SystemExit(f"{args.shards}: no shards (*.tar) here")
    first: dict[str, bytes] = next(iter(wds.WebDataset(tars, shardshuffle=False, empty_check=False)), {})
    if not any(member in first for member in TEXTURE.split(";")):
        raise SystemExit(f"{tars[0]}: no textures in this shard; build with --per-image 1")
    size = decode(next(first[member] for member in IMAGE.split(";") if member in first)).shape[-1]

    torch.manual_seed(args.seed)
    encoder = resnet18()
    width, encoder.fc = encoder.fc.in_features, nn.Identity()
    if size <= 64:
        encoder.maxpool = nn.Identity()
    projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
    net = nn.Sequential(encoder, projector).to(args.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr, weight_decay=1e-6)

    figures: dict[str, float] = {}
    for step, batch in enumerate(islice(batches(tars, size, args), args.steps), start=1):
        x1, x2, xt = (views.to(args.device) for views in batch)  # (N, 3, H, W) each
        z1, z2, zt = net(x1), net(x2), net(xt)  # (N, 128) each; separate passes, so that BatchNorm does not mix them
        loss = nt_xent(z1, z2, None if args.no_textures else zt, args.tau, args.alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        figures = {
            "loss": loss.item(),
            "cos_positive": F.cosine_similarity(z1, z2).mean().item(),
            "cos_other_image": F.cosine_similarity(z1, z2.roll(1, dims=0)).mean().item(),
            "cos_own_texture": F.cosine_similarity(z1, zt).mean().item(),
        }
        if step == 1 or step % 10 == 0:
            print(f"step {step:5d}", *(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
    if not figures:
        raise SystemExit(f"{args.shards}: fewer images than one batch of {args.batch_size}; lower --batch-size")
    print("final", *(f"{name} {value:.3f}" for name, value in figures.items()))
    if args.out:
        torch.save({"encoder": encoder.state_dict()}, args.out)  # a torchvision resnet18 without its fc
    return figures


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simclr", description="SimCLR with texture negatives.")
    parser.add_argument("--shards", type=Path, required=True, help="directory with *.tar")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="stop after this many steps")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tau", type=float, default=0.5, help="temperature")
    parser.add_argument("--alpha", type=float, default=2.0, help="factor of the similarity to the texture")
    parser.add_argument("--no-textures", action="store_true", help="train plain SimCLR, for comparison")
    parser.add_argument("--workers", type=int, default=0, help="processes to read and augment")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="save the encoder here (torch.save)")
    args = parser.parse_args(argv)
    if args.batch_size < 2 or args.epochs < 1 or (args.steps is not None and args.steps < 1) or args.workers < 0:
        raise SystemExit("--epochs and --steps must be at least 1, --batch-size at least 2, --workers at least 0")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    if args.out and (args.out.is_dir() or not args.out.parent.is_dir()):
        raise SystemExit(f"--out {args.out}: not a file in an existing directory")
    return args


if __name__ == "__main__":
    main()
