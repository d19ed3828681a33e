"""Fetches the pictures that are in doubt and keeps what they look like."""

import hashlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from tasks.duplicates.looks import Look, look
from tasks.fetching.downloads import Downloads
from tasks.pictures.decoders import Decoders
from tasks.pictures.picture import BadPictureError
from tasks.settings import Settings
from tasks.statuses import Status

_KEPT = 20_000
"""Of 9 kB each."""
_PASSING = frozenset({Status.UNREACHABLE, Status.TIMED_OUT, Status.CIRCUIT_OPEN, Status.RATE_LIMITED})


class SecondLooks:
    """What pictures look like, within a `with` block; each is fetched as a run fetches pictures."""

    def __init__(self, settings: Settings) -> None:
        """Start nothing yet.

        Raises:
            ConfigurationError: as Downloads does.
        """
        self._downloads = Downloads(settings, None)
        self._decoders = Decoders(settings)
        self._looks: dict[str, Look | None] = {}
        """By sha256; None of a picture that is not to be had any more."""
        self.fetched = 0
        """Pictures asked for so far."""

    def __enter__(self) -> Self:
        self._decoders.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoders.__exit__(kind, error, trace)
        self._downloads.close()

    def of(self, urls: Mapping[str, str | None]) -> dict[str, Look | None]:
        """What pictures look like, by their sha256, given with their URLs: None of one that is not to be
        had any more, and none at all of one that may be had later.

        Raises:
            ServiceUnavailableError: decoders cannot be started on this machine.
        """
        if len(self._looks) > _KEPT:
            self._looks.clear()
        lacking = {image: url for image, url in urls.items() if image not in self._looks}
        for image, decoded in self._decoders.decode(self._pictures(lacking)):
            self._looks[image] = None if isinstance(decoded, BadPictureError) else look(decoded)
        return {image: self._looks[image] for image in urls if image in self._looks}

    def _pictures(self, wanted: Mapping[str, str | None]) -> Iterator[tuple[str, bytes]]:
        """Each picture with its bytes; of one that is not to be had notes that there is none."""
        images: dict[str | None, list[str]] = {}
        for image, url in wanted.items():
            images.setdefault(url, []).append(image)
        self.fetched += len(images)
        for url in images:
            if self._downloads.add(url) is not None:
                self._looks |= dict.fromkeys(images[url])
        while self._downloads.waiting:
            for url, fetched, _ in self._downloads.step():
                found = None if fetched.status else hashlib.sha256(fetched.content).hexdigest()
                if found in images[url]:
                    yield found, fetched.content
                if fetched.status not in _PASSING:
                    self._looks |= dict.fromkeys(image for image in images[url] if image != found)
