"""Roles on one shared base: right deltas, right gradients, nothing left behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from collectionlora.training.lora import LoraAdapter, TeacherStack, target_shapes
from collectionlora.training.randomness import generator
from collectionlora.training.roles import RoleError, Roles


class Block(nn.Module):
    """Tokens and one vector a sample, as in a transformer block with modulation."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.mod = nn.Linear(8, 8)
        self.down = nn.Linear(16, 8)
        self.checkpointed = False

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        if self.checkpointed:
            return checkpoint(self.inner, x, vector, use_reentrant=False)
        return self.inner(x, vector)

    def inner(self, x: Tensor, vector: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x) * (1 + self.mod(vector).repeat(1, 2)[:, None])))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        for number, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=0.3, generator=generator(number))
        self.requires_grad_(False)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, vector)
        return x


TARGETS = ("up", "mod", "down")


def adapter(net: nn.Module, seed: int, targets: tuple[str, ...] = TARGETS, rank: int = 3) -> LoraAdapter:
    made = LoraAdapter.create(target_shapes(net, targets), rank, alpha=2.0, seed=seed)
    for path, parameter in made.up.items():
        nn.init.normal_(parameter, std=0.3, generator=generator(seed, path))
    return made


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 5, 8, generator=generator(1)), torch.randn(size, 8, generator=generator(2))


def merged(net: Net, role: LoraAdapter) -> Net:
    """The same network with the adapter added to its weights: the truth."""
    result = copy.deepcopy(net)
    weights = role.weights()
    for path in role.shapes:
        linear = result.get_submodule(path)
        linear.weight.data += weights.scale(path) * weights.up[path] @ weights.down[path]
    return result


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def roles(net: Net) -> Roles:
    return Roles(net, {"student": adapter(net, 1), "fake": adapter(net, 2)}).attach()


def test_each_role_computes_what_its_merged_weights_would(net: Net, roles: Roles) -> None:
    x = batch()
    expected = {"base": Net()(*x)} | {name: merged(Net(), made)(*x) for name, made in roles.adapters.items()}
    for name, truth in expected.items():
        with roles.use(name):
            torch.testing.assert_close(net(*x), truth, rtol=1e-5, atol=1e-5)


def test_base_role_is_bitwise_the_untouched_module(net: Net, roles: Roles) -> None:
    assert torch.equal(net(*batch()), Net()(*batch()))


