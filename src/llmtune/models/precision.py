"""On which device a run computes, and in which type its matrix products are taken."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llmtune.errors import ConfigError

PrecisionName = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""torch's types by the names that `train.precision` and `train.master_dtype` have for them."""
_AMPERE = (8, 0)


@dataclass(frozen=True)
class Precision:
    """The type of the matrix products. Losses are float32 all the same; weights that train have a type of their own."""

    name: PrecisionName
    device_type: str
    reason: str
    """Why this one, in words."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type that matrix products are computed in."""
        return DTYPES[self.name]

    @property
    def needs_loss_scaling(self) -> bool:
        """Whether gradients would underflow without a scaled loss."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager:
        """A context in which torch computes matrix products in this type; enter it around the forward pass alone."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.compute_dtype)


def choose_device(kind: Literal["auto", "cpu", "single_gpu", "ddp"] = "auto") -> torch.device:
    """This process's device: its own GPU where one may be used, else the CPU.

    Args:
        kind: `hardware.kind` of the config.

    Raises:
        ConfigError: a GPU was asked for by name and none is visible, or there are fewer than processes.
    """
    if kind == "cpu" or (kind != "single_gpu" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("hardware=single_gpu needs a GPU that torch can use, and none is visible; set hardware=cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"process {number} of this machine has no GPU: {torch.cuda.device_count()} visible; "
            "set hardware.num_processes to that number at most"
        )
    return torch.device("cuda", number)


def choose_precision(setting: Literal["auto", "bf16", "fp16", "fp32"], device: torch.device) -> Precision:
    """The precision of a run.

    Args:
        setting: `train.precision`; `auto` is bf16 where the device computes it natively, else fp16 on GPUs, else fp32.
        device: where it runs.

    Raises:
        ConfigError: a type was asked for by name that the device can't compute natively.
    """
    native, why = _native_bf16(device)
    if setting == "auto":
        if native:
            return Precision("bf16", device.type, f"{why} computes bf16 natively")
        fallback: PrecisionName = "fp16" if device.type == "cuda" else "fp32"
        return Precision(fallback, device.type, f"{why} has no native bf16")
    if setting == "bf16" and not native:
        other = "fp16 or fp32" if device.type == "cuda" else "fp32"
        raise ConfigError(f"train.precision=bf16: {why} doesn't compute bf16 natively; set auto, {other}")
    if setting == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision=fp16 needs a GPU; on the CPU set auto, bf16 or fp32")
    return Precision(setting, device.type, "asked for by train.precision")


def _native_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether a device multiplies bf16 matrices in hardware, and the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE, torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _cpu_has_bf16(), "this CPU"
    return False, f"device {device.type}"


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX, as torch sees it; where this torch lacks the questions, as the kernel lists it."""
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    known = [getattr(torch.cpu, name) for name in questions if hasattr(torch.cpu, name)]
    if known:
        return any(ask() for ask in known)
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            flags = next((line.split() for line in file if line.startswith(("flags", "Features"))), [])
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
