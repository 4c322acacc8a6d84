"""Every row sees the same images and noise through its own adapter; the report holds what was measured."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from collectionlora.collection.catalogue import Catalogue, Effect, fingerprint
from collectionlora.collection.file import save_collection
from collectionlora.collection.layouts import write_lora
from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.pocket import evaluate as module
from collectionlora.pocket.autoencoder import Autoencoder
from collectionlora.pocket.effects import EFFECTS
from collectionlora.pocket.evaluate import evaluate
from collectionlora.pocket.images import PHOTOGRAPHS
from collectionlora.pocket.rows import Student, adapter_of
from collectionlora.pocket.text import TextEncoder
from collectionlora.training.flow import few_step_sigmas
from collectionlora.training.hosts.diffusers import pocket_transformer
from collectionlora.training.hosts.pocket import PocketHost
from collectionlora.training.judging.classifier import BROKEN, FEATURES, SOURCE, EffectClassifier
from collectionlora.training.judging.judge import Judge
from collectionlora.training.judging.statistics import Interval
from collectionlora.training.lora import linear_shapes, target_shapes
from collectionlora.training.randomness import generator

MODULE = "transformer_blocks.0.attn.to_q"
NAMES = ["thermal", "sketch", "confetti"]
ROWS = ["truth@ae", "source", "teacher@40x2", "teacher@8", "teacher@4", "stacked@8", "collection@8"]


class ToyHost:
    """Whatever the sampler, the outcome is the source's latent plus the active adapter's delta and the text's
    mean: so a test sees which adapter, prompt and source made a picture."""

    name, identity, text_sees_image, device = "toy", "toy 1", False, torch.device("cpu")
    dtype = torch.float32

    def __init__(self):
        self.transformer = nn.Module()
        self.transformer.transformer_blocks = nn.ModuleList([nn.Module()])
        self.transformer.transformer_blocks[0].attn = nn.Module()
        linear = nn.Linear(3, 3, bias=False)
        nn.init.zeros_(linear.weight)
        self.transformer.transformer_blocks[0].attn.to_q = linear.requires_grad_(False)
        self.noise = []
        self.prompts = {}

    def velocity(self, x, sigma, text, source):
        if float(sigma[0]) == 1:
            self.noise.append(x.clone())
        delta = self.transformer.transformer_blocks[0].attn.to_q(torch.ones(len(x), 1, 3))
        target = source + delta[..., None].transpose(1, 2) + text.mean((1, 2)).view(-1, 1, 1, 1)
        return (x - target) / sigma.view(-1, 1, 1, 1)

    def encode_text(self, prompts, image=None):
        numbers = [self.prompts.setdefault(prompt, len(self.prompts)) for prompt in prompts]
        return [torch.full((2, 4), 0.001 * number) for number in numbers]

    def encode_image(self, images):
        return F.avg_pool2d(images, 8)

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=8)


def constant(value, rank=1):
    """A LoRA that adds `value` to the toy's latents."""
    down = torch.full((rank, 3), 1 / 3)
    return LoraWeights({MODULE: down}, {MODULE: torch.full((3, rank), value / rank)}, {MODULE: float(rank)})


def catalogue_of(names, shapes):
    effects = tuple(Effect(name, name, f"<{name}>", f"<{name}> student prompt") for name in names)
    return Catalogue(effects, few_step_sigmas(8), fingerprint(shapes, "toy"))


@pytest.fixture
def judge():
    """Untrained: opinions are arbitrary, but the same for the same picture."""
    return Judge(
        EffectClassifier([*EFFECTS, SOURCE, BROKEN]).eval().requires_grad_(False),
        kinds={name: effect.subject for name, effect in EFFECTS.items()},
        confidence=dict.fromkeys(EFFECTS, 0.0),
        subject=dict.fromkeys(EFFECTS, -1.0),
        scale=dict.fromkeys(EFFECTS, 1.0),
        centre=torch.zeros(FEATURES),
        spread=torch.ones(FEATURES),
        accuracy=Interval(0.9, 0.8, 1.0),
        recall=dict.fromkeys(EFFECTS, 0.9),
        false_alarm=Interval(0.01, 0.0, 0.02),
    )


