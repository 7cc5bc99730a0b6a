"""The command line: serve | worker | run | rerun | check | tune | send | new-pipeline | demo. For research use only."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from models import catalogue
from pacs_node import __version__

if TYPE_CHECKING:
    from config import Config
    from pacs_node.accounts import Accounts
    from pacs_node.facts import NodeFacts

app = typer.Typer(
    help="A PACS-integrated AI node. Research use only, not for diagnostic use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()
complaints = Console(stderr=True)

ConfigFile = Annotated[Path, typer.Option("--config", help="The settings file, see `pacs-node check`.")]


@app.command()
def serve(
    config: ConfigFile, work: Annotated[bool, typer.Option(help="Also run jobs in this process.")] = True
) -> None:
    """Run listener, worker and web pages until SIGTERM, which drains and exits 0."""
    _run(config, listen=True, work=work, web=True)


@app.command()
def worker(config: ConfigFile) -> None:
    """Run a worker alone: jobs only, no listener and no web pages."""
    _run(config, listen=False, work=True, web=False)


@app.command()
def run(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of them: one or more series.")],
    pipeline: Annotated[str, typer.Option(help="What to run, see `pacs-node pipelines`.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; nothing in it is overwritten.")],
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Tell the pipeline something; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object per series, a line each.")] = False,
) -> None:
    """Analyse DICOM files without a network and settings: writes SEG, SR, key images and pictures.

    Exit code 0 when a result was written (nothing found included), 3 when every series was refused, 1 on an error.
    """
    import logging

    import structlog

    from config.options import options_given
    from pacs_node import observe
    from pacs_node.infer import Inference
    from pacs_node.run import Outcome, exit_code, find_series
    from pacs_node.run import run as analyse

    observe.start_logging(plain=sys.stderr.isatty())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with _in_words():
        options = options_given(pipeline, option or [], catalogue().options)
        for path in paths:
            if not path.exists():
                _fail(f"{path} does not exist")
        found = find_series(paths, out)
        told = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else console
        if found.passed_over or found.again:
            told.print(
                f"{found.passed_over} files passed over (no DICOM image), {found.again} further copies", markup=False
            )
        device, timeout_s = _defaults()
        inference = Inference(device, timeout_s)
        outcomes: list[Outcome] = []
        try:
            with Progress(console=complaints, transient=True) as bar:
                task = bar.add_task("", total=1.0)
                reported = analyse(
                    found,
                    pipeline,
                    options,
                    out,
                    inference,
                    progress=lambda _, fraction, text: bar.update(task, completed=fraction, description=text),
                )
                for outcome in reported:
                    outcomes.append(outcome)
                    _tell(told, outcome)
        finally:
            inference.stop()
    if as_json:
        sys.stdout.write("".join(f"{outcome.to_json()}\n" for outcome in outcomes))
        sys.stdout.flush()
    raise typer.Exit(exit_code(outcomes))


def _defaults() -> tuple[str, float]:
    """Device and time limit of an inference, as they are without a settings file."""
    from config import Infer, Jobs

    return Infer().device, Jobs().infer_timeout_s


def _tell(told: Console, outcome: Any) -> None:
    def line(text: str) -> None:
        told.print(text, markup=False, highlight=False, soft_wrap=True)

    verdict = f" ({outcome.verdict.reason})" if outcome.verdict is not None and outcome.verdict.fit else ""
    line(f"series {outcome.series_uid}{verdict}: {outcome.state}, {outcome.reason}")
    for finding in outcome.findings:
        sizes = [finding[key] for key in ("long_axis_mm", "short_axis_mm")]
        size = " x ".join("?" if each is None else f"{each:g}" for each in sizes)
        place = ", ".join(f"{key} {finding[key]}" for key in ("centre_lps_mm", "frame", "pixel") if key in finding)
        sure = "" if finding["certainty"] is None else f"certainty {finding['certainty']:.0%}, "
        line(f"  {finding['label']}: {size} mm, {sure}{place}")
    for warning in outcome.warnings:
        line(f"  warning: {warning}")
    for file in outcome.files:
        line(f"  {file}")
    if outcome.files:
        line("  Research use only, not for diagnostic use.")


@app.command()
def rerun(
    config: ConfigFile,
    series: Annotated[list[str] | None, typer.Argument(help="Series Instance UIDs.")] = None,
    route: Annotated[str | None, typer.Option(help="Every series this route has taken; only for this route.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Every series whose last image came since, such as 2026-03-01 or 2026-03-01T12:00."),
    ] = None,
) -> None:
    """Run series again with today's models, rules and settings; a running node or worker takes the jobs up."""
    from config import load
    from pacs_node.start_up import keep_private

    keep_private()
    if not (series or route or since) or (series and since):
        _fail("name series, or ask for many by --route, --since or both")
    failed = 0
    asked = f"route '{route}'" if since is None else f"since {since}" + (f", route '{route}'" if route else "")
    with _in_words():
        settings = load(config, catalogue())
        routes = [each.name for each in settings.routes]
        if route is not None and route not in routes:
            _fail(f"the settings have no route '{route}'; there are {', '.join(routes) or 'none'}")
        from pacs_node.node import Node

        node = Node(settings)
        node.ledger.migrate()
        wanted = list(series or ())
        if since is not None:
            wanted = node.ledger.series_since(_time(since))
        if route is not None and not series:
            of_route = node.ledger.series_of_route(route)
            wanted = of_route if since is None else [uid for uid in wanted if uid in set(of_route)]
        node.audit.log = _silent
        node.audit("asked", {"user": _me(), "what": "pacs-node rerun", "words": asked if not series else "by its UID"})
        node.audit.stop()
        for uid in wanted:
            why_not = node.flow.rerun(uid, route)
            failed += why_not is not None
            console.print(f"{uid}: {why_not or 'will run again'}", markup=False, highlight=False, soft_wrap=True)
    if not wanted:
        _fail(f"there is no series to run again ({asked})")
    console.print(f"{len(wanted) - failed} of {len(wanted)} series will run again")
    if failed:
        raise typer.Exit(1)


