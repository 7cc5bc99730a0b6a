"""Device, precision, memory format, threads, and the form in which a network is served: chosen in one place."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models import forms

log = logging.getLogger(__name__)

BF16_UNITS = (
    "avx512_bf16",
    "amx_bf16",
)  # processor features that multiply bfloat16; without them it is slower than fp32

# How far a faster form may be from eager float32 on an example. bfloat16 keeps 8 bits: where the edge of a mask is
# steep, a pixel of it moves by a third (measured on the shipped networks), few cross 0.5, and classes move by 0.03.
MOST_DELTA = {"mask": 0.5, "classes": 0.05}  # of any one probability
MOST_FLIPPED = 0.002  # share of mask pixels that change sides at 0.5
MOST_TIMED = 8  # images of the batch by which forms are compared

FORMATS: Mapping[int, torch.memory_format] = {
    4: torch.channels_last,
    5: torch.channels_last_3d,
}  # by dimensions; convolutions run there up to twice as fast

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Answer = tuple[Tensor, ...]  # what a network returns, float32: mask logits (B, C, H, W), class logits (B, classes)
Form = Callable[[Tensor], Answer]


class Unservable(Exception):
    """A form cannot be made of this network on this machine; the message says why. The next one is tried."""


@dataclass(frozen=True)
class Gap:
    """How far a form's probabilities are from those of eager float32."""

    mask: float  # greatest |difference| of a mask pixel's probability
    classes: float  # and of a class probability
    flipped: float  # greatest share of a batch's mask pixels on the other side of 0.5

    @classmethod
    def between(cls, truth: Sequence[Answer], said: Sequence[Answer]) -> Gap:
        """Raises Unservable when the answers are not of the same shapes, or not numbers."""
        mask, classes, flipped = [0.0], [0.0], [0.0]
        for wanted, given in zip(truth, said, strict=True):
            if [part.shape for part in wanted] != [part.shape for part in given]:
                raise Unservable(f"it answers in shapes {[tuple(part.shape) for part in given]}, not the network's")
            for p, q in zip(map(probability, wanted), map(probability, given), strict=True):
                if not q.isfinite().all():
                    raise Unservable("it answers what is not a number")
                delta = float((p - q).abs().max())
                if p.ndim == 4:
                    mask.append(delta)
                    flipped.append(float(((p > 0.5) != (q > 0.5)).float().mean()))
                else:
                    classes.append(delta)
        return cls(max(mask), max(classes), max(flipped))

    def why_not(self) -> str | None:
        if self.mask <= MOST_DELTA["mask"] and self.classes <= MOST_DELTA["classes"] and self.flipped <= MOST_FLIPPED:
            return None
        return (
            f"against float32 a mask pixel differs by {self.mask:.3f} (at most {MOST_DELTA['mask']}), a class by"
            f" {self.classes:.3f} (at most {MOST_DELTA['classes']}), {self.flipped:.2%} of mask pixels flip (at most"
            f" {MOST_FLIPPED:.1%})"
        )


def probability(logits: Tensor) -> Tensor:
    """Masks (B, C, H, W) by sigmoid, classes (B, classes) by softmax."""
    return logits.sigmoid() if logits.ndim == 4 else logits.softmax(dim=1)


def example(*shape: int) -> Tensor:
    """(B, C, H, W) in [0, 1], the same each time: a dark and a bright spot in noise, so that masks have edges."""
    count, _, height, width = shape
    rng = torch.Generator().manual_seed(0)
    images = 0.3 * (1 + 0.3 * torch.randn(shape, generator=rng))
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    for place in range(count):
        for grey, (cy, cx) in zip((0.05, 0.8), torch.rand(2, 2, generator=rng) * 0.6 + 0.2, strict=True):
            inside = torch.sigmoid(80 * (0.08 + 0.02 * place - torch.hypot(y - cy, x - cx)))  # a soft edge
            images[place] += inside * (grey - images[place])
    return images.clamp(0, 1)


def channels_last(model: AnyModule, formats: Mapping[int, torch.memory_format] = FORMATS) -> AnyModule:
    """The same network, weights of 2-D and 3-D convolutions in the format that is fastest."""
    for weights in model.parameters():
        if weights.ndim in formats:
            weights.data = weights.data.contiguous(memory_format=formats[weights.ndim])
    return model


def trained_in(device: str) -> Mapping[int, torch.memory_format]:
    """The formats in which gradients can be trusted. On a processor 3-D ones are learnt as torch lays them out:
    with torch 2.13.0 bfloat16 gradients of channels_last_3d weights differ from run to run."""
    return FORMATS if torch.device(device).type == "cuda" else {4: torch.channels_last}


