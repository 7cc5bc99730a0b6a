# ruff: noqa: F811  fixtures of another file
"""Whose a series is: found and seen by readers alone, and written nowhere but in the images."""

from __future__ import annotations

import base64
import re
import shutil
import stat
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydicom import Dataset
from starlette.testclient import TestClient

from config import load
from models import catalogue
from pacs_node.accounts import ADMIN, READER, ROLES, VIEWER, Accounts
from pacs_node.audit import told as row_of
from pacs_node.backup import Images, back_up, restore
from pacs_node.errors import CannotStart
from pacs_node.facts import NodeFacts
from pacs_node.identity import KEY_FILE, Identity, NotSought, words_of
from pacs_node.ledger.tables import patient_hash_table
from pacs_node.node import Node
from pacs_node.records import Wanted
from pacs_node.web import patients as module
from pacs_node.web.app import create_app
from tests.factories import us_image
from tests.unit.node.test_retention import Story
from tests.unit.test_accounts import GOOD, HTML, accounts, clock, token_of  # noqa: F401  two of them fixtures

CANARY = {
    "PatientName": "Zañartukoetxea^Xiomara Quetzalli",
    "PatientID": "KANARIENVOGEL-4711",
    "AccessionNumber": "GELBFINK-0815",
}
WORDS = ("zanartukoetxea", "xiomara", "quetzalli", "kanarienvogel", "gelbfink")
HASHES = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{32})+")


def whose(name: str = "", number: str = "", accession: str = "", issuer: str = "") -> Dataset:
    header = Dataset()
    header.PatientName, header.PatientID, header.AccessionNumber = name, number, accession
    header.IssuerOfPatientID = issuer
    return header


IDENTITY = Identity(b"a" * 64)


def finds(said: str, header: Dataset) -> bool:
    """As the ledger does, in Python."""
    number, accession, *words = IDENTITY.sought(said).split("-")
    held = IDENTITY.of_header(header)
    return bool({number, accession} & held) or set(words) <= held


# ---- words


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("müller", "MÜLLER^Anna"),
        ("Muller", "Müller^Anna"),
        ("anna MÜLLER", "Müller^Anna"),
        ("Müller^Anna", "Müller^Anna"),
        ("strasse", "Straße^Ute"),
        ("O'Brien", "OBrien-O'Brien^Pat"),
        ("van der Berg", "van der Berg^Jan"),
        ("Soren Aebelo", "Æbelø^Søren"),
        ("山田", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("たろう", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("yamada", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("김희중", "Hong^Gildong=洪^吉洞=김희중^길동"),
        ("Иванов", "ИВАНОВ^Иван"),
    ],
)
def test_a_name_is_found_by_its_words(said: str, name: str) -> None:
    header = whose(name)
    header.SpecificCharacterSet = "ISO_IR 192"
    assert finds(said, header)
    assert not finds(f"{said} nobody", header), "all words are asked for"


@pytest.mark.parametrize(
    "said", ["mull", "uller", "M", "mullerin", "かだ", "p-7", "07", "P 7", "hospital", "p-07^^^other"]
)
def test_nothing_is_found_by_a_part(said: str) -> None:
    assert not finds(said, whose("Müller^Anna=山田^が", "P-07", "A-1", "HOSPITAL"))


def test_a_number_is_found_whole_with_its_issuer_or_without() -> None:
    ours, others = whose("A", "p-07", issuer="West"), whose("B", "P-07", issuer="East")
    assert [finds("P-07 ", each) for each in (ours, others)] == [True, True]
    assert [finds("p-07^^^WEST", each) for each in (ours, others)] == [True, False]
    assert not finds("p-07", whose(accession="p-08", name="p^7"))
    assert finds("p-08", whose(accession="P-08"))


def test_a_number_is_no_accession_number_and_no_name() -> None:
    """The same characters have another hash in each place: who reads the ledger learns not even that."""
    sets = [IDENTITY.of_header(whose(**{place: "4711"})) for place in ("name", "number", "accession")]
    assert all(len(each) == 1 for each in sets)
    assert len(frozenset.union(*sets)) == 3


LETTERS = st.text(st.characters(codec="utf-8", categories=("Lu", "Ll", "Lo", "Nd")), min_size=1, max_size=12)


@given(st.lists(LETTERS, min_size=1, max_size=4), st.data())
def test_any_name_is_found_by_each_of_its_words_however_it_is_written(parts: list[str], data: st.DataObject) -> None:
    name = "^".join(parts)
    word = data.draw(st.sampled_from(words_of(name)))
    written = data.draw(st.sampled_from([str.upper, str.lower, str.title, lambda w: unicodedata.normalize("NFD", w)]))
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName = name
    if set(words_of(written(word))) == {word}:  # some letters have no other case, or another one each way
        assert finds(written(word), header)
    assert not finds(f"{word}x", header) or f"{word}x" in words_of(name)


@given(st.binary(max_size=40))
def test_whatever_a_header_holds_it_is_hashed_or_left_out(some: bytes) -> None:
    header = whose()
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "IssuerOfPatientID"):
        header[keyword]._value = some.decode("latin-1")
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in IDENTITY.of_header(header))