@pytest.fixture
def setting(tmp_path, judge):
    """Arguments of `evaluate`: a toy host, three teachers adding .01, .02 and .04, a collection adding .2."""
    host = ToyHost()
    shapes = linear_shapes(host.transformer)
    teachers = {}
    for number, name in enumerate(NAMES):
        teachers[name] = tmp_path / f"{name}.safetensors"
        write_lora(constant(0.01 * 2**number, rank=1 + number), teachers[name], "comfy", {})
    collection = tmp_path / "collection.safetensors"
    save_collection(collection, constant(0.2, rank=2), catalogue_of(NAMES, shapes))
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(60, 150, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"picture{number}.png")
    return {
        "host": host,
        "collection": collection,
        "teachers": teachers,
        "images": images,
        "count": 2,
        "out": tmp_path / "out",
        "judge": judge,
    }


@pytest.fixture
def made(monkeypatch):
    """row -> effect -> pictures, as they went to the judges; with the truths they were compared with."""
    seen = {}

    def spy(judge, rows, sources, truths, *options, **more):
        seen.clear()
        seen.update(rows, truths=truths)
        return judge_rows(judge, rows, sources, truths, *options, **more)

    judge_rows = module.judge_rows
    monkeypatch.setattr(module, "judge_rows", spy)
    return seen


def gain(pictures, host, prompt):
    """What was added to the source, without the text's share."""
    return float(pictures.mean()) - 0.001 * host.prompts[prompt]


def test_report_holds_every_row_and_measure_with_intervals(setting):
    calls = []
    report = evaluate(**setting, progress=lambda *call: calls.append(call))
    written = json.loads((setting["out"] / "report.json").read_text())
    assert written["effects"] == NAMES
    assert (written["images"], written["photographs"]) == (2, 2)
    assert written["judge_accuracy"] == {"mean": 0.9, "low": 0.8, "high": 1.0}
    assert list(written["rows"]) == [*ROWS, "collection@4"] == list(report.rows)
    for row in written["rows"].values():
        for measure in ("bad_case", "bleeding", "distance", "subject"):
            assert set(row[measure]) == {"mean", "low", "high"}
    assert {"collection@8 - teacher@8", "collection@8 - teacher@40x2"} <= set(written["differences"])
    assert "Euler" in written["notes"]["teacher@8"]
    assert "40 evaluations" in written["notes"]["teacher@40x2"]
    assert ("collection@8", 6, 6) in calls
    for name in ("sheet.png", "grid.png", "confusion.png"):
        with Image.open(setting["out"] / name) as picture:
            assert min(picture.size) > 300


def test_each_row_is_made_by_its_own_adapter_and_prompt(setting, made):
    host = setting["host"]
    evaluate(**setting, effects=["sketch", "thermal"])
    assert list(made["collection@8"]) == ["thermal", "sketch"]
    base = float(made["source"]["thermal"].mean())
    for effect, own in (("thermal", 0.01), ("sketch", 0.02)):
        prompt = EFFECTS[effect].teacher_prompt
        for row in ("teacher@40x2", "teacher@8", "teacher@4"):
            assert gain(made[row][effect], host, prompt) - base == pytest.approx(own, abs=1e-4)
        # the teacher of confetti is not measured, yet in the stack
        assert gain(made["stacked@8"][effect], host, prompt) - base == pytest.approx(0.07, abs=1e-4)
        for row in ("collection@8", "collection@4"):
            added = gain(made[row][effect], host, f"<{effect}> student prompt") - base
            assert added == pytest.approx(0.2, abs=2e-3)  # bf16 file


