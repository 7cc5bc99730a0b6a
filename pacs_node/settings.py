"""The settings of a running node: what of the file is in force, how it is changed, and how it was.

    checked -> everything new is made -> the former text is in the ledger -> the file is written -> taken up

What fails before the last step changes nothing; the last one cannot fail. Associations and jobs go on meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from config import Config, Known, Receive, check
from pacs_node import settings_file
from pacs_node.errors import LedgerUnavailable, NodeError, SettingsChanged, SettingsRefused, Told
from pacs_node.ledger import Ledger
from pacs_node.records import SettingsVersion, moment
from pacs_node.route import identifying

log = structlog.get_logger()

# tables of a settings file that a running node takes up; the others it reads at its start
AT_ONCE = ("assemble", "priors", "retention", "peers", "routes", "notices")
# and of other tables these settings; where several processes receive, their port stays
KEYS_AT_ONCE: dict[str, tuple[str, ...]] = {
    "receive": tuple(key for key in Receive.model_fields if key != "processes"),
    "tls": ("own_certificate", "own_key", "trusted"),
    "node": ("dicom_host", "dicom_port"),
}

# of these what several machines share, as the file names them: who is told is asked of the one that receives
TABLES = ("assemble", "priors", "retention", "peer", "route")
RECEIVES = "settings of the machine that receives"  # the mark that says whose file others follow

FOUND = "found in the file"
WAITS = ", but for what the next start of the node takes up: "
ASKED_WITHIN = timedelta(seconds=60)  # of a signal: who has sent it
TAKEN_UP_S = 60.0  # that a node gets to take up new settings: a series that is being judged is waited for


def in_force(running: Config, asked: Config) -> tuple[Config, tuple[str, ...]]:
    """The settings that a running node has from now on, and which of the asked ones wait for its next start.

    Raises SettingsRefused for peers that would be called, or taken, without the certificates that they are for.
    """
    before = {peer.name: peer for peer in running.peers}
    new_tls = [peer.name for peer in asked.peers if peer.tls and before.get(peer.name) != peer]
    if new_tls and _ports(asked) != _ports(running):
        raise SettingsRefused(
            f"[tls] and the peers that use it ({', '.join(new_tls)}) are taken up together, at the next start: restart "
            "the node"
        )
    waiting = []
    taken = {name: getattr(asked, name) for name in AT_ONCE} | _keys_taken(running, asked)
    for name in Config.model_fields:
        new, old = getattr(asked, name), taken.get(name, getattr(running, name))
        if new == old:
            continue
        waiting += [f"{key} in [{name}]" for key in type(new).model_fields if getattr(new, key) != getattr(old, key)]
    return running.model_copy(update=taken), tuple(waiting)


def _keys_taken(running: Config, asked: Config) -> dict[str, Any]:
    """Tables of KEYS_AT_ONCE, as they are in force from now on."""
    stays = set() if _may_move(running, asked) else {"node"}
    if running.tls.dicom_tls_port and not (asked.tls.own_certificate and asked.tls.trusted):
        stays.add("tls")  # whoever calls at the port with TLS is shown a certificate until it is closed
    return {
        name: getattr(running, name).model_copy(update={key: getattr(getattr(asked, name), key) for key in keys})
        for name, keys in KEYS_AT_ONCE.items()
        if name not in stays
    }


def _may_move(running: Config, asked: Config) -> bool:
    """Whether another port can be listened at before the former one is closed. The one with TLS stays where it is."""
    old, new = running.node, asked.node
    alone = running.receive.processes == 1 and not running.tls.only_tls
    return (
        alone
        and old.dicom_port != new.dicom_port
        and (old.dicom_host == new.dicom_host or not running.tls.dicom_tls_port)
    )


def _ports(config: Config) -> tuple[int, bool]:
    """With TLS, and whether it is the only one: of a peer that is to call there."""
    return config.tls.dicom_tls_port, config.tls.only_tls


def _as_before(former: str, now: str) -> str:
    """A text of the history with the secrets that the file has now, which the history has not. Raises
    SettingsRefused."""
    _, found = settings_file.kept(now)
    return settings_file.filled(former, found)


def _followed(own: str, theirs: str, file: str) -> str:
    """Our text with TABLES of another machine's in the history, which has no secrets: those of the same entries in the
    file of ours stand in it, or the environment has them. Raises SettingsRefused."""
    _, found = settings_file.kept(file)
    return settings_file.filled(settings_file.following(own, theirs, TABLES), found)


def place_of(path: Path) -> str:
    """Whose file it is: several machines may keep their history in one database."""
    return f"{socket.gethostname()}:{path.resolve()}"


class LiveSettings:
    """The settings file of a running node.

    ready: makes everything that new settings need, and gives what takes them up. Raises NodeError; what it gives does
    not. audit: told who changed what.
    """

    def __init__(
        self,
        path: Path,
        running: Config,
        ledger: Ledger,
        known: Known,
        ready: Callable[[Config], Callable[[], None]],
        now: Callable[[], datetime],
        audit: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self.path, self.running, self.ledger, self.known = path, running, ledger, known
        self.ready, self.now, self.audit = ready, now, audit
        self.place = place_of(path)
        self.waiting: tuple[str, ...] = ()  # for the next start
        self.since_last_start: list[str] = []  # what was changed while no node looked
        self.problem: str | None = None  # why what the file says is not in force
        self.said: str | None = None  # the file as it was taken up last
        self.followed: SettingsVersion | None = None  # of the machine that receives, whose tables count here
        self.not_followed: str | None = None  # why its newest version is not in force here
        self._one_at_a_time = threading.Lock()
        self._heeded: datetime | None = None  # when who had it reloaded last asked

    def started(self, *, receives: bool = False) -> None:
        """The node has started with the file as it is. receives: others follow it. Raises LedgerUnavailable."""
        if receives:
            self.ledger.mark(RECEIVES, self.now(), self.place)
        try:
            text = settings_file.read(self.path)
            latest = next(iter(self.versions(1)), None)
            self.since_last_start = [] if latest is None else self._changes(latest.text, settings_file.kept(text)[0])
            self._note(text, "", "the node started")
            self.said = text
        except SettingsRefused as error:  # it was there a moment ago
            self.problem = str(error)

    # ---- changes

    def text(self) -> str:
        """Raises SettingsRefused."""
        return settings_file.read(self.path)

    def checked(self, text: str) -> Config:
        """Raises SettingsRefused in the words of `pacs-node check`."""
        config, problems = check(self.path, self.known, text)
        errors = [str(problem) for problem in problems if problem.severity == "error"]
        if errors or config is None:
            raise SettingsRefused("\n".join(errors))
        return config

    def warnings(self) -> list[str]:
        """What `check` says of the file as it is, and does not refuse."""
        _, problems = check(self.path, self.known)
        return [str(problem) for problem in problems if problem.severity == "warning"]

    def allowed(self, former: str, text: str) -> Config:
        """As `checked`; and it says nothing that who may use the pages may not say."""
        asked = self.checked(text)
        self._must_run_no_other_code(former, asked)
        settings_file.must_bring_no_secret_elsewhere(former, text)
        return asked

    def change(self, make: Callable[[str], str], looked_at: str, who: str, what: str, *, back: bool = False) -> None:
        """Change the file and take it up. Raises SettingsRefused, and SettingsChanged when it is not as `looked_at` (a
        digest) says any more; LedgerUnavailable. Then nothing has changed.

        back: to what it was. Else no route may name other code to run, and no peer another file or folder: who may edit
        the file decides that, not who may use the pages.
        """
        with self._one_at_a_time:
            former = self.text()
            if settings_file.digest(former) != looked_at:
                raise SettingsChanged(self._meanwhile(former))
            text = make(former)
            if text == former:
                raise SettingsRefused("nothing is different")
            asked = self.checked(text) if back else self.allowed(former, text)
            config, waiting = in_force(self.running, asked)
            take_up = self._ready(config)
            self._note(former, "", FOUND)
            noted = self._note(text, who, what)
            try:
                settings_file.write(self.path, text)
            except SettingsRefused:
                if noted is not None:
                    self.ledger.forget_settings(noted)
                raise
            self._take_up(take_up, config, waiting, who, what, former, text)
            self.said, self.problem = text, None

    def reload(self, who: str = "") -> bool:
        """Take up the file as somebody has edited it. False: nothing in it has changed. Raises SettingsRefused: the
        former settings stay in force, and `problem` says so until the file is right."""
        with self._one_at_a_time:
            try:
                text = self.text()
                config, waiting = in_force(self.running, self.checked(self._as_followed(text)))
                self._must_be_whole(config)
                take_up = self._ready(config)
            except SettingsRefused as error:
                self.problem = f"the settings file is not in force as it is: {error}"
                log.error("settings refused", error=str(error))
                raise
            noted, what = None, "the file was edited" + (f"{WAITS}{', '.join(waiting)}" if waiting else "")
            try:
                noted = self._note(text, who, what)
            except LedgerUnavailable as error:  # what is in force matters more than its history
                log.warning("settings not noted", error=str(error))
            same = noted is None and config == self.running and waiting == self.waiting
            said = "nothing changed" if same else what
            self._take_up(take_up, config, waiting, who, said, text if self.said is None else self.said, text)
            self.said, self.problem = text, None
            return not same

    def who_asks(self) -> str:
        """Whoever has just told this node to reload by `pacs-node reload`; "" of a signal that comes otherwise. Once:
        the next signal is another one."""
        asked = self.ledger.marks().get(_asks(self.place))
        if asked is None or asked["at"] == self._heeded or datetime.now(UTC) - asked["at"] > ASKED_WITHIN:
            return ""
        self._heeded = asked["at"]
        return str(asked["text"])

    def follow(self) -> str | None:
        """Take up what the machine that receives has in force, of the tables that are taken up at once; all else is
        this machine's own. None, or why that is not in force here. Raises LedgerUnavailable."""
        mark = self.ledger.marks().get(RECEIVES)
        latest = next(iter(self.ledger.settings_versions(mark["text"], 1)), None) if mark else None
        if latest is None:
            return "no machine that receives has said its settings yet"
        with self._one_at_a_time:
            if self.followed is not None and self.followed.digest == latest.digest:
                return None
            try:
                file = self.text()
                own = file if self.said is None else self.said  # an edit counts once it is taken up
                former, text = self._as_followed(own), _followed(own, latest.text, file)
                asked = self.checked(text)
                config, _ = in_force(self.running, asked)
                take_up = self._ready(config)
            except SettingsRefused as error:
                why = f"the settings of the machine that receives are not in force here: {error}"
                if why != self.not_followed:
                    log.error("settings not followed", error=str(error))
                self.not_followed = why
                return why
            self.followed, self.not_followed = latest, None
            what = f"as on the machine that receives: {latest.what}"
            self._take_up(take_up, config, self.waiting, latest.who, what, former, text)
            return None

    def _as_followed(self, text: str) -> str:
        return _followed(text, self.followed.text, text) if self.followed is not None else text

    def undo(self, number: int, looked_at: str, who: str) -> None:
        """Make the file what it was before the version of this number. Raises as `change` does."""
        versions = self.versions()
        before = next((each for each in versions if each.id < number), None)
        if before is None or number not in {each.id for each in versions}:
            raise SettingsRefused("what the settings were before is not known any more")
        what = f"put back as before {moment(next(each.at for each in versions if each.id == number), 'seconds')}"
        self.change(lambda now: _as_before(before.text, now), looked_at, who, what, back=True)

    def versions(self, limit: int = 100) -> list[SettingsVersion]:
        """The newest first."""
        return self.ledger.settings_versions(self.place, limit)

    def _must_be_whole(self, config: Config) -> None:
        """Raises SettingsRefused: a file that was cut off, or is written again just now, is valid, too."""
        for what, before, after in (
            ("[[peer]]", self.running.peers, config.peers),
            ("[[route]]", self.running.routes, config.routes),
        ):
            if before and not after:
                raise SettingsRefused(
                    f"{self.path.name} has no {what} any more: is it whole? If that is meant, restart the node"
                )

    def _must_run_no_other_code(self, former: str, asked: Config) -> None:
        """Raises SettingsRefused."""
        known = [(each.get("pipeline"), each.get("options", {})) for each in settings_file.entries(former, "route")]
        for route in asked.routes:
            model = self.known.options.get(route.pipeline)
            if getattr(model, "runs_code", False) and (route.pipeline, route.options) not in known:
                raise SettingsRefused(
                    f"route '{route.name}': which code {route.pipeline} runs is said in the settings file alone: write "
                    "its options there, then `pacs-node reload`"
                )

    def _ready(self, config: Config) -> Callable[[], None]:
        try:
            return self.ready(config)
        except NodeError as error:
            raise SettingsRefused(str(error)) from error
        except Exception as error:  # a destination or a card that nobody foresaw: the former settings stay
            told = Told.of(error)
            log.error("settings cannot be taken up", error=told.words, trace=told.trace)
            raise SettingsRefused(f"{self.path.name}: cannot be taken up: {told.words}") from error

    def _take_up(
        self,
        take_up: Callable[[], None],
        config: Config,
        waiting: tuple[str, ...],
        who: str,
        what: str,
        former: str,
        text: str,
    ) -> None:
        take_up()
        self.running, self.waiting = config, waiting
        log.info("settings in force", what=what, next_start=list(waiting))
        changes = self._changes(former, text)
        self.audit("configuration-changed", {"user": who, "what": self.path.name, "words": what, "changes": changes})

    def _changes(self, former: str, text: str) -> list[str]:
        """Before and after, without what would tell who a patient is."""
        return settings_file.changes(former, text, identifying)

    def _note(self, text: str, who: str, what: str) -> int | None:
        """The number of the new version; None: it is the latest already."""
        latest = next(iter(self.versions(1)), None)
        digest = settings_file.digest(text)
        if latest is not None and latest.digest == digest:
            return None
        kept, _ = settings_file.kept(text)
        if latest is None:
            what, lines = "first seen", ""
        elif self.said is not None and settings_file.digest(self.said) == latest.digest:
            lines = settings_file.difference(self.said, text)
        else:
            lines = settings_file.difference(latest.text, kept)
        return self.ledger.keep_settings(SettingsVersion(0, self.place, self.now(), who, what, lines, digest, kept))

    def _meanwhile(self, text: str) -> str:
        """Who was quicker, as far as it is known."""
        latest = next(iter(self.versions(1)), None)
        if latest is None or latest.digest != settings_file.digest(text):
            return "the settings file was edited meanwhile: look at it as it is now, then change it again"
        by = f" by {latest.who}" if latest.who else ""
        return (
            f"the settings were changed meanwhile{by} ({latest.what}): look at them as they are now, then change again"
        )


