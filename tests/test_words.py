"""The page's words: every one that the scripts ask for has its translation, and none is left over."""

from __future__ import annotations

import json
import re
from pathlib import Path

DYNAMIC = {"all", "favourites", "recent", "tags", "teacher images"}
"""Asked for by a variable."""


def asked(repository: Path) -> set[str]:
    words = set(DYNAMIC)
    for script in (repository / "web").rglob("*.js"):
        words |= set(re.findall(r'\bt\("((?:[^"\\]|\\.)*)"', script.read_text(encoding="utf-8")))
    return words


def test_every_word_of_the_page_is_translated_with_its_values(repository: Path) -> None:
    for language in sorted((repository / "locales").iterdir()):
        content = json.loads((language / "main.json").read_text(encoding="utf-8"))
        translated = content["collectionlora"]
        assert set(translated) == asked(repository), language.name
        for word, other in translated.items():
            assert sorted(re.findall(r"\{\w+\}", word)) == sorted(re.findall(r"\{\w+\}", other)), word
