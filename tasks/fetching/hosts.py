"""Which of a chunk's URLs is asked for next, and how gently each host is treated."""

import hashlib
import heapq
import itertools
import math
import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from tasks import files
from tasks.fetching.fetch import Fetched
from tasks.settings import Settings
from tasks.statuses import Status

_FIRST_BACK_OFF = 0.5
_LONGEST_BACK_OFF = 30.0
"""Seconds before a URL is tried again. A host that asks for more is left alone."""
_HANDFUL = 5
"""Failures in a row that put a host in doubt. One with fewer URLs uses up their attempts instead."""
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 5.0
"""Seconds between two requests to a host in doubt."""
_MOST_HOSTS = 1_000
"""Hosts that queues which stay open remember: strangers choose their names."""
_LEFT_ALONE = 300.0
_LONGEST_LEFT_ALONE = 6 * 3_600.0
"""Seconds that a host which was given up is left alone, and the most that any is, whatever it asked for."""

Result = tuple[str, Fetched, int]
"""A URL, what it ended with, and the requests made for it."""


@dataclass(frozen=True)
class LeftAlone:
    """That a host gets no request until then, and the answer that stands for all its URLs meanwhile."""

    answer: Fetched
    until: datetime

    @property
    def over(self) -> bool:
        """Whether it may be asked again."""
        return datetime.now(UTC) >= self.until

    @classmethod
    def recalled(cls, folder: Path, host: str) -> "LeftAlone | None":
        """What an earlier chunk noted of the host; None where nothing holds now, or the note is damaged."""
        try:
            note = files.read_json(_note(folder, host))
            answer = Fetched(status=Status(note["status"]), reason=str(note["reason"]))
            found = cls(answer, datetime.fromisoformat(note["until"]))
            return None if found.over else found
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, folder: Path, host: str) -> None:
        """Note it for the chunks that follow."""
        files.write_json(
            _note(folder, host),
            {
                "host": host,
                "until": self.until.isoformat(),
                "status": self.answer.status,
                "reason": self.answer.reason,
            },
        )


def _note(folder: Path, host: str) -> Path:
    return folder / f"{hashlib.sha256(host.encode()).hexdigest()}.json"


@dataclass
class Job:
    """A URL on its way."""

    url: str
    host: "Host"
    attempts: int = 0
    turn: int = 0
    """Which request to its host it is, when handed out."""
    asked_at: float = 0.0


