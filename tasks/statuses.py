"""The closed set of statuses: every planned item ends in exactly one of them."""

from enum import StrEnum


class Status(StrEnum):
    """What became of one item. The values are what reports, the ledger and the pages show."""

    CURRENT = "current"
    """The index already had the feature of this version for this URL; nothing was done."""
    INDEXED = "indexed"
    """The feature is in the index."""
    WAITING_FOR_DOCUMENT = "waiting_for_document"
    """The core server has not written the document, or its new URL, yet."""
    SUPERSEDED = "superseded"
    """The item changed, or newer work reached its document, while this run was at it."""

    INVALID_URL = "invalid_url"
    """The catalogue's URL is empty, relative, too long or neither http nor https."""
    BLOCKED_ADDRESS = "blocked_address"
    """The URL, or a redirect, leads to a host or address that pictures may not come from."""
    GONE = "gone"
    """The image server says there is no such picture (404 or 410)."""
    FORBIDDEN = "forbidden"
    """The image server refuses to give the picture to us (another 4xx)."""
    RATE_LIMITED = "rate_limited"
    """The image server kept answering 429, or asked to be left alone for longer than a run waits."""
    UNREACHABLE = "unreachable"
    """No connection, a connection cut short, or a server error (5xx), at every attempt."""
    TIMED_OUT = "timed_out"
    """The transfer did not end within its time limit."""
    TOO_LARGE = "too_large"
    """The picture has more bytes than FEATURES_MAX_IMAGE_BYTES."""

    NOT_A_PICTURE = "not_a_picture"
    """What came is not a picture of a format we read (JPEG, PNG, WebP, GIF, BMP, AVIF), or a bare line."""
    TOO_MANY_PIXELS = "too_many_pixels"
    """The picture's header claims more pixels than FEATURES_MAX_IMAGE_PIXELS."""
    CORRUPT = "corrupt"
    """The picture starts like one and cannot be decoded."""

    VECTOR_REFUSED = "vector_refused"
    """The feature is all zeros or not finite: cosine similarity has no meaning for it."""
    REJECTED = "rejected"
    """Elasticsearch refused the update of this document, or does not hold what it accepted."""
    UNFINISHED = "unfinished"
    """The chunk of this item did not get to its end: a task died, failed or never ran."""


FINE = frozenset({Status.CURRENT, Status.INDEXED, Status.WAITING_FOR_DOCUMENT, Status.SUPERSEDED})
"""Statuses that are no failure: the feature is there, or the item has to wait for the core server or for a
run that planned later."""

FAILURES = frozenset(Status) - FINE
"""Statuses of items that should have a feature and have none. They count against
FEATURES_FAILURE_BUDGET, except for `unfinished`, which fails a run by itself."""