@dataclass(frozen=True)
class Runtime:
    """Where and how a network runs. Device and precision follow from the machine and what is installed on it alone. The
    form of a network is one that was measured once and written down (forms.py); where nothing is written down, it
    follows from the machine, too. So the same files give the same answer."""

    device: torch.device
    bf16: bool

    @classmethod
    def choose(cls, device: str | None = None, *, threads: int | None = None) -> Runtime:
        """The named device, else cuda, else cpu. bf16 where the hardware multiplies it: half the time there.

        Raises ValueError when the named device is not on this machine.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if device is None or device == "auto":
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
        if chosen.type == "cuda":
            if not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count():
                raise ValueError(
                    f"no device {device!r} on this machine; it has {torch.cuda.device_count()} GPUs and the cpu"
                )
            torch.backends.cudnn.benchmark = (
                False  # the fastest kernel may differ from run to run, and its sums with it
            )
            return cls(chosen, bf16=torch.cuda.is_bf16_supported())
        return cls(chosen, bf16=any(torch.cpu.get_capabilities().get(name) for name in BF16_UNITS))

    def place(self, model: nn.Module, formats: Mapping[int, torch.memory_format] = FORMATS) -> nn.Module:
        """The network on the device, channels-last, in eval mode."""
        return channels_last(model.to(self.device), formats).eval()

    def take(self, batch: Tensor, formats: Mapping[int, torch.memory_format] = FORMATS) -> Tensor:
        """(B, C, H, W) or (B, C, D, H, W) on the device, channels-last."""
        return batch.to(self.device, memory_format=formats.get(batch.ndim, torch.contiguous_format))

    def precision(self) -> AbstractContextManager[None]:
        """`with runtime.precision():` around a forward pass."""
        # no cache: it would keep weights beyond a captured graph, and convolutions have theirs in bf16 already
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def ready(self, model: nn.Module, *examples: Tensor, most: int = 1, compiled: bool = True) -> Served:
        """The network in the form that was measured to be the fastest, or where none was, is so as a rule; always one
        that agrees with eager float32 on the examples.

        examples: (B, C, H, W), B at least 2, one of each size that will be common. Any other size is answered, too,
        by the eager form: nothing is compiled after start-up. most: the largest common batch, for captured graphs.
        compiled: False where little is asked of it, for OpenVINO takes memory (docs/results/serving.md).
        """
        plain = Eager(Runtime(self.device, bf16=False), model)
        may_be: Makers = {
            "fp32": lambda _: plain,  # the truth itself
            "fp32 contiguous": lambda model: Eager(Runtime(self.device, bf16=False), model, formats={}),
        }
        for bf16 in sorted({False, self.bf16}):
            may_be |= dict(Runtime(self.device, bf16).forms(examples, most, compiled))
        tried = Tried(model, plain, may_be, examples)
        choice = self.chosen(tried, "ready", most)
        order = [choice.form] if choice else [name for name, _ in self.forms(examples, most, compiled)]
        return self.served(tried, [*order, "fp32"], choice)

    def plain(self, model: nn.Module, *examples: Tensor) -> Served:
        """The network as written, nothing compiled and no weights turned: for small ones, which gain little and would
        start slowly. With examples the precision may be one that was measured, as in `ready`."""

        now = forms.current()
        if now is None or not examples:
            return Served(Eager(self, model, turned=False), str(self))

        def eager(bf16: bool, formats: Mapping[int, torch.memory_format] = FORMATS) -> Eager:
            return Eager(Runtime(self.device, bf16=bf16), model, turned=False, formats=formats)

        may_be: Makers = {"fp32": lambda _: eager(False), "fp32 contiguous": lambda _: eager(False, {})}
        may_be |= {"bf16": lambda _: eager(True)} if self.bf16 else {}
        tried = Tried(model, eager(False), may_be, examples)
        choice = self.chosen(tried, "plain", 2)
        if choice is None:
            now.said.append(f"{type(model).__name__}: {self}")
            return Served(Eager(self, model, turned=False), str(self))
        return self.served(tried, [choice.form, "fp32"], choice)

    def served(self, tried: Tried, order: Sequence[str], choice: forms.Choice | None) -> Served:
        """In the first of these forms that agrees with float32; "fp32" does."""
        name = next(name for name in order if tried.form(name) is not None)
        form = tried.form(name)
        assert form is not None
        if (now := forms.current()) is not None:
            measured = f", measured {choice.measured_at[:10]}" if choice and choice.form == name else ""
            now.said.append(f"{type(tried.model).__name__}: {self.device} {name}{measured}")
        return Served(form, f"{self.device} {name}")

    def chosen(self, tried: Tried, how: str, most: int) -> forms.Choice | None:
        """The form that is kept for this network on this machine, or is measured now, where that is asked for."""
        now = forms.current()
        if now is None:
            return None
        on, weights = self.described(), digest_of(tried.model)
        shapes = [tuple(example.shape) for example in tried.examples]
        key = forms.digest(how, str(tried.model), weights, shapes, most, on, sorted(tried.may_be))
        choice = now.kept.get(key)
        if choice is None and now.measure:
            (like, *_), count = tried.examples, min(most, MOST_TIMED)
            batch = like.repeat(-(-count // len(like)), 1, 1, 1)[:count]
            fit = {name: form for name in tried.may_be if (form := tried.form(name)) is not None}
            runs = {name: lambda form=form: self.finished(form(batch)) for name, form in fit.items()}
            seconds = {name: round(least, 6) for name, least in forms.timed(runs).items()}
            exactest_first = sorted(seconds, key=lambda name: ("bf16" in name, "openvino" in name or "graphs" in name))
            choice = forms.Choice(
                key,
                f"{type(tried.model).__name__} {weights[:8]}",
                forms.best(seconds, exactest_first),
                on,
                seconds,
                dict(tried.why_not),
                datetime.now(UTC).isoformat(timespec="seconds"),
            )
            log.info("%s is served as %s, of %s", choice.network, choice.form, seconds)
        if choice is not None:
            now.used.append(choice)
        return choice

    def finished(self, answer: Answer) -> Answer:
        """A GPU answers before it has computed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return answer

    def described(self) -> str:
        """All of this machine that bears on speed and on the last digits of an answer."""
        if self.device.type == "cuda":
            where = f"{torch.cuda.get_device_name(self.device)}, CUDA {torch.version.cuda}"
        else:
            where = f"{processor()}, {torch.get_num_threads()} threads"
        versions = [("torch", str(torch.__version__))]
        versions += [("openvino", metadata.version("openvino"))] if importlib.util.find_spec("openvino") else []
        return f"{self.device.type}: {where}; " + ", ".join(f"{name} {version}" for name, version in versions)

    def forms(
        self, examples: Sequence[Tensor], most: int, compiled: bool = True
    ) -> Iterator[tuple[str, Callable[[nn.Module], Form]]]:
        """What can be had here, the fastest first (docs/results/serving.md). Eager float32 is always left."""
        if self.device.type == "cuda":
            yield (
                f"{self.kind} graphs",
                lambda model: Graphs(Eager(self, model), [self.take(e) for e in examples], most),
            )
        elif compiled and importlib.util.find_spec("openvino"):
            yield f"{self.kind} openvino", lambda model: OpenVINO(self, model, examples)
        if self.bf16:
            yield self.kind, lambda model: Eager(self, model)

    @property
    def number(self) -> torch.dtype:
        """What convolutions multiply."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def kind(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    def __str__(self) -> str:
        return f"{self.device} {self.kind}"


Makers = dict[str, Callable[[nn.Module], Form]]


class Tried:
    """The forms that may be had of a network, each made when first asked for and held against float32."""

    def __init__(self, model: nn.Module, truth: Form, may_be: Makers, examples: Sequence[Tensor]) -> None:
        self.model, self.may_be, self.examples = model, may_be, examples
        self.why_not: dict[str, str] = {}
        self._made: dict[str, Form] = {"fp32": truth}
        # alone, an image may take another path
        self._checks = [part for batch in examples for part in (batch, batch[:1])]
        self._truth = [truth(batch) for batch in self._checks]

    def form(self, name: str) -> Form | None:
        """None for one that cannot be had, or is not as float32 is; the log says why."""
        if name in self._made:
            return self._made[name]
        if name in self.why_not:
            return None
        try:
            if name not in self.may_be:
                raise Unservable("it cannot be had here")
            form = self.may_be[name](self.model)
            why = Gap.between(self._truth, [form(batch) for batch in self._checks]).why_not()
        except Unservable as reason:
            why = str(reason)
        if why is None:
            self._made[name] = form
            return form
        self.why_not[name] = why
        log.warning("%s is not served as %s: %s", type(self.model).__name__, name, why)
        return None


def digest_of(model: nn.Module) -> str:
    """SHA-256 of its weights."""
    found = hashlib.sha256()
    for name, part in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def processor() -> str:
    """Its name, as the kernel tells it, and what it multiplies."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    units = sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)
    return f"{names[0] if names else 'a processor'} ({', '.join(units)})"


