"""Which errors say that memory ran out."""

import errno

import torch

_GPU_SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Error out of memory at line",  # bitsandbytes
)
_MACHINE_SIGNS = ("DefaultCPUAllocator: ", "Cannot allocate memory", "std::bad_alloc")
_ONEDNN_TEXTS = ("could not create a primitive", "could not execute a primitive", "could not create a memory object")
"""All that oneDNN, which multiplies bf16 matrices on a CPU, says of it; more words have another meaning."""


def out_of_memory(error: BaseException) -> str | None:
    """`GPU` or `machine`, whose memory ran out; None where the error, and what it came from, says nothing of that."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if isinstance(cause, torch.OutOfMemoryError):
            return "GPU"
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return "machine"
        if isinstance(cause, RuntimeError | OSError) and any(sign in text for sign in _GPU_SIGNS):
            return "GPU"
        if isinstance(cause, RuntimeError | OSError) and any(sign in text for sign in _MACHINE_SIGNS):
            return "machine"
        if isinstance(cause, RuntimeError) and text.strip() in _ONEDNN_TEXTS:
            return "machine"
        cause = cause.__cause__
    return None
