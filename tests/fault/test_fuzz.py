"""Some hundred wrong inputs, of the kinds of `make fuzz`, against a running node: it stays as it was, and says so."""

from __future__ import annotations

import random
from pathlib import Path

from pacs_node.web.app import create_app
from tests.fuzz.campaign import Campaign, Use, mixed, work
from tests.fuzz.conversations import conversation
from tests.fuzz.data_sets import data_set
from tests.fuzz.liars import http_answer
from tests.fuzz.requests import ROUTES, Known, asked
from tests.harness import wait_for

SEED = "sample"


def test_a_sample_of_wrong_inputs_leaves_the_node_as_it_was(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, SEED)
    with campaign.running():
        process = campaign.node.process
        assert process is not None
        before = Use.of(process.pid)
        work(mixed(campaign, 120, 120, 120), 6, lambda: campaign.node.alive)
        assert campaign.node.alive, campaign.node.log()
        wait_for(lambda: Use.of(process.pid).descriptors <= before.descriptors + 40, 30, "descriptors closed")
        campaign.rest()
        assert campaign.after() == []
        assert campaign.node.terminate() == 0
    assert campaign.watch.inputs == {"conversations": 120, "data_sets": 120, "bodies": 120}
    assert campaign.watch.honest_s
    assert campaign.watch.statuses["0x0000"]  # some of it was whole


def test_an_input_is_known_by_its_seed_and_number() -> None:
    for make in (
        lambda rng: conversation(rng, 7, SEED),
        lambda rng: data_set(rng, 7, SEED),
        lambda rng: asked(rng, 80, Known()),
        lambda rng: http_answer(rng, ["1.2.3"], stow=True, truth=False),
    ):
        several = [[make(random.Random(f"{seed}/{number}")) for seed in (1, 1, 2)] for number in range(20)]
        assert all(one == again for one, again, _ in several)
        assert any(one != other for one, _, other in several)


def test_every_address_of_the_pages_is_tried() -> None:
    app = create_app(None, None)  # type: ignore[arg-type]  # asked nothing
    there = {route.path for route in app.routes}  # type: ignore[attr-defined]
    assert there == {route.replace("/static/{file}", "/static") for route in ROUTES}
