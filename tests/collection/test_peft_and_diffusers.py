"""The libraries themselves load what we write and we read what they write, to the same weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from collectionlora.collection.catalogue import Catalogue, Effect, fingerprint
from collectionlora.collection.file import save_collection
from collectionlora.collection.layouts import read_lora, write_lora
from collectionlora.collection.lora_weights import LoraWeights

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def base():
    """A Qwen-Image transformer of two blocks, 32 wide."""
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def shapes(base) -> dict[str, tuple[int, int]]:
    return {name: tuple(m.weight.shape) for name, m in base.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.fixture(scope="module")
def weights(shapes) -> LoraWeights:
    """Every Linear, ranks 1 to 3, several alphas."""
    generator = torch.Generator().manual_seed(0)
    made = LoraWeights()
    for number, (module, (out, inn)) in enumerate(shapes.items()):
        rank = 1 + number % 3
        made.down[module] = torch.randn(rank, inn, generator=generator)
        made.up[module] = torch.randn(out, rank, generator=generator)
        made.alpha[module] = (rank, 0.5, 7.0)[number % 2 + (number % 5 == 0)]
    return made


@pytest.fixture(scope="module")
def plain(weights) -> LoraWeights:
    """The same with scale 1 throughout, as a collection has."""
    return LoraWeights(
        weights.down, weights.up, {module: float(weights.rank(module)) for module in weights.down}
    )


def deltas(model) -> dict[str, torch.Tensor]:
    """module path -> the weight difference that the library makes of its active adapter."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.Linear):
            found[name.removeprefix("base_model.model.")] = module.get_delta_weight(next(iter(module.lora_A)))
    return found


def assert_deltas(found: dict[str, torch.Tensor], weights: LoraWeights) -> None:
    assert found.keys() == weights.down.keys()
    for module, delta in found.items():
        torch.testing.assert_close(delta, weights.scale(module) * weights.up[module] @ weights.down[module])


def test_peft_loads_our_peft_folder(base, weights, tmp_path):
    write_lora(weights, tmp_path, "peft")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert_deltas(deltas(model), weights)


def test_peft_sets_our_state_dict_without_missing_or_unexpected_keys(base, weights, tmp_path):
    write_lora(weights, tmp_path, "peft")
    model = peft.get_peft_model(copy.deepcopy(base), peft.PeftConfig.from_pretrained(tmp_path))
    result = peft.set_peft_model_state_dict(model, load_file(tmp_path / "adapter_model.safetensors"))
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    assert_deltas(deltas(model), weights)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_what_peft_saves(rslora, base, shapes, tmp_path):
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["to_q", "to_out.0", "img_mod.1"],
        rank_pattern={"to_q": 2},
        alpha_pattern={r"transformer_blocks\.1\.img_mod\.1": 3},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(tmp_path)
    assert_deltas(deltas(model), read_lora(tmp_path, shapes))


def test_we_read_what_diffusers_saves(base, shapes, tmp_path):
    model = copy.deepcopy(base)
    model.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_add_out"], init_lora_weights=False),
        "x",
    )
    model.save_lora_adapter(tmp_path, adapter_name="x")  # alpha is in the header's notes
    found = read_lora(tmp_path, shapes)
    assert found.scale("transformer_blocks.0.attn.to_q") == 1.5
    assert_deltas(deltas(model), found)

    layers = peft.get_peft_model_state_dict(model, adapter_name="x")
    note = model.peft_config["x"].to_dict()
    diffusers.QwenImageEditPipeline.save_lora_weights(
        tmp_path / "pipeline", transformer_lora_layers=layers, transformer_lora_adapter_metadata=note
    )
    assert_deltas(deltas(model), read_lora(tmp_path / "pipeline", shapes))


def through_pipeline(path: Path, base):
    """What `pipe.load_lora_weights(path)` makes of a file."""
    model = copy.deepcopy(base)
    pipe = diffusers.QwenImageEditPipeline(
        scheduler=None, vae=None, text_encoder=None, tokenizer=None, processor=None, transformer=model
    )
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="x")
    return model


@pytest.mark.parametrize("layout", ["comfy", "kohya"])
def test_diffusers_pipeline_loads_our_files_with_alpha(layout, base, weights, tmp_path):
    write_lora(weights, tmp_path / "l.safetensors", layout)
    assert_deltas(deltas(through_pipeline(tmp_path / "l.safetensors", base)), weights)


def test_diffusers_loads_a_collection_as_it_is(base, plain, shapes, tmp_path):
    catalogue = Catalogue((Effect("a", "A", "<a>", "<a> it"),), (1.0, 0.5, 0.0), fingerprint(shapes))
    path = tmp_path / "c.safetensors"
    save_collection(path, plain, catalogue)
    assert_deltas(deltas(through_pipeline(path, base)), plain)

    model = copy.deepcopy(base)
    model.load_lora_adapter(load_file(path), prefix="diffusion_model", adapter_name="x")
    assert_deltas(deltas(model), plain)
