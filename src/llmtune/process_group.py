"""The process group of a run of several processes: joined once, left before the first process works alone."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, cast

from llmtune import distributed, signals
from llmtune.errors import LlmtuneError, PeerFailed, message_of
from llmtune.peers import PeerWatch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

_TIMEOUT = timedelta(days=1)  # of torch, which can't tell who is late; the watch over the peers is what ends a wait
_POLL = timedelta(seconds=0.5)
_EXPLAIN_SECONDS = 5.0
_SIGNAL_SECONDS = 2.0


class _Group:
    """What this process has joined."""

    watch: PeerWatch | None = None
    store: "Store | None" = None
    host: "ProcessGroup | None" = None
    """For what lies on the host while the processes compute on GPUs; None where the group itself does that."""


def join(*, on_cpu: bool, peer_timeout_seconds: float) -> None:
    """Join the run's process group and watch over its processes; alone, only tell accelerate that there is none.

    Args:
        on_cpu: whether the processes compute on the CPU.
        peer_timeout_seconds: how long a process may be silent, or keep the others waiting.
    """
    from accelerate import PartialState

    PartialState(cpu=on_cpu, timeout=_TIMEOUT)
    if distributed.num_processes() == 1 or _Group.watch is not None:
        return
    import torch.distributed as dist
    from torch.distributed import PrefixStore
    from torch.distributed.distributed_c10d import _get_default_store

    default: Any = _get_default_store()
    # Connections of their own: one that is waited on holds up every other use of it.
    _Group.store, watched = (PrefixStore("llmtune", default.clone()) for _ in range(2))
    _Group.watch = PeerWatch(watched, distributed.rank(), distributed.num_processes(), peer_timeout_seconds)
    if dist.get_backend() != "gloo":
        _Group.host = cast("ProcessGroup", dist.new_group(backend="gloo", timeout=_TIMEOUT))


def leave() -> None:
    """Wait until every process has come here and dissolve the group; after that each process stands alone."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        exchange(lambda: dist.barrier(async_op=True), patient=True)
        if _Group.watch is not None:
            _Group.watch.stop()
        _Group.watch = _Group.store = _Group.host = None
        dist.destroy_process_group()


def exchange(start: Callable[[], Any], *, patient: bool = False, on_host: bool = False) -> None:
    """Exchange something among the processes: start it and wait for its end.

    On a GPU this returns once it is queued. On a CPU a process that fails, is killed or hangs ends the wait.

    Args:
        start: starts an asynchronous operation of torch.distributed.
        patient: whether another process may work on for as long as it needs before it takes part.
        on_host: whether it is an operation of `host_group`.

    Raises:
        PeerFailed: another process can't take part.
    """
    import torch.distributed as dist

    watch = _Group.watch
    if watch is not None:
        watch.check()
        watch.arrive(patient=patient)
    try:
        work = start()
        if dist.get_backend() != "gloo" and not on_host:
            work.wait()
            return
        while not _is_done(work):
            if watch is not None:
                watch.check()
    except RuntimeError as error:
        fault = watch.fault(_EXPLAIN_SECONDS) if watch is not None else None
        raise fault or PeerFailed(f"the processes lost each other: {str(error).splitlines()[0]}") from error


def host_group() -> "ProcessGroup | None":
    """The group for tensors on the host, as torch.distributed takes it: no exchange in it waits for a GPU."""
    return _Group.host


def tell_end(error: BaseException, *, by_signal: bool) -> BaseException:
    """Tell the other processes how this one ends.

    Args:
        error: what ends it.
        by_signal: whether a signal does.

    Returns:
        What made the run end: `error`, or what became of another process, for which the launcher ended this one.
    """
    watch = _Group.watch
    if watch is None:
        return error
    cause = (watch.fault(_SIGNAL_SECONDS) or error) if by_signal else error
    if isinstance(cause, LlmtuneError):
        watch.tell(PeerFailed(message_of(cause), cause.exit_status))
    elif by_signal:
        watch.tell(None)
    else:
        text = f"process {distributed.rank()} failed: {type(cause).__name__}: {cause}".splitlines()[0]
        watch.tell(PeerFailed(text, 1))
    return cause


def end(status: int) -> NoReturn:
    """Exit; at once where a second signal asks for it, or another process has failed.

    Python would wait for the checkpoint that is being written, and for the exchange that the other doesn't come to.
    """
    watch = _Group.watch
    if signals.asked_twice() or (watch is not None and watch.fault(0) is not None):
        for stream in filter(None, (sys.stdout, sys.stderr)):  # closed ones are None
            stream.flush()
        os._exit(status)
    sys.exit(status)


def from_first(text: str | None) -> str | None:
    """The first process's `text`, in every process of the group; the others wait for it. Once a run.

    Raises:
        PeerFailed: another process can't take part.
    """
    watch, store = _Group.watch, _Group.store
    assert watch is not None and store is not None, "the group is joined before"
    if distributed.is_first():
        store.set("first", text or "")
        return text
    while not store.check(["first"]):
        if fault := watch.fault(_POLL.total_seconds() / 10):
            raise fault
    return store.get("first").decode() or None


def _is_done(work: Any) -> bool:
    """Wait a moment for gloo; whether the operation has ended.

    Raises:
        RuntimeError: it failed.
    """
    try:
        work.wait(_POLL)
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # it ended meanwhile, or this raises why it failed
    return True