def test_each_sample_gets_its_own_teacher(net: Net, roles: Roles) -> None:
    teachers = {"frost": adapter(net, 3), "neon": adapter(net, 4, rank=1), "comic": adapter(net, 5, ("up",))}
    stack = TeacherStack.of({name: made.weights() for name, made in teachers.items()})
    names = ["comic", None, "frost", "neon"]
    x, vector = batch()
    with roles.use_teachers(stack, stack.index(names)):
        together = net(x, vector)
    for i, name in enumerate(names):
        alone = Net() if name is None else merged(Net(), teachers[name])
        torch.testing.assert_close(together[i], alone(x, vector)[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["frost", None])
def test_one_shared_teacher_equals_the_mixed_path(net: Net, roles: Roles, name: str | None) -> None:
    stack = TeacherStack.of({"frost": adapter(net, 3).weights(), "neon": adapter(net, 4).weights()})
    x, vector = batch(3)
    with roles.use_teachers(stack, stack.index([name] * 3)):
        shared = net(x, vector)
    with roles.use_teachers(stack, stack.index([name, name, "neon"])):
        mixed = net(x, vector)
    torch.testing.assert_close(shared[:2], mixed[:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [["comic", None, "frost"], ["frost"] * 3, [None] * 3])
def test_an_adapter_on_top_of_teachers_adds_its_delta_to_each(
    net: Net, roles: Roles, names: list[str | None]
) -> None:
    teachers = {"frost": adapter(net, 3), "comic": adapter(net, 5, ("up",))}
    stack = TeacherStack.of({name: made.weights() for name, made in teachers.items()})
    x, vector = batch(3)
    with roles.use_teachers(stack, stack.index(names), plus="fake"):
        together = net(x, vector)
    for i, name in enumerate(names):
        alone = merged(Net(), roles.adapters["fake"])
        alone = alone if name is None else merged(alone, teachers[name])
        torch.testing.assert_close(together[i], alone(x, vector)[i], rtol=1e-5, atol=1e-5)
    with pytest.raises(RoleError, match="unknown role 'real'"):
        roles.use_teachers(stack, stack.index(names), plus="real").__enter__()


def test_backward_of_a_sum_needs_the_same_teachers_and_adapter(net: Net, roles: Roles) -> None:
    stack = TeacherStack.of({"frost": adapter(net, 3).weights(), "neon": adapter(net, 4).weights()})
    index = stack.index(["frost", "neon"])
    x, vector = batch(2)
    with roles.use_teachers(stack, index, plus="fake"):
        output = roles.guard(net(x, vector))
    for other, plus in ((index, None), (index, "student"), (index.flip(0), "fake")):
        with (
            roles.use_teachers(stack, other, plus=plus),
            pytest.raises(RoleError, match=r"teachers frost, neon \+ fake"),
        ):
            output.sum().backward(retain_graph=True)
    with roles.use_teachers(stack, index.clone(), plus="fake"):
        output.sum().backward()
    assert gradients(roles.adapters["fake"])
    assert all(p.grad is None for p in roles.adapters["student"].parameters())


def test_teachers_may_adapt_modules_that_no_adapter_does() -> None:
    net = Net()
    teacher = adapter(net, 3)
    stack = TeacherStack.of({"frost": teacher.weights()})
    with Roles(net, {"student": adapter(net, 1, ("mod",))}) as roles:
        with roles.use_teachers(stack, stack.index(["frost"] * 4)):
            torch.testing.assert_close(net(*batch()), merged(Net(), teacher)(*batch()), rtol=1e-5, atol=1e-5)
        assert torch.equal(net(*batch()), Net()(*batch()))
    assert not any(module._forward_hooks for module in net.modules())


def gradients(made: LoraAdapter) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in made.named_parameters()}
    assert all(grad is not None for grad in found.values())
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def test_gradients_reach_the_active_adapter_alone(net: Net, roles: Roles) -> None:
    with roles.use("student"):
        roles.guard(net(*batch())).square().sum().backward()
    assert gradients(roles.adapters["student"])
    assert all(parameter.grad is None for parameter in roles.adapters["fake"].parameters())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_adapter_that_changes_while_in_use_computes_with_its_new_numbers(net: Net, roles: Roles) -> None:
    x, vector = (tensor.bfloat16() for tensor in batch())
    net.bfloat16()
    with roles.use("student"), torch.no_grad():
        before = net(x, vector)
        for parameter in roles.adapters["student"].parameters():
            parameter.mul_(2)
        assert not torch.equal(net(x, vector), before)
        within = net(x, vector)
    with roles.use("student"), torch.no_grad():
        assert torch.equal(net(x, vector), within)


def test_checkpointing_leaves_the_gradients_as_they_are(net: Net, roles: Roles) -> None:
    student = roles.adapters["student"]
    found = []
    for checkpointed in (False, True):
        for block in net.blocks:
            block.checkpointed = checkpointed
        student.zero_grad()
        with roles.use("student"):
            output = roles.guard(net(*batch()))
            with roles.use("fake"), torch.no_grad():  # scoring in between, as the losses do
                net(*batch())
            output.square().sum().backward()
        found.append(gradients(student))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_recomputing_in_another_thread_sees_the_active_role(net: Net, roles: Roles) -> None:
    # autograd runs a device's backward, and with it the recomputation, in a thread of its own
    output = []
    with roles.use("student"):
        expected = net(*batch())
        thread = threading.Thread(target=lambda: output.append(net(*batch())))
        thread.start()
        thread.join()
    assert torch.equal(output[0], expected)


@pytest.mark.parametrize("now", ["base", "fake"])
def test_backward_in_another_role_is_refused_naming_both(net: Net, roles: Roles, now: str) -> None:
    with roles.use("student"):
        output = roles.guard(net(*batch()))
    with roles.use(now), pytest.raises(RoleError, match=rf"under role '{now}' of .* under 'student'"):
        output.sum().backward()
    assert all(p.grad is None for p in roles.adapters["student"].parameters())


def test_backward_in_a_second_use_of_the_same_role_is_allowed(net: Net, roles: Roles) -> None:
    with roles.use("student"):
        output = roles.guard(net(*batch()))
    with roles.use("student"):
        output.sum().backward()
    assert gradients(roles.adapters["student"])


def test_backward_under_other_teachers_is_refused(net: Net, roles: Roles) -> None:
    stack = TeacherStack.of({"frost": adapter(net, 3).weights(), "neon": adapter(net, 4).weights()})
    x, vector = batch(2)
    x.requires_grad_()
    with roles.use_teachers(stack, stack.index(["frost", "neon"])):
        output = roles.guard(net(x, vector))
    with (
        roles.use_teachers(stack, stack.index(["frost", None])),
        pytest.raises(RoleError, match=r"teachers frost, base.*teachers frost, neon"),
    ):
        output.sum().backward()


def test_a_graph_that_has_been_gone_back_through_keeps_no_teachers(net: Net, roles: Roles) -> None:
    """A loss of the last micro-batch lives until the next one is computed, beside the next teachers."""
    stack = TeacherStack.of({"frost": adapter(net, 3).weights(), "neon": adapter(net, 4).weights()})
    x, vector = batch(2)
    x.requires_grad_()
    with roles.use_teachers(stack, stack.index(["frost", "neon"])):
        loss = roles.guard(net(x, vector)).sum()
        loss.backward()
    kept = weakref.ref(stack)
    del stack
    gc.collect()
    assert kept() is None
    assert loss.grad_fn is not None


def test_roles_restore_the_one_they_found_even_after_an_error(roles: Roles) -> None:
    with roles.use("student"):
        with contextlib.suppress(KeyError), roles.use("fake"):
            assert roles.active == "fake"
            raise KeyError
        assert roles.active == "student"
        with roles.use("base"):
            assert roles.active == "base"
        assert roles.active == "student"
    assert roles.active == "base"


def everything(net: nn.Module) -> dict[str, Any]:
    """All that a module tree consists of, down to hooks, flags and addresses of the weights."""
    return {
        path: (
            type(module),
            module.forward.__func__,  # type: ignore[attr-defined]
            sorted(module.__dict__),
            {key: len(value) for key, value in module.__dict__.items() if "hooks" in key},
            [(name, p.data_ptr(), p.requires_grad, p.tolist()) for name, p in module.named_parameters()],
            list(module.named_buffers()),
        )
        for path, module in net.named_modules()
    }


def test_detaching_leaves_nothing_behind_even_after_a_failed_backward() -> None:
    net = Net()
    before = everything(net)
    stack = TeacherStack.of({"frost": adapter(net, 3).weights()})
    with Roles(net, {"student": adapter(net, 1)}) as roles:
        assert everything(net) != before
        with roles.use("student"):
            output = roles.guard(net(*batch()))
        with pytest.raises(RoleError), roles.use_teachers(stack, stack.index(["frost"] * 4)):
            output.sum().backward()
    assert everything(net) == before


def test_attach_and_detach_can_be_repeated(net: Net, roles: Roles) -> None:
    roles.attach()
    assert len(net.blocks[0].up._forward_hooks) == 1
    roles.detach()
    roles.detach()
    assert not net.blocks[0].up._forward_hooks
    with pytest.raises(RoleError, match="attach"), roles.use("student"):
        pass
    roles.attach()
    with roles.use("student"):
        assert not torch.equal(net(*batch()), Net()(*batch()))


def test_wrong_roles_and_adapters_are_refused_by_name(net: Net, roles: Roles) -> None:
    with pytest.raises(RoleError, match="unknown role 'teacher'; known are base, student, fake"):
        roles.use("teacher").__enter__()
    with pytest.raises(RoleError, match="'base' names the module without adapter"):
        Roles(net, {"base": adapter(net, 1)})
    with pytest.raises(RoleError, match=r"'s' adapts blocks.7.up, which Net lacks"):
        Roles(net, {"s": LoraAdapter({"blocks.7.up": (16, 8)}, 2, 2)})
    with pytest.raises(RoleError, match=r"\(out, in\) = \(8, 8\), but the module's has shape .* = \(16, 8\)"):
        Roles(net, {"s": LoraAdapter({"blocks.0.up": (8, 8)}, 2, 2)})
    with pytest.raises(RoleError, match="is no Linear"):
        Roles(net, {"s": LoraAdapter({"blocks.0": (8, 8)}, 2, 2)})


@pytest.mark.parametrize("chosen", [["frost", "neon"], ["neon", None], ["neon", "neon"]])
def test_vectors_may_hold_all_samples_twice(net: Net, roles: Roles, chosen: list[str | None]) -> None:
    stack = TeacherStack.of({"frost": adapter(net, 3).weights(), "neon": adapter(net, 4, rank=2).weights()})
    mod, vectors = net.blocks[0].mod, batch(4)[1]
    with roles.use_teachers(stack, stack.index(chosen)):
        together = mod(vectors)
        halves = [mod(half) for half in vectors.split(2)]
        with pytest.raises(RoleError, match=r"got an input of shape \(6, 8\)"):
            mod(batch(6)[1])
    torch.testing.assert_close(together, torch.cat(halves))


def test_wrong_teacher_indices_and_batches_are_refused(net: Net, roles: Roles) -> None:
    stack = TeacherStack.of({"frost": adapter(net, 3).weights()})
    with pytest.raises(RoleError, match=r"\[0, 1\] is out of range: the stack holds 1"):
        roles.use_teachers(stack, torch.tensor([0, 1])).__enter__()
    with (
        roles.use_teachers(stack, stack.index(["frost", None])),
        pytest.raises(RoleError, match=r"blocks.0.up got .* \(4, 5, 8\).* for 2 samples"),
    ):
        net(*batch(4))


class PackedLinear(nn.Module):
    """A quantised layer as some libraries make them: packed bytes, known features, no float weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), False)
        self.linear = [linear]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear[0](x)


def test_quantised_linears_are_adapted_by_their_features(net: Net) -> None:
    student = adapter(net, 1)
    expected = merged(net, student)(*batch())
    for block in net.blocks:
        block.up = PackedLinear(block.up)
    with Roles(net, {"student": student}) as roles, roles.use("student"):
        torch.testing.assert_close(net(*batch()), expected, rtol=1e-5, atol=1e-5)


def test_names_joined_by_a_plus_add_up() -> None:
    net = Net()
    first, second = adapter(net, 1), adapter(net, 2, ("up",))
    x, vector = batch()
    expected = merged(merged(net, first), second)(x, vector)
    with Roles(net, {"first": first, "second": second}) as roles:
        with roles.use("first + second"):
            assert roles.active == "first + second"
            found = roles.guard(net(x, vector))
            found.sum().backward()
        torch.testing.assert_close(found, expected)
        assert all(p.grad is not None for one in (first, second) for p in one.parameters())
        with pytest.raises(RoleError, match="unknown role 'third'"), roles.use("first + third"):
            pass
    with pytest.raises(RoleError, match="cannot be in the name"):
        Roles(net, {"a + b": first})
