"""Offloaded blocks: never more than two on the device, the same gradients, nothing left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from collectionlora.training.fp8 import quantize_base
from collectionlora.training.lora import PAPER_TARGETS, LoraAdapter, TeacherStack, target_shapes
from collectionlora.training.offload import Offload, _Block
from collectionlora.training.randomness import generator
from collectionlora.training.roles import RoleError, Roles

BLOCKS, WIDTH = 6, 8
TARGETS = ("up", "mod", "down")


class Block(nn.Module):
    """Tokens and one vector a sample; a norm, whose weight stays where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.mod = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x)) * (1 + self.mod(vector)[:, None])))


class Net(nn.Module):
    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(blocks)])
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator(0, name))
        self.checkpointed = False
        self.requires_grad_(False)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            run: Any = partial(checkpoint, block, use_reentrant=False) if self.checkpointed else block
            x = run(x, vector)
        return x


def adapter(net: nn.Module, seed: int, dtype: torch.dtype) -> LoraAdapter:
    made = LoraAdapter.create(target_shapes(net, TARGETS), 3, 2.0, seed, dtype)
    for path, parameter in made.up.items():
        nn.init.normal_(parameter, std=0.3, generator=generator(seed, path))
    return made


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, vector = (4, 5, WIDTH), (4, WIDTH)
    return tuple(torch.randn(shape, generator=generator(7, *shape)).to(dtype) for shape in (x, vector))  # type: ignore[return-value]


def scored_gradients(net: Net, roles: Roles, dtype: torch.dtype) -> dict[str, Tensor]:
    """A student's gradients, with scoring by others between forward and backward, as the losses do."""
    student = roles.adapters["student"]
    student.zero_grad()
    with roles.use("student"):
        output = roles.guard(net(*batch(dtype)))
        with torch.no_grad(), roles.use("fake"):
            other = net(*batch(dtype))
        (output - other).square().sum().backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


class Watch:
    """What is on the device at every moment at which that changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, ...]] = []
        bring = Offload._bring

        def watched(offload: Offload, number: int) -> Any:
            slot = bring(offload, number)
            self.seen.append(offload.present)
            return slot

        monkeypatch.setattr(Offload, "_bring", watched)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    return Watch(monkeypatch)  # type: ignore[return-value]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 1e-2)])
def test_gradients_equal_the_resident_models_with_two_blocks_present(
    watch: Watch, checkpointed: bool, dtype: torch.dtype, tolerance: float
) -> None:
    net = Net().to(dtype)
    net.checkpointed = checkpointed
    with Roles(net, {"student": adapter(net, 1, dtype), "fake": adapter(net, 2, dtype)}) as roles:
        expected = scored_gradients(net, roles, dtype)
        assert len(expected) == 2 * len(TARGETS) * BLOCKS
        with Offload(net, "cpu") as offload:
            for _ in range(2):
                found = scored_gradients(net, roles, dtype)
                for name, truth in expected.items():
                    assert (found[name] - truth).norm() <= tolerance * truth.norm(), name
            assert all(linear.weight.numel() == 0 for linear in linears(net))
            assert len(offload._slots) == 2
    assert max(map(len, watch.seen)) == 2
    assert {block for present in watch.seen for block in present} == set(range(BLOCKS))


def linears(net: Net) -> list[nn.Linear]:
    return [module for module in net.blocks.modules() if isinstance(module, nn.Linear)]


def test_no_block_is_saved_for_the_backward() -> None:
    """A weight in the graph would stay on the device, or hold another block's bytes by then."""
    net = Net()
    saved: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    with Roles(net, {"student": adapter(net, 1, torch.float32)}) as roles, roles.use("student"):
        with Offload(net, "cpu") as offload:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                net(*batch(torch.float32))
            assert saved
            assert not saved & {slot.buffer.untyped_storage().data_ptr() for slot in offload._slots}
            assert not saved & {block.host.untyped_storage().data_ptr() for block in offload._blocks}
        resident = {linear.weight.untyped_storage().data_ptr() for linear in linears(net)}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            net(*batch(torch.float32))
        assert saved & resident  # what torch's own Linears do


