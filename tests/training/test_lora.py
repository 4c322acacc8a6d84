"""The trainable adapter and the stack of frozen teachers."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import Tensor, nn

from collectionlora.collection.errors import LoraFormatError
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.training.lora import (
    LoraAdapter,
    TeacherStack,
    added_up,
    block_targets,
    taken_apart,
    target_shapes,
    widened,
)
from collectionlora.training.randomness import generator
from collectionlora.training.roles import Roles

SHAPES = {"0": (16, 8), "2": (8, 16)}


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).requires_grad_(False)
    for number, parameter in enumerate(net.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=generator(number))
    return net


def trained(rank: int = 4, alpha: float = 2.0, seed: int = 0) -> LoraAdapter:
    """An adapter whose B is not zero."""
    adapter = LoraAdapter.create(SHAPES, rank, alpha, seed)
    for path, parameter in adapter.up.items():
        nn.init.normal_(parameter, std=0.3, generator=generator(seed, path))
    return adapter


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(99))


def test_fresh_adapter_changes_nothing_and_has_peft_bounds() -> None:
    adapter = LoraAdapter.create(SHAPES, rank=64, alpha=64, seed=0)
    assert torch.equal(adapter("0", inputs(3, 8)), torch.zeros(3, 16))
    bound = 8**-0.5
    peak = adapter.weights().down["0"].abs().max().item()
    assert 0.9 * bound < peak <= bound


def test_initial_weights_depend_on_seed_and_path_only() -> None:
    whole = LoraAdapter.create(SHAPES, 4, 4, seed=3).weights()
    part = LoraAdapter.create({"2": (8, 16)}, 4, 4, seed=3).weights()
    other = LoraAdapter.create(SHAPES, 4, 4, seed=4).weights()
    assert torch.equal(whole.down["2"], part.down["2"])
    assert not torch.equal(whole.down["2"], other.down["2"])


def test_forward_and_gradients_equal_peft_on_plain_linears() -> None:
    net, adapter = network(), trained()
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["0", "2"])
    reference = peft.inject_adapter_in_model(config, copy.deepcopy(net))
    for path, weights in ((path, adapter.weights()) for path in SHAPES):
        layer = reference.get_submodule(path)
        layer.lora_A["default"].weight.data.copy_(weights.down[path])
        layer.lora_B["default"].weight.data.copy_(weights.up[path])
    x = inputs(3, 5, 8)
    expected = reference(x)
    expected.square().sum().backward()
    with Roles(net, {"student": adapter}) as roles, roles.use("student"):
        output = net(x)
        output.square().sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for path in SHAPES:
        layer = reference.get_submodule(path)
        for ours, theirs in ((adapter.down[path], layer.lora_A), (adapter.up[path], layer.lora_B)):
            torch.testing.assert_close(ours.grad, theirs["default"].weight.grad, rtol=1e-5, atol=1e-5)


def test_arithmetic_is_in_the_input_dtype_and_gradients_are_float32() -> None:
    adapter = trained()
    delta = adapter("0", inputs(3, 8).bfloat16())
    assert delta.dtype is torch.bfloat16
    delta.sum().backward()
    assert adapter.down["0"].grad is not None
    assert adapter.down["0"].grad.dtype is torch.float32


def test_state_dict_keys_are_stable() -> None:
    adapter = LoraAdapter({"blocks.0.attn.to_q": (4, 4)}, rank=2, alpha=2)
    assert list(adapter.state_dict()) == ["down.blocks/0/attn/to_q", "up.blocks/0/attn/to_q"]


def test_weights_are_a_copy_and_load_takes_them_back() -> None:
    source, target = trained(seed=0), trained(seed=1)
    weights = source.weights()
    target.load(weights)
    x = inputs(3, 8)
    assert torch.equal(target("0", x), source("0", x))
    with torch.no_grad():
        source.up["0"].zero_()
    assert not torch.equal(weights.up["0"], source.up["0"])


def test_load_folds_another_alpha() -> None:
    source, target = trained(alpha=8.0), trained(alpha=2.0, seed=1)
    target.load(source.weights())
    torch.testing.assert_close(target("2", inputs(3, 16)), source("2", inputs(3, 16)))


@pytest.mark.parametrize("zeros", [False, True])
def test_what_weights_lack_adds_nothing_and_can_learn(zeros: bool) -> None:
    smaller = LoraAdapter.create({"2": SHAPES["2"]}, 2, 1.0, seed=1)
    nn.init.normal_(smaller.up["2"], generator=generator(0, "up"))
    target = trained()
    weights = smaller.weights()
    if zeros:  # of rank 3 and on every module, where nothing is added
        weights = widened(added_up([weights, LoraAdapter({"2": SHAPES["2"]}, 1, 1.0).weights()]), SHAPES)
        assert not weights.down["2"][2].any()
        assert not weights.down["0"].any()
    target.load(weights)
    x = {path: inputs(3, into) for path, (_, into) in SHAPES.items()}
    torch.testing.assert_close(target("2", x["2"]), smaller("2", x["2"]))
    assert target("0", x["0"]).abs().max() == 0
    sum(target(path, x[path]).square().sum() + target(path, x[path]).sum() for path in SHAPES).backward()
    for path in SHAPES:
        assert (target.up[path].grad.abs().sum(0) > 0).all()  # of every rank


@pytest.mark.parametrize(
    ("shapes", "rank", "message"),
    [
        ({**SHAPES, "4": (8, 8)}, 4, "4 is missing from the adapter"),
        (
            SHAPES,
            5,
            r"0: A, B have shapes \(\(5, 8\), \(16, 5\)\), the adapter holds up to \(\(4, 8\), \(16, 4\)\)",
        ),
        ({"0": (16, 7)}, 4, "0: A, B have shapes"),
    ],
)
def test_load_refuses_weights_that_do_not_fit_and_changes_nothing(
    shapes: dict[str, tuple[int, int]], rank: int, message: str
) -> None:
    adapter = trained()
    before = copy.deepcopy(adapter.state_dict())
    with pytest.raises(LoraFormatError, match=message):
        adapter.load(LoraAdapter.create(shapes, rank, 1.0, seed=5).weights())
    torch.testing.assert_close(dict(adapter.state_dict()), dict(before), rtol=0, atol=0)


def test_rank_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1"):
        LoraAdapter(SHAPES, rank=0, alpha=1)


def test_target_shapes_finds_linears_by_the_end_of_their_path() -> None:
    net = nn.ModuleDict({"a": network(), "b": network(), "x0": nn.Linear(1, 1)})
    assert target_shapes(net, ["0"]) == {"a.0": (16, 8), "b.0": (16, 8)}
    with pytest.raises(ValueError, match="no Linear of ModuleDict is named 'to_q'; there are, say, 0"):
        target_shapes(net, ["0", "to_q", "1"])


def test_stack_pads_ranks_folds_alpha_and_zeroes_what_a_teacher_lacks() -> None:
    wide, narrow = trained(rank=4, alpha=8).weights(), trained(rank=2, alpha=1, seed=1).weights()
    for part in (narrow.down, narrow.up, narrow.alpha):
        del part["2"]  # type: ignore[attr-defined]
    stack = TeacherStack.of({"wide": wide, "narrow": narrow})
    assert stack.down["0"].shape == (2, 4, 8)
    assert stack.up["0"].shape == (2, 16, 4)
    for e, lora in enumerate((wide, narrow)):
        delta = lora.scale("0") * lora.up["0"] @ lora.down["0"]
        torch.testing.assert_close(stack.up["0"][e] @ stack.down["0"][e], delta)
    assert not stack.up["2"][1].any()


def test_stack_index_names_teachers_and_none_is_the_base() -> None:
    weights = trained().weights()
    stack = TeacherStack.of({"frost": weights, "neon": weights})
    assert stack.index(["neon", None, "frost", "neon"]).tolist() == [1, -1, 0, 1]


def test_stack_of_no_module_is_empty() -> None:
    assert TeacherStack.of({"none": LoraWeights()}).down == {}


def test_targets_of_another_family_are_the_linears_of_its_blocks() -> None:
    def block() -> nn.ModuleDict:
        return nn.ModuleDict({"proj": nn.Linear(2, 2), "mlp": nn.Sequential(nn.Linear(2, 2), nn.GELU())})

    net = nn.ModuleDict({"enter": nn.Linear(2, 2), "blocks": nn.ModuleList([block(), block()])})
    net["single"] = nn.ModuleList([nn.Linear(2, 2)])
    targets = block_targets(net)
    assert set(targets) == {"proj", "mlp.0", "single.0"}
    adapted = set(target_shapes(net, targets))
    assert adapted == {"blocks.0.proj", "blocks.0.mlp.0", "blocks.1.proj", "blocks.1.mlp.0", "single.0"}


def deltas(lora: LoraWeights) -> dict[str, Tensor]:
    return {path: lora.scale(path) * up @ lora.down[path] for path, up in lora.up.items()}


def test_two_that_were_added_up_are_taken_apart_again() -> None:
    one, other = trained(rank=4).weights(), trained(rank=3, alpha=1.5, seed=1).weights()
    for part in (one.down, one.up, one.alpha):
        del part["2"]
    first, second = taken_apart(added_up([one, other]), 3)
    torch.testing.assert_close(deltas(first), deltas(one))
    torch.testing.assert_close(deltas(second), deltas(other))
    for rank in (0, 4, 7):
        with pytest.raises(LoraFormatError, match=f"ranks of 3 to 7 do not hold another of rank {rank}"):
            taken_apart(added_up([one, other]), rank)
    with pytest.raises(LoraFormatError, match="of rank 3"):  # nothing would be left
        taken_apart(other, 3)


def test_a_widened_lora_adds_zero_on_the_other_modules() -> None:
    one = trained().weights()
    for part in (one.down, one.up, one.alpha):
        del part["2"]
    wide = widened(one, SHAPES)
    assert wide.rank("2") == 4
    assert torch.equal(deltas(wide)["2"], torch.zeros(SHAPES["2"]))
    assert torch.equal(deltas(wide)["0"], deltas(one)["0"])


def test_an_adapter_loads_eight_bit_floats() -> None:
    shapes = {"one": (6, 4)}
    weights = LoraWeights(
        {"one": torch.ones(2, 4).to(torch.float8_e4m3fn)},
        {"one": torch.full((6, 2), 3.0).to(torch.float8_e4m3fn)},
        {"one": 1.0},
    )
    adapter = LoraAdapter.create(shapes, 2, 4.0, 0)
    adapter.load(weights)
    made = adapter.weights()
    torch.testing.assert_close(made.scale("one") * made.up["one"] @ made.down["one"], torch.full((6, 4), 3.0))
