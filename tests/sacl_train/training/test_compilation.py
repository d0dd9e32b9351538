"""What is compiled of a method, and that nothing is compiled in pieces."""

import pytest
import torch
from torch import Tensor

from sacl_train.methods.method import Method, Part
from sacl_train.training.compilation import compile_method

pytestmark = pytest.mark.usefixtures("untraced")


def in_two_pieces(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return x + 1


def test_graph_break_is_an_error() -> None:
    method = Method()
    method.loss = Part(in_two_pieces)
    assert torch.equal(method.loss(torch.zeros(2)), torch.ones(2))
    compile_method(method, "default")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        method.loss(torch.zeros(2))