@pytest.mark.parametrize("said", ["", " ", "^^", "Mül*", "P?7", "a\x00b", "x" * 65, "a b c d e f g h i"])
def test_what_finds_nobody_is_said_without_being_repeated(said: str) -> None:
    with pytest.raises(NotSought) as refused:
        IDENTITY.sought(said)
    assert len(said.strip()) < 3 or said not in str(refused.value)
    assert ("no *" in str(refused.value)) is ("*" in said or "?" in said)


def test_another_key_makes_other_hashes() -> None:
    other, header = Identity(b"b" * 64), whose("Meyer", "1", "2")
    assert not IDENTITY.of_header(header) & other.of_header(header)
    assert IDENTITY.name != other.name


def test_a_key_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    first = Identity.of(tmp_path)
    assert Identity.of(tmp_path).name == first.name
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert Identity.of(tmp_path / "other").name != first.name
    (tmp_path / KEY_FILE).write_bytes(b"cut off")
    with pytest.raises(CannotStart, match=r"identity\.key is not whole"):
        Identity.of(tmp_path)


# ---- a node


Browser = Callable[[str | None], TestClient]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """Two patients, of whom one is the canary."""
    story = Story(tmp_path)
    for name, said in (
        ("kept", CANARY),
        ("other", {"PatientName": "Meyer^Ute", "PatientID": "1", "AccessionNumber": "2"}),
    ):
        image = us_image(name=name)
        image.SpecificCharacterSet = "ISO_IR 192"
        image.PatientBirthDate = "19700102"
        for keyword, value in said.items():
            setattr(image, keyword, value)
        story.image(image)
        story.close()
    yield story
    story.node.audit.stop()
    story.node.ledger.close()


@pytest.fixture
def browser(story: Story, accounts: Accounts) -> Browser:
    facts = NodeFacts(story.node)
    app = create_app(facts, CollectorRegistry(), ["testserver"], accounts, story.node.audit)

    def of(role: str | None) -> TestClient:
        client = TestClient(app, follow_redirects=False)
        if role is not None:
            client.post("/login", data={"name": f"a-{role}", "password": GOOD, "next": "/"})
            client.headers["x-csrf-token"] = token_of(client)
        return client

    return of


def hashes_of(client: TestClient, said: str) -> str:
    answer = client.post("/api/patient", data={"patient": said})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return str(answer.json()["patient"])


def events(story: Story) -> list[dict[str, Any]]:
    story.node.audit.flush()
    return [row for line in story.node.audit.trail.backwards() if (row := row_of(line)) is not None]


