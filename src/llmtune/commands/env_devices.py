"""What computes here: GPUs and cores, the precision that `auto` takes, and whether 4-bit layers work."""

import os
import platform
import shutil
import subprocess

import psutil

from llmtune.commands.env_finding import Finding, Places
from llmtune.runs.environment import usable_cores

_GIB = 2**30
_NVIDIA_SMI_SECONDS = 10
_QUERY = ("--query-gpu=name,driver_version", "--format=csv,noheader")
_LARGEST_4BIT_ERROR = 0.25
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def check_devices(places: Places) -> Finding:
    """GPUs and CPU; a GPU that torch can't use."""
    gpus = torch_gpus()
    memory = psutil.virtual_memory()
    finding = Finding([("torch", torch_build()), *((f"GPU {number}", gpu) for number, gpu in enumerate(gpus))])
    if not gpus:
        finding.facts.append(("GPU", "none that torch can use"))
    cores = f"{usable_cores()} of {os.cpu_count()} cores"
    available = f"{memory.total / _GIB:.1f} GiB of memory, {memory.available / _GIB:.1f} free"
    finding.facts.append(("CPU", f"{cores}, {available}"))
    _check_driver(finding, len(gpus))
    other = other_machine()
    if other is not None:
        finding.problems.append(other)
    return finding


def check_precision(places: Places) -> Finding:
    """The precision that `train.precision=auto` takes here, and why."""
    from llmtune.models.precision import choose_device, choose_precision

    precision = choose_precision("auto", choose_device())
    return Finding([("precision", f"{precision.name} ({precision.reason})")])


def check_4bit(places: Places) -> Finding:
    """Whether a 4-bit layer computes what it should, on the device of a run."""
    try:
        error = error_of_4bit()
    except Exception as failure:  # a broken library raises whatever it likes
        reason = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure).strip() else ''}"
        return _broken_4bit(reason)
    if not error < _LARGEST_4BIT_ERROR:
        return _broken_4bit(f"a product is {error:.0%} off")
    return Finding([("4-bit", f"works (a product in nf4 is {error:.0%} off, as it should be)")])


def error_of_4bit() -> float:
    """Relative error of a product with a small nf4 layer.

    Raises:
        RuntimeError: the layer's weights aren't in 4 bits.
    """
    import torch
    from bitsandbytes.nn import Linear4bit

    from llmtune.models.precision import choose_device, choose_precision

    device = choose_device()
    precision = choose_precision("auto", device)
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(64, 64, generator=generator), torch.randn(8, 64, generator=generator)
    layer = Linear4bit(64, 64, bias=False, compute_dtype=precision.compute_dtype, quant_type="nf4")
    layer.support_avx512bf16_for_cpu = False
    layer.weight.data = weight
    layer.to(device)
    if layer.weight.dtype != torch.uint8:
        raise RuntimeError(f"the weights are {layer.weight.dtype}, not packed 4-bit values")
    with torch.inference_mode():
        product = layer(inputs.to(device, precision.compute_dtype)).float().cpu()
    wanted = inputs @ weight.T
    return float((product - wanted).norm() / wanted.norm())


def torch_build() -> str:
    """For which devices torch was built."""
    import torch

    if torch.version.hip:
        return f"ROCm {torch.version.hip} build"
    return f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"


def torch_gpus() -> list[str]:
    """The GPUs that torch can use: name and memory."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [f"{gpu.name}, {gpu.total_memory / _GIB:.1f} GiB" for gpu in found]


def cuda_build() -> str | None:
    """The CUDA version that torch was built for; None for another build."""
    import torch

    return torch.version.cuda


def nvidia_gpus() -> list[tuple[str, str]] | None:
    """Names and driver versions of the GPUs that NVIDIA's driver sees; None where its tool isn't installed.

    Raises:
        RuntimeError: the tool fails.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, *_QUERY], capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(type(error).__name__) from error
    if done.returncode != 0:
        raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[0] if done.stdout or done.stderr else "")
    lines = [line.rpartition(",") for line in done.stdout.splitlines() if line.strip()]
    return [(name.strip(), driver.strip()) for name, _, driver in lines]


def other_machine() -> str | None:
    """One sentence on a machine that llmtune wasn't made for; None on Linux with an NVIDIA GPU or none."""
    import torch

    system = platform.system()
    if system == "Darwin":
        return "Apple's GPU (MPS) isn't used, runs compute on the CPU here; take a machine with an NVIDIA GPU for speed"
    if system == "Windows":
        return "Windows isn't supported; run llmtune in WSL2, where it is Linux"
    if torch.version.hip:
        return (
            "llmtune isn't tested on AMD GPUs (ROCm); set hardware=cpu, or take an NVIDIA GPU, where a run misbehaves"
        )
    return None


def _check_driver(finding: Finding, num_usable: int) -> None:
    try:
        gpus = nvidia_gpus()
    except RuntimeError as error:
        finding.problems.append(
            f"nvidia-smi fails ({error}); load or install NVIDIA's driver, often a restart is enough"
        )
        return
    if not gpus:
        return
    name, driver = gpus[0]
    visible = f", {_VISIBLE}={os.environ[_VISIBLE]}" if _VISIBLE in os.environ else ""
    finding.facts.append(
        ("driver", f"NVIDIA {driver}, GPUs it sees: {len(gpus)}, GPUs torch sees: {num_usable}{visible}")
    )
    if num_usable:
        return
    if cuda_build() is None:
        finding.problems.append(
            f"torch can't use the {name}, since it was built for CPUs alone; install a CUDA build of torch: "
            "make setup TORCH_INDEX=ADDRESS in a checkout, or torch's own install command for CUDA"
        )
    elif visible and os.environ[_VISIBLE].strip() in ("", "-1"):
        finding.problems.append(f"{_VISIBLE}={os.environ[_VISIBLE]} hides the {name}; unset it")
    else:
        finding.problems.append(
            f"torch, built for CUDA {cuda_build()}, can't use the {name} with driver {driver}; update the driver, or "
            "install torch for an older CUDA"
        )


def _broken_4bit(reason: str) -> Finding:
    return Finding(
        [("4-bit", "does not work")],
        [
            f"bitsandbytes can't compute in 4 bits here ({reason}); method=qlora won't work: reinstall it with "
            "pip install --force-reinstall --no-deps bitsandbytes, or use method=lora"
        ],
    )
