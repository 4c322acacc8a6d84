"""Every layout is read to the same weights, and what is written is read back bit for bit."""

from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from collectionlora.collection.layouts import LAYOUTS, files_of, open_source, read_lora, write_lora
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.collection.peft_config import AdapterConfig

AB = {"A": "lora_A.weight", "B": "lora_B.weight", "alpha": "alpha"}
DEFAULT = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "alpha": "alpha"}
DOWN_UP = {"A": "lora_down.weight", "B": "lora_up.weight", "alpha": "alpha"}
OLD = {"A": "lora.down.weight", "B": "lora.up.weight", "alpha": "alpha"}

KEYS = {
    "bare": lambda m, p: f"{m}.{AB[p]}",
    "bare-default": lambda m, p: f"{m}.{DEFAULT[p]}",
    "bare-down-up": lambda m, p: f"{m}.{DOWN_UP[p]}",
    "diffusers": lambda m, p: f"transformer.{m}.{AB[p]}",
    "diffusers-old": lambda m, p: f"transformer.{m}.{OLD[p]}",
    "comfy": lambda m, p: f"diffusion_model.{m}.{AB[p]}",
    "ai-toolkit-down-up": lambda m, p: f"diffusion_model.{m}.{DOWN_UP[p]}",
    "peft": lambda m, p: f"base_model.model.{m}.{AB[p]}",
    "peft-default": lambda m, p: f"base_model.model.{m}.{DEFAULT[p]}",
    "diffsynth": lambda m, p: f"pipe.dit.{m}.{DEFAULT[p]}",
    "kohya": lambda m, p: f"lora_unet_{m.replace('.', '_')}.{DOWN_UP[p]}",
    "kohya-ab": lambda m, p: f"lora_unet_{m.replace('.', '_')}.{AB[p]}",
    "released": lambda m, p: f"model.base_model.model.{m}.{DEFAULT[p]}",
    "wrapped": lambda m, p: (
        f"model._fsdp_wrapped_module.base_model.model.{m}._checkpoint_wrapped_module.{DEFAULT[p]}"
    ),
}


