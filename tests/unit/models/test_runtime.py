"""A network is served in a faster form only where that form gives the answers of eager float32."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from models import runtime as served_by
from models.lung_nodule.preprocess import PREPROCESSING
from models.nets.residual_unet import ResidualUNet, ResidualUNetConfig
from models.runtime import Eager, Gap, Graphs, Runtime, Served, Unservable, counts, example, next_count
from models.weights import load, packed

CPU = torch.device("cpu")
BF16 = any(torch.cpu.get_capabilities().get(name) for name in served_by.BF16_UNITS)
OPENVINO = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install pacs-node[openvino]"
)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return (
        load(packed("lung_nodule", "residual_unet_w16"), PREPROCESSING)
        .into(ResidualUNet(ResidualUNetConfig(width=16)))
        .eval()
    )


@pytest.fixture(scope="module")
def float32(net: nn.Module) -> Eager:
    return Eager(Runtime(CPU, bf16=False), net)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[pytest.param("openvino", marks=OPENVINO), "eager"])
def served(request: pytest.FixtureRequest, net: nn.Module) -> Served:
    """Each form that this machine can have, as a node gets it."""
    found = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "eager":
            patch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
        form = Runtime.choose("cpu", threads=2).ready(net, example(2, 1, 128, 128))
    assert str(form) == f"cpu {'bf16' if BF16 else 'fp32'}{' openvino' if request.param == 'openvino' else ''}"
    return form


class Edge(nn.Module):
    """A small network with both kinds of output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) -> (B, 1, H, W), (B, 3)"""
        seen = self.conv(x).relu()
        return seen.mean(dim=1, keepdim=True), self.head(seen.mean(dim=(2, 3)))


def test_the_example_asks_something_of_a_network(float32: Eager) -> None:
    (logits,) = float32(example(4, 1, 128, 128))
    marked = (logits > 0).float().mean(dim=(1, 2, 3))
    assert ((marked > 0.005) & (marked < 0.5)).all(), "a mask that is empty or full agrees with anything"
    assert torch.equal(example(2, 1, 64, 96), example(2, 1, 64, 96))


@pytest.mark.parametrize("shape", [(1, 1, 128, 128), (7, 1, 128, 128), (33, 1, 32, 32), (2, 1, 96, 160)])
def test_answers_are_those_of_float32(served: Served, shape: tuple[int, ...], float32: Eager) -> None:
    (logits,) = served(example(*shape))
    assert logits.shape == shape
    assert logits.dtype == torch.float32
    gap = Gap.between([float32(example(*shape))], [(logits,)])
    assert gap.flipped < 0.005, gap
    assert gap.mask < 0.2, gap


def test_an_empty_batch_has_an_empty_answer(served: Served) -> None:
    assert served(torch.empty(0, 1, 128, 128))[0].shape == (0, 1, 128, 128)


@OPENVINO
def test_sizes_that_were_not_announced_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Size] = []
    make = served_by.compiled

    def counted(model: nn.Module, batch: Tensor, kind: str) -> object:
        made.append(batch.shape)
        return make(model, batch, kind)

    monkeypatch.setattr(served_by, "compiled", counted)
    served = Runtime.choose("cpu").ready(Edge(), example(2, 1, 64, 64), example(2, 1, 48, 32))
    for count in (1, 3):
        for size in ((64, 64), (48, 32), (80, 16)):
            assert served(example(count, 1, *size))[0].shape == (count, 1, *size)
    assert len(made) == 2


@pytest.mark.skipif(not BF16, reason="this processor does not multiply bfloat16")
def test_weights_turned_once_answer_like_autocast(net: nn.Module) -> None:
    runtime, batch = Runtime.choose("cpu"), example(2, 1, 64, 64)
    with torch.inference_mode(), runtime.precision():
        wanted = runtime.place(net)(runtime.take(batch)).float()
    assert torch.equal(Eager(runtime, net)(batch)[0], wanted)
    assert {p.dtype for p in net.parameters()} == {torch.float32}, "the network handed in is left as it was"


Broken = Callable[[nn.Module], Callable[[Tensor], tuple[Tensor, ...]]]


def _raises(_: nn.Module) -> Callable[[Tensor], tuple[Tensor, ...]]:
    raise Unservable("no such operator")


def _changed(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    right = Eager(Runtime(CPU, bf16=False), model)
    return lambda batch: tuple(change(part) for part in right(batch))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda m: _changed(m, lambda y: y + 3.0), "of mask pixels flip"),
        (lambda m: _changed(m, lambda y: y * 0.0), "of mask pixels flip"),
        (lambda m: _changed(m, lambda y: y * torch.nan), "not a number"),
        (lambda m: _changed(m, lambda y: y[..., :-1]), "shapes"),
        (lambda m: _changed(m, lambda y: y.flip(0)), "of mask pixels flip"),  # one patient's answer for another's image
        (_raises, "no such operator"),
    ],
    ids=["shifted", "nothing", "nan", "cut", "mixed up", "not convertible"],
)
def test_a_wrong_form_is_not_served(
    broken: Broken,
    said: str,
    net: nn.Module,
    float32: Eager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Runtime, "forms", lambda *_: iter([("quick", broken)]))
    with caplog.at_level(logging.WARNING):
        served = Runtime.choose("cpu").ready(net, example(2, 1, 64, 64))
    assert str(served) == "cpu fp32"
    assert "ResidualUNet is not served as quick" in caplog.text
    assert said in caplog.text
    batch = torch.rand(3, 1, 32, 32)
    assert torch.equal(served(batch)[0], float32(batch)[0])


def test_class_probabilities_are_compared_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def rotated(model: nn.Module) -> Callable[[Tensor], tuple[Tensor, ...]]:
        right = Eager(Runtime(CPU, bf16=False), model)
        return lambda batch: (right(batch)[0], right(batch)[1].roll(1, dims=1))

    monkeypatch.setattr(Runtime, "forms", lambda *_: iter([("quick", rotated)]))
    served = Runtime.choose("cpu").ready(Edge(), example(2, 1, 32, 32))
    assert str(served) == "cpu fp32"
    assert "a class by 0." in caplog.text


@OPENVINO
def test_two_outputs_keep_their_order() -> None:
    served, batch = Runtime.choose("cpu").ready(Edge(), example(2, 1, 32, 32)), example(3, 1, 32, 32)
    assert "openvino" in str(served)
    mask, classes = served(batch)
    wanted_mask, wanted_classes = Eager(Runtime(CPU, bf16=False), Edge())(batch)
    torch.testing.assert_close(mask, wanted_mask, atol=0.02, rtol=0.02)
    torch.testing.assert_close(classes, wanted_classes, atol=0.02, rtol=0.02)


@OPENVINO
def test_making_a_form_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """openvino.convert_model would report to its makers; a node stands beside patients' data."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sender = pytest.importorskip("openvino_telemetry").Telemetry
    monkeypatch.setattr(sender, "send_event", refuse)
    assert "openvino" in str(Runtime.choose("cpu").ready(Edge(), example(2, 1, 32, 32)))


