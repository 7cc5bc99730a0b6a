"""The languages of the pages: as somebody has chosen at their foot (a cookie), else what his browser says he reads.

English stands in the templates, tables and scripts themselves; the others in catalogues of gettext (`locale/`).
"""

from __future__ import annotations

import gettext
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LANGUAGES = {"en": "English", "de": "Deutsch"}  # RFC 5646 -> what it calls itself
COOKIE = "pacs-node-language"
KEPT_S = 365 * 86400  # the cookie
LONGEST = 400  # characters of what a browser says it reads

HERE = Path(__file__).parent
LOCALE, STATIC, DOMAIN = HERE / "locale", HERE / "static", "pages"
# one language of an Accept-Language, with its weight: RFC 9110 12.5.4
WANTED = re.compile(r"([A-Za-z]{1,8})(?:-[A-Za-z0-9]{1,8})*(?:[ \t]*;[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?))?")
SAID = re.compile(r"\bt\('([^'\\]+)'")  # what a script says, in its source: t('Outlines')


@cache
def catalogue_of(language: str) -> gettext.NullTranslations:
    return gettext.NullTranslations() if language == "en" else gettext.translation(DOMAIN, LOCALE, [language])


def in_language(catalogue: gettext.NullTranslations, words: str) -> str:
    """Words of a table of ours. What is not in the catalogue (a reason, a name, a value of DICOM) stays as it is."""
    return catalogue.gettext(words) if words else words  # of "" a catalogue has its own head


@cache
def script_words(language: str, script: str) -> Mapping[str, str]:
    """Of each text that a script in static/ shows the one to show; none of English."""
    if language == "en":
        return {}
    said = SAID.findall((STATIC / script).read_text(encoding="utf-8"))
    return {words: catalogue_of(language).gettext(words) for words in said}


def language_of(chosen: str | None, wanted: str, default: str) -> str:
    """chosen: of the cookie; wanted: an Accept-Language, whatever it holds."""
    return chosen if chosen in LANGUAGES else _most_wanted(wanted) or default


def _most_wanted(wanted: str) -> str | None:
    """The first known one of the highest weight; de-AT is de."""
    found = [WANTED.fullmatch(each.strip(" \t")) for each in wanted[:LONGEST].split(",")]
    weights: dict[str, float] = {}
    for each in found:
        if each is not None and (language := each[1].lower()) in LANGUAGES:
            weights[language] = max(float(each[2] or 1), weights.get(language, 0.0))
    best = max(weights, key=lambda language: weights[language], default=None)
    return best if best is not None and weights[best] > 0 else None
