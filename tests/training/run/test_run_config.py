"""A configuration file is right, or its error names file, key and remedy."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from collectionlora.training.config import ConfigError, distillation
from collectionlora.training.run_config import _KNOWN, _PATHS, _TABLES, Run, TeacherSampling, read_run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_the_readme_names_every_key_with_its_default(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    least, rest = map(tomllib.loads, re.findall(r"```toml\n(.*?)```", text, re.DOTALL))
    assert {*least, *rest} == {*_KNOWN}
    plain = {key: value for key, value in rest.items() if key not in (*_PATHS, *_TABLES)}
    assert plain == {key: getattr(Run, key) for key in plain}
    assert rest["targets"] == asdict(TeacherSampling())
    assert rest["distill"].items() <= asdict(distillation()).items()
    distillation(least["distill"], least["preset"])


def test_paths_are_relative_to_the_file(project: Any) -> None:
    run = read_run(project.write())
    assert {sample.source_image.parent for sample in run.lists.samples} == {project.folder}
    assert run.collection == project.folder / "out" / "collection.safetensors"
    assert (run.base, run.long_side) == ("pocket", 1024)
    project.settings["base"] = "weights"
    run = read_run(project.write())
    assert run.base == str(project.folder / "weights")
    with pytest.raises(ConfigError, match=r"base = .*weights': .* holds neither .*model_index\.json.* nor a"):
        run.require_base()
    (project.folder / "weights").mkdir()
    (project.folder / "weights" / "model_index.json").touch()
    run.require_base()


def test_lists_may_name_files_from_elsewhere(project: Any) -> None:
    (project.folder / "lists").mkdir()
    names = ("effects", "data", "general")
    project.settings |= {name: f"lists/{name}.jsonl" for name in names} | {"root": "."}
    path = project.write()
    for name in names:
        (project.folder / f"{name}.jsonl").rename(project.folder / "lists" / f"{name}.jsonl")
    assert {sample.source_image.parent for sample in read_run(path).lists.samples} == {project.folder}


def test_an_address_that_is_none_is_refused_at_once(project: Any) -> None:
    project.settings["captions"] = {"url": "localhost:8000/v1", "model": "vlm"}
    with pytest.raises(ConfigError, match=r"captions\.url: .*not an http"):
        read_run(project.write())


def test_how_the_base_is_kept_is_read(project: Any) -> None:
    run = read_run(project.write())
    assert (run.base_dtype, run.offload, run.checkpointing) == ("bf16", False, "full")
    for offload in (True, 20):
        project.settings |= {"base_dtype": "fp8", "offload": offload, "checkpointing": "none"}
        run = read_run(project.write())
        assert (run.base_dtype, run.offload, run.checkpointing) == ("fp8", offload, "none")


def test_a_preset_and_a_table_make_the_distillation(project: Any) -> None:
    project.settings |= {"preset": "pocket", "distill": {"rank": 4, "objective": {"shift": 2.0}}}
    run = read_run(project.write())
    assert (run.distill.rank, run.distill.objective.shift) == (4, 2.0)
    assert run.distill.objective.floor == 0.1
    assert run.targets.steps == 3


def test_the_number_of_cycles_can_be_overridden_and_is_checked(project: Any) -> None:
    assert read_run(project.write(), cycles=9).distill.cycles == 9
    with pytest.raises(ConfigError, match=r"config\.toml: cycles = 0 is out of range"):
        read_run(project.write(), cycles=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("efects", "x", "unknown key efects; did you mean 'effects'"),
        ("distil", {}, "unknown key distil; did you mean 'distill'"),
        ("targets", {"step": 3}, "unknown key targets.step; did you mean 'steps'"),
        ("targets", {"steps": 0}, "targets.steps = 0 is out of range"),
        ("targets", {"steps": "3"}, "targets.steps = '3' must be a whole number"),
        ("distill", {"rnak": 3}, "unknown key rnak; did you mean 'rank'"),
        ("distill", {"objective": {"floors": 3}}, "unknown key objective.floors; did you mean 'floor'"),
        ("distill", {"lr": 7.0}, "lr = 7.0 is out of range"),
        ("distill", 3, r"distill must be a table: \[distill\]"),
        ("preset", "papr", "unknown preset 'papr'; did you mean 'paper'"),
        ("candidates", 0, "candidates = 0 is out of range, 1 to 4096"),
        ("candidates", True, "candidates = True must be a whole number"),
        ("base_dtype", "fp16", "base_dtype = 'fp16'; valid are bf16, fp8"),
        ("base_dtype", 8, "base_dtype = 8; valid are bf16, fp8"),
        ("checkpointing", "some", "checkpointing = 'some'; valid are full, selective, none"),
        ("offload", 0, "offload = 0 must be true, false or a number of blocks, at least 1"),
        ("offload", "all", "offload = 'all' must be true, false or a number"),
        ("offload", 1.5, "offload = 1.5 must be true, false or a number"),
        ("thumbnails", 1, "thumbnails = 1 must be true or false"),
        ("shard", "all", "shard = 'all' must be true or false"),
        ("long_side", 32, "long_side = 32 is out of range, 64 to 4096"),
        ("long_sied", 512, "unknown key long_sied; did you mean 'long_side'"),
        ("output", 3, "output = 3 must be a text"),
        ("titles", {"frost": 3}, "titles.frost = 3 must be a text"),
        ("captions", {"url": "http://x"}, "the key captions.model is missing"),
        ("captions", {"ulr": "http://x"}, "unknown key captions.ulr; did you mean 'url'"),
        (
            "captions",
            {"url": "http://x", "model": "m", "key_variable": "NOT_SET_HERE"},
            "captions.key_variable = 'NOT_SET_HERE': the environment has no such variable",
        ),
    ],
)
def test_a_wrong_entry_is_named_with_file_and_remedy(
    project: Any, key: str, value: Any, message: str
) -> None:
    project.settings[key] = value
    with pytest.raises(ConfigError, match=rf"config\.toml: {message}"):
        read_run(project.write())


@pytest.mark.parametrize("other", [{"offload": True}, {"base_dtype": "fp8"}])
def test_a_base_is_split_as_it_was_loaded_or_not_at_all(project: Any, other: dict[str, Any]) -> None:
    project.settings |= {"shard": True, **other}
    with pytest.raises(ConfigError, match="leave out offload and base_dtype"):
        read_run(project.write())


@pytest.mark.parametrize("key", ["output", "effects", "data"])
def test_a_missing_entry_is_named(project: Any, key: str) -> None:
    del project.settings[key]
    with pytest.raises(ConfigError, match=f"the key {key} is missing"):
        read_run(project.write())


def test_the_endpoints_key_comes_from_the_environment(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    project.settings["captions"] = {"url": "http://x", "model": "m", "key_variable": "SOME_KEY"}
    endpoint = read_run(project.write()).captions
    assert endpoint is not None
    assert endpoint.key == "secret"
    assert "secret" not in repr(endpoint)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        read_run(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("output = \n")
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        read_run(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml: not a TOML file"):
        read_run(tmp_path / "binary.toml")


def test_imitation_alone_needs_a_few_step_lora(project: Any) -> None:
    project.settings["preset"] = "imitation"
    project.settings["distill"] = {"cycles": 3, "imitation_cycles": 3}
    with pytest.raises(ConfigError, match="name a few_step LoRA, or let cycles = 3 be more"):
        read_run(project.write()).require_few_steps()
    project.settings["distill"]["cycles"] = 4
    read_run(project.write()).require_few_steps()
    project.settings["distill"]["cycles"] = 3
    project.settings["few_step"] = "comic.safetensors"
    read_run(project.write()).require_few_steps()


def test_a_few_step_lora_alone_needs_a_collection_that_holds_one(project: Any) -> None:
    project.settings["preset"], project.settings["distill"] = "few-steps", {}
    with pytest.raises(ConfigError, match=r"few_step_alone .* holds: extend one"):
        read_run(project.write()).require_few_steps()
    project.settings["few_step"] = "comic.safetensors"
    with pytest.raises(ConfigError, match=r"few_step_alone .* holds: extend one"):
        read_run(project.write()).require_few_steps()


def test_a_run_does_not_write_over_what_it_extends(project: Any) -> None:
    project.settings["extend"] = "out/../out/collection.safetensors"
    with pytest.raises(ConfigError, match=r"extend = .* is what the run writes: give it another output"):
        read_run(project.write())
    project.settings["extend"] = "out2/collection.safetensors"
    read_run(project.write())


def test_captions_need_teacher_images_where_the_list_has_no_words(project: Any) -> None:
    project.settings |= {"preset": "imitation", "captions": {"url": "http://here", "model": "vlm"}}
    project.settings["distill"] = {"cycles": 3}
    project.lists["data"].append({**project.lists["data"][0], "source_image": project.picture("third.png")})
    run = read_run(project.write())
    shown = [run.lists.samples[i] for i in run.samples_with_images]
    assert len(shown) < len(run.lists.samples)
    assert Counter(sample.lora_name for sample in shown) == dict.fromkeys(run.lists.effects, 2)
    for entry in project.lists["effects"]:
        entry["recaption_prompt"] = "in a style"
    assert read_run(project.write()).samples_with_images == []
