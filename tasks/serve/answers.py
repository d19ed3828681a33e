"""What the HTTP API answers where something is not done: which code, and errors in one form."""

from collections.abc import Mapping
from typing import Any

from tasks.errors import FeatureIndexError
from tasks.statuses import Status

CODES: Mapping[str, int] = {
    "bad_request": 422,
    "not_logged_in": 401,
    "not_allowed": 403,
    "busy": 429,
    "too_slow": 504,
    "unavailable": 503,
    "misconfigured": 500,
    "failed": 500,
    Status.WAITING_FOR_DOCUMENT: 409,
    Status.SUPERSEDED: 409,
    Status.INVALID_URL: 422,
    Status.BLOCKED_ADDRESS: 422,
    Status.GONE: 422,
    Status.FORBIDDEN: 502,
    Status.RATE_LIMITED: 503,
    Status.UNREACHABLE: 502,
    Status.TIMED_OUT: 504,
    Status.CIRCUIT_OPEN: 503,
    Status.TOO_LARGE: 413,
    Status.NOT_A_PICTURE: 422,
    Status.UNSUPPORTED_FORMAT: 422,
    Status.TOO_MANY_PIXELS: 422,
    Status.CORRUPT: 422,
    Status.VECTOR_REFUSED: 422,
    Status.REJECTED: 502,
}
"""The HTTP code of each status that a request can end with. What is worth sending again has 409, 429, 502,
503 or 504; anything else ends the same way until somebody changes something."""

MEANINGS: Mapping[str, str] = {
    "bad_request": "The request lacks something or holds a wrong value; the message names it.",
    "not_logged_in": "No token, or an expired one.",
    "not_allowed": "The user lacks the right, or the request came from another site's page.",
    "busy": "As many requests are under way as FEATURES_SERVE_REQUESTS allows; come again after Retry-After.",
    "too_slow": "The request took longer than FEATURES_SERVE_TIMEOUT; it may still be carried out.",
    "unavailable": "The inference process or Elasticsearch does not answer at the moment.",
    "misconfigured": "Configuration error; the message says what to change.",
    "failed": "An error in the program itself; the log of the inference process has it.",
} | {status.value: status.meaning for status in Status if status in CODES}
"""What each says."""

VERSION_HEADER = "X-Feature-Version"
"""Of which version the feature in an answer is."""
FINGERPRINT_HEADER = "X-Model-Fingerprint"
"""Of the model that computed it."""

RETRY_AFTER = 1
"""Seconds after which to come again when the limit is reached: most requests take less."""


class InferenceError(FeatureIndexError):
    """What was asked for was not done, and why."""

    def __init__(self, http_status: int, status: str, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.status = status
        """One of CODES."""
        self.message = message

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"status": self.status, "message": self.message}}

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers besides."""
        return {"Retry-After": str(RETRY_AFTER)} if self.status == "busy" else {}


def refused(status: str, message: str) -> InferenceError:
    """The error of a status, which brings its code."""
    return InferenceError(CODES[status], str(status), message)
