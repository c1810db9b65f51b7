"""The process group of a run of several processes: joined once, left before the first process works alone."""

from datetime import timedelta

_TIMEOUT = timedelta(days=1)  # the others wait while the first writes; a peer that died is seen by the launcher


def join(*, on_cpu: bool) -> None:
    """Join the run's process group; alone, only tell accelerate that there is none.

    Args:
        on_cpu: whether the processes compute on the CPU.
    """
    from accelerate import PartialState

    PartialState(cpu=on_cpu, timeout=_TIMEOUT)


def leave() -> None:
    """Wait until every process has come here and dissolve the group; after that each process stands alone."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def from_first(text: str | None) -> str | None:
    """The first process's `text`, in every process of the group."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([text])[0]