def test_the_same_files_give_the_same_answer_in_another_process(net: nn.Module) -> None:
    script = textwrap.dedent(
        """
        import hashlib, sys, torch
        from models.lung_nodule.preprocess import PREPROCESSING
        from models.nets.residual_unet import ResidualUNet, ResidualUNetConfig
        from models.runtime import Runtime, example
        from models.weights import load, packed
        net = ResidualUNet(ResidualUNetConfig(width=16))
        load(packed("lung_nodule", "residual_unet_w16"), PREPROCESSING).into(net)
        served = Runtime.choose("cpu", threads=2).ready(net, example(2, 1, 64, 64))
        said = [served(example(count, 1, 64, 64))[0].numpy().tobytes() for count in (1, 3, 1)]
        print(served, hashlib.sha256(b"".join(said)).hexdigest())
        """
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    served = Runtime.choose("cpu", threads=2).ready(net, example(2, 1, 64, 64))
    said = [served(example(count, 1, 64, 64))[0].numpy().tobytes() for count in (1, 3, 1)]
    assert said[0] == said[2]
    assert there.split() == [*str(served).split(), hashlib.sha256(b"".join(said)).hexdigest()]


def test_threads_are_those_asked_for(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime.choose("cpu", threads=1)
    assert torch.get_num_threads() == 1
    served = runtime.ready(net, example(2, 1, 64, 64))
    if isinstance(served.form, served_by.OpenVINO):
        (request,) = served.form.compiled.values()
        assert int(request.get_compiled_model().get_property("INFERENCE_NUM_THREADS")) == 1


def test_a_device_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="no device 'cuda:99' on this machine"):
        Runtime.choose("cuda:99")


@pytest.mark.parametrize(
    ("images", "held"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (31, 32), (32, 32), (33, 64)]
)
def test_batches_are_padded_to_powers_of_two(images: int, held: int) -> None:
    assert next_count(images) == held


def test_as_many_graphs_as_powers_of_two() -> None:
    assert counts(1) == [1]
    assert counts(32) == [1, 2, 4, 8, 16, 32]
    assert counts(20) == [1, 2, 4, 8, 16, 32]


def test_a_batch_between_is_answered_by_the_next_graph_and_a_stranger_eagerly() -> None:
    replayed: list[tuple[int, int]] = []
    strangers: list[torch.Size] = []

    def eager(batch: Tensor) -> tuple[Tensor, ...]:
        strangers.append(batch.shape)
        return (batch * 2,)

    def capture(_: object, still: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def replay(batch: Tensor) -> tuple[Tensor, ...]:
            still[: len(batch)] = batch
            replayed.append((len(still), len(batch)))
            return ((still * 2)[: len(batch)],)

        return replay

    graphs = Graphs(eager, [example(1, 1, 16, 16)], 8, capture)
    for count in (1, 3, 8, 5):
        batch = torch.rand(count, 1, 16, 16)
        assert torch.equal(graphs(batch)[0], batch * 2)
    assert replayed == [(1, 1), (4, 3), (8, 8), (8, 5)]
    for shape in ((9, 1, 16, 16), (1, 1, 16, 32)):
        assert graphs(torch.rand(shape))[0].shape == shape
    assert [tuple(shape) for shape in strangers] == [(9, 1, 16, 16), (1, 1, 16, 32)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs can be captured on one only")
def test_graphs_on_a_gpu_answer_like_float32(net: nn.Module) -> None:
    runtime = Runtime.choose("cuda:0")
    served = runtime.ready(net, example(4, 1, 128, 128), most=8)
    assert str(served) == "cuda:0 bf16 graphs"
    plain = Eager(Runtime(runtime.device, bf16=False), net)
    for count in (8, 1, 3, 5, 11):
        batch = example(count, 1, 128, 128)
        assert Gap.between([plain(batch)], [served(batch)]).why_not() is None
        assert torch.equal(served(batch)[0], served(batch)[0])


def test_the_plain_form_is_the_network_as_written(net: nn.Module) -> None:
    images = example(3, 1, 64, 64).to(memory_format=torch.channels_last)
    for bf16 in (False, True):
        runtime = Runtime(torch.device("cpu"), bf16=bf16)
        with torch.inference_mode(), runtime.precision():
            said = net.to(memory_format=torch.channels_last)(images).float()
        assert torch.equal(runtime.plain(net)(images)[0], said)
        assert str(runtime.plain(net)) == f"cpu {'bf16' if bf16 else 'fp32'}"
