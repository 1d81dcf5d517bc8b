"""Errors of the Hub: what is absent, and what is out of reach. The client often gives both by one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import OfflineModeIsEnabled

from ...storage.hub_mixin import HubError

# The Hub's own words for what does not exist, or is hidden from this token. A 401 or 404 without one of them says
# nothing about it: a proxy, an expired login or a fault may have answered.
_ABSENT = ("RepoNotFound", "RevisionNotFound", "EntryNotFound")
_ADVICE = {
    400: "Mend what the Hub objects to.",
    401: "Log in with `hf auth login`, or pass a valid token; without one, the Hub hides private repositories.",
    403: "Pass a token with the right to do this, or ask for access on the page of the repository.",
    404: "Check the name of the repository and HF_ENDPOINT, and try again.",
    412: "Somebody else has pushed in the meantime: look at the repository, and push again.",
    429: "The Hub limits the number of requests: wait a few minutes, and try again.",
}


@contextmanager
def hub_errors(task: str, state: Sequence[str] = ()) -> Iterator[None]:
    """Turn every error of the Hub inside the block into :class:`HubError`; errors of the local disk pass.

    Args:
        task: What the Hub is needed for, such as ``"read alice/mask at main"``.
        state: Sentences on what was done up to the error; they may be added inside the block.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # the client's errors have no common class, and some are a bare ValueError
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            raise
        raise _hub_error(task, state, error) from error


def absence(error: BaseException) -> str | None:
    """Return the Hub's own word for what does not exist, or not for this token; None if it does not say so."""
    response = getattr(origin(error), "response", None)
    code = None if response is None else response.headers.get("X-Error-Code")
    return code if code in _ABSENT else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def origin(error: BaseException) -> BaseException:
    """Return the error that tells most: the one that belongs to a request, or else the last cause."""
    while _request(error) is None and (cause := error.__cause__) is not None:
        error = cause
    return error


def _request(error: BaseException) -> Any:
    try:
        return getattr(error, "request", None)
    except RuntimeError:  # raised by errors of the HTTP library that know no request
        return None


def _hub_error(task: str, state: Sequence[str], error: Exception) -> HubError:
    first = origin(error)
    status = getattr(getattr(first, "response", None), "status_code", None)
    if isinstance(first, OfflineModeIsEnabled):
        advice = "Unset HF_HUB_OFFLINE, or load once with a connection: what is in the cache is read without one."
    elif status is None:
        advice = "Check the connection and HF_ENDPOINT, and try again."
    else:
        advice = _ADVICE.get(status, "The Hub has a problem: try again later.")
    said = (getattr(first, "server_message", None) or first_line(first)).rstrip(".")
    received = said if status is None else f"status {status}: {said}"
    message = f"the Hub must grant the request to {task}; received {received}."
    return HubError(" ".join([message, *state, advice]), status=status)


@contextmanager
def lost_commit(state: list[str], address: str) -> Iterator[None]:
    """Say in ``state`` that a commit may have arrived, if its request fails without an answer that refuses it.

    Args:
        state: Sentences on what was done up to the error; the first one says that nothing was pushed.
        address: The page of the repository.
    """
    try:
        yield
    except Exception as error:
        first = origin(error)
        status = getattr(getattr(first, "response", None), "status_code", 500)
        if "/commit/" in str(getattr(_request(first), "url", "")) and status >= 500:
            state[0] = f"The commit may have arrived, whole: look at {address} before you push again."
        raise
