"""Fetches single URLs as a chunk does, for tests that want one answer at a time."""

import time
from typing import Any

from tasks.fetching.answers import Fetched
from tasks.fetching.client import Client, Limits
from tasks.settings import Settings
from tasks.statuses import Status
from tasks.urls import InvalidURLError, read


class Fetcher:
    """A client whose caller waits for each picture."""

    def __init__(self, *hosts: str, **changed: Any) -> None:
        settings = Settings(image_hosts=hosts, **changed)
        self.client = Client(settings)
        self._limits = Limits(settings.connect_timeout, settings.read_timeout, settings.transfer_timeout)

    def fetch(self, url: str | None) -> Fetched:
        """What one request ends with."""
        (fetched,) = self.fetch_all([url])
        return fetched

    def fetch_all(self, urls: list[str | None]) -> list[Fetched]:
        """What requests that are made at once end with."""
        found: dict[int, Fetched] = {}
        for number, url in enumerate(urls):
            try:
                self.client.start(
                    read(url), self._limits, lambda answer, number=number: found.update({number: answer})
                )
            except InvalidURLError as error:
                found[number] = Fetched(status=Status.INVALID_URL, reason=str(error))
        ends = time.monotonic() + 60
        while len(found) < len(urls):
            assert time.monotonic() < ends, "no limit has ended it"
            self.client.poll(1)
        return [found[number] for number in range(len(urls))]
