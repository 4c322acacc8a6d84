"""PEFT's adapter_config and its relatives: where alpha is kept when the tensors do not carry it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from .errors import LoraFormatError
from .lora_weights import LoraWeights

_CONFIG_LIMIT = 4 * 2**20
_Patterns = list[tuple[re.Pattern[str], Any]]
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """Rank and alpha of the modules of one LoRA."""

    source: str
    r: int
    alpha: float
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False

    def alpha_of(self, module: str, rank: int) -> float:
        """alpha of a module so that alpha / rank is the scale PEFT uses (rsLoRA: lora_alpha / sqrt(r)).

        Raises LoraFormatError when the tensors have another rank than the configuration says.
        """
        expected = _by_pattern(self._ranks, module, self.r)
        if expected != rank:
            raise LoraFormatError(
                f"{self.source}: says rank {expected} for '{module}', its tensors have rank {rank}; the"
                " configuration belongs to another file: put the right one beside the weights"
            )
        alpha = float(_by_pattern(self._alphas, module, self.alpha))
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    # compiled once: `re` remembers fewer than the 840 modules of a LoRA whose ranks differ
    @cached_property
    def _ranks(self) -> _Patterns:
        return _compiled(self.rank_pattern)

    @cached_property
    def _alphas(self) -> _Patterns:
        return _compiled(self.alpha_pattern)


def _compiled(patterns: Mapping[str, Any]) -> _Patterns:
    return [(re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in patterns.items()]


def _by_pattern(patterns: _Patterns, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module name decides."""
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def find_config(weights: Path) -> Path | None:
    """The configuration that belongs to a weights file: in `lora_config/` (released code), or beside it."""
    for folder in (weights.parent / "lora_config", weights.parent):
        for name in ("adapter_config.json", "adapter_config.yaml", "adapter_config.yml"):
            if (folder / name).is_file():
                return folder / name
    return None


def read_config(path: Path) -> AdapterConfig:
    """Read adapter_config.json (PEFT) or .yaml (released code: r, alpha, dropout, target_modules)."""
    if path.stat().st_size > _CONFIG_LIMIT:
        raise LoraFormatError(
            f"{path}: larger than {_CONFIG_LIMIT} bytes, no adapter configuration; remove it"
        )
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".json":
        return config_from_json(text, str(path))
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise LoraFormatError(
            f"{path}: reading YAML needs PyYAML; `pip install pyyaml`, or save it as .json"
        ) from error
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise LoraFormatError(
            f"{path}: not valid YAML ({str(error).partition(chr(10))[0]}); repair or fetch it"
        ) from error
    return parse_config(content, str(path))


def config_from_json(text: str, source: str) -> AdapterConfig:
    """Parse the JSON text of an adapter configuration."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoraFormatError(f"{source}: not valid JSON ({error}); repair or fetch it again") from error
    return parse_config(content, source)


def config_from_metadata(metadata: Mapping[str, str], source: str) -> AdapterConfig | None:
    """The configuration diffusers stores in the header (`lora_adapter_metadata`); None if there is none."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return None
    source = f"{source}: lora_adapter_metadata"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoraFormatError(f"{source}: not valid JSON ({error}); repair or fetch it again") from error
    if isinstance(content, dict):
        content = {str(key).removeprefix("transformer."): value for key, value in content.items()}
    return parse_config(content, source)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _short(value: Any) -> str:
    """A value in a message; others than plain ones only by type: a few lines of YAML can mean gigabytes."""
    return repr(value)[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def parse_config(content: Any, source: str) -> AdapterConfig:
    """Check a parsed configuration, keep what decides the scale. Raises LoraFormatError naming the entry."""

    def wrong(what: str, remedy: str = "repair the configuration or fetch it again") -> LoraFormatError:
        return LoraFormatError(f"{source}: {what}; {remedy}")

    if not isinstance(content, dict):
        raise wrong("is not a map of settings")
    kind = _word(content.get("peft_type") or "LORA").rsplit(".", 1)[-1].upper()
    if kind != "LORA":
        raise wrong(f"peft_type is {kind!a}, not LORA", "export it as a plain LoRA")
    if content.get("use_dora"):
        raise wrong("use_dora is set: a DoRA, not a plain LoRA", "export it as a plain LoRA")
    init = _word(content.get("init_lora_weights")).lower()
    if init.startswith(_BASE_CHANGING):
        raise wrong(
            f"init_lora_weights is {init!a}, which changes the base too",
            "convert it to a plain LoRA with PEFT",
        )
    rank = content.get("r", content.get("rank"))
    if type(rank) is not int or rank < 1:
        raise wrong(f"r is {_short(rank)}, expected a whole number of at least 1")
    alpha = content.get("lora_alpha", content.get("alpha"))
    patterns = {}
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = content.get(name) or {}
        if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
            raise wrong(f"{name} is not a map from modules to numbers")
        for text in pattern:
            if not _is_safe_pattern(text):
                raise wrong(f"{name} has an unsafe pattern {str(text)[:60]!a}", "write module names there")
        patterns[name] = pattern
    if not _is_number(alpha):
        raise wrong(f"lora_alpha is {_short(alpha)}, expected a number")
    return AdapterConfig(
        source,
        rank,
        float(alpha),
        patterns["rank_pattern"],
        patterns["alpha_pattern"],
        bool(content.get("use_rslora")),
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_safe_pattern(text: Any) -> bool:
    """Patterns are regular expressions from a stranger: names with a wildcard or two pass, nothing that could
    take for ever."""
    if not isinstance(text, str) or not re.fullmatch(r"[\w.^$\\*+-]{1,200}", text):
        return False
    if len(re.findall(r"[*+]", text)) > 2:
        return False
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def to_config(weights: LoraWeights) -> dict[str, Any]:
    """The adapter_config.json of a LoRA: common rank and alpha, and patterns for the modules that differ."""
    ranks = {module: down.shape[0] for module, down in weights.down.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(weights.alpha.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        # `^` keeps a name such as `proj_out` from matching the end of a longer one
        "rank_pattern": {f"^{module}": value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {
            f"^{module}": _plain(value) for module, value in weights.alpha.items() if value != alpha
        },
        "target_modules": list(weights.down),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _plain(value: float) -> int | float:
    return int(value) if value == int(value) else value