@dataclass(eq=False)
class Host:
    """The URLs that wait for one host, and how it has been doing. Times are of time.monotonic()."""

    name: str
    cap: int
    patience: float
    limit: float
    """Requests that it may have at once: halved when it is overloaded, one more for each round that is
    answered well, `cap` at most."""
    urls: int = 0
    fresh: deque[Job] = field(default_factory=deque)
    later: list[tuple[float, int, Job]] = field(default_factory=list)
    """A heap of what waits for another try, by when that is."""
    in_flight: int = 0
    turns: int = 0
    """Requests handed out so far."""
    round_began: int = 0
    """The turns when it was last slowed down: what was on its way by then does not slow it down again."""
    ready_at: float = 0.0
    in_line_at: float = math.inf
    """Its place in the line of hosts to ask; infinite when it is not in it."""
    failures: int = 0
    """Since the last answer that showed it alive."""
    failing_since: float = 0.0
    alive_at: float = 0.0
    pause: float = 0.0
    left_alone: LeftAlone | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing of it waits or is on its way."""
        return not (self.in_flight or self.fresh or self.later)

    @property
    def next_at(self) -> float:
        """When its next URL may be asked for; never while all its places are taken."""
        if self.in_flight >= int(self.limit) or not (self.fresh or self.later):
            return math.inf
        return self.ready_at if self.fresh else max(self.ready_at, self.later[0][0])

    def hand_out(self, now: float, gap: float) -> Job:
        """Its next URL; what was tried before comes after all that was not."""
        job = self.fresh.popleft() if self.fresh else heapq.heappop(self.later)[2]
        self.turns += 1
        self.in_flight += 1
        self.ready_at = now + gap
        job.turn, job.asked_at = self.turns, now
        return job

    def take_all(self) -> list[Job]:
        """Everything that waits; nothing does afterwards."""
        jobs = [*self.fresh, *(job for _, _, job in self.later)]
        self.fresh.clear()
        self.later.clear()
        return jobs

    def learn(self, job: Job, fetched: Fetched, now: float) -> LeftAlone | None:
        """Treat the host by what a request to it ended with; return the news that it is to be left alone."""
        self.in_flight -= 1
        if not fetched.worth_retrying:
            self.alive_at, self.failures, self.pause = now, 0, 0.0
            self.limit = min(self.cap, self.limit + 1 / self.limit)
            return None
        if self.failures == 0:
            self.failing_since = max(job.asked_at, self.alive_at)
        self.failures += 1
        if self.left_alone is None:
            self.left_alone = self._had_enough(fetched, now)
            if self.left_alone is not None:
                return self.left_alone
        self.ready_at = max(self.ready_at, now + (fetched.retry_after or 0.0))
        new_round = job.turn > self.round_began
        if self._in_doubt and (new_round or self.failures == _HANDFUL):
            self._probe(now)
        elif fetched.overloaded and new_round:
            self._slow_down(self.limit / 2)
        return None

    @property
    def _in_doubt(self) -> bool:
        return min(self.failures, self.urls) >= _HANDFUL

    def _had_enough(self, last: Fetched, now: float) -> LeftAlone | None:
        """Whether it is to be left alone: it asked for that, or gave nothing but failures for too long."""
        seconds = last.retry_after or 0.0
        failing = now - self.failing_since
        if seconds <= _LONGEST_BACK_OFF:
            if not self._in_doubt or failing < self.patience:
                return None
            seconds = _LEFT_ALONE
            reason = (
                f"{self.failures} failures of {self.name} in {failing:.1f} s and no other answer, the last: "
                f"{last.reason}; the host is left alone for {seconds / 60:.0f} min"
            )
            last = replace(last, reason=reason)
        return LeftAlone(last, datetime.now(UTC) + timedelta(seconds=min(seconds, _LONGEST_LEFT_ALONE)))

    def _slow_down(self, limit: float) -> None:
        self.limit = max(1.0, limit)
        self.round_began = self.turns

    def _probe(self, now: float) -> None:
        """Let it have one request at a time, after growing pauses; the last when patience ends."""
        self._slow_down(1.0)
        self.pause = min(2 * self.pause or _FIRST_PAUSE, _LONGEST_PAUSE)
        pause_ends = now + self.pause * random.uniform(0.5, 1.0)  # noqa: S311
        self.ready_at = max(self.ready_at, min(pause_ends, self.failing_since + self.patience))


class HostQueues:
    """Hands out URLs so that no host gets more at once, or more a second, than it should and bears.

    A thread never waits for one host while another has work. `left_alone` is the folder in which the
    chunks of a plan tell each other which hosts to leave alone; None where there is nobody to tell. Queues
    that stay open take URLs at any time, until they are closed.
    """

    def __init__(self, settings: Settings, left_alone: Path | None, *, stays_open: bool = False) -> None:
        self._settings = settings
        self._open = stays_open
        self._gap = 1.0 / settings.requests_per_second_per_host
        self._left_alone = left_alone
        self._hosts: dict[str, Host] = {}
        self._line: list[tuple[float, int, Host]] = []
        """A heap of the hosts to ask, by when. Where a host moved forward its old place is still there."""
        self._order = itertools.count()
        self._unfinished = 0
        self._changed = threading.Condition()
        self._watched = math.inf
        """When the first of the waiting threads wakes by itself."""

    @property
    def waiting(self) -> int:
        """URLs that have no result yet."""
        return self._unfinished

    def add(self, url: str) -> Fetched | None:
        """Queue a URL; where its host is being left alone, don't, but return the answer for it."""
        name = urlsplit(url).netloc.lower()
        with self._changed:
            host = self._hosts.get(name)
            if host is None or (host.left_alone is not None and host.left_alone.over):
                host = self._met(name)
            if host.left_alone is not None:
                return host.left_alone.answer
            host.urls += 1
            host.fresh.append(Job(url, host))
            self._unfinished += 1
            self._line_up(host)
            self._wake_one()
            return None

    def take(self) -> Job | None:
        """The next URL, once its host may get it; None when all are done or the queues are closed."""
        with self._changed:
            while self._unfinished > 0 or self._open:
                now = time.monotonic()
                job = self._next(now)
                if job is not None:
                    self._wake_one()
                    return job
                self._wait(now)
            return None

    def finish(self, job: Job, fetched: Fetched) -> list[Result]:
        """Take in what a request ended with.

        Returns:
            What is settled by it: nothing where the URL gets another try; where the host is left alone
            from now on, everything that waited for it.
        """
        host = job.host
        with self._changed:
            now = time.monotonic()
            job.attempts += 1
            news = host.learn(job, fetched, now)
            results = self._settled(job, fetched, now)
            self._unfinished -= len(results)
            self._line_up(host)
            if self._unfinished > 0 or self._open:
                self._wake_one()
            else:
                self._changed.notify_all()
        if news is not None and self._left_alone is not None:
            news.keep(self._left_alone, host.name)
        return results

    def close(self) -> None:
        """Let every waiting thread go; nothing more is handed out."""
        with self._changed:
            self._unfinished, self._open = 0, False
            self._changed.notify_all()

    def _met(self, name: str) -> Host:
        if self._open and len(self._hosts) >= _MOST_HOSTS:
            self._hosts = {known: host for known, host in self._hosts.items() if not host.idle}
        cap = self._settings.downloads_per_host
        host = Host(name, cap, self._settings.host_patience, limit=cap)
        if self._left_alone is not None:
            host.left_alone = LeftAlone.recalled(self._left_alone, name)
        self._hosts[name] = host
        return host

    def _settled(self, job: Job, fetched: Fetched, now: float) -> list[Result]:
        host = job.host
        if fetched.worth_retrying and host.left_alone is not None:
            answer = host.left_alone.answer
            return [(each.url, answer, each.attempts) for each in (job, *host.take_all())]
        if not fetched.worth_retrying or job.attempts >= self._settings.download_attempts:
            return [(job.url, fetched, job.attempts)]
        heapq.heappush(host.later, (now + _back_off(fetched, job.attempts), next(self._order), job))
        return []

    def _next(self, now: float) -> Job | None:
        while self._line and self._line[0][0] <= now:
            at, _, host = heapq.heappop(self._line)
            if at != host.in_line_at:
                continue
            host.in_line_at = math.inf
            # It may have been slowed down since it lined up.
            job = host.hand_out(now, self._gap) if host.next_at <= now else None
            self._line_up(host)
            if job is not None:
                return job
        return None

    def _line_up(self, host: Host) -> None:
        at = host.next_at
        if at < host.in_line_at:
            host.in_line_at = at
            heapq.heappush(self._line, (at, next(self._order), host))

    def _wake_one(self) -> None:
        """Wake a thread where there is work, or a time to watch for, that no waiting thread watches for.

        One is enough: a thread that takes a URL wakes the next where there is more.
        """
        if self._line and self._line[0][0] < self._watched:
            self._changed.notify()

    def _wait(self, now: float) -> None:
        """Wait for a change, or until the line's first host may be asked unless another thread does."""
        at = self._line[0][0] if self._line else math.inf
        if at >= self._watched:
            self._changed.wait()
            return
        self._watched = at
        self._changed.wait(at - now)
        if self._watched == at:
            self._watched = math.inf


def _back_off(fetched: Fetched, attempts: int) -> float:
    """Seconds until a URL is worth another request."""
    if fetched.retry_after is not None:
        return fetched.retry_after
    # Jitter keeps the chunks of a run from coming back all at once.
    pause: float = min(_FIRST_BACK_OFF * 2 ** (attempts - 1), _LONGEST_BACK_OFF) * random.uniform(0.5, 1.5)  # noqa: S311
    return pause
