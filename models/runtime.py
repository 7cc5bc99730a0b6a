"""Device, precision, memory format and threads: chosen in one place."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BF16_UNITS = (
    "avx512_bf16",
    "amx_bf16",
)  # processor features that multiply bfloat16; without them it is slower than fp32


@dataclass(frozen=True)
class Runtime:
    """Where and how a network runs. The choice depends on the machine alone, so the same files give the same answer."""

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

    def place(self, model: nn.Module) -> nn.Module:
        """The network on the device, channels-last (2-D convolutions run there nearly twice as fast), in eval mode."""
        return model.to(self.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def take(self, batch: Tensor) -> Tensor:
        """(B, C, H, W) on the device, channels-last."""
        return batch.to(self.device, memory_format=torch.channels_last)

    def precision(self) -> AbstractContextManager[None]:
        """`with runtime.precision():` around a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def __str__(self) -> str:
        return f"{self.device} {'bf16' if self.bf16 else 'fp32'}"