def test_rows_share_noise_and_a_subset_repeats_the_whole(setting, made):
    host = setting["host"]
    evaluate(**setting)
    noise, whole = list(host.noise), {row: dict(pictures) for row, pictures in made.items()}
    assert len(noise) == 8  # 40, 2 x 8, 2 x 4, stacked, two of the collection
    for other in noise[1:]:
        assert torch.equal(other, noise[0])
    assert not torch.equal(noise[0][0], noise[0][1])
    evaluate(**setting, effects=["confetti"])
    assert torch.equal(made["truths"]["confetti"], whole["truths"]["confetti"])
    assert torch.equal(host.noise[-1], noise[0][4:6])
    assert not torch.equal(made["truths"]["confetti"], made["truth@ae"]["confetti"])


def test_parts_of_one_photograph_count_as_one_for_intervals(setting):
    of = setting["images"] / PHOTOGRAPHS
    of.write_text('{"picture1": "boats", "picture2": "boats"}')
    report = evaluate(**(setting | {"count": 3}), effects=["sketch"])
    written = json.loads((setting["out"] / "report.json").read_text())
    assert (written["images"], written["photographs"]) == (3, 2)
    student = Student([constant(0.1)], {"sketch": "prompt"}, few_step_sigmas(8))
    same = setting["host"], {"one": student}, setting["images"], 3, ["sketch"], setting["judge"]
    assert module.judge_students(*same).photographs == report.photographs
    of.write_text('{"picture0": "boats", "picture1": "boats", "picture2": "boats"}')
    sampled = len(setting["host"].noise)
    for judged in (lambda: evaluate(**setting), lambda: module.judge_students(*same)):
        with pytest.raises(ValueError, match="at least 2 photographs are needed, not all of 'boats'"):
            judged()
    assert len(setting["host"].noise) == sampled  # before anything is computed


def test_further_rows_may_lack_effects_and_training(setting, made):
    fresh = Student([constant(0.1)], {"sketch": "fresh prompt"}, few_step_sigmas(8))
    untrained = Student([], fresh.prompts, fresh.sigmas)
    report = evaluate(**setting, rows={"fresh@8": fresh, "fresh_untrained@8": untrained, "a + b@8": fresh})
    assert list(made["fresh@8"]) == ["sketch"]
    assert torch.equal(made["a + b@8"]["sketch"], made["fresh@8"]["sketch"])
    gap = made["fresh@8"]["sketch"] - made["fresh_untrained@8"]["sketch"]
    torch.testing.assert_close(gap, torch.full_like(gap, 0.1))
    assert set(report.by_effect["fresh@8"]) == {"sketch"}
    written = json.loads((setting["out"] / "report.json").read_text())
    assert "fresh@8 - fresh_untrained@8" in written["differences"]


def test_a_few_step_adapter_is_put_on_each_teacher(setting, made):
    host = setting["host"]
    evaluate(**setting, few_step=constant(0.1, rank=2))
    base = float(made["source"]["thermal"].mean())
    for effect, own in (("thermal", 0.01), ("sketch", 0.02)):
        prompt = EFFECTS[effect].teacher_prompt
        added = gain(made["teacher + few-step@8"][effect], host, prompt) - base
        assert added == pytest.approx(own + 0.1, abs=1e-3)
        assert gain(made["teacher@8"][effect], host, prompt) - base == pytest.approx(own, abs=1e-3)


def test_what_was_sampled_is_kept_and_not_sampled_again(setting, made, tmp_path):
    host, kept = setting["host"], tmp_path / "kept"
    evaluate(**setting, kept=kept)
    first, sampled = {row: dict(pictures) for row, pictures in made.items()}, len(host.noise)
    evaluate(**setting, kept=kept)
    assert len(host.noise) == sampled
    for row, pictures in made.items():
        for effect, images in pictures.items():
            assert torch.equal(images, first[row][effect])
    # another collection: its two rows alone
    shapes = linear_shapes(host.transformer)
    save_collection(setting["collection"], constant(0.3, rank=2), catalogue_of(NAMES, shapes))
    evaluate(**setting, kept=kept)
    assert len(host.noise) == sampled + 2
    # another teacher: all rows of teachers, and their sum
    write_lora(constant(0.05), setting["teachers"]["sketch"], "comfy", {})
    evaluate(**setting, kept=kept)
    assert len(host.noise) == sampled + 2 + 6
    for damaged in kept.iterdir():
        damaged.write_bytes(damaged.read_bytes()[:-1])
    evaluate(**setting, kept=kept)
    assert len(host.noise) == sampled + 2 + 6 + 8


