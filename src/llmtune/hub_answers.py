"""What the Hugging Face Hub's answers mean, one sentence each with its cure; and how long they are waited for."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmtune.errors import LlmtuneError, explained

FULL_COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit on the Hub, whole."""
_SLOW_METHODS = ("POST", "PUT")
_SLOW_FACTOR = 12
"""An upload that has arrived is hashed and stored before it is answered."""
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_UNREACHED = {"TransportError", "OfflineModeIsEnabled", "ConnectionError", "TimeoutError", "LocalEntryNotFoundError"}


@dataclass(frozen=True)
class Asked:
    """What was asked of the Hub, for messages."""

    words: str
    """Keys with their values, as `model.id=a/b model.revision=x`."""
    repo_id: str
    kind: str = "model"
    """`model` or `data set`."""
    instead: str = "give a folder"
    """What can be done without the Hub."""
    sends: bool = False
    """Whether something is sent to the Hub, not fetched from it."""

    @property
    def page(self) -> str:
        """Address of the repository's page."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'' if self.kind == 'model' else 'datasets/'}{self.repo_id}"


@contextmanager
def hub_explained(asked: Asked, make_error: Callable[[str], LlmtuneError]) -> Iterator[None]:
    """Wait for the Hub's answers for a bounded time, and turn what it refuses into one sentence.

    Args:
        asked: what is asked of it.
        make_error: kind of the error that is raised.

    Raises:
        LlmtuneError: of the kind asked for; the Hub, the network or the disk said no.
    """
    bound_waits()
    try:
        yield
    except LlmtuneError:
        raise
    except Exception as error:
        meaning = meaning_of(error, asked)
        if meaning is None:
            raise
        raise make_error(f"{asked.words}: {meaning}") from error


def bound_waits() -> None:
    """Let no request of the Hub's client wait for ever.

    An answer is waited for 10 s (`HF_HUB_ETAG_TIMEOUT`), one to something sent 120 s. The client asks up to 6 times.
    """
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["request"]
    if _set_timeout not in hooks:
        hooks.append(_set_timeout)


def answer_seconds() -> int:
    """How long an answer is waited for."""
    from huggingface_hub import constants

    return constants.HF_HUB_ETAG_TIMEOUT


def meaning_of(error: BaseException, asked: Asked) -> str | None:
    """What an error of the Hub's client means and what cures it; None for one that says nothing of Hub or disk."""
    causes = _chain(error)
    refused = _refused(causes)
    if refused is not None:
        return _refusal(refused, asked)
    for cause in causes:
        if isinstance(cause, OSError) and explained(cause) is not None:
            return f"{explained(cause)}; HF_HOME=FOLDER moves the Hub's cache"
    names = {name for cause in causes for name in _names(cause)}
    if "HFValidationError" in names:
        return "not a Hub id; it reads owner/name"
    if names & _UNREACHED:
        return _unreached(names, asked)
    if any(isinstance(cause, OSError) and "Consistency check failed" in str(cause) for cause in causes):
        return "the download broke off; type the command again"
    return None


def unreachable(error: BaseException) -> bool:
    """Whether the Hub gave no answer on the thing itself: offline, no network, too busy or out of order."""
    causes = _chain(error)
    refused = _refused(causes)
    if refused is not None:
        status = refused.response.status_code
        return status == 429 or status >= 500
    return bool({name for cause in causes for name in _names(cause)} & _UNREACHED)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _set_timeout(request: Any) -> None:
    """Give a request a limit on waiting where the client sets none, or a long one for a retry."""
    limits = request.extensions.get("timeout") or {}
    given = [limit for limit in limits.values() if limit is not None]
    seconds = answer_seconds()
    if given and (request.method != "HEAD" or max(given) <= seconds):
        return
    longest = seconds * _SLOW_FACTOR if request.method in _SLOW_METHODS else seconds
    request.extensions["timeout"] = {"connect": seconds, "pool": seconds, "read": longest, "write": longest}


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _refused(causes: list[BaseException]) -> Any:
    """The cause that is an answer of the Hub's with an error status; None without one."""
    return next((cause for cause in causes if getattr(cause, "response", None) is not None), None)


def _names(error: BaseException) -> set[str]:
    """Names of an error's kinds: the client's HTTP library, which raises some of them, differs by its version."""
    return {kind.__name__ for kind in type(error).__mro__}


def _refusal(error: Any, asked: Asked) -> str:
    """What an answer with an error status means."""
    names, status = _names(error), error.response.status_code
    with_token = "authorization" in error.response.request.headers
    if "RevisionNotFoundError" in names:
        return f"the {asked.kind} has no such branch, tag or commit; leave the revision out for the newest"
    if status in (401, 403) or "RepositoryNotFoundError" in names:
        return _denial(names, status, asked, with_token)
    if status == 429:
        cure = "" if with_token else f", or {_LOG_IN} for a higher limit"
        return f"the Hub takes no more requests for now (rate limit); wait some minutes{cure}"
    if status >= 500:
        return f"the Hub is out of order (status {status}); try again later, or {asked.instead}"
    return f"the Hub refused with status {status}; see {asked.page}"


def _denial(names: set[str], status: int, asked: Asked, with_token: bool) -> str:
    """Why whoever asks may not have it."""
    if status == 401 and with_token:
        return f"the Hub doesn't take {token_place()}: it is wrong or expired; make a new one and {_LOG_IN}"
    if "GatedRepoError" in names and with_token:
        return f"your account has no access to this {asked.kind} yet; ask for it on {asked.page}"
    if "GatedRepoError" in names:
        return f"this {asked.kind} needs an account with access: ask for it on {asked.page}, then {_LOG_IN}"
    if "RepositoryNotFoundError" in names or status == 401:
        cure = "use a token that may read it" if with_token else _LOG_IN
        return f"the Hub has no such {asked.kind}, or it is private; check the id, or {cure}"
    return f"{token_place()} may not do this; use one that may"


def token_place() -> str:
    """Where the token in use stands; never the token."""
    return "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of `hf auth login`"


def _unreached(names: set[str], asked: Asked) -> str:
    from huggingface_hub import constants

    lacks = "" if asked.sends else "not in the Hub cache, and "
    if constants.is_offline_mode():
        return f"{lacks}HF_HUB_OFFLINE is set; unset it, or {asked.instead}"
    if names & {"TimeoutException", "TimeoutError"}:
        found = f"gave no answer within {answer_seconds()} s"
        cure = "try again, set HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
    elif names & {"ReadError", "RemoteProtocolError", "WriteError"}:
        found, cure = "broke off the connection", "type the command again"
    else:
        found, cure = "can't be reached", "check the network and try again"
    return f"{lacks}the Hub {found}; {cure}, or {asked.instead}"
