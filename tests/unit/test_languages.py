"""The languages of the pages: nothing stays untranslated, nothing but words changes, everybody gets his own."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from gettext import NullTranslations
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_javascript
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, FileSystemLoader, nodes
from pydicom.datadict import keyword_dict
from starlette.testclient import TestClient

from config.schema import Language, Peer, Route
from pacs_node.accounts import ADMIN
from pacs_node.web import languages, views
from pacs_node.web.access import NEEDS
from pacs_node.web.languages import COOKIE, LANGUAGES, LOCALE, STATIC, catalogue_of, language_of, script_words
from tests.everything import PASSWORD, Everything
from tests.harness import ROOT

sys.path.insert(0, str(ROOT / "deploy"))
import messages

TEMPLATES = ROOT / "pacs_node" / "web" / "templates"
OTHERS = sorted(LANGUAGES.keys() - {"en"})
LETTERS = re.compile(r"[^\W\d_]{2}")

# What the templates say ---------------------------------------------------------------------------------------------

SHOWN = {"title", "placeholder", "aria-label", "alt", "data-label", "label"}  # attributes that somebody reads or hears
NO_TEXT = {"code", "pre", "script", "style"}  # what a person types, or a program reads
# names, units and what the settings and DICOM call so, in any language
UNTRANSLATED = {
    *("pacs-node", "MB", "mm", "LPS", "STAT", "TLS", "PSI", "TOML", "Dice", "kappa", "Python"),
    *("pipeline", "priors", "options", "needs", "send_to", "also", "match", 'series = [{ Modality = "PT" }]'),
}
LEFT_OUT = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, UNTRANSLATED))})(?!\w)")
ASKED = {"_", "gettext", "ngettext", "pgettext"}


class Visible(HTMLParser):
    """The pieces of a page that somebody reads or hears."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in NO_TEXT:
            self.inside.append(tag)
        given = dict(attrs)
        self.pieces += [value for name, value in attrs if name in SHOWN and value]
        if tag == "input" and given.get("type") in ("submit", "button"):
            self.pieces.append(given.get("value") or "")

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside and data.strip():
            self.pieces.append(data)


def visible(html: str) -> list[str]:
    parser = Visible()
    parser.feed(html)
    parser.close()
    return parser.pieces


def constants(node: nodes.Node) -> Iterator[str]:
    """The texts of the template's own that an expression may show, where no catalogue is asked for them."""
    if isinstance(node, nodes.Const):
        yield from [node.value] if isinstance(node.value, str) else []
    elif isinstance(node, nodes.CondExpr):
        yield from constants(node.expr1)
        yield from constants(node.expr2) if node.expr2 is not None else ()
    elif isinstance(node, nodes.Or | nodes.And | nodes.Add):
        yield from constants(node.left)
        yield from constants(node.right)
    elif isinstance(node, nodes.Concat):
        for each in node.nodes:
            yield from constants(each)
    elif isinstance(node, nodes.Dict):
        for pair in node.items:
            yield from constants(pair.value)
    elif isinstance(node, nodes.Getitem | nodes.Getattr | nodes.Filter) and node.node is not None:
        yield from constants(node.node)
    elif isinstance(node, nodes.Call) and not (isinstance(node.node, nodes.Name) and node.node.name in ASKED):
        yield from constants(node.node)
        of_macro = isinstance(node.node, nodes.Name)  # which is also told keys, that nobody sees
        for text in (text for each in node.args for text in constants(each)):
            yield from [] if of_macro and text.islower() and text.isidentifier() else [text]


def flattened(node: nodes.Node) -> str:
    """A template with all of its branches one after the other, and of each expression what it may show of itself."""
    if isinstance(node, nodes.TemplateData):
        return node.data
    if isinstance(node, nodes.Output):
        return "".join(
            each.data if isinstance(each, nodes.TemplateData) else " ".join(constants(each)) for each in node.nodes
        )
    return "".join(map(flattened, node.iter_child_nodes()))


@cache
def environment() -> Environment:
    return Environment(loader=FileSystemLoader(TEMPLATES), extensions=["jinja2.ext.i18n"], autoescape=True)


def says_itself(source: str) -> list[str]:
    """What a template shows that no catalogue is asked for."""
    return [piece.strip() for piece in visible(flattened(environment().parse(source))) if untranslated(piece)]


def untranslated(piece: str) -> bool:
    return bool(LETTERS.search(LEFT_OUT.sub("", piece)))


