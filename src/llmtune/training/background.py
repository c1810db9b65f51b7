"""One piece of work at a time beside the training, whose failure isn't lost."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import ClassVar


class Background:
    """Works in a thread of its own. A process that ends by itself waits for it; one that is killed doesn't.

    Where work was left under way in this process, the next one begins once that is done.
    """

    _left: ClassVar[list[Future[None]]] = []

    def __init__(self) -> None:
        wait(self._left)
        self._left.clear()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="background")
        self._under_way: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work` once the piece before is done.

        Raises:
            Exception: what the piece before raised; `work` isn't begun.
        """
        self.wait()
        self._under_way = self._pool.submit(work)

    def wait(self) -> None:
        """Return once nothing is under way.

        Raises:
            Exception: what the work raised, once.
        """
        self.let_finish()
        error = None if self._under_way is None else self._under_way.exception()
        self._under_way = None
        if error is not None:
            raise error

    def let_finish(self) -> None:
        """Return once nothing is under way; what the work raised is kept for `wait`."""
        if self._under_way is not None:
            wait([self._under_way])  # interrupted, it leaves the work to be waited for again

    def leave(self) -> None:
        """Wait no more for what is under way, nor hear of its failure."""
        if self._under_way is not None:
            self._left.append(self._under_way)
            self._under_way = None

    def raise_failure(self) -> None:
        """Return at once, also while work is under way.

        Raises:
            Exception: what the work raised, once.
        """
        if self._under_way is not None and self._under_way.done():
            self.wait()
