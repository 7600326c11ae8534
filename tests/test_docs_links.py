"""What README and docs point at is there: files, folders, and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "conf|docs|experiments|flamingo|notebooks|tests"


def by_name(page: Path) -> str:
    return page.name


def prose(text: str) -> str:
    """Markdown without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings: lower case, words and hyphens, numbered if twice."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose(text), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def targets(text: str) -> list[str]:
    """What the links and pictures of a page point at, addresses of the web left out."""
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text)))
    return [target for target in found if not re.match(r"\w+:", target)]


def broken(page: Path) -> Iterator[str]:
    """Links of ``page`` that lead nowhere."""
    for target in targets(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        there = file.exists() and ROOT in (file, *file.parents)
        if not there or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_file_that_is_named_by_its_path_exists(page: Path) -> None:
    named = rf"`((?:{FOLDERS})/[\w/.-]+\.\w+)`(?! \(new\))"
    paths = re.findall(named, page.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_page_of_docs_is_reached_from_the_readme_or_the_tour() -> None:
    starts = (ROOT / "README.md", ROOT / "docs" / "tour.md")
    reached = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in starts
        for target in targets(page.read_text(encoding="utf-8"))
    }
    assert set(PAGES) - reached - {ROOT / "README.md", ROOT / "CHANGELOG.md"} == set()


def test_these_checks_see_what_they_forbid(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# The paper's `x`, twice\n\n## A\n## A\n```\n# no\n```\n")
    page = tmp_path / "page.md"
    good = ["there.md", "there.md#the-papers-x-twice", "there.md#a-1", "#here", "https://a.b/c"]
    bad = ["gone.md", "there.md#no", "there.md#a-2", "#gone", "../elsewhere.md"]
    (tmp_path.parent / "elsewhere.md").touch()
    links = "\n".join(f"[`x`]({target})" for target in (*good, *bad))
    page.write_text(f"# Here\n{links}\n`[code](gone.md)`\n```\n[code](gone.md)\n```\n")
    assert list(broken(page)) == bad
