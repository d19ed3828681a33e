"""What one request for a picture ended with, and what an image server's answer says of the picture."""

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from tasks.fetching.addresses import RefusedURLError
from tasks.statuses import Status

PICTURES = (200, 203)
REDIRECTS = (301, 302, 303, 307, 308)

_LONGEST_PAUSE = 365 * 86_400.0
"""Seconds: what is taken of a Retry-After that names more."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one request for a picture ended with: its bytes, or a status and the reason."""

    content: bytes = b""
    status: Status | None = None
    reason: str = ""
    worth_retrying: bool = False
    overloaded: bool = False
    """The host did not answer in time, or answered 429 or 503: it bears fewer requests at once."""
    retry_after: float | None = None
    """Seconds after which the server asked us to come again."""


def refused(error: RefusedURLError) -> Fetched:
    """A URL that nobody was asked for."""
    return Fetched(status=error.status, reason=error.reason)


def timed_out(reason: str) -> Fetched:
    """A request that a time limit ended."""
    return Fetched(status=Status.TIMED_OUT, reason=reason, worth_retrying=True, overloaded=True)


def unreachable(reason: str) -> Fetched:
    """A request that the network, or what came over it, ended."""
    return Fetched(status=Status.UNREACHABLE, reason=reason[:300], worth_retrying=True)


def without_picture(code: int, retry_after: bytes) -> Fetched:
    """An answer that is neither a picture nor a redirect; `retry_after` is the header, empty without one."""
    reason = f"the server answered {code}"
    if code in (404, 410):
        return Fetched(status=Status.GONE, reason=reason)
    if code >= 500 or code in (408, 425, 429):
        seconds = _seconds(retry_after.decode("latin-1"))
        if seconds is not None:
            reason += f" and asked us to come again after {seconds:.0f} s"
        return Fetched(
            status=Status.RATE_LIMITED if code == 429 else Status.UNREACHABLE,
            reason=reason,
            worth_retrying=True,
            overloaded=code in (429, 503),
            retry_after=seconds,
        )
    if code >= 400:
        return Fetched(status=Status.FORBIDDEN, reason=reason)
    return Fetched(status=Status.NOT_A_PICTURE, reason=reason)


def _seconds(retry_after: str) -> float | None:
    """Seconds, from either of the header's two forms: a number or a date."""
    try:
        seconds = (
            float(retry_after)
            if retry_after.isdecimal()
            else parsedate_to_datetime(retry_after).timestamp() - time.time()
        )
    except (ValueError, TypeError, IndexError, OverflowError):  # it is the server's text
        return None
    return min(max(0.0, seconds), _LONGEST_PAUSE)
