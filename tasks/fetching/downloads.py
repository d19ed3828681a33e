"""Fetches URLs in the order and at the pace that their hosts bear: the loop that joins hosts and client."""

import time
from functools import partial
from pathlib import Path

from tasks.fetching.answers import Fetched
from tasks.fetching.client import Client, Limits, Transfer
from tasks.fetching.hosts import Hosts, Job, Result
from tasks.settings import Settings
from tasks.statuses import Status
from tasks.urls import InvalidURLError, read

TURNS = "waiting for hosts' turns"

_BETWEEN_LOOKS = 0.25
"""Seconds between two looks at requests that keep others waiting."""


class Downloads:
    """Fetches any number of URLs, for one thread, which calls `step` again and again.

    `circuits` and `stays_open` are those of `Hosts`.
    """

    def __init__(self, settings: Settings, circuits: Path | None, *, stays_open: bool = False) -> None:
        """Start with no URL.

        Raises:
            ConfigurationError: as Client does.
        """
        self._client = Client(settings)
        self._hosts = Hosts(settings, circuits, stays_open=stays_open)
        self._most = settings.downloads
        self._usual = Limits(settings.connect_timeout, settings.read_timeout, settings.transfer_timeout)
        self._transfers: dict[Job, Transfer] = {}
        self._results: list[Result] = []
        self._look_at = 0.0
        self._turns = 0.0
        self.wake = self._client.wake
        self.close = self._client.close

    @property
    def waiting(self) -> int:
        """URLs that have no result yet."""
        return self._hosts.waiting

    @property
    def idle_seconds(self) -> float:
        """Seconds in which there was nothing to do but wait."""
        return self._client.idle_seconds

    @property
    def seconds(self) -> dict[str, float]:
        """What the places for transfers were waiting for in these seconds, in seconds of one place."""
        return {**self._client.seconds, TURNS: self._turns}

    def add(self, text: str | None) -> Fetched | None:
        """Queue a URL; where nobody has to be asked, don't, but return what it ends with."""
        try:
            return self._hosts.add(text or "", read(text))
        except InvalidURLError as error:
            return Fetched(status=Status.INVALID_URL, reason=str(error))

    def step(self, timeout: float = 60.0) -> list[Result]:
        """Go on until something has happened, for so many seconds at most; return what has ended."""
        began = now = time.monotonic()
        client, hosts = self._client, self._hosts
        while client.running < self._most and (job := hosts.take(now)) is not None:
            limits = job.host.limits(self._usual)
            self._transfers[job] = client.start(job.url, limits, partial(self._take, job))
        free, queued = self._most - client.running, hosts.waiting - client.running
        until = now + timeout
        if queued:
            until = min(until, hosts.next_at if free else until, now + _BETWEEN_LOOKS)
        client.poll(until - now)
        now = time.monotonic()
        self._turns += min(free, queued) * (now - began)
        if now >= self._look_at:
            self._look_at = now + _BETWEEN_LOOKS
            for job in hosts.stragglers(now, full=client.running >= self._most):
                client.cancel(self._transfers.pop(job))
                hosts.postpone(job, now)
        results, self._results = self._results, []
        return results

    def _take(self, job: Job, fetched: Fetched) -> None:
        del self._transfers[job]
        self._results += self._hosts.finish(job, fetched, time.monotonic())