@pytest.mark.parametrize("checkpointed", [False, True])
def test_blocks_are_foreseen_in_both_directions(checkpointed: bool) -> None:
    net = Net()
    net.checkpointed = checkpointed
    x = batch(torch.float32)
    with (
        Roles(net, {"student": adapter(net, 1, torch.float32)}) as roles,
        roles.use("student"),
        Offload(net, "cpu") as offload,
    ):
        for _ in range(3):
            with torch.no_grad():  # a rollout, from the last block to the first
                net(*x)
                net(*x)
            net(*x).sum().backward()
        assert offload.late == 0
        output = net(*x)
        with torch.no_grad():
            net(*x)
        output.sum().backward()
        # the scoring in between was not foreseen, nor the backward after it: two waits for a block
        assert offload.late == 2


class Slow:
    """Both streams of a device whose copies arrive as late as they may: when they are waited for."""

    def __init__(self, offload: Offload) -> None:
        self.offload = offload
        self.before: list[Tensor] = []

    def wait_stream(self, _: Any) -> None:
        self.before = [slot.buffer.clone() for slot in self.offload._slots]

    def record_event(self) -> list[tuple[Tensor, Tensor]]:
        """What has just been copied is not there yet."""
        buffers = [slot.buffer for slot in self.offload._slots]
        changed = [(one, one.clone()) for one, old in zip(buffers, self.before) if not torch.equal(one, old)]
        for buffer, _ in changed:
            buffer.fill_(255)  # NaN in every format
        return changed

    def wait_event(self, changed: list[tuple[Tensor, Tensor]]) -> None:
        for buffer, content in changed:
            buffer.copy_(content)
        changed.clear()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_block_runs_before_it_has_arrived(monkeypatch: pytest.MonkeyPatch, checkpointed: bool) -> None:
    net = Net()
    net.checkpointed = checkpointed
    adapters = {name: adapter(net, i, torch.float32) for i, name in enumerate(("student", "fake"))}
    with Roles(net, adapters) as roles:
        expected = scored_gradients(net, roles, torch.float32)
        with Offload(net, "cpu") as offload:
            slow = Slow(offload)
            monkeypatch.setattr(torch.cuda, "current_stream", lambda _: slow)
            monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
            monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
            offload._stream = slow  # type: ignore[assignment]
            for _ in range(2):
                found = scored_gradients(net, roles, torch.float32)
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_memory_is_locked_as_long_as_its_block_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[int] = []

    class Runtime:
        def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
            assert size > 0
            locked.append(pointer)
            return 0

        def cudaHostUnregister(self, pointer: int) -> None:
            locked.remove(pointer)

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    for block in [_Block.of(block) for block in Net().blocks]:
        block.leave(pin=True)
        assert locked == [block.host.data_ptr()]
        block.come_back()
        assert locked == []
    monkeypatch.setattr(Runtime, "cudaHostRegister", lambda *_: 1)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.warns(UserWarning, match="host memory cannot be locked"):
        _Block.of(Net().blocks[0]).leave(pin=True)
    assert locked == []


@pytest.mark.parametrize(("asked", "expected"), [(True, range(6)), (1, [0]), (2, [0, 3]), (4, [0, 1, 3, 4])])
def test_some_blocks_can_stay_resident(asked: bool | int, expected: Any) -> None:
    net = Net()
    student = adapter(net, 1, torch.float32)
    with Roles(net, {"student": student, "fake": adapter(net, 2, torch.float32)}) as roles:
        truth = scored_gradients(net, roles, torch.float32)
        with Offload(net, "cpu", asked):
            assert [i for i, block in enumerate(net.blocks) if block.up.weight.numel() == 0] == list(expected)
            found = scored_gradients(net, roles, torch.float32)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


def fail(net: Net, offload: Offload, roles: Roles) -> None:
    with offload:
        with roles.use("student"):
            output = roles.guard(net(*batch(torch.float32)))
        with roles.use("fake"):
            output.sum().backward()


def test_the_model_is_left_as_found_after_an_error() -> None:
    net = Net()
    found = {name: (p, p.clone()) for name, p in net.named_parameters()}
    modules = list(net.modules())
    student = adapter(net, 1, torch.float32)
    offload = Offload(net, "cpu")
    with Roles(net, {"student": student, "fake": adapter(net, 2, torch.float32)}) as roles:
        with pytest.raises(RoleError, match="backward under role 'fake'"):
            fail(net, offload, roles)
        assert offload.present == ()
        first = scored_gradients(net, roles, torch.float32)
        with offload:  # and again
            torch.testing.assert_close(scored_gradients(net, roles, torch.float32), first)
    assert list(net.modules()) == modules
    assert all("forward" not in module.__dict__ and not module._forward_hooks for module in modules)
    for name, parameter in net.named_parameters():
        assert parameter is found[name][0]
        assert torch.equal(parameter, found[name][1])
        assert parameter.untyped_storage().nbytes() == parameter.nbytes  # its own again, not its block's


