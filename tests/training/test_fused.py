"""Fused blocks: what diffusers' own compute, with its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import TorchDynamoException
from torch.autograd.graph import saved_tensors_hooks

from collectionlora.training.fp8 import quantize_base
from collectionlora.training.lora import PAPER_TARGETS, LoraAdapter, TeacherStack, target_shapes
from collectionlora.training.roles import Roles

pytest.importorskip("diffusers")

from diffusers import QwenImageTransformer2DModel

from collectionlora.training.hosts.diffusers import EditVelocity
from collectionlora.training.hosts.fused import fuse
from collectionlora.training.hosts.kernels import Compiled, gated, kernel, modulated
from collectionlora.training.hosts.ragged import padded

CHANNELS = 4


def transformer(by_token: bool) -> Any:
    """Small; `by_token`: one that modulates the source's tokens by themselves, as later editions do."""
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=by_token,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def student_of(model: Any) -> LoraAdapter:
    """An adapter that has learnt something."""
    student = LoraAdapter.create(target_shapes(model, PAPER_TARGETS), 4, 4.0, 0)
    for up in student.up.values():
        torch.nn.init.normal_(up, std=0.05)
    return student


def learnt(model: Any, student: LoraAdapter, words: int = 5) -> tuple[Tensor, Tensor]:
    """Output and gradients for two samples."""
    draw = torch.Generator().manual_seed(0)
    x, source = torch.randn(2, 2, CHANNELS, 4, 6, generator=draw).unbind()
    text = torch.randn(2, words, 12, generator=draw)
    student.zero_grad()
    with Roles(model, {"student": student}) as roles, roles.use("student"):
        output = roles.guard(EditVelocity(model)(x, torch.tensor([0.3, 0.8]), text, source))
        output.square().mean().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()]
    return output.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize(
    ("policy", "by_token", "compiled"),  # a minute is compiled
    [*product(["none", "selective", "full"], [False, True], [False]), ("full", False, True)],
)
def test_prompts_of_several_lengths_share_a_batch(
    policy: str, by_token: bool, compiled: bool, graphs: list[str]
) -> None:
    """Each sample gets what it would get alone, and nothing is learnt from the padding."""
    model = transformer(by_token).double()
    student = student_of(model).double()
    draw = torch.Generator().manual_seed(0)
    x, source = torch.randn(2, 3, CHANNELS, 4, 6, generator=draw, dtype=torch.float64).unbind()
    sigma = torch.tensor([0.3, 0.8, 0.6], dtype=torch.float64)
    prompts = [torch.randn(n, 12, generator=draw, dtype=torch.float64) for n in (5, 9, 2)]
    fuse(model, policy, compiled)
    velocity = EditVelocity(model)

    def learnt(parts: list[list[int]]) -> tuple[Tensor, Tensor]:
        student.zero_grad()
        outputs = []
        with Roles(model, {"student": student}) as roles, roles.use("student"):
            for part in parts:
                words, lengths = padded([prompts[i] for i in part])
                assert (lengths is None) == (len(part) == 1)
                output = roles.guard(velocity(x[part], sigma[part], words, source[part], lengths))
                output.square().sum().backward()
                outputs.append(output.detach())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()]
        return torch.cat(outputs), torch.cat([gradient.flatten() for gradient in gradients])

    expected = learnt([[0], [1], [2]])
    for got, wanted in zip(learnt([[0, 1, 2]]), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> bool:
    return all(float((one - other).norm()) < 1e-5 * float(other.norm()) for one, other in zip(got, wanted))


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_fused_blocks_compute_and_learn_the_same(policy: str, by_token: bool) -> None:
    model = transformer(by_token)
    student = student_of(model)
    expected = learnt(model, student)
    fuse(model, policy)
    assert same(learnt(model, student), expected)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is compiled meanwhile, split into forward and backward as on a GPU but not made into kernels."""
    found: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(graph.code)
        return lookup_backend("aot_eager_decomp_partition")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    kernel.cache_clear()
    yield found
    kernel.cache_clear()


@pytest.mark.parametrize("policy", ["none", "full"])
def test_compiled_blocks_compute_and_learn_the_same(policy: str, graphs: list[str]) -> None:
    model = transformer(False)
    student = student_of(model)
    expected = [learnt(model, student, words) for words in (5, 7)]
    fuse(model, policy, compiled=True)
    for words, wanted in zip((5, 7), expected):
        assert same(learnt(model, student, words), wanted)
    once = len(graphs)
    assert 2 <= once <= 8  # of all blocks the same, but for the first, whose input needs no gradient
    learnt(model, student, 9)
    assert len(graphs) == once


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_blocks_keep_as_much(packed: bool, graphs: list[str]) -> None:
    model = transformer(False)
    if packed:
        quantize_base(model)
    fuse(model)
    usual = kept_bytes(model)
    fuse(model, compiled=True)
    assert kept_bytes(model) < 1.02 * usual
    assert graphs


def kept_bytes(model: Any) -> int:
    """What a forward keeps for its backward beside weights."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, CHANNELS, 8, 8, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        EditVelocity(model)(x, torch.ones(1), torch.randn(1, 5, 12), x.detach())
    return sum(size for where, size in sizes.items() if where not in own)


@pytest.mark.parametrize(("by_token", "compiled"), [(False, False), (True, False), (True, True)])
def test_each_sample_has_its_own_teacher(by_token: bool, compiled: bool, graphs: list[str]) -> None:
    model = transformer(by_token)
    teachers = {name: student_of(model) for name in ("frost", "neon")}
    x, source = torch.randn(2, 2, CHANNELS, 4, 6).unbind()
    given = x, torch.tensor([0.3, 0.8]), torch.randn(2, 5, 12), source
    alone = []
    with torch.no_grad(), Roles(model, teachers) as roles:
        for i, name in enumerate(teachers):
            with roles.use(name):
                alone.append(EditVelocity(model)(*(tensor[i : i + 1] for tensor in given)))
    fuse(model, compiled=compiled)
    stack = TeacherStack.of({name: teacher.weights() for name, teacher in teachers.items()})
    with torch.no_grad(), Roles(model, {}) as roles:
        for chosen in (["frost", "neon"], ["neon", "neon"]):
            with roles.use_teachers(stack, stack.index(chosen)):
                made = EditVelocity(model)(*given)
            torch.testing.assert_close(made[1:], alone[1], rtol=1e-4, atol=1e-5)
            assert (chosen[0] == "frost") == torch.allclose(made[:1], alone[0], rtol=1e-4, atol=1e-5)
    assert bool(graphs) == compiled


def test_checkpointing_keeps_less() -> None:
    kept = {}
    for policy in ("none", "selective", "full"):
        model = transformer(False)
        fuse(model, policy)
        kept[policy] = kept_bytes(model)
    assert kept["full"] < 0.7 * kept["selective"] < 0.5 * kept["none"]


def test_another_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpointing = 'some'; valid are full, selective, none"):
        fuse(transformer(False), "some")


def test_the_backward_is_that_of_the_forward() -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x, shift, scale = random(2, 3, 4), random(2, 1, 4), random(2, 1, 4)
    assert torch.autograd.gradcheck(lambda *given: modulated(*given, 1e-6), (x, shift, scale))
    assert torch.autograd.gradcheck(gated, (x, shift, random(2, 3, 4)))


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any) -> None:
        raise TorchDynamoException("no C compiler")

    monkeypatch.setattr(torch, "compile", lambda function: no_compiler)
    double = Compiled(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="runs slower, not compiled: no C compiler"):
        assert double(3) == 6
    assert double(4) == 8