def test_guidance_doubles_the_evaluations_and_the_note_says_so(setting):
    evaluate(**setting, guidance=1.5, effects=["sketch"])
    written = json.loads((setting["out"] / "report.json").read_text())
    assert written["guidance"] == 1.5
    assert "80 evaluations" in written["notes"]["teacher@40x2"]


@pytest.mark.parametrize(("euler_bad", "kept"), [(0, "Euler"), (1, "consistency")])
def test_few_step_teachers_are_shown_at_their_better_sampler(euler_bad, kept):
    class Bench:
        images = None

        def teachers(self, row, steps, fresh_noise):
            return {"sketch": "consistency" if fresh_noise else "Euler"}

    class Bad:
        def examine(self, effect, pictures, sources):
            self.bad = torch.tensor([euler_bad if pictures == "Euler" else 1 - euler_bad, 0]).bool()
            return self

    made, note = module._better(Bench(), Bad(), "teacher@8", 8)
    assert made == {"sketch": kept}
    assert note.startswith(kept)


def test_adapters_of_unlike_ranks_and_modules_add_up():
    draw = generator(0, "loras")

    def lora(modules, rank):
        return LoraWeights(
            {m: torch.randn(rank, 5, generator=draw) for m in modules},
            {m: torch.randn(7, rank, generator=draw) for m in modules},
            dict.fromkeys(modules, 3.0),
        )

    loras = [lora(["a", "b"], 2), lora(["b"], 4)]
    adapter, x = adapter_of(loras), torch.randn(6, 5, generator=draw)
    for name in ("a", "b"):
        parts = [one for one in loras if name in one.down]
        expected = sum(one.scale(name) * x @ one.down[name].T @ one.up[name].T for one in parts)
        torch.testing.assert_close(adapter(name, x), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effects": ["levitate"]}, "'levitate': the pocket world cannot draw"),
        ({"effects": ["neon"]}, "'neon' is not in the collection"),
        ({"effects": []}, "no effect"),
        ({"count": 4}, "4 pictures an effect: must be from 2 to 3"),
        ({"count": 1}, "1 pictures an effect"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(setting, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**(setting | change))


def test_an_effect_without_teacher_is_refused(setting):
    del setting["teachers"]["sketch"]
    with pytest.raises(ValueError, match="'sketch' has no teacher"):
        evaluate(**setting)


def test_the_pocket_model_itself_runs_through(tmp_path, setting, monkeypatch):
    monkeypatch.setattr(module, "REFERENCE_STEPS", 2)  # an untrained network is no better after 40
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(pocket_transformer().state_dict(), folder / "transformer.safetensors")
    for name, network in (("autoencoder", Autoencoder()), ("text", TextEncoder())):
        save_file(network.state_dict(), folder / f"{name}.safetensors")
    host = PocketHost(folder)
    shapes = target_shapes(host.transformer, ["to_q", "to_v"])
    weights = LoraWeights(
        {path: torch.zeros(1, shape[1]) for path, shape in shapes.items()},
        {path: torch.zeros(shape[0], 1) for path, shape in shapes.items()},
        dict.fromkeys(shapes, 1.0),
    )
    teacher, collection = tmp_path / "teacher.safetensors", tmp_path / "one.safetensors"
    write_lora(weights, teacher, "comfy", {})
    save_collection(collection, weights, catalogue_of(["bokeh"], linear_shapes(host.transformer)))
    setting |= {"host": host, "teachers": {"bokeh": teacher}, "collection": collection}
    report = evaluate(**setting)
    assert list(report.rows) == [*ROWS, "collection@4"]
    assert all(np.isfinite(row["subject"].mean) for row in report.rows.values())
