"""The form of a network is chosen once, by measurement, among those that agree with float32; then it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models import forms, runtime
from models.forms import Choice, Choosing, best, choosing, keep, load
from models.runtime import Runtime, Served, example
from tests.unit.models.test_runtime import Edge

EXAMPLE = example(2, 1, 32, 32)
NAMES = ("fp32", "fp32 contiguous", "fp32 openvino", "bf16", "bf16 openvino")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def fast(quickest: str) -> Callable[[Mapping[str, object]], dict[str, float]]:
    """A stop-watch that has seen this form to be the fastest."""
    return lambda runs: {name: 0.1 if name == quickest else 1.0 for name in runs}


def served(kept: Mapping[str, Choice], measure: bool, net: nn.Module | None = None) -> tuple[Served, Choosing]:
    with choosing(kept, measure=measure) as now:
        return Runtime.choose("cpu", threads=1).ready(net or Edge(), EXAMPLE, most=4), now


def kept_of(now: Choosing) -> dict[str, Choice]:
    return {choice.key: choice for choice in now.used}


def test_every_form_is_measured_and_the_choice_is_named() -> None:
    form, now = served({}, measure=True)
    [choice] = now.used
    assert {"fp32", "fp32 contiguous"} <= set(choice.seconds) <= set(NAMES)
    assert str(form) == f"cpu {choice.form}"
    assert choice.network.startswith("Edge ")
    assert now.said == [f"Edge: cpu {choice.form}, measured {choice.measured_at[:10]}"]
    assert "1 threads; torch" in choice.on


@pytest.mark.parametrize("quickest", ["fp32 contiguous", "fp32"])
def test_what_was_measured_stands_and_is_not_timed_again(quickest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "timed", fast(quickest))
    first, now = served({}, measure=True)
    assert str(first) == f"cpu {quickest}"

    def never(_: object) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr(forms, "timed", never)
    again, later = served(kept_of(now), measure=True)
    assert str(again) == str(first)
    assert later.used == now.used
    batch = example(3, 1, 32, 32)
    assert all(torch.equal(one, other) for one, other in zip(first(batch), again(batch), strict=True))


def test_without_a_choice_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pacs-node run` has no place to keep one: the form follows from the machine."""
    monkeypatch.setattr(forms, "timed", lambda _: pytest.fail("timed"))
    by_rule, now = served({}, measure=False)
    assert now.used == []
    assert now.said == [f"Edge: {by_rule}"]
    assert str(by_rule) == str(Runtime.choose("cpu", threads=1).ready(Edge(), EXAMPLE, most=4))


def test_other_weights_threads_or_versions_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, now = served({}, measure=True)
    kept = kept_of(now)
    assert served(kept, measure=True)[1].used == now.used
    other = Edge()
    with torch.no_grad():
        other.head.bias += 1e-3
    keys = {now.used[0].key, served(kept, measure=True, net=other)[1].used[0].key}
    with choosing(kept, measure=True) as threaded:
        Runtime.choose("cpu", threads=2).ready(Edge(), EXAMPLE, most=4)
    keys.add(threaded.used[0].key)
    monkeypatch.setattr(runtime, "processor", lambda: "another one")
    keys.add(served(kept, measure=True)[1].used[0].key)
    monkeypatch.setattr(torch, "__version__", "99.0")
    keys.add(served(kept, measure=True)[1].used[0].key)
    assert len(keys) == 5


def test_a_form_that_disagrees_is_not_chosen_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: nn.Module) -> Callable[[Tensor], tuple[Tensor, ...]]:
        right = runtime.Eager(Runtime(torch.device("cpu"), bf16=False), model)
        return lambda batch: tuple(part + 3 for part in right(batch))

    monkeypatch.setattr(Runtime, "forms", lambda *_: iter([("quick", shifted)]))
    monkeypatch.setattr(forms, "timed", fast("quick"))
    form, now = served({}, measure=True)
    assert str(form) == "cpu fp32"
    [choice] = now.used
    assert "quick" not in choice.seconds
    assert "differs by" in choice.why_not["quick"]


def test_a_kept_form_that_cannot_be_had_any_more_is_float32_and_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _, now = served({}, measure=True)
    [choice] = now.used
    gone = Choice(**{**vars(choice), "form": "fp32 abacus"})
    form, later = served({gone.key: gone}, measure=True)
    assert str(form) == "cpu fp32"
    assert later.said == ["Edge: cpu fp32"]


def test_a_network_served_as_written_is_chosen_by_precision_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for bf16 in (False, True):
        with choosing({}, measure=True) as now:
            Runtime(torch.device("cpu"), bf16).plain(Edge(), EXAMPLE)
        assert set(now.used[0].seconds) == {"fp32", "fp32 contiguous", *(["bf16"] if bf16 else [])}


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0.001, 10), min_size=1))
def test_the_exactest_of_those_that_are_about_as_fast_is_chosen(seconds: dict[str, float]) -> None:
    chosen = best(seconds, NAMES)
    limit = min(seconds.values()) / (1 - forms.GAIN)
    assert seconds[chosen] <= limit
    assert all(seconds[name] > limit for name in NAMES[: NAMES.index(chosen)] if name in seconds)


def test_the_least_time_counts_and_the_first_call_does_not() -> None:
    times = iter([0.0, 5.0, 5.0, 6.0, 6.0, 8.0])  # before and after each round
    calls: list[int] = []
    assert forms.timed({"one": lambda: calls.append(1)}, lambda: next(times)) == {"one": 1.0}
    assert len(calls) == forms.ROUNDS + 1


def choice(key: str, form: str = "fp32") -> Choice:
    return Choice(key, "Net 1", form, "here", {form: 0.5}, {"bf16": "off"}, "2026-01-01T00:00:00+00:00")


def test_of_two_workers_who_measured_the_first_has_chosen(tmp_path: Path) -> None:
    path = tmp_path / "inference" / "forms.json"
    write = Path.write_bytes
    assert keep(path, [choice("a")], write) == {"a": choice("a")}
    assert keep(path, [choice("a", "bf16"), choice("b")], write) == {"a": choice("a"), "b": choice("b")}
    assert load(path) == {"a": choice("a"), "b": choice("b")}
    assert keep(path, [choice("a", "bf16")], write, anew=True)["a"].form == "bf16"


@pytest.mark.parametrize("content", ["", "{", "{}", "7", '[{"key": 1}]', "[[]]", "\0"])
def test_a_damaged_file_is_measured_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "forms.json"
    path.write_text(content)
    assert load(path) == {}
    assert keep(path, [choice("a")], Path.write_bytes) == {"a": choice("a")}
