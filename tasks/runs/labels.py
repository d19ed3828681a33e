"""Names for people, cut from what strangers wrote."""

from urllib.parse import urlsplit


def brief(text: str, at_most: int = 60) -> str:
    """A text on one line, of so many characters at most, with what cannot be seen as U+FFFD."""
    visible = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: at_most + 1])
    return visible if len(visible) <= at_most else f"{visible[: at_most - 1]}…"


def named_host(url: str | None) -> str:
    """The host of a URL for people to read, with the port that it names and without a user."""
    try:
        return urlsplit(url or "").netloc.rpartition("@")[2].lower() or "no host"
    except ValueError:
        return "no host"
