"""The command line: serve | worker | rerun | check | send | echo | demo. Research use only, not for diagnostic use."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from models import PIPELINES, pipeline_options
from pacs_node import __version__

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
def rerun(
    config: ConfigFile,
    series: Annotated[list[str] | None, typer.Argument(help="Series Instance UIDs.")] = None,
    route: Annotated[str | None, typer.Option(help="Every series this route has taken; only for this route.")] = None,
) -> None:
    """Run series again with today's models, rules and settings; a running node or worker takes the jobs up."""
    from config import ConfigError, load
    from pacs_node.errors import NodeError
    from pacs_node.node import Node

    if not series and route is None:
        _fail("name series, or a route by --route")
    failed = 0
    try:
        node = Node(load(config, pipeline_options()))
        node.ledger.migrate()
        wanted = series or node.ledger.series_of_route(route or "")
        for uid in wanted:
            why_not = node.flow.rerun(uid, route)
            failed += why_not is not None
            console.print(f"{uid}: {why_not or 'will run again'}", markup=False, highlight=False, soft_wrap=True)
    except (ConfigError, NodeError, OSError) as error:
        _fail(str(error))
    console.print(f"{len(wanted) - failed} of {len(wanted)} series will run again")
    if failed:
        raise typer.Exit(1)


@app.command()
def check(config: ConfigFile) -> None:
    """Say what is wrong with a settings file: file, line, key and the nearest valid key."""
    from config import problems

    found = problems(config, pipeline_options())
    for problem in found:
        console.print(str(problem), markup=False, highlight=False, soft_wrap=True)
    if any(problem.severity == "error" for problem in found):
        raise typer.Exit(1)
    console.print(f"{config}: good", markup=False, highlight=False)


@app.command()
def send(
    files: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of them.", exists=True)],
    to: Annotated[str, typer.Option(help="TITLE@host:port of the receiver.")],
    aet: Annotated[str, typer.Option(help="Our own AE title.")] = "PACSNODE",
) -> None:
    """Send DICOM files by C-STORE, as they are."""
    from pacs_node.deliver.dimse import send as store
    from pacs_node.errors import JobError
    from pacs_node.node import utc_now

    title, host, port = _address(to)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("sending", total=None)
        try:
            receipts = store(
                files,
                host,
                port,
                aet,
                title,
                utc_now,
                lambda _, done, total: bar.update(task, completed=done, total=total),
            )
        except JobError as error:
            _fail(str(error))
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
    from pacs_node.deliver.dimse import Peer
    from pacs_node.deliver.dimse import echo as verify
    from pacs_node.errors import JobError

    title, host, port = _address(to)
    try:
        console.print(verify(Peer(title, title, host, port, aet)), markup=False)
    except JobError as error:
        _fail(str(error))


@app.command()
def pipelines() -> None:
    """What can be named in a route."""
    from models import pipeline_class

    table = Table("pipeline", "modality", "intended use")
    for name in PIPELINES:
        card = pipeline_class(name)("cpu", {}).card
        table.add_row(name, ", ".join(sorted(card.modality)), card.intended_use)
    console.print(table)


@app.command()
def conformance() -> None:
    """Print the DICOM Conformance Statement (PS3.2)."""
    from pacs_node.conformance import statement

    sys.stdout.write(statement())


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its files.")] = Path("demo-out"),
    orthanc: Annotated[bool, typer.Option(help="Use a real Orthanc as the PACS.")] = False,
) -> None:
    """Synthetic CT and ultrasound through the whole node; compares what was found with the truth."""
    from pacs_node.demo import run

    raise typer.Exit(run(folder, console, orthanc=orthanc))


@app.command()
def version() -> None:
    console.print(__version__)


def _run(config: Path, *, listen: bool, work: bool, web: bool) -> None:
    from config import ConfigError, load
    from pacs_node import observe
    from pacs_node.errors import StartError
    from pacs_node.node import Node

    observe.start_logging(plain=sys.stderr.isatty())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = load(config, pipeline_options())
        node = Node(settings)
        node.start(listen=listen, work=work, web=web)
    except (ConfigError, StartError, OSError) as error:
        _fail(str(error))
    stop.wait()
    node.stop()


def _address(text: str) -> tuple[str, str, int]:
    title, at, rest = text.partition("@")
    host, colon, port = rest.rpartition(":")
    if not (at and colon and title and host and port.isdigit()):
        _fail(f"'{text}' is not TITLE@host:port, for example ORTHANC@127.0.0.1:4242")
    return title, host, int(port)


def _fail(message: str) -> NoReturn:
    complaints.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
