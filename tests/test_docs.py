"""Documentation that can be found and followed: links resolve, pages are listed, commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def relative_links(text: str) -> list[str]:
    """Targets of Markdown links to files, without their anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)]


def test_relative_links_are_found() -> None:
    text = "[a](adr/1.md) [b](https://x.org/y.md) [c](../z.md#part) [d](#here)"
    assert relative_links(text) == ["adr/1.md", "../z.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = relative_links(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    listed = {
        (ROOT / "docs" / link).resolve()
        for link in relative_links((ROOT / "docs/index.md").read_text(encoding="utf-8"))
    }
    assert set(ROOT.glob("docs/**/*.md")) - {ROOT / "docs/index.md"} <= listed


def test_make_targets_in_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, flags=re.MULTILINE))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert {"serve", "test", "check"} <= named <= targets
