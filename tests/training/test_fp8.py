"""A base in 8 bits: close, exactly unpacked, and without float weights in the graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collectionlora.training.fp8 import FP8, LARGEST, quantize, quantize_base
from collectionlora.training.frozen import SCALE, FrozenForward
from collectionlora.training.randomness import generator

CASES = {
    "normal": torch.randn(64, 128, generator=generator(1)),
    "wide": torch.randn(64, 128, generator=generator(2)) * torch.logspace(-6, 4, 64)[:, None],
    "at the largest": torch.tensor(
        [[LARGEST, 1.0], [LARGEST * 2**-9, -1e-4], [LARGEST + 15, 0.0], [0.0, 0.0]]
    ),
}


@pytest.mark.parametrize("weight", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_wrong_by_no_more_than_its_format_allows(weight: Tensor, dtype: torch.dtype) -> None:
    weight = weight.to(dtype)
    values, scale = quantize(weight)
    assert values.dtype == FP8
    assert scale.shape == (len(weight), 1)
    assert torch.equal(scale, torch.exp2(torch.log2(scale).round()))
    error = (values.float() * scale - weight.float()).abs()
    allowed = torch.maximum(weight.float().abs() / 16, scale / 1024)
    assert (error <= allowed).all()
    used = values.float().abs().amax(1)
    assert (used[weight.abs().amax(1) > 0] > LARGEST / 2 - 16).all()  # no bit of range is given away


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 16)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))])
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator(0, name))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def unpacked(net: Net) -> Net:
    """The same weights as float32, in torch's own Linears: the truth."""
    truth = Net()
    for ours, theirs in zip(net.blocks.modules(), truth.blocks.modules()):
        if isinstance(ours, nn.Linear):
            theirs.weight.data = ours.weight.float() * getattr(ours, SCALE)
    return truth


def given() -> Tensor:
    return torch.randn(3, 5, 16, generator=generator(9)).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linears_compute_what_their_unpacked_weights_do(dtype: torch.dtype) -> None:
    net = Net()
    quantize_base(net)
    truth = unpacked(net).to(dtype)
    net.enter.to(dtype)
    for linear in (net.blocks[0][0], net.blocks[0][2]):
        linear.bias.data = linear.bias.to(dtype)
    found = []
    for model in (net, truth):
        x = given().to(dtype).detach().requires_grad_()
        output = model(x)
        output.square().sum().backward()
        found.append((output.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_packed_base_is_close_to_the_one_it_was_made_of() -> None:
    net = Net()
    quantize_base(net)
    output, truth = net(given()), Net()(given())
    error = (output - truth).norm() / truth.norm()
    assert 1e-4 < error < 0.05


def test_only_the_blocks_linears_are_packed() -> None:
    net = Net()
    names = [name for name, _ in net.named_parameters()]
    quantize_base(net)
    assert [name for name, _ in net.named_parameters()] == names
    packed = {name for name, parameter in net.named_parameters() if parameter.dtype == FP8}
    assert packed == {"blocks.0.0.weight", "blocks.0.2.weight"}
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(
        parameter.dtype == torch.float32 for name, parameter in net.named_parameters() if "bias" in name
    )


def test_no_unpacked_weight_is_saved_for_the_backward() -> None:
    net = Net()
    quantize_base(net)
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        net(given())
    assert saved
    assert not [tensor for tensor in saved if tensor.shape[-2:] in ((32, 16), (16, 32))]


def test_a_scalar_scale_as_other_programs_write_it_is_understood() -> None:
    linear = nn.Linear(8, 4).requires_grad_(False)
    scale = torch.tensor(0.37)
    packed = (linear.weight / scale).to(FP8)
    linear.weight.data = packed
    linear.register_buffer(SCALE, scale, persistent=False)
    linear.forward = FrozenForward(linear, lambda: linear.weight)  # type: ignore[method-assign]
    x = torch.randn(2, 8, generator=generator(3))
    torch.testing.assert_close(linear(x), F.linear(x, packed.float() * 0.37, linear.bias))


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no blocks"):
        quantize_base(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the weight of 0 is trained"):
        quantize_base(Net().requires_grad_(True))
    net = Net()
    quantize_base(net)
    with pytest.raises(ValueError, match="a weight of Sequential is quantised already"):
        quantize_base(net)
