"""Names for people, cut from what strangers wrote."""

from urllib.parse import urlsplit


def named_host(url: str | None) -> str:
    """The host of a URL for people to read, with the port that it names and without a user."""
    try:
        return urlsplit(url or "").netloc.rpartition("@")[2].lower() or "no host"
    except ValueError:
        return "no host"