@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATES.glob("*")))
def test_every_word_of_a_template_can_be_translated(name: str) -> None:
    assert says_itself((TEMPLATES / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "<p>Some words</p>",
        "{% if x %}<p>{{ n }} words</p>{% endif %}",
        '<input placeholder="words">',
        '<td data-label="{{ "Words" if x else y }}">',
        "{{ x or 'words' }}",
        "{{ {'a': 'words'}[x] }}",
        "{{ {'a': 1}.get(x, 'words') }}",
        "{{ 'words ' ~ x }}",
        "{{ 'words %s'|format(x) }}",
        "{% macro m() %}words{% endmacro %}",
        "{% for x in y %}{% else %}words{% endfor %}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m('Words') }}",
    ],
)
def test_words_that_cannot_be_translated_are_found(source: str) -> None:
    assert says_itself(source) != []
    assert says_itself("{{ _('words') }}{% trans n=x %}{{ n }} word{% pluralize %}{{ n }} words{% endtrans %}") == []


# what puts a text on the screen: the text itself must not stand beside it
BESIDE = re.compile(
    r"""(?:\bsay\(|textContent = |\.title = |'aria-label', |\bError\(|\bbutton\('\w+', )\s*['`](?=\w)"""
)


@pytest.mark.parametrize("path", [STATIC / "viewer.js", STATIC / "cine.js"], ids=lambda path: path.name)
def test_every_word_of_a_script_can_be_translated(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert [source[found.start() :][:60] for found in BESIDE.finditer(source)] == []
    with path.open("rb") as file:
        options = {"parse_template_string": "true"}
        found = [words for _, _, words, _ in extract_javascript(file, {"t": None}, [], options)]
    said = {words if isinstance(words, str) else words[0] for words in found}
    assert said == script_words("de", path.name).keys() != set(), "what the page hands to it is what it asks for"
    assert script_words("en", path.name) == {}


def test_the_viewer_knows_the_windows_of_the_node() -> None:
    from pacs_node.viewing_process import CT_WINDOWS

    assert {name for name, _, _ in CT_WINDOWS} | {"Image"} <= script_words("de", "viewer.js").keys()


# The catalogues -----------------------------------------------------------------------------------------------------


@cache
def said() -> Catalog:
    return messages.extracted()


def catalogue(language: str) -> Catalog:
    with messages.po(language).open("rb") as file:
        return read_po(file, locale=language)


def test_the_languages_are_those_of_the_settings_and_of_the_folders() -> None:
    assert set(get_args(Language)) == LANGUAGES.keys()
    assert sorted(path.name for path in LOCALE.iterdir()) == OTHERS


@pytest.mark.parametrize("language", OTHERS)
def test_a_catalogue_is_complete_and_compiled(language: str) -> None:
    """As `make messages` leaves it: nothing is new, nothing is gone."""
    path, now = messages.po(language), messages.updated(language, said())
    assert [each.id for each in messages.missing(now)] == []
    assert path.read_bytes() == messages.as_po(now), "run `make messages`"
    assert path.with_suffix(".mo").read_bytes() == messages.as_mo(now), "run `make messages`"
    assert not catalogue(language).obsolete
    assert [each.id for each in catalogue(language) if each.id and each.fuzzy] == []


@pytest.mark.parametrize("language", OTHERS)
def test_what_is_new_is_told_and_what_is_gone_goes(language: str) -> None:
    more = Catalog()
    more.add("A new sentence.")
    more.add("Queue")
    now = messages.updated(language, more)
    assert [each.id for each in messages.missing(now)] == ["A new sentence."]
    assert [each.id for each in now if each.id] == ["A new sentence.", "Queue"]


PLACES = re.compile(r"%\(\w+\)s|%%|\{\w*\}")
PERCENT = re.compile(r" %(?!\()")  # of a table, which is put into no template's text
MARKUP = re.compile(r"[<>&\"\\]|%(?!\(\w+\)s)")


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_says_the_same_values_and_brings_no_markup(language: str) -> None:
    """It is put into a page as it is: a template's text, by people who may be no programmers."""
    for each in catalogue(language):
        if not each.id:
            continue
        whole = each.id if isinstance(each.id, tuple) else (each.id,)
        strings = each.string if isinstance(each.string, tuple) else (each.string,)
        for text in strings:
            assert set(PLACES.findall(text)) == set(PLACES.findall(whole[-1])), text
            assert MARKUP.findall(text) == MARKUP.findall(whole[-1]) == ["%"] * len(PERCENT.findall(whole[-1])), text
            assert (text[0].isspace(), text[-1].isspace()) == (whole[0][0].isspace(), whole[0][-1].isspace()), text
            assert text[-1] in ".?:…" or whole[-1][-1] not in ".?:…", text


@pytest.mark.parametrize("language", OTHERS)
def test_who_reads_a_page_reads_what_it_is_for(language: str) -> None:
    whole = {each.id: each.string for each in catalogue(language) if isinstance(each.id, str)}
    least = whole["Research use only, not for diagnostic use."]
    for english, translated in whole.items():
        if "not for diagnostic use" in english:
            assert least in translated


# Which language -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("DE-de", "de"),
        ("en-GB,en;q=0.9,de;q=0.8", "en"),
        ("fr,de;q=0.5,en;q=0.4", "de"),
        ("en;q=0.2, de;q=0.3", "de"),
        ("de;q=0", "en"),
        ("de;q=0.000,fr", "en"),
        ("*", "en"),
        ("fr-CH, *;q=0.5", "en"),
        ("deutsch", "en"),
        ("de;q=2", "en"),
        ("de ; q=0.7 , en;q=0.1", "de"),
        ("x" * 100_000 + ",de", "en"),
        ("de," * 100_000, "de"),
        ("\u212a,de", "de"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_the_language_is_the_one_that_a_browser_wants_most(wanted: str, language: str) -> None:
    assert language_of(None, wanted, "en") == language
    if language == "de":
        assert language_of("en", wanted, "de") == "en", "what was chosen counts first"


PARTS = st.sampled_from(["de", "en", "fr", "*", "-", ";q=", "0.5", "1", "q", ",", " ", "\t", "é", "\0", "=", ";", "'"])


@given(st.text(max_size=60) | st.lists(PARTS, max_size=20).map("".join), st.none() | st.text(max_size=5))
def test_whatever_a_browser_sends_there_is_a_language(wanted: str, chosen: str | None) -> None:
    for default in LANGUAGES:
        assert language_of(chosen, wanted, default) in LANGUAGES
    assert language_of("de", wanted, "en") == "de"


# The pages ----------------------------------------------------------------------------------------------------------


class Marked(NullTranslations):
    """A language in which everything that is ours stands in brackets, and what is not ours as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.known = {each.id if isinstance(each.id, str) else each.id[0] for each in said() if each.id}

    def gettext(self, message: str) -> str:
        return f"⟦{message}⟧" if message in self.known else message

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return self.gettext(msgid1)[:1] + super().ngettext(msgid1, msgid2, n) + self.gettext(msgid1)[-1:]

    def pgettext(self, context: str, message: str) -> str:
        return self.gettext(message)


class Heard:
    """Facts of a node, and every text that they have told."""

    def __init__(self, facts: Any, texts: set[str]) -> None:
        self._facts, self._texts = facts, texts

    def __getattr__(self, name: str) -> Any:
        told = getattr(self._facts, name)

        def asked(*args: Any, **more: Any) -> Any:
            answer = told(*args, **more)
            self._texts.update(texts_of(answer))
            return answer

        return asked if callable(told) else told


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from texts_of(key)
            yield from texts_of(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from texts_of(each)
    elif hasattr(value, "__dataclass_fields__"):
        yield from texts_of(vars(value))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    everything = Everything(tmp_path_factory.mktemp("everything"))
    everything.ready()
    yield everything
    everything.close()


def browser(app: Any, *wanted: str) -> TestClient:
    """Somebody who may see and change everything, and reads this."""
    client = TestClient(app, headers={"accept": "text/html", "accept-language": ",".join(wanted)})
    assert client.post("/login", data={"name": "ana", "password": PASSWORD}).status_code == 200
    return client


def pages(everything: Everything, client: TestClient) -> dict[str, str]:
    """Of every page that can be asked for, its HTML."""
    found = {}
    for path in NEEDS:
        for uid in everything.series.values() if "{uid}" in path else [""]:
            asked = path.replace("{uid}", uid).replace("{name}", "lung-nodule")
            if "{" in asked or asked.startswith(("/api/", "/oidc/")):
                continue
            answer = client.get(asked)
            if answer.headers["content-type"].startswith("text/html"):
                assert answer.status_code in (200, 405), asked
                found[asked] = answer.text
    asked = {"do": "delete", "series": "1.2", "csrf": csrf(found["/"])}
    found["nothing"] = client.get("/?q=nothing").text
    found["nosuch"] = client.get("/series/nosuch").text
    found["confirm"] = client.post("/api/bulk", data=asked).text
    assert len(found) > 25
    return found


def csrf(page: str) -> str:
    [found] = set(re.findall(r'name="csrf" value="([^"]+)"', page))
    return str(found)


IN_ENGLISH = re.compile(r'<pre [^>]*lang="en".*?</pre>', re.DOTALL)  # the card of a model, as its makers wrote it


def test_every_page_is_german_to_a_german_browser(everything: Everything) -> None:
    client = browser(everything.app(everything.accounts), "de-DE", "en;q=0.5")
    for address, page in pages(everything, client).items():
        assert '<html lang="de">' in page, address
        assert "Nur für Forschungszwecke, nicht zur Diagnostik." in page, address
        assert "not for diagnostic use" not in IN_ENGLISH.sub("", page), address
    answer = client.get("/queue")
    assert answer.headers["content-language"] == "de"
    assert {"Accept-Language", "Cookie"} <= set(answer.headers["vary"].split(", "))
    assert "<h1>Warteschlange</h1>" in answer.text
    assert client.get("/nosuch").headers["content-language"] == "de"


def test_no_word_of_a_page_is_ours_and_stays_as_it_is(everything: Everything, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left outside the brackets of another language must be what the node tells: names, values, reasons."""
    texts: set[str] = set()
    marked = Marked()
    monkeypatch.setattr(views, "catalogue_of", lambda language: marked if language == "de" else NullTranslations())
    facts, desk = Heard(everything.facts, texts), Heard(everything.node.desk(), texts)
    app = views_app(facts, desk, everything)
    client = browser(app, "de")
    # of peers, of settings and of DICOM, which stay as they are
    names = {peer.name for peer in everything.node.config.peers} | Peer.model_fields.keys() | Route.model_fields.keys()
    names |= keyword_dict.keys()
    told = words_in({*texts, *NEVER_TOLD, *everything.series.values()})
    for address, page in pages(everything, client).items():
        told |= words_in(texts)
        left = [each for each in visible(outside(page)) if not words_in({LEFT_OUT.sub("", each)}) <= told]
        assert left == [], address
        tables = {words for _, words in messages.tables() if LETTERS.search(words)} - names
        alone = [
            each for piece in alone_in(outside(page)) for each in map(str.strip, piece.split("\0")) if each in tables
        ]
        assert alone == [], address


# what the pages say of DICOM, of units and of who asks, in any language
NEVER_TOLD = (
    "pacs-node ana Deutsch English Comprehensive SR Segmentation Explicit VR Little Endian",
    "MB GB kB TB mm min kappa Dice x PSI TLS TOML STAT LPS UID",
)


def views_app(facts: Any, desk: Any, everything: Everything) -> Any:
    from prometheus_client import CollectorRegistry

    from pacs_node.web.app import create_app

    return create_app(
        facts, CollectorRegistry(), ("testserver",), everything.accounts, everything.node.audit, desk=desk
    )


def outside(page: str) -> str:
    """What of a page stands outside all brackets, with a NUL in the place of each."""
    while (inner := re.sub(r"⟦[^⟦⟧]*⟧", "\0", page)) != page:
        page = inner
    return page


def words_in(texts: set[str]) -> set[str]:
    return {word.lower() for text in texts for word in re.findall(r"[^\W\d_]{2,}", text)}


def alone_in(page: str) -> list[str]:
    """What stands alone in its element; the timeline is a log."""
    return visible(re.sub(r'(?s)<ol class="timeline">.*?</ol>', "", page))


# The choice ---------------------------------------------------------------------------------------------------------


def test_who_chooses_a_language_keeps_it(everything: Everything) -> None:
    """With the buttons of a page, as a browser without JavaScript presses them."""
    client = browser(everything.app(everything.accounts), "en")
    address = "/?state=closed&sort=oldest"
    page = client.get(address)
    assert '<html lang="en">' in page.text
    [(action, button)] = chooser(page.text)
    done = client.post(action, data=button, headers={"referer": f"http://testserver{address}"}, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, address)
    cookie = done.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=de;")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert '<html lang="de">' in client.get(address).text
    [(action, button)] = chooser(client.get(address).text)
    assert '<html lang="en">' in client.post(action, data=button).text
    assert client.cookies[COOKIE] == "en"


def chooser(page: str) -> list[tuple[str, dict[str, str]]]:
    """Of each button of the choice: the address of its form, and what it sends."""
    [(action, buttons)] = re.findall(r'(?s)<form class="language" method="post" action="([^"]+)".*?>(.*?)</form>', page)
    found = re.findall(r'<button name="(\w+)" value="(\w+)" lang="(\w+)">(\w+)</button>', buttons)
    assert [(tag, LANGUAGES[tag]) for _, _, tag, _ in found] == [(value, words) for _, value, _, words in found]
    return [(action.replace("&amp;", "&"), {name: value}) for name, value, _, _ in found]


def test_every_page_has_the_choice_and_it_leads_back(everything: Everything) -> None:
    app = everything.app(everything.accounts)
    client = browser(app, "en")
    addresses = [path for path in NEEDS if not path.startswith(("/api", "/oidc")) and "{" not in path]
    for address in [*addresses, "/login?next=%2Fqueue", "/series/nosuch"]:
        page = client.get(address)
        if not page.headers["content-type"].startswith("text/html") or page.history:
            continue
        [(action, button)] = chooser(page.text)
        done = client.post(action, data=button, follow_redirects=False)
        assert done.headers["location"].partition("?")[0] == address.partition("?")[0], address
        client.cookies.delete(COOKIE)


@pytest.mark.parametrize("at", ["/", "/?sort=oldest"])
def test_from_what_a_form_brought_about_it_leads_to_where_the_form_stood(everything: Everything, at: str) -> None:
    client = browser(everything.app(everything.accounts), "en")
    form = {"do": "retry", "series": "1.2", "csrf": csrf(client.get(at).text)}
    page = client.post("/api/bulk", data=form, headers={"referer": f"http://testserver{at}"})
    [(action, button)] = chooser(page.text)
    assert client.post(action, data=button, follow_redirects=False).headers["location"] == at


@pytest.mark.parametrize(
    "onward",
    [
        *("https://evil.example/", "//evil.example/", "/\\evil.example", "\\\\evil.example", "http:evil.example"),
        *(
            "/%0d%0aset-cookie:a=b",
            "javascript:alert(1)",
            "",
            "queue",
            "/\t/evil.example",
            "///evil.example",
            "/" * 3000,
        ),
    ],
)
def test_the_choice_leads_to_no_other_site(everything: Everything, onward: str) -> None:
    client = TestClient(everything.app(everything.accounts), headers={"accept": "text/html"})
    done = client.post("/language", params={"next": onward}, data={"language": "de"}, follow_redirects=False)
    assert done.status_code == 303
    assert re.fullmatch(r"/(?![/\\])[\x21-\x7e]*", done.headers["location"])
    assert "evil.example" not in done.headers["location"].partition("/%0d")[0]
    assert "a=b" not in done.headers["set-cookie"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 303),
        ({"origin": "http://testserver", "sec-fetch-site": "same-origin"}, 303),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"referer": "https://evil.example/page"}, 403),
    ],
    ids=lambda value: json.dumps(value),
)
def test_no_page_of_another_site_chooses(everything: Everything, headers: dict[str, str], status: int) -> None:
    client = TestClient(everything.app(everything.accounts))
    done = client.post("/language", data={"language": "de"}, headers=headers, follow_redirects=False)
    assert done.status_code == status
    assert ("set-cookie" in done.headers) is (status == 303)


