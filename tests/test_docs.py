"""What the documents point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

LANGUAGES = {"en": "web/docs/{node}.md", "zh": "web/docs/{node}/zh.md"}
MOST_BYTES = 1_500_000


def nodes(repository: Path) -> list[str]:
    found = [
        name
        for file in (repository / "nodes").glob("*.py")
        for name in re.findall(r'node_id="(\w+)"', file.read_text(encoding="utf-8"))
    ]
    assert len(found) == 15
    return found


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", text)


def test_every_test_of_the_list_of_wishes_exists(repository: Path) -> None:
    text = (repository / "docs" / "picker.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if "| yes" in line]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(?:([\w/]*test_\w+\.py)::)?(test_\w+)`", row)
        assert named, row
        for file, test in named:
            path = repository / (file if "/" in file else f"tests/comfy/{file or 'test_picker.py'}")
            assert f"def {test}(" in path.read_text(encoding="utf-8"), row


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_with_a_picture(repository: Path, language: str) -> None:
    for node in nodes(repository):
        page = (repository / LANGUAGES[language].format(node=node)).read_text(encoding="utf-8")
        assert page.startswith("# ")
        assert f"{node}/node.jpg" in pictures(page), node


def test_what_users_install_has_its_help_pages_and_no_tests(repository: Path) -> None:
    """`.comfyignore` has the patterns of `.gitignore`: those without a leading slash hold in every folder."""
    ignored = GitIgnoreSpec.from_lines((repository / ".comfyignore").read_text(encoding="utf-8").splitlines())
    for node in nodes(repository):
        for page in LANGUAGES.values():
            assert not ignored.match_file(page.format(node=node)), node
    for part in ("nodes/distil.py", "pocket/weights/collection.safetensors", "workflows/distil_qwen.json"):
        assert not ignored.match_file(part)
    assert ignored.match_file("tests/test_docs.py")


def test_every_picture_of_a_page_exists_and_together_they_are_small(repository: Path) -> None:
    used: set[Path] = set()
    help_pages = repository / "web" / "docs"
    for page in help_pages.rglob("*.md"):
        # ComfyUI takes all of them from web/docs, wherever the page lies
        used |= {help_pages / picture for picture in pictures(page.read_text(encoding="utf-8"))}
    assert used == set(help_pages.rglob("*.jpg"))
    assert sum(picture.stat().st_size for picture in used) < MOST_BYTES
    for page in (repository / "README.md", *(repository / "docs").glob("*.md")):
        for picture in pictures(page.read_text(encoding="utf-8")):
            assert (page.parent / picture).is_file(), f"{page.name}: {picture}"


def test_every_link_of_a_page_leads_to_a_file_and_a_heading(repository: Path) -> None:
    for page in (repository / "README.md", *(repository / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name}: {link}"


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
