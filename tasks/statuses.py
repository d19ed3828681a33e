"""The closed set of statuses: every planned item ends in exactly one of them.

docs/statuses.md is this table for people: `python -m tasks statuses` prints it.
"""

from enum import StrEnum
from typing import Self


class Status(StrEnum):
    """The result for one item. The values are what reports, the ledger and the pages show.

    Each carries what it means, whether it counts as a failure, whether the hourly retry takes it up by
    itself, and what an operator can do.
    """

    def __new__(
        cls, value: str, meaning: str = "", failure: bool = False, retried: bool = False, remedy: str = ""
    ) -> Self:
        """Make a member whose value is `value` alone."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        member.failure = failure
        member.retried = retried
        member.remedy = remedy
        return member

    meaning: str
    """What it says of the item."""
    failure: bool
    """Whether the item should have a feature and has none."""
    retried: bool
    """Whether the hourly retry takes the item up by itself; any item can be retried by hand."""
    remedy: str
    """What an operator can do; empty where there is nothing to do."""

    CURRENT = (
        "current",
        "The index already had the feature of this version for this URL; nothing was done.",
        *(False, False),
        "",
    )
    INDEXED = ("indexed", "The feature is in the index.", *(False, False), "")
    WAITING_FOR_DOCUMENT = (
        "waiting_for_document",
        "The core server has not written the document, or its new URL, yet.",
        *(False, True),
        "If many stay here, check whether the core server still writes to the index.",
    )
    SUPERSEDED = (
        "superseded",
        "The item changed, or a newer run or request wrote its document, while this run worked on it.",
        *(False, True),
        "",
    )

    INVALID_ROW = (
        "invalid_row",
        "The catalogue's row has no id that a document can have, or a text in no valid encoding.",
        *(True, False),
        "Correct the row in the catalogue: the reason names the column. Retry it if it counts as unchanged.",
    )
    INVALID_URL = (
        "invalid_url",
        "The URL, or what it redirects to, is empty, relative, too long, not http(s), or names a user.",
        *(True, False),
        "Correct the URL in the catalogue, or the redirect at the image server.",
    )
    BLOCKED_ADDRESS = (
        "blocked_address",
        "The URL, or a redirect, leads to a host or address that pictures may not come from.",
        *(True, False),
        "If the host is the shop's, add it to FEATURES_IMAGE_HOSTS, a private one as host:port; then retry.",
    )
    GONE = (
        "gone",
        "The image server says there is no such picture (404 or 410).",
        *(True, True),
        "Upload the picture again or correct the URL.",
    )
    FORBIDDEN = (
        "forbidden",
        "The image server refuses to give the picture to us (another 4xx).",
        *(True, True),
        "Let FEATURES_USER_AGENT or our address through at the image server.",
    )
    RATE_LIMITED = (
        "rate_limited",
        "The image server kept answering 429, or asked for a longer pause than FEATURES_HOST_PAUSE.",
        *(True, True),
        "Lower FEATURES_REQUESTS_PER_SECOND_PER_HOST or FEATURES_DOWNLOADS_PER_HOST.",
    )
    UNREACHABLE = (
        "unreachable",
        "No connection, a connection cut short or a server error (5xx), at every attempt.",
        *(True, True),
        "Look whether the host is up and can be reached from the workers.",
    )
    TIMED_OUT = (
        "timed_out",
        "The transfer did not end within its time limit, at any attempt.",
        *(True, True),
        "If the host is just slow, raise FEATURES_READ_TIMEOUT or FEATURES_TRANSFER_TIMEOUT.",
    )
    CIRCUIT_OPEN = (
        "circuit_open",
        "Never asked for: most other pictures of its host failed, so the host's circuit was opened.",
        *(True, True),
        "Look whether the host is up and can be reached; no attempt is counted, and the next retry takes it.",
    )
    TOO_LARGE = (
        "too_large",
        "The picture has more bytes than FEATURES_MAX_IMAGE_BYTES.",
        *(True, False),
        "Upload a smaller picture, or raise the limit and retry.",
    )

    NOT_A_PICTURE = (
        "not_a_picture",
        "What came is no picture: a web page, a text, nothing at all, or a bare line of pixels.",
        *(True, True),
        "Open the URL: image servers often answer an error page with 200.",
    )
    UNSUPPORTED_FORMAT = (
        "unsupported_format",
        "A picture, but not JPEG, PNG, WebP, GIF, BMP or AVIF.",
        *(True, False),
        "Upload the picture in one of these formats.",
    )
    TOO_MANY_PIXELS = (
        "too_many_pixels",
        "The picture's header claims more pixels than FEATURES_MAX_IMAGE_PIXELS.",
        *(True, False),
        "Upload a smaller picture, or raise the limit and retry.",
    )
    CORRUPT = (
        "corrupt",
        "The picture starts like one and cannot be decoded, or its decoder crashed or hung over it.",
        *(True, True),
        "Upload the picture again.",
    )

    VECTOR_REFUSED = (
        "vector_refused",
        "The feature is all zeros or not finite: cosine similarity has no meaning for it.",
        *(True, False),
        "Upload another picture; if there are many, check the model.",
    )
    REJECTED = (
        "rejected",
        "Elasticsearch refused the update of this document, or does not hold what was written.",
        *(True, True),
        "The reason is Elasticsearch's own; mostly it is the index's mapping or its ingest pipeline.",
    )
    UNFINISHED = (
        "unfinished",
        "The chunk of this item was not completed: a task died, failed or never ran.",
        *(True, True),
        "The failed task's log says why; then clear it with everything downstream, or wait for the retry.",
    )


FAILURES = frozenset(status for status in Status if status.failure)
"""They count against FEATURES_FAILURE_BUDGET, except for `unfinished`, which fails a run by itself."""

FINE = frozenset(Status) - FAILURES
"""The feature is there, or the item has to wait for the core server or for a run that planned later."""


def table() -> str:
    """All statuses with their meaning, as a Markdown table."""
    rows = [
        "| status | what it means | failure | retried by itself | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| `{s.value}` | {s.meaning} | {_yes(s.failure)} | {_yes(s.retried)} | {s.remedy} |" for s in Status
    ]
    return "\n".join(rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