@pytest.mark.parametrize(
    "said", ["ZANARTUKOETXEA", "Xiomara", "quetzalli xiomara", "Kanarienvogel-4711", "gelbfink-0815"]
)
def test_a_reader_finds_the_series_of_a_patient(story: Story, browser: Browser, said: str) -> None:
    client = browser(READER)
    sought = hashes_of(client, said)
    assert [each["series_uid"] for each in client.get(f"/api/series?patient={sought}").json()] == [story.uid]
    assert client.get(f"/api/series?patient={sought}&modality=CT").json() == [], "with the other filters"
    answer = client.post("/api/patient", data={"patient": said, "query": "modality=US"}, headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/?modality=US&patient={sought}")
    page = client.get(answer.headers["location"], headers=HTML).text
    assert story.uid in page
    assert f'value="{sought}"' in page
    assert page.count('class="series"') == 1
    assert said not in page


def test_words_of_two_patients_find_neither(browser: Browser) -> None:
    client = browser(READER)
    for said, number in (("Xiomara Meyer", 0), ("Xiomara Quetzalli", 1), ("Xiomara Quetzalli Ute", 0), ("Ute", 1)):
        assert len(client.get(f"/api/series?patient={hashes_of(client, said)}").json()) == number, said


LISTS = ("/", "/api/series", "/api/series.csv")


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("role", ROLES)
def test_who_may_search_by_a_patient(story: Story, browser: Browser, path: str, role: str) -> None:
    """By words nobody finds a patient in a list; by hashes only who may see whose the series are."""
    client = browser(role)
    for said in (*CANARY.values(), *WORDS):
        assert story.uid not in client.get(path, params={"q": said}).text
    sought = story.node.identity.sought("Xiomara")
    answer = client.get(path, params={"patient": sought})
    assert answer.status_code == (403 if role == VIEWER else 200)
    assert (story.uid in answer.text) is (role != VIEWER)
    assert client.post("/api/patient", data={"patient": "Xiomara"}).status_code == (403 if role == VIEWER else 200)
    assert client.get(path, params={"patient": "Xiomara"}).status_code == (403 if role == VIEWER else 400)


def test_many_of_a_patient_at_once_are_an_admins(story: Story, browser: Browser) -> None:
    sought, asked = story.node.identity.sought("Xiomara"), {"do": "retry", "all": "1", "confirmed": "yes"}
    form = {**asked, "query": f"patient={sought}"}
    assert [browser(role).post("/api/bulk", data=form).status_code for role in ROLES] == [403, 403, 200]
    said = browser(ADMIN).post("/api/bulk", data=form).json()
    assert set(said["done"]) | set(said["not"]) == {story.uid}


@pytest.mark.parametrize("path", ["/series/{}/patient", "/api/series/{}/patient"])
def test_who_the_patient_is_is_shown_to_readers(story: Story, browser: Browser, path: str) -> None:
    for role in (None, *ROLES):
        answer = browser(role).get(path.format(story.uid))
        assert (answer.status_code == 200) is (role in (READER, ADMIN)), role
        for said in (*CANARY.values(), "19700102"):
            assert (said in answer.text) is (role in (READER, ADMIN)), (role, said)
    seen = [event for event in events(story) if event["event"] == "DICOM Instances Accessed"]
    assert [(each["who"], each["about"]) for each in seen] == [
        ([f"a-{role}"], [str(us_image(name="kept").StudyInstanceUID)]) for role in (ADMIN, READER)
    ]
    assert answer.headers["cache-control"] == "no-store"
    assert browser(READER).get(path.format("1.2.3")).status_code == 404


def test_a_button_leads_readers_to_the_patient(story: Story, browser: Browser) -> None:
    for role in ROLES:
        page = browser(role).get(f"/series/{story.uid}", headers=HTML).text
        assert (f"/series/{story.uid}/patient" in page) is (role != VIEWER)
        assert not any(said in page for said in CANARY.values())
        assert ('action="/api/patient"' in browser(role).get("/", headers=HTML).text) is (role != VIEWER)


def test_the_audit_trail_knows_of_each_search_and_not_what_was_sought(story: Story, browser: Browser) -> None:
    client = browser(READER)
    sought = hashes_of(client, "Xiomara")
    client.get(f"/?patient={sought}")
    client.get(f"/?patient={sought}")  # the page shows itself anew
    client.get(f"/api/series?patient={sought}&limit=1")
    client.get("/?q=Thorax")
    browser(VIEWER).get(f"/?patient={sought}")
    found = [each for each in events(story) if each["event"] == "Query"]
    assert [(each["who"], each["about"], each["failed"]) for each in found] == [
        (["a-viewer"], ["/"], True),
        (["a-reader"], ["/"], False),
        (["a-reader"], ["/api/patient"], False),
    ]
    trail = "\n".join(story.node.audit.trail.backwards())
    assert base64.b64encode(f"patient={sought}".encode()).decode() in trail
    assert base64.b64encode(b"Xiomara").decode()[:8] not in trail


def test_no_byte_but_of_images_and_no_page_says_whose_a_series_is(
    story: Story, browser: Browser, capfd: pytest.CaptureFixture[str]
) -> None:
    """Names and numbers are looked for in every file of the data folder, in the log, and in what viewers are shown."""
    reader, viewer = browser(READER), browser(VIEWER)
    for said in CANARY.values():
        reader.get(f"/?patient={hashes_of(reader, said)}")
    reader.get(f"/api/series/{story.uid}/patient")
    for path in ("/", "/api/series", "/api/series.csv", f"/series/{story.uid}", f"/api/series/{story.uid}", "/queue"):
        text = viewer.get(path, headers=HTML).text
        assert story.uid in text or path == "/queue"
        assert not held(text.encode()), path
    story.node.audit.flush()
    files = [path for path in (story.folder / "data").rglob("*") if path.is_file()]
    where = {path.name for path in files if held(path.read_bytes())}
    assert {"node.sqlite", KEY_FILE} <= {path.name for path in files}
    assert where == {path.name for path in files if path.suffix == ".pack" and held(path.read_bytes())} != set()
    said = capfd.readouterr()
    assert not held((said.out + said.err).encode())


def held(some: bytes) -> bool:
    folded = unicodedata.normalize("NFKD", some.decode("utf-8", "replace")).casefold().replace("\u0303", "")
    return any(word in folded for word in WORDS)


def test_wildcards_are_refused_in_words(browser: Browser) -> None:
    answer = browser(READER).post("/api/patient", data={"patient": "Xiom*"})
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "a patient is found by whole words and numbers: no * and no ?"},
    )