PausedKind = Annotated[str, typer.Argument(metavar="KIND", help="destination, pipeline or device.")]
PausedName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Of a peer, of a pipeline, or of a device: cuda:0, on one machine cuda:0@HOST."
    ),
]


@app.command()
def pause(
    kind: PausedKind,
    name: PausedName,
    config: ConfigFile,
    reason: Annotated[str, typer.Option(help="Why; the pages say it.")] = "",
    hours: Annotated[float | None, typer.Option(help="For so long; default: until it is resumed.")] = None,
) -> None:
    """Let no job of a destination, pipeline or device begin. What runs ends; what waits stays where it is."""
    with _in_words(), _facts(config) as facts:
        why_not = facts.pause(kind, name, _me(), reason, hours)
        if why_not is not None:
            _fail(why_not)
        for each in facts.pauses():
            console.print(each["words"], markup=False, highlight=False, soft_wrap=True)


@app.command()
def resume(kind: PausedKind, name: PausedName, config: ConfigFile) -> None:
    """End a pause: what has waited begins, in its order."""
    with _in_words(), _facts(config) as facts:
        if not facts.resume(kind, name, _me()):
            paused = ", ".join(f"{each['kind']} {each['name']}" for each in facts.pauses())
            _fail(f"{kind} '{name}' is not paused; paused are: {paused or 'none'}")
    console.print(f"{kind} {name}: resumed", markup=False, highlight=False)


@contextmanager
def _facts(config: Path) -> Iterator[NodeFacts]:
    """Of a node that is not started: what it does is in the database, where one that runs sees it."""
    from config import load
    from pacs_node.start_up import keep_private

    keep_private()
    settings = load(config, catalogue())
    from pacs_node.facts import NodeFacts
    from pacs_node.node import Node

    node = Node(settings)
    node.audit.log = _silent
    try:
        node.ledger.migrate()
        yield NodeFacts(node)
    finally:
        node.audit.stop()
        node.ledger.close()


