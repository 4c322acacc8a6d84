"""A LoRA's product, added in place, is what plain products would be, with their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from collectionlora.training.low_rank import TOGETHER, Factors, add_low_rank, cast
from collectionlora.training.randomness import generator


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(0, *shape), dtype=dtype)


def factors(*samples: int) -> Factors:
    return draw(*samples, 3, 5).requires_grad_(), draw(*samples, 4, 3).requires_grad_()


@pytest.mark.parametrize("samples", [(), (2,)], ids=["shared", "one for each sample"])
def test_gradients_are_those_of_plain_products(samples: tuple[int, ...]) -> None:
    x, weight = draw(2, 6, 5).requires_grad_(), draw(4, 5)
    down, up = factors(*samples)
    assert torch.autograd.gradcheck(
        lambda *given: add_low_rank(F.linear(given[0], weight), given[0], given[1:], 0.7), (x, down, up)
    )
    expected = F.linear(x, weight) + 0.7 * x @ down.mT @ up.mT
    torch.testing.assert_close(add_low_rank(F.linear(x, weight), x, (down, up), 0.7), expected)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_sum_takes_the_memory_of_the_output(gradient: bool) -> None:
    output, x = draw(2, 6, 4), draw(2, 6, 5)
    with torch.set_grad_enabled(gradient):
        added = add_low_rank(output, x, factors())
    assert added.data_ptr() == output.data_ptr()
    assert added.requires_grad == gradient


def test_the_model_may_write_over_the_sum() -> None:
    x, (down, up) = draw(6, 5), factors()
    added = add_low_rank(draw(6, 4), x, (down, up))
    added += draw(6, 4)
    added.square().sum().backward()
    expected = (2 * draw(6, 4) + x @ down.mT @ up.mT).square().sum()
    for got, wanted in zip((down.grad, up.grad), torch.autograd.grad(expected, (down, up)), strict=True):
        torch.testing.assert_close(got, wanted)


def test_an_output_of_another_kind_is_left_as_it_is() -> None:
    x, (down, up) = draw(6, 5), factors()
    for output in (draw(4, 6).T, draw(6, 4).float()):
        before = output.clone()
        added = add_low_rank(output, x, (down, up))
        assert added.dtype == output.dtype
        torch.testing.assert_close(added, (before + x @ down.mT @ up.mT).to(output.dtype))
        assert torch.equal(output, before)


def test_masters_get_the_gradients_of_their_casts() -> None:
    masters = (
        draw(3, 5, dtype=torch.float32).requires_grad_(),
        draw(4, 3, dtype=torch.float32).requires_grad_(),
    )
    x = draw(6, 5).bfloat16()
    made = cast({"a": masters}, torch.bfloat16)["a"]
    add_low_rank(x.new_zeros(6, 4), x, made, 2.0, masters).float().square().sum().backward()
    got = [master.grad for master in masters]
    down, up = (master.detach().bfloat16().double().requires_grad_() for master in masters)
    (2.0 * x.double() @ down.T @ up.T).square().sum().backward()
    for one, other in zip(got, (down.grad, up.grad), strict=True):
        assert one.dtype is torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_casts_are_those_of_each_tensor() -> None:
    many = {str(i): (draw(2, 3 + i % 5), draw(4 + i % 3, 2)) for i in range(TOGETHER)}
    made = cast(many, torch.float16)
    for path, pair in many.items():
        for one, other in zip(made[path], pair, strict=True):
            assert torch.equal(one, other.half())
    assert cast(many, torch.float64) == many  # the same tensors
