"""docs/proxy.md before a started node: nginx and Apache as it has them; ports and paths are this machine's."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority, Identity
from tests.harness import ROOT, NodeProcess, free_port, need, wait_for

NAME, PASSWORD = "ai-node.hospital.example", "a long enough secret"
MODULES = Path("/usr/lib/apache2/modules")
NGINX = """
daemon off; worker_processes 1; error_log stderr; pid {folder}/pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxied;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {block}
}}
"""
APACHE = """
{modules}
ServerRoot {folder}
ServerName {name}
PidFile {folder}/pid
ErrorLog /dev/stderr
Listen 127.0.0.1:{port}
User #65534
Group #65534
{block}
"""


def block(language: str) -> str:
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / "proxy.md").read_text(), re.M | re.S)
    return str(text)


def only(text: str, theirs: str, ours: str) -> str:
    assert text.count(theirs) > 0, theirs
    return text.replace(theirs, ours)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    said = tomllib.loads(block("toml"))
    assert said["node"].pop("web_host") == "127.0.0.1"
    assert said["node"].pop("web_port") == 8080
    assert said == {"node": {"web_names": [NAME]}, "web": {"behind_proxy": True}}
    node = NodeProcess(tmp_path_factory.mktemp("node"), f'web_names = ["{NAME}"]\n[web]\nbehind_proxy = true\n')
    (node.folder / "password").write_text(PASSWORD)
    command = [*node.command[:-1], "user", "add", "ana", "--role", "admin", "--config", str(node.config)]
    subprocess.run([*command, "--password-file", str(node.folder / "password")], cwd=ROOT, check=True, timeout=120)
    with node.start():
        yield node


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    folder = tmp_path_factory.mktemp("certificate")
    return Authority(folder).issue("proxy", names=[NAME])


def nginx(folder: Path, node: NodeProcess, identity: Identity, port: int) -> list[str]:
    text = only(block("nginx"), "listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = only(text, "/etc/nginx/ai-node.crt", str(identity.certificate))
    text = only(text, "/etc/nginx/ai-node.key", str(identity.key))
    text = only(text, "127.0.0.1:8080", f"127.0.0.1:{node.web_port}")
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, block=text))
    return [need("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]


def apache(folder: Path, node: NodeProcess, identity: Identity, port: int) -> list[str]:
    text = only(block("apache"), "*:443", f"127.0.0.1:{port}")
    text = only(text, "/etc/apache2/ai-node.crt", str(identity.certificate))
    text = only(text, "/etc/apache2/ai-node.key", str(identity.key))
    text = only(text, "127.0.0.1:8080", f"127.0.0.1:{node.web_port}")
    named = re.search(r"With the modules (.+):", (ROOT / "docs" / "proxy.md").read_text())
    assert named is not None
    modules = ["mpm_event", "authz_core", *re.findall(r"`(\w+)`", named[1])]
    loaded = "\n".join(f"LoadModule {each}_module {MODULES}/mod_{each}.so" for each in modules)
    settings = APACHE.format(folder=folder, name=NAME, port=port, block=text, modules=loaded)
    (folder / "apache.conf").write_text(settings)
    return [need("apache2"), "-X", "-f", str(folder / "apache.conf")]


class Browser(httpx.Client):
    """As a browser asks for the name of the proxy, which no DNS here knows."""

    def __init__(self, port: int, identity: Identity) -> None:
        context = identity.caller(identity.certificate.parent / "hospital-ca.pem")
        super().__init__(base_url=f"https://127.0.0.1:{port}", headers={"host": NAME}, verify=context, timeout=30)

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.get("/", headers={"accept": "text/html"}).text)
        assert found is not None
        return found[1]


@pytest.fixture(scope="module", params=[nginx, apache], ids=["nginx", "Apache"])
def port(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, node: NodeProcess, identity: Identity
) -> Iterator[int]:
    port, folder = free_port(), tmp_path_factory.mktemp("proxy")
    command = request.param(folder, node, identity, port)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def up() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with Browser(port, identity) as browser:
                return browser.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(up, 60, "the proxy")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def test_a_person_works_through_the_proxy(port: int, identity: Identity) -> None:
    with Browser(port, identity) as browser:
        page = {"accept": "text/html", "origin": f"https://{NAME}"}
        assert browser.get("/", headers=page).headers["location"].startswith("/login")
        said = browser.post("/login", data={"name": "ana", "password": PASSWORD, "next": "/queue"}, headers=page)
        assert (said.status_code, said.headers["location"]) == (303, "/queue")
        cookie = said.headers["set-cookie"]
        assert "Secure" in cookie
        browser.cookies.set("pacs-node", re.findall(r"pacs-node=([^;]+)", cookie)[0])
        csrf = browser.csrf()
        with browser.stream("GET", "/api/changes") as events:
            assert "event: same" in next(events.iter_text()), "what changes comes at once"
        elsewhere = {"accept": "text/html", "origin": "https://elsewhere.example"}
        pause = {"what": "pipeline lung-nodule", "reason": "x", "csrf": csrf}
        assert browser.post("/api/pause", data=pause, headers=elsewhere).status_code == 403
        upload = {"csrf": csrf, "do": "try", "source": "toml", "toml": "", "looked_at": "", "name_before": ""}
        large = {"file": ("image.dcm", bytes(2_000_000))}  # more than nginx takes by itself
        assert browser.post("/routes/edit", data=upload, files=large, headers=page).status_code not in (413, 403, 502)
        assert browser.post("/logout", data={"csrf": csrf}, headers=page).status_code == 303
        assert browser.get("/", headers=page).headers["location"].startswith("/login")


def test_who_calls_is_the_browser_and_not_who_it_says_it_is(port: int, node: NodeProcess, identity: Identity) -> None:
    """Wrong passwords count for an address: nobody picks his own."""
    with Browser(port, identity) as browser:
        lie = {"x-forwarded-for": "203.0.113.7"}
        form = {"name": f"nobody-{port}", "password": "wrong"}
        assert browser.post("/login", data=form, headers=lie | {"origin": f"https://{NAME}"}).status_code == 401

    def trail() -> str:
        return "".join(path.read_text() for path in (node.folder / "data" / "audit").rglob("*") if path.is_file())

    wait_for(lambda: f"nobody-{port}" in trail(), 60, "the event, which nobody waits for")
    assert "203.0.113.7" not in trail()
    assert httpx.get(f"http://127.0.0.1:{node.web_port}/health", headers={"host": "evil.example"}).status_code == 421