def _time(text: str) -> datetime:
    """A day or a time as people write it; this machine's time zone where none is named."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        _fail(f"--since is a day or a time such as 2026-03-01 or 2026-03-01T12:00, not '{text}'")


@app.command()
def check(config: ConfigFile) -> None:
    """Say what is wrong with a settings file: file, line, key and the nearest valid key."""
    from config import load, problems
    from pacs_node import confine
    from pacs_node.notify import unknown_addresses
    from pacs_node.stages import store_of
    from pacs_node.traces import must_be_installed

    with _in_words():
        found = problems(config, catalogue())
    for problem in found:
        console.print(str(problem), markup=False, highlight=False, soft_wrap=True)
    if any(problem.severity == "error" for problem in found):
        raise typer.Exit(1)
    with _in_words():
        settings = load(config, catalogue())
    for lacking in confine.tried() if settings.infer.confine else ():
        text = f"warning: the inference process is not confined as it should be: {lacking}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    with _in_words():
        store_of(settings).tried()
        if settings.traces.endpoint:
            must_be_installed()
        _must_have_users(settings)
        unknown = [words for about in settings.notices for words in unknown_addresses(about)]
    for words in unknown:
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    if unknown:
        raise typer.Exit(1)
    console.print(f"{config}: good", markup=False, highlight=False)


def _must_have_users(settings: Config) -> None:
    """As far as it can be known before the node starts. Raises CannotStart."""
    from pacs_node.errors import LedgerUnavailable
    from pacs_node.ledger import Ledger
    from pacs_node.ledger.copies import revision_of
    from pacs_node.ledger.engine import revisions
    from pacs_node.start_up import NO_USERS, must_not_be_open, needs_users

    if settings.oidc.issuer or not needs_users(settings):
        return
    said, url = f"warning: {NO_USERS}", settings.database.url
    try:
        there = revision_of(url)
        if there is not None and there != max(revisions()):
            return  # of another version: a start says it
        if there is not None:
            ledger = Ledger(url, settings.node.data_dir)
            try:
                must_not_be_open(settings, has_users=bool(ledger.users()))
            finally:
                ledger.close()
            return
    except LedgerUnavailable as error:
        said = f"warning: whether there are users cannot be known now: {error}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(
    config: ConfigFile,
    peer: Annotated[str | None, typer.Argument(help="The name of a peer; without, all of them.")] = None,
) -> None:
    """Ask each peer, step by step, for all that this node needs of it; say what to change on either side.

    Nothing is stored by it. Exit code 1 if something is bad.
    """
    from config import load
    from pacs_node.doctor import conclusion, examine, for_the_other_side

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    found = []
    with _in_words():
        settings = load(config, catalogue())
        names = [each.name for each in settings.peers]
        if peer is not None and peer not in names:
            _fail(f"the settings have no peer '{peer}'; there are {', '.join(names) or 'none'}")
        for step in examine(settings, _now, peer):
            found.append(step)
            mark = "BAD" if step.state == "bad" else step.state
            line(f"{mark:9}  {step.peer}: {step.step}: {step.text}")
            if step.advice:
                line(f"{'':9}  -> {step.advice}")
        bad = any(step.state == "bad" for step in found)
        for each in settings.peers:
            if each.name == peer or (peer is None and bad):
                for whom, text in for_the_other_side(settings, each).items():
                    line(f"\nwhat {each.name} must know of this node, if it is {whom}:\n{text}")
    line(f"\n{conclusion(found)}")
    if bad:
        raise typer.Exit(1)


@app.command()
def reload(config: ConfigFile) -> None:
    """Have the node that runs here take up its settings file as it is now, without a restart.

    Exit code 1 if the file is wrong, no node runs, or it does not take the file up; then the former settings stay.
    """
    from config import load, problems
    from pacs_node.errors import SettingsRefused
    from pacs_node.ledger import Ledger
    from pacs_node.settings import told_to_reload
    from pacs_node.start_up import keep_private

    keep_private()
    with _in_words():
        wrong = [str(problem) for problem in problems(config, catalogue()) if problem.severity == "error"]
        if wrong:
            _fail("\n".join(wrong))
        settings = load(config, catalogue())
        ledger = Ledger(settings.database.url, settings.node.data_dir)
        try:
            said = told_to_reload(config, settings.node.data_dir, ledger, _me())
        except SettingsRefused as error:
            _fail(str(error))
        finally:
            ledger.close()
    console.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command()
def tune(
    config: ConfigFile, again: Annotated[bool, typer.Option(help="Measure also what was measured before.")] = False
) -> None:
    """Measure in which form each network of the routes is fastest here; a node that starts later serves it so.

    A node does this by itself at its first start. Nothing else should work on the machine meanwhile.
    """
    from config import load
    from pacs_node.errors import JobError
    from pacs_node.stages import devices_of
    from pacs_node.start_up import keep_private

    keep_private()
    failed = 0
    with _in_words():
        settings = load(config, catalogue())
        devices = devices_of(settings, known_forms=not again)
        named = {each.name: each for each in devices.all}  # one of those that share a device
        wanted = {f"{r.pipeline} {sorted(r.options.items())}": (r.pipeline, r.options) for r in settings.routes}
        try:
            for device, (pipeline, options) in ((d, w) for d in named.values() for w in wanted.values()):
                try:
                    chosen = devices.tune(device, pipeline, options, anew=again)
                except JobError as error:
                    failed += 1
                    complaints.print(f"{pipeline} on {device.name}: {error}", markup=False, soft_wrap=True)
                    continue
                for choice in chosen:
                    times = ", ".join(f"{name} {least:.3g} s" for name, least in choice.seconds.items())
                    text = f"{pipeline} on {device.name}: {choice.network} as {choice.form} ({times})"
                    console.print(text, markup=False, highlight=False, soft_wrap=True)
        finally:
            devices.stop()
    if failed:
        raise typer.Exit(1)


@app.command()
def send(
    files: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of them.", exists=True)],
    to: Annotated[str, typer.Option(help="TITLE@host:port of the receiver.")],
    aet: Annotated[str, typer.Option(help="Our own AE title.")] = "PACSNODE",
) -> None:
    """Send DICOM files by C-STORE, as they are."""
    from pacs_node.deliver.dimse import send as store

    title, host, port = _address(to)
    with _in_words(), Progress(console=complaints, transient=True) as bar:
        task = bar.add_task("sending", total=None)
        receipts = store(
            files,
            host,
            port,
            aet,
            title,
            _now,
            lambda _, done, total: bar.update(task, completed=done, total=total),
        )
    if not receipts:
        _fail(f"nothing sent: there is no DICOM file in {', '.join(map(str, files))}")
    refused = [receipt for receipt in receipts if not receipt.stored]
    console.print(f"{len(receipts) - len(refused)} of {len(receipts)} stored at {to}")
    for receipt in refused:
        complaints.print(f"{receipt.sop_instance_uid}: {receipt.text}", markup=False)
    if refused:
        raise typer.Exit(1)


@app.command()
def echo(
    to: Annotated[str, typer.Argument(help="TITLE@host:port")],
    aet: Annotated[str, typer.Option(help="Our own AE title.")] = "PACSNODE",
) -> None:
    """Verify a connection by C-ECHO."""
    from pacs_node.association import Peer
    from pacs_node.deliver.dimse import echo as verify

    title, host, port = _address(to)
    with _in_words():
        console.print(verify(Peer(title, title, host, port, aet)), markup=False)


@app.command()
def fsck(
    config: Annotated[Path, typer.Option(help="The settings file.")],
    mend: Annotated[
        bool, typer.Option(help="Index what has no row, clear away what was left; no node may run.")
    ] = False,
) -> None:
    """Hold received images, database and results against each other; every stored byte is read.

    Exit code 1 if something is lost or damaged.
    """
    from config import load
    from pacs_node import fsck as checks
    from pacs_node.ledger import Ledger
    from pacs_node.stages import store_of
    from pacs_node.start_up import hold, keep_private

    keep_private()
    with _in_words():
        settings = load(config, catalogue())
        data_dir = settings.node.data_dir
        ledger = Ledger(settings.database.url, data_dir)
        ledger.migrate()
        if mend:
            with (
                hold(data_dir / "worker.lock"),
                hold(data_dir / "spool.lock"),
                _audited(settings, "mended", "pacs-node fsck --mend") as said,
            ):
                for done in checks.mend(data_dir, ledger, store_of(settings)):
                    said.append(done)
                    console.print(done, markup=False, highlight=False, soft_wrap=True)
        found = list(checks.faults(data_dir, ledger, store_of(settings)))
        for fault in found:
            told = f"{fault.kind}: {fault.what}: {fault.words}"
            console.print(told, markup=False, highlight=False, soft_wrap=True)
        ledger.close()
    harm = sum(fault.kind in checks.HARM for fault in found)
    console.print(f"{harm} lost or damaged, {len(found) - harm} other remarks", highlight=False)
    if harm:
        raise typer.Exit(1)


@app.command()
def retention(
    config: ConfigFile,
    delete: Annotated[bool, typer.Option(help="Delete it now; no node may run on the data folder.")] = False,
) -> None:
    """What would be deleted by [retention] now, and why what stays stays; changes nothing without --delete.

    A running node deletes by itself what the settings say.
    """
    from config import load
    from pacs_node.retention import Aside, Decision, in_words
    from pacs_node.start_up import FILES_LOCK, exclusively, hold, keep_private

    def told(decision: Decision | Aside, done: str) -> None:
        text = f"{done if decision.goes else 'stays'}: {decision.what}, {in_words(decision.size)}: {decision.why}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    keep_private()
    with _in_words():
        settings = load(config, catalogue())
        from pacs_node.node import Node

        node = Node(settings)
        node.ledger.migrate()
        decisions: list[Decision | Aside] = []
        if delete:
            data_dir = settings.node.data_dir
            with hold(data_dir / "spool.lock"), exclusively(data_dir / FILES_LOCK, wait=True):
                node.retention.resume()
                node.intake.take_in_found(node.spool.scan(node.ledger.indexed_up_to()))  # what a killed node left
                for gone in node.retention.a_pass():
                    if gone is not None:
                        decisions.append(gone)
                        told(gone, "deleted")
            node.audit.stop()
            if node.retention.away is not None:
                console.print(f"{node.retention.away}; it goes in a later pass", markup=False, highlight=False)
        else:
            for decision in node.retention.plan():
                decisions.append(decision)
                told(decision, "goes")
        node.ledger.close()
    going = [decision for decision in decisions if decision.goes]
    size = in_words(sum(decision.size for decision in going))
    aside = sum(isinstance(each, Aside) for each in going)
    files = f" and {aside} files kept aside" if aside else ""
    summary = f"{len(going) - aside} series{files}, {size} {'deleted' if delete else 'would go'}"
    console.print(summary if delete else f"{summary}; {len(decisions) - len(going)} stay", highlight=False)


@app.command()
def backup(
    to: Annotated[Path, typer.Argument(help="A folder that is made, one for each backup.")],
    config: ConfigFile,
    images: Annotated[
        str, typer.Option(help="copy; link: hard links, on the disk of data_dir alone; none: without received images.")
    ] = "copy",
) -> None:
    """Copy all that the node needs into a folder, while it runs: database, images, results, settings, checksums."""
    from config import load
    from pacs_node.backup import Images, back_up
    from pacs_node.retention import in_words
    from pacs_node.start_up import keep_private

    keep_private()
    if images not in (known := [each.value for each in Images]):
        _fail(f"--images is one of {', '.join(known)}, not '{images}'")
    with _in_words():
        settings = load(config, catalogue())
        with _audited(settings, "backed-up", f"file://{to.resolve()}") as said:
            made = back_up(settings, config, to, Images(images), _now())
            said.append(f"{len(made.files)} files, images: {images}")
    size = in_words(sum(entry.size for entry in made.files))
    told = f"{to}: {len(made.files)} files, {size}; restore with: pacs-node restore {to} --config {config}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    if made.secrets:
        told = f"not in it: secrets of the settings, in whose place its node.toml has {', '.join(made.secrets)}"
        console.print(f"{told}: keep them elsewhere", markup=False, highlight=False, soft_wrap=True)
    if made.store:
        told = f"not in it: results, and what else lies in {made.store} alone; keep a copy, or versions, of that too"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


@app.command()
def restore(
    backup: Annotated[Path, typer.Argument(help="A folder that `pacs-node backup` has made.")],
    config: ConfigFile,
) -> None:
    """Make a node from a backup, where the settings say; data_dir and database must be empty. Then start it."""
    from config import load
    from pacs_node.backup import restore as from_backup
    from pacs_node.backup import store_of
    from pacs_node.retention import in_words
    from pacs_node.start_up import keep_private

    keep_private()
    with _in_words():
        settings = load(config, catalogue())
        with _audited(settings, "restored", f"file://{backup.resolve()}") as said:
            made = from_backup(settings, backup, _now())
            said.append(f"{len(made.files)} files, as they were on {made.made_at}")
    size = in_words(sum(entry.size for entry in made.files))
    told = f"{settings.node.data_dir}: {len(made.files)} files, {size}, as they were on {made.made_at}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    if made.secrets:
        told = f"not in it: secrets of the settings, in whose place its node.toml has {', '.join(made.secrets)}"
        console.print(f"{told}: give them again", markup=False, highlight=False, soft_wrap=True)
    if made.store:
        here = store_of(settings)
        where = "where the settings look for them" if here == made.store else f"and the settings name {here or 'none'}"
        told = f"not in it: results, which lay in {made.store}, {where}; `pacs-node fsck` says what is not there"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


@app.command()
def notify(
    config: ConfigFile,
    test: Annotated[bool, typer.Option(help="Send everybody a message now.")] = False,
) -> None:
    """What each [[notify]] has been told and lasts; with --test, whether a message reaches them.

    Exit code 1 if one of them could not be reached.
    """
    from config import load
    from pacs_node.ledger import Ledger
    from pacs_node.notify import NotTold, trial
    from pacs_node.start_up import keep_private, must_be_writable

    keep_private()
    unreached = 0
    with _in_words():
        settings = load(config, catalogue())
        if not settings.notices:
            _fail("there is no [[notify]] in the settings: nobody is told anything")
        must_be_writable(settings.node.data_dir)
        ledger = Ledger(settings.database.url, settings.node.data_dir)
        for about in settings.notices:
            said = f"told of {', '.join(about.about)}"
            if test:
                try:
                    trial(about, settings.node.ae_title)
                except NotTold as error:
                    unreached, said = unreached + 1, f"not reached: {error}"
            else:
                ledger.migrate()
                lasting = [notice.text for notice in ledger.notices(about.name).values()]
                said = "\n  ".join([said, *lasting])
            console.print(f"{about.name}: {said}", markup=False, highlight=False, soft_wrap=True)
        ledger.close()
    if unreached:
        raise typer.Exit(1)


user = typer.Typer(help="Who may use the web pages.", no_args_is_help=True)
token = typer.Typer(help="What programs show instead of a password.", no_args_is_help=True)
app.add_typer(user, name="user")
app.add_typer(token, name="token")
Role = Annotated[str, typer.Option(help="viewer, reader or admin.")]
PasswordFile = Annotated[
    Path | None, typer.Option(help="A file with the password; without, it is asked for.", exists=True, dir_okay=False)
]


@user.command("add")
def user_add(
    name: Annotated[str, typer.Argument(help="How the user logs in.")],
    config: ConfigFile,
    role: Role = "viewer",
    password_file: PasswordFile = None,
) -> None:
    """Make a user."""
    with _in_words(), _accounts(config) as accounts:
        accounts.add(name, role, _password(password_file))
    console.print(f"{name}, {role}: may log in", markup=False, highlight=False)


@user.command("list")
def user_list(config: ConfigFile) -> None:
    """Who there is, with which role, and whether locked."""
    from pacs_node.records import moment

    with _in_words(), _accounts(config) as accounts:
        for each in accounts.kept.users():
            locked = f", locked until {moment(each.locked_until)}" if each.locked_until else ""
            console.print(f"{each.name}  {each.role}{locked}", markup=False, highlight=False)


@user.command("change")
def user_change(
    name: str,
    config: ConfigFile,
    role: Annotated[str | None, typer.Option(help="viewer, reader or admin.")] = None,
    password: Annotated[bool, typer.Option("--password", help="Ask for a new one.")] = False,
    password_file: PasswordFile = None,
) -> None:
    """Another role, another password, or neither: whoever is logged in under this name is logged out, and not locked
    any more."""
    with _in_words(), _accounts(config) as accounts:
        new = _password(password_file) if password or password_file is not None else None
        accounts.change(name, role=role, password=new)
    console.print(f"{name}: changed", markup=False, highlight=False)


@user.command("remove")
def user_remove(name: str, config: ConfigFile) -> None:
    """Nobody logs in under this name any more."""
    with _in_words(), _accounts(config) as accounts:
        accounts.remove(name)
    console.print(f"{name}: removed", markup=False, highlight=False)


@token.command("add")
def token_add(
    name: Annotated[str, typer.Argument(help="What it is for, such as prometheus.")],
    config: ConfigFile,
    role: Annotated[str, typer.Option(help="metrics (the figures alone), viewer, reader or admin.")] = "viewer",
    days: Annotated[float, typer.Option(help="How long it is good for.")] = 365,
) -> None:
    """Make a token, and print it: it is kept nowhere."""
    with _in_words(), _accounts(config) as accounts:
        secret = accounts.add_token(name, role, days)
    console.print(secret, markup=False, highlight=False, soft_wrap=True)


@token.command("list")
def token_list(config: ConfigFile) -> None:
    """Which there are, with which role, until when, and when they were used last."""
    from pacs_node.records import moment

    with _in_words(), _accounts(config) as accounts:
        for each in accounts.kept.tokens():
            used = f"last used {moment(each.used_at)}" if each.used_at else "never used"
            text = f"{each.name}  {each.role}  until {each.expires_at:%Y-%m-%d}  {used}"
            console.print(text, markup=False, highlight=False)


@token.command("remove")
def token_remove(name: str, config: ConfigFile) -> None:
    """It is good for nothing any more."""
    with _in_words(), _accounts(config) as accounts:
        accounts.remove_token(name)
    console.print(f"{name}: removed", markup=False, highlight=False)


@contextmanager
def _accounts(config: Path) -> Iterator[Accounts]:
    """Of the node's database, which is made if it is not there yet."""
    from config import load
    from pacs_node.accounts import Accounts
    from pacs_node.ledger import Ledger
    from pacs_node.start_up import keep_private, must_be_writable
    from pacs_node.syslog import audit_of

    keep_private()
    settings = load(config, catalogue())
    must_be_writable(settings.node.data_dir)
    ledger = Ledger(settings.database.url, settings.node.data_dir)
    audit, _ = audit_of(settings, _now)
    audit.log = _silent
    try:
        ledger.migrate()
        yield Accounts(ledger, _now, audit=lambda event, facts: audit(event, {"user": _me(), **facts}))
    finally:
        audit.stop()
        ledger.close()


