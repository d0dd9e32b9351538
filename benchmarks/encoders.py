"""Parameters and multiply-adds of every encoder and kind of attention, for the tables of docs/encoders.md.

python benchmarks/encoders.py
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from sacl_train.nets import ATTENTION, ENCODERS, build_encoder
from sacl_train.nets.blocks import Bottleneck

# Table 1 of the paper: millions of parameters, GFLOPs (counting a multiply-add once).
TABLE_1 = {
    "none": (25.56, 4.12),
    "se": (28.07, 4.13),
    "cbam": (28.07, 4.14),
    "gc": (28.11, 4.13),
    "triplet": (25.56, 4.17),
    "abn": (43.59, 7.18),
}
CLASSIFIER = 2048 * 1000 + 1000  # table 1 includes the classifier for ImageNet


def measure(name: str, side: int, early_stride: bool = False, **settings: str) -> tuple[float, float]:
    """Return millions of parameters and billions of multiply-adds for an image of side x side pixels.

    With `early_stride` a bottleneck halves the resolution in its first convolution (He et al. 2016) instead of its
    second (torchvision and this project).
    """
    encoder = build_encoder(name, image_size=side, **settings).eval()
    if early_stride:
        for block in encoder.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        encoder(torch.zeros(1, 3, side, side))
    return sum(p.numel() for p in encoder.parameters()) / 1e6, counter.get_total_flops() / 2e9


def main() -> None:
    """Print the tables."""
    print("ResNet-50 at 224 px with a classifier for 1000 classes\n")
    print("| attention | parameters, M | table 1 | multiply-adds, G | table 1 |\n|---|---|---|---|---|")
    for kind in ATTENTION:
        parameters, adds = measure("se_resnet50", 224, attention=kind)
        paper = TABLE_1.get(kind, ("", ""))
        print(
            f"| {kind} | {parameters + CLASSIFIER / 1e6:.2f} | {paper[0]} | {adds + CLASSIFIER / 1e9:.2f} "
            f"| {paper[1]} |"
        )
    adds = measure("se_resnet50", 224, early_stride=True, attention="abn")[1] + CLASSIFIER / 1e9
    print(f"\nabn with the strides of He et al. 2016: {adds:.2f}")
    print("\nWithout a classifier\n\n| encoder | side, px | parameters, M | multiply-adds, G |\n|---|---|---|---|")
    for name in ENCODERS:
        for side in (32, 96, 224):
            parameters, adds = measure(name, side)
            print(f"| {name} | {side} | {parameters:.2f} | {adds:.3f} |")


if __name__ == "__main__":
    main()
