"""What pynetdicom's reactor may not take from whoever waits for an answer."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from pynetdicom.dimse import DIMSEServiceProvider

from pacs_node.association import Messages

ANSWER = 1, object()


@pytest.mark.parametrize("queue", [Messages])
def test_a_reactor_that_is_told_to_pause_leaves_the_answer_to_the_one_who_asked(queue: type[Messages]) -> None:
    checkpoint = threading.Event()  # cleared: a request of ours is about to go out
    messages = made(queue, checkpoint)
    messages.msg_queue.put(ANSWER)
    assert messages.get_msg(block=False) == (None, None), "the reactor, late, looks once more"
    assert messages.get_msg(block=True) == ANSWER
    checkpoint.set()
    messages.msg_queue.put(ANSWER)
    assert messages.get_msg(block=False) == ANSWER, "nobody waits: the reactor serves what comes"
    assert messages.get_msg(block=False) == (None, None)


def made(queue: type[DIMSEServiceProvider], checkpoint: threading.Event) -> Any:
    return queue(SimpleNamespace(dimse_timeout=0.5, _reactor_checkpoint=checkpoint))