@pytest.mark.parametrize("language", ["", "fr", "EN", "de\r\nset-cookie: a=b", "../../etc", "x" * 5000])
def test_a_language_that_there_is_not_is_refused(everything: Everything, language: str) -> None:
    client = TestClient(everything.app(everything.accounts))
    done = client.post("/language", data={"language": language}, follow_redirects=False)
    assert done.status_code == 400
    assert "set-cookie" not in done.headers
    client.cookies.set(COOKIE, "fr")
    assert client.get("/login").headers["content-language"] == "en"


def test_the_settings_say_what_others_see(everything: Everything, monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client import CollectorRegistry

    from pacs_node.web.app import create_app

    app = create_app(everything.facts, CollectorRegistry(), ("testserver",), everything.accounts, language="de")
    said = {wanted: TestClient(app).get("/login", headers={"accept-language": wanted}) for wanted in ("", "fr", "en")}
    assert [answer.headers["content-language"] for answer in said.values()] == ["de", "de", "en"]


def test_an_error_is_in_the_language_of_who_reads_it(everything: Everything) -> None:
    client = browser(everything.app(everything.accounts), "de")
    assert "<h1>Keine solche Serie</h1>" in client.get("/series/nosuch").text
    assert client.get("/api/series/nosuch", headers={"accept": "application/json"}).json() == {
        "error": "no such series"
    }


def test_english_needs_no_catalogue() -> None:
    assert type(catalogue_of("en")) is NullTranslations
    assert languages.in_language(catalogue_of("de"), "") == ""
    assert (
        languages.in_language(catalogue_of("de"), "pacs at 10.0.0.5 does not answer")
        == "pacs at 10.0.0.5 does not answer"
    )


def test_an_admin_is_an_admin_in_every_language(everything: Everything) -> None:
    """What a form sends stays what the node knows."""
    page = browser(everything.app(everything.accounts), "de").get("/").text
    assert '<option value="closed">abgeschlossen</option>' in page
    assert '<span title="Administrator">ana</span>' in page
    assert ADMIN == "admin"
