"""The catalogues of the pages' languages: python deploy/messages.py (`make messages`); docs/languages.md.

Reads what the pages say in templates, scripts and tables, brings the .po of each language up to date with it and
compiles it. What is new is empty there; what nothing says any more is gone. Says what is left to translate.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import get_args

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dicom_sr.classes import CLASSES  # noqa: E402
from pacs_node import doctor, outcomes, records, retention, settings_desk  # noqa: E402
from pacs_node.accounts import ROLES  # noqa: E402
from pacs_node.facts import QUEUES  # noqa: E402
from pacs_node.web import lists, views  # noqa: E402
from pacs_node.web.languages import DOMAIN, LANGUAGES, LOCALE  # noqa: E402

NODE = ROOT / "pacs_node"
# files of ours -> how babel reads them, and by which calls it knows what is shown
READ: list[tuple[str, str, dict[str, object]]] = [
    (
        "web/templates/*.html",
        "jinja2.ext.babel_extract",
        {"_": None, "gettext": None, "ngettext": (1, 2), "pgettext": ((1, "c"), 2)},
    ),
    ("web/static/*.js", "javascript", {"t": None}),
    # sentences that a page shows as they are raised: those that are made of parts stay English
    ("**/*.py", "python", {"HTTPException": (2,), "NotLoggedIn": (1,), "SignOnAway": (1,)}),
]
OPTIONS = {"newstyle_gettext": "true", "parse_template_string": "true"}
LETTERS = re.compile(r"[A-Za-z]{2}")
NEVER = datetime.fromtimestamp(0, UTC)  # what is compiled twice is the same twice
HEADER = """\
# The pages of pacs-node, in {language}. `make messages` keeps the entries; docs/languages.md says how.
#"""


def tables() -> Iterator[tuple[str, str]]:
    """What the pages show of the program's own tables: (file below pacs_node, words)."""
    yield from (("records.py", each) for each in (*records.JOB_STATES, *records.SORTS.values()))
    yield from (("records.py", each) for each in chain(*records.REFUSAL_KINDS.items()))
    yield from (("records.py", each) for each in (records.FEEDBACK_KINDS | records.RETURNED_KINDS).values())
    yield from (("accounts.py", each) for each in ROLES)
    yield from (("outcomes.py", each) for each in outcomes.WORDS.values())
    for what, steps in outcomes.STEPS.items():
        yield from (("outcomes.py", outcomes.in_words(what, str(step))) for step in range(len(steps) + 1))
    yield from (("settings_desk.py", each) for each in chain(settings_desk.HELP.values(), settings_desk.HOWS.values()))
    yield from (("doctor.py", each) for each in get_args(doctor.State))
    yield from (("facts.py", each) for each in ("ok", "degraded", "trouble", "a folder", "send", "confirm", "report"))
    yield from (("facts.py", each) for each in (QUEUES["infer"], "infer"))
    yield from (("devices.py", each) for each in ("running", "paused", "resting", "idle"))
    yield from (("heartbeat.py", each) for each in ("under way", "arrived", "failed", "paused"))
    yield from (("confirm.py", each) for each in ("arrived", "not there", "not proven"))
    yield from (("viewing_process.py", each) for each in CLASSES)
    yield from (("retention.py", each) for each in retention.KEPT)
    yield from (("web/lists.py", each) for each in chain(lists.STATES, lists.FINDINGS, lists.DO.values()))
    yield from (("web/views.py", HTTPStatus(each).phrase) for each in (404, 405))
    yield from (("web/views.py", each) for each in (*views.PURPOSES.values(), views.NOT_MEASURED))


def extracted() -> Catalog:
    """All that the pages say, in the order of the files that say it."""
    said = Catalog(charset="utf-8")
    for pattern, method, calls in READ:
        for path in sorted(NODE.glob(pattern)):
            with path.open("rb") as file, redirect_stderr(io.StringIO()):  # of sentences that are made of parts
                found = list(extract(method, file, calls, options=OPTIONS))
            for _, message, _, context in found:
                said.add(message, locations=[(path.relative_to(NODE).as_posix(), 0)], context=context)
    for file, words in tables():
        if LETTERS.search(words):
            said.add(words, locations=[(file, 0)])
    return said


def updated(language: str, said: Catalog) -> Catalog:
    """The catalogue of a language, with an entry for all that is said and for nothing else."""
    path, kept = po(language), Catalog(locale=language)
    if path.is_file():
        with path.open("rb") as file:
            kept = read_po(file, locale=language)
    head = HEADER.format(language=language)
    new = Catalog(language, header_comment=head, creation_date=NEVER, revision_date=NEVER, charset="utf-8", fuzzy=False)
    for message in said:
        if message.id:
            before = kept.get(message.id, message.context)
            string = before.string if before is not None and before.id == message.id else ""
            new.add(message.id, string, message.locations, message.flags, context=message.context)
    return new


def missing(catalogue: Catalog) -> list[Message]:
    """What is not translated yet."""
    return [
        each
        for each in catalogue
        if each.id and not all([each.string] if isinstance(each.string, str) else each.string)
    ]


def po(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES" / f"{DOMAIN}.po"


def as_po(catalogue: Catalog) -> bytes:
    """Without numbers of lines and dates: what changes is what is said."""
    file = io.BytesIO()
    write_po(file, catalogue, width=120, omit_header=True, sort_by_file=True, include_lineno=False)
    head = f'"Language: {catalogue.locale}\\n"\n"Content-Type: text/plain; charset=utf-8\\n"\n'
    head += f'"Content-Transfer-Encoding: 8bit\\n"\n"Plural-Forms: {catalogue.plural_forms}\\n"\n'
    return f'{catalogue.header_comment}\nmsgid ""\nmsgstr ""\n{head}\n'.encode() + file.getvalue()


def as_mo(catalogue: Catalog) -> bytes:
    file = io.BytesIO()
    write_mo(file, catalogue)
    return file.getvalue()


def main() -> int:
    said = extracted()
    for language in LANGUAGES.keys() - {"en"}:
        catalogue, path = updated(language, said), po(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_po(catalogue))
        path.with_suffix(".mo").write_bytes(as_mo(catalogue))
        left = missing(catalogue)
        told = f"{path.relative_to(ROOT)}: {len(catalogue)} messages, {len(left)} not translated yet"
        sys.stdout.write("\n  ".join([told, *(str(each.id) for each in left)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
