"""Pictures of pages in the documents: each says what its page was made of when it was taken, so that none can age."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.harness import ROOT

WORDS = "words"  # in a picture: what its page was made of when it was taken
LARGEST_BYTES = 150_000
# headings, columns, fields, buttons, whatever the page is about; as pictures.mjs has it
READ = (
    "[...document.querySelectorAll('nav a, h2, th, legend, dl.facts > dt, .field > span, button, main .pages a')]"
    ".map(each => each.innerText.trim()).filter(Boolean)"
)


def with_words(screenshot: Path, words: Sequence[str], picture: Path) -> None:
    """A screenshot made small, and what it shows written into it."""
    written = PngInfo()
    written.add_text(WORDS, json.dumps(list(dict.fromkeys(words))))
    with Image.open(screenshot) as seen:
        seen.convert("RGB").quantize(96).save(picture, optimize=True, pnginfo=written)


def shows_the_page_as_it_is(picture: Path) -> None:
    """The one in docs/results of this name. `make pictures` takes them; then they are compared by what they show, for
    fonts are those of a machine."""
    kept = ROOT / "docs" / "results" / picture.name
    if "PICTURES" in os.environ:
        shutil.copyfile(picture, kept)
    with Image.open(kept) as kept_picture, Image.open(picture) as now:
        assert kept_picture.size == now.size
        assert json.loads(kept_picture.info.get(WORDS, "[]")) == json.loads(now.info[WORDS]), "run `make pictures`"
    assert kept.stat().st_size < LARGEST_BYTES
    assert any(
        f"results/{picture.name}" in page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    )