def test_who_tries_names_one_by_one_is_slowed_down(
    story: Story, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_A_MINUTE", 3)
    client = browser(READER)
    tried = [client.post("/api/patient", data={"patient": f"name{number}"}).status_code for number in range(4)]
    assert tried == [200, 200, 200, 429]
    assert client.get(f"/api/series/{story.uid}/patient").status_code == 429
    assert browser(ADMIN).get(f"/api/series/{story.uid}/patient").status_code == 200, "of another one"


def test_a_page_of_another_site_cannot_search(browser: Browser) -> None:
    client = browser(READER)
    answer = client.post("/api/patient", data={"patient": "Xiomara"}, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    del client.headers["x-csrf-token"]
    assert client.post("/api/patient", data={"patient": "Xiomara"}).status_code == 403


# ---- what comes and goes


def rows(node: Node) -> int:
    with node.ledger.engine.begin() as db:
        return db.scalar(sa.select(sa.func.count()).select_from(patient_hash_table)) or 0


def found(node: Node, said: str = "Xiomara") -> list[str]:
    return node.ledger.series_uids_of(9, Wanted(patient=NodeFacts(node).sought(said)))


def test_with_its_images_a_series_loses_its_hashes(story: Story) -> None:
    for job in story.node.ledger.open_jobs():
        story.end(job, "done")
    assert found(story.node) == [story.uid]
    holding = story.node.ledger.holding(story.uid)
    assert holding is not None
    before = rows(story.node)
    assert story.node.ledger.delete_series(holding, [], "asked for", story.now()) is not None
    assert found(story.node) == []
    left = rows(story.node)
    assert 0 < left < before
    story.node.ledger.note_patient(story.uid, {"0" * 32})  # the loop had read it just before
    assert rows(story.node) == left
    story.node.ledger.forget_images("left out", story.now())
    assert rows(story.node) == 0


def test_late_images_change_whose_it_is(story: Story) -> None:
    with story.node.ledger.engine.begin() as db:
        of_other = patient_hash_table.c.series_uid != story.uid, patient_hash_table.c.hash != ""
        db.execute(sa.update(patient_hash_table).where(*of_other).values(series_uid=story.uid))
    assert found(story.node, "Meyer") == [story.uid]
    late = us_image(name="kept", number=9)
    late.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in CANARY.items():
        setattr(late, keyword, value)
    story.image(late)
    story.close()
    assert found(story.node) == [story.uid]
    assert found(story.node, "Meyer") == []


def test_what_came_before_is_looked_at_in_small_steps(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    node = story.node
    known = rows(node)
    with node.ledger.engine.begin() as db:
        db.execute(sa.delete(patient_hash_table))
    monkeypatch.setattr("pacs_node.patients.AT_ONCE", 1)
    assert node.patients.look() is not None
    assert 0 < rows(node) < known
    assert [node.patients.look() is not None, node.patients.look()] == [True, None]
    assert rows(node) == known
    assert found(node) == [story.uid]


def test_a_series_that_cannot_be_read_holds_up_no_other(story: Story) -> None:
    node = story.node
    with node.ledger.engine.begin() as db:
        db.execute(sa.delete(patient_hash_table))
    for each in node.ledger.instances(story.uid):
        each.path.unlink()
    while node.patients.look() is not None:
        pass
    assert found(node) == []
    assert len(found(node, "Meyer")) == 1
    assert node.ledger.without_patient("", 9) == [], "nor is it looked at for ever"


def test_under_a_new_key_all_is_hashed_anew(story: Story) -> None:
    story.node.patients.begin()
    while story.node.patients.look() is not None:
        pass
    assert found(story.node) == [story.uid]
    (story.folder / "data" / KEY_FILE).unlink()
    node = story.new_node()
    assert found(node) == [], "the new key finds nothing of the former"
    node.patients.begin()
    assert rows(node) == 0
    while node.patients.look() is not None:
        pass
    assert found(node) == [story.uid]
    node.patients.begin()
    assert rows(node) > 0, "and stays"
    node.ledger.close()


def test_a_restored_node_finds_them(story: Story, tmp_path: Path) -> None:
    config = load(story.file, catalogue())
    story.node.patients.begin()
    while story.node.patients.look() is not None:
        pass
    back_up(config, story.file, tmp_path / "backup", Images.copy, datetime.now(UTC))
    assert stat.S_IMODE((tmp_path / "backup" / "files" / KEY_FILE).stat().st_mode) == 0o600
    shutil.rmtree(story.folder / "data")
    restore(config, tmp_path / "backup", datetime.now(UTC))
    assert stat.S_IMODE((story.folder / "data" / KEY_FILE).stat().st_mode) == 0o600
    node = story.new_node()
    node.patients.begin()
    assert found(node) == [story.uid]
    node.ledger.close()