@contextmanager
def _audited(settings: Config, event: str, what: str) -> Iterator[list[str]]:
    """The audit trail is told of what a command does, and what it says of it; also if it fails. Before there is a data
    folder there is no trail, but of a restore that is refused."""
    from pacs_node.errors import Told
    from pacs_node.syslog import audit_of

    said: list[str] = []
    facts: dict[str, object] = {"user": _me(), "what": what}
    try:
        yield said
    except BaseException as error:  # also one that is broken off by hand
        facts |= {"known": False, "words": Told.of(error).words}
        raise
    finally:
        refused = event == "restored" and facts.get("known") is False  # it takes an empty folder, or one with a trail
        if refused or any(settings.node.data_dir.glob("*")):
            audit, _ = audit_of(settings, _now)
            audit.log = _silent
            audit(event, {"words": "; ".join(said) or "nothing had to be done", **facts})
            audit.stop()


def _silent(event: str, facts: Mapping[str, object]) -> None:
    """A command says on the screen what it did; no line of the log stands among that."""


def _now() -> datetime:
    return datetime.now(UTC)


def _me() -> str:
    """Who works at the command line, as the system knows it."""
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container there may be no name
        return f"uid {os.getuid()}"


def _password(file: Path | None) -> str:
    if file is not None:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