@dataclass(frozen=True, eq=False)
class Served:
    """A network ready to answer, and in which form: "cpu bf16 openvino"."""

    form: Form
    name: str

    def __call__(self, batch: Tensor) -> Answer:
        """(B, C, H, W) anywhere, any B and any size the network takes -> its outputs in float32 on the device"""
        return self.form(batch)

    def __str__(self) -> str:
        return self.name


class Eager:
    """The network as written, channels-last. Weights are turned to bf16 once, not at every call: the same numbers as
    under autocast alone, which a network with parts that must stay in float32 needs (turned=False)."""

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        turned: bool = True,
        formats: Mapping[int, torch.memory_format] = FORMATS,
    ) -> None:
        self.runtime, self.formats = runtime, formats
        self.model = runtime.place(copy.deepcopy(model), formats)
        if runtime.bf16 and turned:
            for part in self.model.modules():
                if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    part.to(torch.bfloat16)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Answer:
        with self.runtime.precision():
            said = self.model(self.runtime.take(batch, self.formats))
        return tuple(part.float() for part in (said if isinstance(said, tuple) else (said,)))


class OpenVINO:
    """Compiled for the processor by OpenVINO, for each example's size with any batch; other sizes run eagerly."""

    def __init__(self, runtime: Runtime, model: nn.Module, examples: Sequence[Tensor]) -> None:
        self.eager = Eager(runtime, model)
        still = copy.deepcopy(model).cpu().eval()
        self.compiled = {batch.shape[1:]: compiled(still, batch, runtime.kind) for batch in examples}

    def __call__(self, batch: Tensor) -> Answer:
        request = self.compiled.get(batch.shape[1:])
        if request is None or not len(batch):
            return self.eager(batch)
        said = request.infer({0: batch.float().contiguous().numpy()}, share_inputs=True)
        return tuple(torch.from_numpy(said[port].copy()) for port in request.model_outputs)