def _asks(place: str) -> str:
    """Name of the mark that says who has had a node told to reload, and when."""
    return f"reload {settings_file.digest(place)[:32]}"


def told_to_reload(path: Path, data_dir: Path, ledger: Ledger, who: str, within_s: float = TAKEN_UP_S) -> str:
    """What came of telling the node on a data folder of this machine that its file has changed, in words; who: asks,
    for the audit trail. Raises SettingsRefused."""
    pids = sorted(set(running_on(data_dir)))
    if not pids:
        raise SettingsRefused(
            f"no node of this machine holds {data_dir}: there is nothing to tell (a worker of its own is told by "
            "`kill -HUP`, or by systemctl reload)"
        )
    digest, place = settings_file.digest(settings_file.read(path)), place_of(path)
    before = next(iter(ledger.settings_versions(place, 1)), None)
    ledger.mark(_asks(place), datetime.now(UTC), who)
    for pid in pids:
        os.kill(pid, signal.SIGHUP)
    told = f"process {' and '.join(map(str, pids))} was told"
    if before is not None and before.digest == digest:
        return f"{told}; the file is as it was when it was last taken up{_waits(before)}"
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        latest = next(iter(ledger.settings_versions(place, 1)), None)
        if latest is not None and latest.digest == digest:
            return f"{told}; the file is in force{_waits(latest)}"
        time.sleep(0.1)
    raise SettingsRefused(
        f"{told}, and has not taken the file up within {within_s:g} s; its log and /health say why, unless it was "
        "started with another file"
    )


def _waits(version: SettingsVersion) -> str:
    _, waits, what = version.what.partition(WAITS)
    return f"{waits}{what}"


def running_on(data_dir: Path) -> Iterator[int]:
    """Processes of this machine that hold the locks of a data folder."""
    for name in ("spool.lock", "worker.lock"):
        try:
            with (data_dir / name).open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pid = int(file.read().strip() or 0)
                    if _is_a_node(pid):
                        yield pid
        except (OSError, ValueError):
            continue


def _is_a_node(pid: int) -> bool:
    """The lock may be of another machine, whose number means another process here."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"pacs-node" in command or b"pacs_node" in command