@app.command()
def pipelines() -> None:
    """What can be named in a route."""
    known = catalogue()
    table = Table("pipeline", "modality", "intended use")
    for name in sorted(known.options):
        takes = known.takes(name, {})
        if isinstance(takes, str):  # it needs options before it can say
            table.add_row(name, "as its options say", takes)
        else:
            table.add_row(name, ", ".join(sorted(takes.modality)), takes.intended_use)
    console.print(table)
    for why in known.broken.values():
        complaints.print(why, markup=False, highlight=False, soft_wrap=True)


@app.command(name="new-pipeline")
def new_pipeline(
    name: Annotated[str, typer.Argument(help="What a route will call it: small letters, digits and hyphens.")],
    into: Annotated[Path, typer.Option(help="Where the package's folder is made.")] = Path(),
) -> None:
    """Write a small package with a pipeline that runs, to be changed into yours; see docs/new-model.md."""
    from pacs_node.new_pipeline import write

    with _in_words():
        folder = write(name, into)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    told = f"install it with `pip install {folder}`, then: pacs-node check-pipeline {name}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)


@app.command(name="check-pipeline")
def check_pipeline(
    name: Annotated[str, typer.Argument(help="See `pacs-node pipelines`.")],
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Tell the pipeline something; may be repeated.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0; default: as a node would choose.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="Only this check; may be repeated.")] = None,
) -> None:
    """Run a pipeline on synthetic series, fine and odd ones, and say what it does not take as it should.

    Exit code 0 when every check passes, 1 when one fails.
    """
    import logging
    import tempfile

    import structlog

    from config.options import options_given
    from pacs_node import observe
    from pacs_node.check_pipeline import check_pipeline as checks
    from pacs_node.infer import Inference

    observe.start_logging(plain=sys.stderr.isatty())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    failed = 0
    with _in_words():
        known = catalogue()
        if name in known.broken:
            _fail(known.broken[name])
        options = options_given(name, option or [], known.options)
        card = known.card(name, options)
        inference = Inference(device or _defaults()[0], _defaults()[1])
        try:
            with tempfile.TemporaryDirectory(prefix="check-pipeline-") as folder:
                for said in checks(name, options, card, inference, Path(folder), only or None):
                    failed += not said.passed
                    mark = "pass" if said.passed else "FAIL"
                    console.print(f"{mark}  {said.check}: {said.text}", markup=False, highlight=False, soft_wrap=True)
        finally:
            inference.stop()
    console.print(f"{failed} of the checks failed" if failed else "every check passed", highlight=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def conformance() -> None:
    """Print the DICOM Conformance Statement (PS3.2)."""
    from pacs_node.conformance import statement

    sys.stdout.write(statement())


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its files.")] = Path("demo-out"),
    orthanc: Annotated[bool, typer.Option(help="Use a real Orthanc as the PACS.")] = False,
    stay: Annotated[bool | None, typer.Option(help="Keep the pages until Ctrl-C. Default: on a terminal.")] = None,
) -> None:
    """Synthetic CT and ultrasound through the whole node; compares what was found with the truth."""
    from pacs_node.demo import at_a_terminal, run

    raise typer.Exit(run(folder, console, orthanc=orthanc, stay=at_a_terminal() if stay is None else stay))


