"""One piece of work at a time beside the training, whose failure isn't lost."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Works in a thread of its own. A process that ends by itself waits for it; one that is killed doesn't."""

    def __init__(self) -> None:
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
        if self._under_way is None:
            return
        error = self._under_way.exception()  # an interrupt while it waits leaves the work to be waited for again
        self._under_way = None
        if error is not None:
            raise error

    def raise_failure(self) -> None:
        """Return at once, also while work is under way.

        Raises:
            Exception: what the work raised, once.
        """
        if self._under_way is not None and self._under_way.done():
            self.wait()
