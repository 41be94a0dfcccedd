"""Generated pages are what their data makes; a page that was edited or forgotten is found."""

from __future__ import annotations

from pathlib import Path

import generate_docs
import pytest
from generate_docs import PAGES, Page

from hal.error_codes import ERROR_CODES

ROOT = Path(__file__).resolve().parent.parent


def test_the_committed_pages_are_up_to_date() -> None:
    assert generate_docs.outdated(ROOT, PAGES) == []


def test_a_page_that_differs_is_found_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = (Page("a.md", lambda: "new\n"), Page("b.md", lambda: "same\n"))
    (tmp_path / "b.md").write_text("same\n")
    assert generate_docs.outdated(tmp_path, pages) == ["a.md"], "missing"
    (tmp_path / "a.md").write_text("edited by hand\n")
    monkeypatch.setattr(generate_docs, "ROOT", tmp_path)
    monkeypatch.setattr(generate_docs, "PAGES", pages)
    assert generate_docs.main(["--check"]) == 1
    assert capsys.readouterr().out == "a.md differs from its data; run `make docs` and commit it\n"
    assert generate_docs.main([]) == 0
    assert generate_docs.main(["--check"]) == 0
    assert (tmp_path / "a.md").read_text() == "new\n"


def test_the_errors_page_has_every_code_with_a_place_to_link_to() -> None:
    (page,) = [page for page in PAGES if page.path == "docs/errors.md"]
    text = " ".join(page.render().split())  # whatever the line breaks
    for entry in ERROR_CODES:
        assert f" ## {entry.code} {entry.meaning} - It shows: {entry.shows}. - What " in text
        assert f"(#{entry.code.lower()})" in text