def compiled(model: nn.Module, batch: Tensor, kind: str) -> Any:
    """An openvino.InferRequest for (any, C, H, W) as in `batch`. Raises Unservable."""
    try:
        import openvino
        from openvino import frontend
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    except ImportError as error:
        raise Unservable(f"openvino cannot be loaded: {error}") from error
    failures = (
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
        RuntimeError,
    )
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator is unknown to OpenVINO
    try:
        # The door below openvino.convert_model: that one reports its use to its makers over the internet.
        reader = frontend.FrontEndManager().load_by_framework("pytorch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes become constants: one graph per size
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.trace, inside openvino
            traced = TorchScriptPythonDecoder(model, example_input=batch[:2], trace_kwargs={"check_trace": False})
        graph = reader.convert(reader.load(traced))
        graph.reshape({0: openvino.PartialShape([-1, *batch.shape[1:]])})
        settings = {
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[kind],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        return openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    except failures as error:
        raise Unservable(f"openvino does not take it: {str(error).strip()[:300]}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


Replay = Callable[[Tensor], Answer]  # (n, C, H, W), n at most the captured batch -> outputs for n


class Graphs:
    """cuda: a graph captured for each example's size and batches of 1, 2, 4, ... up to `most`.

    A batch between is padded to the next; other sizes and larger batches run eagerly.
    """

    def __init__(
        self,
        eager: Form,
        examples: Sequence[Tensor],
        most: int,
        capture: Callable[[Form, Tensor], Replay] | None = None,
    ) -> None:
        self.eager = eager
        make = capture or captured
        # the largest first: each has memory of its own, and where that is too small it shows before the others
        self.held = {
            (count, *like.shape[1:]): make(eager, like.new_zeros(count, *like.shape[1:]))
            for like in examples
            for count in reversed(counts(most))
        }

    def __call__(self, batch: Tensor) -> Answer:
        count = next_count(len(batch))
        replay = self.held.get((count, *batch.shape[1:]))
        return self.eager(batch) if replay is None else replay(batch)


def next_count(images: int) -> int:
    """The least power of two that holds so many."""
    return 1 << max(0, images - 1).bit_length()


def counts(most: int) -> list[int]:
    """1, 2, 4, ... the first that holds `most`."""
    return [1 << power for power in range(next_count(most).bit_length())]


def captured(eager: Form, still: Tensor) -> Replay:
    """The forward pass recorded on `still`, to be replayed without the processor's part in it. Raises Unservable."""
    try:
        with torch.cuda.device(still.device), torch.inference_mode():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):  # libraries choose and allocate on the first calls, which cannot be recorded
                    eager(still)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                answer = eager(still)
    except RuntimeError as error:
        raise Unservable(f"the forward pass cannot be captured: {str(error).strip()[:300]}") from error

    @torch.inference_mode()
    def replay(batch: Tensor) -> Answer:
        still[: len(batch)].copy_(batch)
        still[len(batch) :].zero_()
        graph.replay()
        return tuple(part[: len(batch)].clone() for part in answer)

    return replay
