"""Processes that prepare data: a piece of work for each task, results in the tasks' order."""

import os
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

from llmtune.errors import LlmtuneError, as_llmtune_error

_AHEAD = 2
"""Tasks a process that may wait for it, or for their results to be taken."""
_STOP_SECONDS = 5.0


T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Several processes of one thread each, or none: then this one works. Use as a context manager.

    They are commands of their own, not forks, so that neither threads of this process nor a script without a main
    guard can hurt. They take no module from the working folder. Ctrl-C reaches this process alone, as they are in
    sessions of their own; they end with this process, however it ends.

    Args:
        num_workers: how many; 0 does the work here.
    """

    def __init__(self, num_workers: int) -> None:
        self._processes = [_Process() for _ in range(num_workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.hang_up()
        for process in self._processes:
            process.wait()

    def map(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """The result of each task, in the tasks' order; tasks are drawn as they are needed.

        Args:
            work: what is done with a task; picklable, as tasks and results are.
            tasks: what it is done with.

        Raises:
            LlmtuneError: a process was ended from outside. What `work` raises is raised here too; what isn't for a
                user carries the process's traceback as a note.
        """
        if not self._processes:
            yield from map(work, tasks)
            return
        idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            process.learn(work)
            idle.put(process)
        threads = ThreadPoolExecutor(len(self._processes), thread_name_prefix="prepare")
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(threads.submit(_ask, idle, task))
                if len(waiting) > _AHEAD * len(self._processes):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def _ask(idle: "SimpleQueue[_Process]", task: Any) -> Any:
    process = idle.get()
    try:
        return process.ask(task)
    finally:
        idle.put(process)


class _Process:
    """One process and the connection to it."""

    def __init__(self) -> None:
        self._connection, other = Pipe()
        here = str(Path(__file__).parents[3])
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "FASTOKENS_BPE_THREADS": "1",
        }
        command = [sys.executable, "-P", "-m", __name__, str(other.fileno())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[other.fileno()], start_new_session=True
        )
        other.close()

    def learn(self, work: Any) -> None:
        """Give it the work that tasks are for from now on."""
        self._send(("work", work))

    def ask(self, task: Any) -> Any:
        """The result of a task."""
        self._send(("task", task))
        try:
            is_result, content = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if not is_result:
            raise content
        return content

    def hang_up(self) -> None:
        """Let the process end by itself once it is idle."""
        self._connection.close()

    def wait(self) -> None:
        """Wait for its end, and bring it about by force where it takes long."""
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, message: tuple[str, Any]) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._lost() from None

    def _lost(self) -> LlmtuneError:
        status = self._process.wait()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        memory = " (short of memory?)" if status == -signal.SIGKILL else ""
        return LlmtuneError(f"a process that prepares the data ended {how}{memory}; try data.num_workers=1")


def serve(connection: Connection) -> None:
    """Do work for the process at the other end until it closes the connection or ends."""
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            return
        if kind == "work":
            work = content
            continue
        assert work is not None
        answer = _answer(work, content)
        try:
            connection.send_bytes(answer)
        except OSError:
            return


def _answer(work: Callable[[Any], Any], content: Any) -> memoryview:
    """What `ask` gets: whether there is a result, and the result or the error in its place."""
    try:
        return ForkingPickler.dumps((True, work(content)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # such as a panic of a library in Rust
        return ForkingPickler.dumps((False, _sendable(error)))


def _sendable(error: BaseException) -> Exception:
    """The error, or one that says the same where it can't be sent as it is; with its traceback where it is a bug."""
    if isinstance(error, Exception) and _arrives(error):
        told = error
    else:
        told = RuntimeError(f"{type(error).__name__}: {error}")
    if as_llmtune_error(told) is None:
        told.add_note(f"in a process that prepares the data:\n{traceback.format_exc()}")
    return told


def _arrives(error: Exception) -> bool:
    with suppress(Exception):
        ForkingPickler.loads(ForkingPickler.dumps(error))  # pyright: ignore[reportAttributeAccessIssue]
        return True
    return False


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
