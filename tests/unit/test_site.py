"""The documentation as a site: complete, whole, and of nothing that lies elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import ROOT, wait_for
from tests.interop.test_viewer import Page

SITE = ROOT / "build" / "site"
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    done = subprocess.run([sys.executable, "deploy/site.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # strict: a link to nowhere is an error
    return {path.relative_to(SITE).as_posix(): path.read_text(encoding="utf-8") for path in SITE.rglob("*.html")}


def test_every_document_has_its_place_in_the_contents() -> None:
    named = set(leaves(yaml.safe_load((ROOT / "deploy" / "site.yml").read_text(encoding="utf-8"))["nav"]))
    there = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.md", "docs/*.md", "models/*/CARD.md")
        for path in ROOT.glob(pattern)
    }
    assert named == there


def leaves(contents: Any) -> Iterator[str]:
    """The documents of a part of the contents."""
    if isinstance(contents, str):
        yield contents
    else:
        for each in contents.values() if isinstance(contents, dict) else contents:
            yield from leaves(each)


class Loaded(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.from_elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        where = given.get(LOADS.get(tag, ""), "") or ""
        if where.startswith(("http:", "https:", "//")) and given.get("rel") != "canonical":
            self.from_elsewhere.append(f"{tag} {where}")


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, str]) -> None:
    assert len(pages) > 30
    for name, page in pages.items():
        loaded = Loaded()
        loaded.feed(page)
        assert loaded.from_elsewhere == [], name
    for style in Path(SITE).rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_page_says_what_the_node_is_not_for(pages: dict[str, str]) -> None:
    assert [name for name, page in pages.items() if "not for diagnostic use" not in page] == []


def test_the_search_works_on_pages_opened_as_files(pages: dict[str, str]) -> None:
    """As the documents say: open build/site/index.html. Without a server, and without a word to anybody else."""
    browser = Page()
    try:
        browser.do("open", url=(SITE / "docs" / "viewer.html").as_uri(), width=1300)
        browser.do("click", selector="input[name=query]")
        browser.do("fill", field="query", value="retention")
        browser.do("press", key="End")  # the search listens to keys
        found = "[...document.querySelectorAll('.md-search-result__item > a')].map(each => each.href)"
        wait_for(lambda: browser.value(found), 60, "what is found")
        addresses = [address.partition("?")[0] for address in browser.value(found)]
        assert (SITE / "docs" / "keeping.html").as_uri() in addresses
        assert all(address.startswith(SITE.as_uri()) for address in addresses)
        assert browser.do("errors") == []
    finally:
        browser.close()