def test_a_failure_while_leaving_brings_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    expected = net(*batch(torch.float32))
    monkeypatch.setattr("collectionlora.training.offload._Slot", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Offload(net, "cpu").attach()
    assert torch.equal(net(*batch(torch.float32)), expected)


def test_moving_the_module_leaves_the_blocks_away() -> None:
    net = Net()
    moved: list[Tensor] = []

    def move(tensor: Tensor) -> Tensor:
        moved.append(tensor)
        return tensor.clone()

    with Offload(net, "cpu"):
        net._apply(move)  # what `to` calls for every tensor
        assert any(tensor.shape == net.enter.weight.shape for tensor in moved)
        assert max(tensor.numel() for tensor in moved) <= WIDTH * WIDTH  # no Linear's weight of a block
        assert all(linear.weight.numel() == 0 for linear in linears(net))
    for linear, other in zip(linears(net), linears(Net())):
        assert torch.equal(linear.weight, other.weight)


@pytest.mark.parametrize("blocks", [0, 7, -1])
def test_a_wrong_number_of_blocks_is_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match=f"offload = {blocks}: the model has 6 blocks"):
        Offload(Net(), "cpu", blocks)


def test_what_cannot_be_offloaded_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        Offload(nn.Linear(2, 2), "cpu")
    with pytest.raises(ValueError, match="the weight of up is trained"):
        Offload(Net().requires_grad_(True), "cpu").attach()


def test_packed_blocks_are_offloaded_as_they_are() -> None:
    net = Net()
    quantize_base(net)
    packed = net.blocks[2].up.weight
    before = packed.view(torch.uint8).clone()
    with Roles(
        net, {name: adapter(net, i, torch.float32) for i, name in enumerate(("student", "fake"))}
    ) as r:
        expected = scored_gradients(net, r, torch.float32)
        with Offload(net, "cpu") as offload:
            assert offload._blocks[0].size < 1024  # bytes, one a weight
            torch.testing.assert_close(scored_gradients(net, r, torch.float32), expected, rtol=0, atol=0)
        torch.testing.assert_close(scored_gradients(net, r, torch.float32), expected, rtol=0, atol=0)
    assert torch.equal(packed.view(torch.uint8), before)


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_a_small_qwen_image_edit_trains_the_same_under_every_policy(policy: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    from collectionlora.training.hosts.fused import fuse

    net = diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12),
    )
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, std=0.08, generator=generator(1, name))
    net.requires_grad_(False)
    student = LoraAdapter.create(target_shapes(net, PAPER_TARGETS), 4, 2.0, 1)
    for path, up in student.up.items():
        nn.init.normal_(up, std=0.08, generator=generator(2, path))
    stack = TeacherStack.of({"frost": student.weights()})

    def gradients(roles: Roles) -> tuple[Tensor, list[Tensor]]:
        student.zero_grad()
        given = {
            "hidden_states": torch.randn(2, 8, 64, generator=generator(1)),
            "encoder_hidden_states": torch.randn(2, 3, 32, generator=generator(2)),
            "timestep": torch.tensor([0.2, 0.9]),
            "img_shapes": [[(1, 2, 2), (1, 2, 2)]] * 2,
            "return_dict": False,
        }
        with roles.use("student"):
            output = roles.guard(net(**given)[0])
            with torch.no_grad(), roles.use_teachers(stack, stack.index(["frost", None])):
                scored = net(**given)[0]
            output.square().mean().backward()
        return scored, [p.grad.clone() for p in student.parameters() if p.grad is not None]

    with Roles(net, {"student": student}) as roles:
        fuse(net)
        expected = gradients(roles)
        fuse(net, policy)
        with Offload(net, "cpu") as offload:
            torch.testing.assert_close(gradients(roles), expected, rtol=1e-6, atol=1e-9)
            assert len(offload.present) == 2