@app.command()
def version() -> None:
    console.print(__version__)


def _run(config: Path, *, listen: bool, work: bool, web: bool) -> None:
    from config import load
    from pacs_node import observe
    from pacs_node.start_up import give_memory_back, keep_private

    keep_private()
    give_memory_back()
    observe.start_logging(plain=sys.stderr.isatty())
    observe.hear_everything()
    at_a_terminal = sys.stdin is not None and sys.stdin.isatty()
    asked: SimpleQueue[str] = SimpleQueue()  # a signal may come while another is put into it
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.put("stop"))
    signal.signal(signal.SIGHUP, lambda *_: asked.put("stop" if at_a_terminal and not _has_terminal() else "reload"))
    with _in_words():
        settings = load(config, catalogue())
        from pacs_node.node import Node  # 2 s: what is wrong with the settings is told before

        node = Node(settings, file=config)
        try:
            node.start(listen=listen, work=work, web=web)
        except BaseException:
            node.stop()  # what has started must not keep the process alive
            raise
    while asked.get() == "reload":
        node.reload()
    node.stop()


def _has_terminal() -> bool:
    """Whether the terminal that the process was started on is still there."""
    try:
        os.tcgetpgrp(sys.stdin.fileno())
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _in_words() -> Iterator[None]:
    """The edge of the program: what goes wrong is one sentence on standard error and exit code 1, never a traceback."""
    from config import ConfigError
    from config.options import BadOption
    from models.options import BadOptions
    from models.pipeline import BadPipeline
    from pacs_node.errors import NodeError, Told

    try:
        yield
    except (ConfigError, BadOption, BadOptions, BadPipeline, NodeError) as error:
        _fail(str(error))
    except OSError as error:
        file = f"{error.filename}: " if isinstance(error.filename, str) else ""
        _fail(f"{file}{(error.strerror or str(error)).lower()}")
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, the person at the screen gets a sentence
        _fail(f"an error that nobody foresaw: {Told.of(error).words}")


def _address(text: str) -> tuple[str, str, int]:
    title, at, rest = text.partition("@")
    host, colon, port = rest.rpartition(":")
    if not (at and colon and title and host and port.isdigit() and 0 < int(port) < 1 << 16):
        _fail(f"'{text}' is not TITLE@host:port, for example ORTHANC@127.0.0.1:4242")
    return title, host, int(port)


def _fail(message: str) -> NoReturn:
    complaints.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