@pytest.mark.parametrize("with_shapes", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("name", KEYS)
def test_every_layout_is_read_to_the_same_weights(
    name, alpha, with_shapes, tmp_path, shapes, make_weights, save_keys, assert_equal
):
    weights = make_weights(alpha=2.5 if alpha else None)  # without an alpha it is the rank
    path = save_keys(tmp_path / "lora.safetensors", weights, KEYS[name], alpha)
    guess = not alpha and open_source(path).layout == "peft"
    with pytest.warns(UserWarning, match="read as alpha = rank") if guess else nullcontext():
        assert_equal(read_lora(path, shapes if with_shapes else None), weights)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_is_exact_in_every_layout_and_dtype(
    layout, dtype, tmp_path, shapes, make_weights, assert_equal
):
    weights = make_weights(dtype=dtype, alpha=None)
    first, second = list(weights.down)[:2]
    weights.alpha[first] = 0.1  # not a float32
    weights.alpha[second] = 1 / 3
    path = tmp_path / ("adapter" if layout == "peft" else "lora.safetensors")
    write_lora(weights, path, layout, {"note": "kept"})
    found = read_lora(path, shapes)
    assert_equal(found, weights)
    source = open_source(path)
    assert source.layout == layout
    assert source.metadata["note"] == "kept"


def test_a_chain_through_all_layouts_is_exact_with_mixed_ranks_and_alphas(
    tmp_path, shapes, make_weights, assert_equal
):
    weights = LoraWeights()
    for number, module in enumerate(sorted(shapes)):
        one = make_weights([module], rank=1 + number % 3, alpha=0.5 + number % 5, seed=number)
        weights.down |= one.down
        weights.up |= one.up
        weights.alpha |= one.alpha
    found = weights
    for number, layout in enumerate([*LAYOUTS, *reversed(LAYOUTS)]):
        path = tmp_path / str(number) / ("adapter" if layout == "peft" else "lora.safetensors")
        write_lora(found, path, layout)
        found = read_lora(path, shapes)
    assert_equal(found, weights)


def test_modules_come_in_natural_order(tmp_path, make_weights):
    one = make_weights(["img_in"])
    modules = [f"transformer_blocks.{n}.attn.to_q" for n in (11, 2, 0, 10)]
    weights = LoraWeights(*(dict.fromkeys(modules, part["img_in"]) for part in (one.down, one.up, one.alpha)))
    write_lora(weights, tmp_path / "l.safetensors", "kohya")
    found = list(read_lora(tmp_path / "l.safetensors").down)
    assert found == [f"transformer_blocks.{n}.attn.to_q" for n in (0, 2, 10, 11)]


def test_kohya_names_of_any_base_are_resolved_by_its_shapes(tmp_path, save_keys, assert_equal):
    shapes = {"stem.to_q_1": (3, 2), "stem_2.to.q_1": (3, 2)}
    weights = LoraWeights()
    for module in shapes:
        weights.down[module], weights.up[module], weights.alpha[module] = (
            torch.ones(1, 2),
            torch.ones(3, 1),
            1.0,
        )
    write_lora(weights, tmp_path / "l.safetensors", "kohya")
    assert_equal(read_lora(tmp_path / "l.safetensors", shapes), weights)


def test_comfy_files_carry_alpha_only_where_it_is_not_the_rank(tmp_path, make_weights):
    modules = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"]
    weights = make_weights(modules, rank=4)
    weights.alpha[modules[1]] = 1.0
    write_lora(weights, tmp_path / "l.safetensors", "comfy")
    keys = set(load_file(tmp_path / "l.safetensors"))
    assert keys == {f"diffusion_model.{m}.lora_{p}.weight" for m in modules for p in ("down", "up")} | {
        f"diffusion_model.{modules[1]}.alpha"
    }
    write_lora(make_weights(modules, rank=4), tmp_path / "l.safetensors", "comfy")
    keys = set(load_file(tmp_path / "l.safetensors"))
    assert keys == {f"diffusion_model.{m}.lora_{p}.weight" for m in modules for p in "AB"}


def test_shared_and_strided_tensors_are_written(tmp_path, assert_equal):
    block = torch.randn(8, 8)
    weights = LoraWeights()
    for n in range(2):
        module = f"transformer_blocks.{n}.attn.to_q"
        weights.down[module], weights.up[module], weights.alpha[module] = block[:4], block.T[:, :4], 4.0
    write_lora(weights, tmp_path / "l.safetensors", "comfy")
    assert_equal(read_lora(tmp_path / "l.safetensors"), weights)


class TestAlpha:
    """Where alpha comes from."""

    module = "transformer_blocks.2.attn.to_out.0"
    other = "transformer_blocks.2.img_mlp.net.2"

    def peft(
        self,
        folder: Path,
        make_weights,
        save_keys,
        config,
        key=KEYS["peft"],
        name="adapter_model.safetensors",
    ):
        path = save_keys(folder / name, make_weights([self.module, self.other]), key)
        file = folder / config[0]
        file.parent.mkdir(exist_ok=True)
        file.write_text(config[1] if isinstance(config[1], str) else json.dumps(config[1]), encoding="utf-8")
        return path

    @pytest.mark.parametrize("as_folder", [True, False])
    def test_of_a_peft_folder_is_in_adapter_config(self, as_folder, tmp_path, make_weights, save_keys):
        path = self.peft(
            tmp_path, make_weights, save_keys, ("adapter_config.json", {"r": 4, "lora_alpha": 12})
        )
        found = read_lora(tmp_path if as_folder else path)
        assert found.scale(self.module) == found.scale(self.other) == 3.0

    def test_follows_patterns_and_rslora_as_peft_does(self, tmp_path, make_weights, save_keys):
        config = {
            "peft_type": "LORA",
            "r": 8,
            "lora_alpha": 16,
            "use_rslora": True,
            "rank_pattern": {"to_out.0": 4, "^transformer_blocks.2.img_mlp.net.2": 4},
            "alpha_pattern": {r"img_mlp\.net\.\d+": 6},
        }
        found = read_lora(self.peft(tmp_path, make_weights, save_keys, ("adapter_config.json", config)))
        assert found.scale(self.module) == pytest.approx(16 / math.sqrt(4), rel=1e-15)
        assert found.scale(self.other) == pytest.approx(6 / math.sqrt(4), rel=1e-15)

    @pytest.mark.parametrize(
        "config",
        [
            ("lora_config/adapter_config.yaml", "r: 4\nalpha: 8\ndropout: 0.0\ntarget_modules:\n- to_k\n"),
            ("lora_config/adapter_config.json", {"r": 4, "lora_alpha": 8, "peft_type": "LORA"}),
            ("adapter_config.json", '\ufeff{"r": 4, "lora_alpha": 8}'),
        ],
    )
    def test_of_the_papers_teacher_folder_is_in_lora_config(self, config, tmp_path, make_weights, save_keys):
        pytest.importorskip("yaml")
        self.peft(tmp_path, make_weights, save_keys, config, KEYS["bare-default"], "model.safetensors")
        assert read_lora(tmp_path).scale(self.module) == 2.0

    def test_without_pyyaml_says_what_to_install(self, tmp_path, make_weights, save_keys, monkeypatch):
        self.peft(tmp_path, make_weights, save_keys, ("adapter_config.yaml", "r: 4\nalpha: 8\n"))
        monkeypatch.setitem(__import__("sys").modules, "yaml", None)
        with pytest.raises(ValueError, match="needs PyYAML; `pip install pyyaml`"):
            read_lora(tmp_path)

    @pytest.mark.parametrize(("name", "prefix"), [("bare", ""), ("diffusers", "transformer.")])
    def test_may_be_in_the_header_as_diffusers_writes_it(
        self, name, prefix, tmp_path, make_weights, save_keys
    ):
        note = json.dumps({f"{prefix}r": 4, f"{prefix}lora_alpha": 1, f"{prefix}alpha_pattern": {}})
        path = save_keys(
            tmp_path / "l.safetensors",
            make_weights([self.module]),
            KEYS[name],
            metadata={"lora_adapter_metadata": note},
        )
        assert read_lora(path).scale(self.module) == 0.25

    def test_tensor_wins_over_the_configuration(self, tmp_path, make_weights, save_keys):
        save_keys(tmp_path / "model.safetensors", make_weights([self.module], alpha=2), KEYS["kohya"], True)
        (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 40}')
        assert read_lora(tmp_path).scale(self.module) == 0.5

    def test_is_not_taken_from_a_stray_configuration_in_a_folder_of_loras(
        self, tmp_path, make_weights, save_keys
    ):
        path = save_keys(tmp_path / "style.safetensors", make_weights([self.module]), KEYS["comfy"])
        (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 40}')
        assert read_lora(path).scale(self.module) == 1.0
        assert files_of(path) == [path]
        # named as a folder it is that of its only weights, whatever they are called
        assert read_lora(tmp_path).scale(self.module) == 10.0
        assert files_of(tmp_path) == [path, tmp_path / "adapter_config.json"]

    def test_is_not_taken_from_another_peft_files_configuration(self, tmp_path, make_weights, save_keys):
        config = ("adapter_config.json", {"r": 4, "lora_alpha": 40})
        path = self.peft(tmp_path, make_weights, save_keys, config, name="style.safetensors")
        assert read_lora(path).scale(self.module) == 10.0  # the only weights there
        named = self.peft(tmp_path, make_weights, save_keys, config)
        assert read_lora(named).scale(self.module) == 10.0
        with pytest.warns(UserWarning, match=r"style\.safetensors: PEFT keeps .* put the two into a folder"):
            assert read_lora(path).scale(self.module) == 1.0

    def test_in_the_header_wins_over_a_neighbour(self, tmp_path, make_weights, save_keys):
        note = json.dumps({"r": 4, "lora_alpha": 1})
        path = tmp_path / "pytorch_lora_weights.safetensors"
        weights = make_weights([self.module])
        save_keys(path, weights, KEYS["diffusers"], metadata={"lora_adapter_metadata": note})
        (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 40}')
        assert read_lora(path).scale(self.module) == 0.25
        assert files_of(path) == [path]

    def test_of_more_patterns_than_re_remembers_is_compiled_once(self, monkeypatch):
        compiled, compile = [], re.compile
        monkeypatch.setattr(re, "compile", lambda text: compiled.append(text) or compile(text))
        names = [f"transformer_blocks.{n}.attn.to_q" for n in range(600)]
        config = AdapterConfig("c", 4, 4.0, {}, {f"^{name}": n for n, name in enumerate(names)})
        assert [config.alpha_of(name, 4) for name in names] == list(range(600))
        assert len(compiled) == 600


def released_checkpoint(path: Path, weights: LoraWeights, key=KEYS["released"]) -> Path:
    """A folder as the released code saves its student."""
    generator = {}
    for module in weights.down:
        generator[key(module, "A")] = weights.down[module]
        generator[key(module, "B")] = weights.up[module]
    critic = {name: torch.full_like(tensor, 7) for name, tensor in generator.items()}
    (path / "lora_config").mkdir(parents=True)
    torch.save({"generator": generator, "critic": critic}, path / "model.pt")
    (path / "lora_config" / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 4, "peft_type": "LORA"})
    )
    return path


@pytest.mark.parametrize("as_folder", [True, False])
def test_the_papers_model_pt_is_read_generator_only(as_folder, tmp_path, shapes, make_weights, assert_equal):
    weights = make_weights()
    folder = released_checkpoint(tmp_path / "checkpoint_model_005000", weights)
    assert_equal(read_lora(folder if as_folder else folder / "model.pt", shapes), weights)


def test_unchecked_tensors_are_not_read_until_used(tmp_path, make_weights, save_keys):
    weights = make_weights(["img_in"])
    weights.up["img_in"][0, 0] = math.nan
    save_keys(tmp_path / "l.safetensors", weights, KEYS["comfy"])
    found = read_lora(tmp_path / "l.safetensors", check_finite=False)
    assert math.isnan(found.up["img_in"][0, 0])
