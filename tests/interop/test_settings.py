"""An administrator in a browser without JavaScript: a peer, a route, tried, activated, in force, and put back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from config import load
from models import catalogue
from pacs_node.accounts import ADMIN, Accounts
from pacs_node.ledger import Ledger
from tests.factories import us_image
from tests.harness import ROOT, NodeProcess, Orthanc, missing, need, storescu, wait_for
from tests.parrot import ASSOCIATE_AC, Parrot
from tests.unit.receive.conftest import encoded

BROWSER = Path(__file__).parent / "ohif"
PASSWORD = "a long enough secret"
TOML = """
[infer]
tune = false
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 0.5
quiet_unreleased_s = 600.0
# who sends
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "scanner"
ae_title = "ME"
may_send = true
"""


class Site:
    def __init__(self, folder: Path) -> None:
        self.node = NodeProcess(folder, TOML)
        config = load(self.node.config, catalogue())
        config.node.data_dir.mkdir(mode=0o700)
        ledger = Ledger(config.database.url, config.node.data_dir)
        ledger.migrate()
        accounts = Accounts(ledger, lambda: datetime.now(UTC))
        accounts.add("ana", ADMIN, PASSWORD)
        token = accounts.add_token("test", ADMIN, 1)
        ledger.close()
        self.url = f"http://127.0.0.1:{self.node.web_port}"
        self.client = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {token}"}, timeout=20)

    def series(self, uid: str) -> dict[str, Any] | None:
        """Once it is closed."""
        answer = self.client.get(f"/api/series/{uid}")
        return answer.json() if answer.status_code == 200 and answer.json()["state"] == "closed" else None

    def browse(self, *steps: tuple[str, ...], width: int = 1280) -> list[dict[str, Any]]:
        if not (BROWSER / "node_modules").is_dir():
            missing(f"playwright-core is not installed; run `npm ci --ignore-scripts` in {BROWSER.relative_to(ROOT)}")
        log_in = [("goto", f"{self.url}/login"), ("fill", "[name=name]", "ana"), ("fill", "[name=password]", PASSWORD)]
        all_steps = json.dumps([*log_in, ("click", "form.login button"), *steps])
        command = [need("node"), str(BROWSER / "steps.mjs"), need("chromium"), str(width), all_steps]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    with site.node.start():
        yield site


def test_an_administrator_adds_a_peer_and_a_route_tries_it_and_puts_it_back(site: Site, tmp_path: Path) -> None:
    images = [us_image(), us_image()]
    images[1].SOPInstanceUID = images[1].file_meta.MediaStorageSOPInstanceUID = "2.25.77"
    (tmp_path / "dropped").mkdir()
    images[0].save_as(tmp_path / "dropped" / "us.dcm", enforce_file_format=True)
    uid = str(images[0].SeriesInstanceUID)
    before = site.node.config.read_text()
    with (
        Orthanc(tmp_path / "pacs") as pacs,
        Parrot(site.node.dicom_port, timeout_s=300) as parrot,
    ):  # open all the while
        assert parrot.associate(called=site.node.aet, sop_class=images[0].SOPClassUID)[0] == ASSOCIATE_AC
        assert parrot.store(images[0].SOPInstanceUID, encoded(images[0]), images[0].SOPClassUID) == 0x0000
        tested, added, tried, activated = site.browse(
            ("goto", f"{site.url}/peers/edit"),
            ("fill", "[name=name]", "results"), ("fill", "[name=ae_title]", pacs.aet),
            ("fill", "[name=host]", "127.0.0.1"), ("fill", "[name=port]", str(pacs.dicom_port)),
            ("click", "button[value=test]"), ("read",),
            ("click", "button[value=save]"), ("read",),
            ("goto", f"{site.url}/routes/edit"),
            ("fill", "[name=name]", "breast"), ("select", "[name=pipeline]", "breast-us"),
            ("check", "[name=send_to][value=results]"),
            ("fill", '[name="condition.keyword"]', "Modality"), ("fill", '[name="condition.value"]', "US"),
            ("upload", "[name=file]", str(tmp_path / "dropped" / "us.dcm")),
            ("click", "button[value=try]"), ("read",),
            ("click", "button[value=save]"), ("read",),
        )  # fmt: skip
        assert "results: nothing is bad" in tested["text"]
        assert "results" in added["text"]
        assert re.search(r"runs\s+breast\s+additionally", tried["text"]), tried["text"]
        assert "Modality is US" in activated["text"]
        assert parrot.store("2.25.77", encoded(images[1]), images[1].SOPClassUID) == 0x0000, "it has gone on"
        parrot.release()
    series = wait_for(lambda: site.series(uid), 60, "the series to close")
    assert series["instances"] == 2
    assert [job["route"] for job in series["jobs"]][:1] == ["breast"]
    text = site.node.config.read_text()
    assert text.startswith(before.rstrip()), "every line and comment that was there"
    assert '[[route]]\nname = "breast"' in text

    history, undone = site.browse(
        ("goto", f"{site.url}/settings"), ("read",), ("click", "section.job form button"), ("read",), width=390
    )
    assert "route 'breast' added" in history["text"]
    assert "by ana" in history["text"]
    assert "put back as before" in undone["text"]
    assert "breast" not in site.node.config.read_text()
    third = us_image()
    for number, element in enumerate(("SeriesInstanceUID", "SOPInstanceUID")):
        setattr(third, element, f"2.25.{100 + number}")
    third.file_meta.MediaStorageSOPInstanceUID = third.SOPInstanceUID
    third.save_as(tmp_path / "dropped" / "third.dcm", enforce_file_format=True)
    storescu(site.node, tmp_path / "dropped" / "third.dcm")
    series = wait_for(lambda: site.series("2.25.100"), 60, "the series to close")
    assert series["rules"] == []
    assert site.node.terminate() == 0


def test_the_pages_fit_a_telephone(site: Site) -> None:
    long = "n" * 60
    with site.node.config.open("a") as file:
        file.write(
            f'\n[[peer]]\nname = "{long}"\nfolder = "{"d" * 60}"\n[[route]]\nname = "{long}"\npipeline = "breast-us"\n'
            f'match = {{ Modality = "US", SeriesDescription = {{ regex = "{"x" * 120}" }} }}\nsend_to = ["{long}"]\n'
        )
    assert site.node.process is not None
    site.node.process.send_signal(signal.SIGHUP)
    wait_for(lambda: long in site.client.get("/routes", headers={"accept": "text/html"}).text, 60, "the new route")
    seen = site.browse(
        *(step for path in ("/peers", f"/peers/edit?name={long}", "/routes", f"/routes/edit?name={long}", "/settings")
          for step in (("goto", f"{site.url}{path}"), ("read",))),
        ("goto", f"{site.url}/routes/edit?name={long}"), ("click", "button[value=try]"), ("read",),
        width=390,
    )  # fmt: skip
    assert [(page["url"], page["wide"]) for page in seen if page["wide"]] == []


def test_an_edited_file_is_taken_up_by_the_command_and_a_wrong_one_is_not(site: Site) -> None:
    def reload() -> subprocess.CompletedProcess[str]:
        command = [*site.node.command[:-1], "reload", "--config", str(site.node.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)

    text = site.node.config.read_text()
    site.node.config.write_text(
        text.replace("# who sends", '[[peer]]\nname = "late"\nae_title = "LATE"\nmay_send = true')
    )
    done = reload()
    assert done.returncode == 0, done.stderr
    assert "the file is in force" in done.stdout
    assert "late" in site.client.get("/peers", headers={"accept": "text/html"}).text
    site.node.config.write_text(text.replace("quiet_s", "quite_s", 1))
    done = reload()
    assert done.returncode == 1
    assert "no setting 'quite_s' in [assemble]" in done.stderr
    assert site.node.process is not None
    site.node.process.send_signal(signal.SIGHUP)  # without the check before
    said = wait_for(lambda: site.client.get("/health").json()["reasons"], 60, "/health says what is wrong")
    assert "no setting 'quite_s'" in said[0]
    assert "late" in site.client.get("/peers", headers={"accept": "text/html"}).text
    assert site.node.terminate() == 0
    assert "nothing to tell" in reload().stderr or reload().returncode == 1
