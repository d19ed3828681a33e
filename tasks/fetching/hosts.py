"""Which of a chunk's URLs is asked for next, and how gently each host is treated: a heap and a table, for one
thread.

A host is judged by different, recently asked URLs. While most of them fail its circuit is open: it is
probed with a few URLs that were not asked yet, after growing pauses. One good answer closes the circuit;
when nothing comes for the give-up time, what was not asked yet is left to a later run.
"""

import hashlib
import heapq
import itertools
import logging
import math
import random
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks import files
from tasks.fetching.answers import Fetched, timed_out
from tasks.fetching.client import Limits
from tasks.settings import Settings
from tasks.statuses import Status
from tasks.urls import Url

log = logging.getLogger(__name__)

_FIRST_BACK_OFF = 0.5
_LONGEST_BACK_OFF = 30.0
"""Seconds before a URL is tried again, unless its server names another time."""
_RECENT = 20
"""Different URLs that a host is judged by."""
_FAILURE_THRESHOLD = 5
"""Of them that have to fail, and be the most, before the circuit opens. It is there for the sake of URLs that
were not asked yet: without any, the others just use up their attempts."""
_PROBES = 4
"""Requests in one go to a host whose circuit is open."""
_PROBE_LIMITS = Limits(connect=2.0, silence=3.0, whole=6.0)
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 2.0
"""Seconds before it is probed again."""
_SLOWEST = 1.0
"""Seconds between two requests, whatever a host that answers has said."""
_STRAGGLES = 1.0
"""Seconds after which a request may lose its place to one that waits, or ten times what its host usually
takes: the place is worth hundreds of pictures, and a server that drips or hangs would take them all."""
_STAYS_OPEN = 300.0
_LONGEST_OPEN = 6 * 3_600.0
"""Seconds that a circuit stays open without a probe, and the most, whatever the host has asked for."""
_MOST_HOSTS = 1_000
"""That are remembered by a table that stays open: strangers choose their names."""

Result = tuple[str, Fetched, int]
"""A URL as it was given, what it ended with, and the requests made for it."""


@dataclass(frozen=True)
class OpenCircuit:
    """That a host gets no request until then, and why."""

    reason: str
    until: datetime

    @property
    def over(self) -> bool:
        """Whether the host may be asked again."""
        return datetime.now(UTC) >= self.until

    @property
    def answer(self) -> Fetched:
        """What a URL ends with that is not asked for because of it."""
        return Fetched(status=Status.CIRCUIT_OPEN, reason=self.reason)

    @classmethod
    def recalled(cls, folder: Path, host: str) -> "OpenCircuit | None":
        """What an earlier chunk noted of the host; None where nothing holds now, or the note is damaged."""
        try:
            note = files.read_json(_note(folder, host))
            found = cls(str(note["reason"]), datetime.fromisoformat(note["until"]))
            return None if found.over else found
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, folder: Path, host: str) -> None:
        """Note it for the chunks that follow."""
        note = {"host": host, "until": self.until.isoformat(), "reason": self.reason}
        files.write_json(_note(folder, host), note)


def _note(folder: Path, host: str) -> Path:
    return folder / f"{hashlib.sha256(host.encode()).hexdigest()}.json"


@dataclass(eq=False)
class Job:
    """A URL on its way."""

    text: str
    url: Url
    host: "Host"
    requests: int = 0
    attempts: int = 0
    """Requests that count: one that lost its place does not."""
    last: Fetched | None = None
    """What its last request ended with."""
    turn: int = 0
    """Which request to its host it is, when handed out."""
    asked_at: float = 0.0
    probe: bool = False
    postponed: bool = False
    deferred_at: float = math.inf
    """When its server last asked for it to come again later."""


@dataclass(eq=False)
class Host:
    """The URLs that wait for one host, and how it has been doing. Times are of time.monotonic()."""

    name: str
    cap: int
    gap: float
    """Seconds between two requests, at least; `slowest_gap` grows beyond it."""
    give_up_time: float
    longest_pause: float
    unending: bool = False
    """Whether URLs may come at any time, so that there are always some to spare."""
    urls: int = 0
    fresh: deque[Job] = field(default_factory=deque)
    later: list[tuple[float, int, Job]] = field(default_factory=list)
    """A heap of what waits for another try, by when that is."""
    running: dict[Job, None] = field(default_factory=dict)
    """The first asked first."""
    probing: int = 0
    probes: int = 0
    """That are left of this go."""
    turns: int = 0
    """Requests handed out so far."""
    ready_at: float = 0.0
    in_line_at: float = math.inf
    """Its place in the line of hosts to ask; infinite when it is not in it."""
    recent: dict[str, bool] = field(default_factory=dict)
    """Whether they failed, of the last different URLs."""
    typical: float = 0.0
    """Seconds that a good answer takes; 0 before the first."""
    alive_at: float = 0.0
    failing_since: float = math.inf
    """Since when there was nothing but failures, pauses that the host asked for left out."""
    paused: float = 0.0
    """Seconds that it has asked for so far."""
    away_until: float = 0.0
    """The end of the last of them."""
    open: bool = False
    """Whether its circuit is."""
    pause: float = 0.0
    given_up: OpenCircuit | None = None

    def __post_init__(self) -> None:
        self.limit = float(self.cap)
        """Requests that it may have at once: halved when it is overloaded, one more for each round that is
        answered well, `cap` at most."""
        self.slowed_gap = self.gap
        """Twice as long when it is overloaded, shorter again with each good answer."""
        self.round_began, self.round_began_at = 0, 0.0
        """The turns and the time when it was last slowed down: what was on its way by then does not slow it
        down again."""

    @property
    def idle(self) -> bool:
        """Whether nothing of it waits or is on its way."""
        return not (self.running or self.fresh or self.later)

    @property
    def next_at(self) -> float:
        """When its next URL may be asked for; never while all its places are taken."""
        taken, places = (
            (self.probing, min(self.cap, self.probing + self.probes))
            if self.open
            else (len(self.running), int(self.limit))
        )
        if taken >= places or not (self.fresh or self.later):
            return math.inf
        return self.ready_at if self.fresh else max(self.ready_at, self.later[0][0])

    def limits(self, usual: Limits) -> Limits:
        """Those of a request to it."""
        if not (self.open or (self._most_fail and not self.alive_at)):
            return usual
        whole = min(_PROBE_LIMITS.whole, usual.whole) if self.urls >= _FAILURE_THRESHOLD else usual.whole
        return Limits(
            min(_PROBE_LIMITS.connect, usual.connect), min(_PROBE_LIMITS.silence, usual.silence), whole
        )

    def hand_out(self, now: float) -> Job:
        """Its next URL; what was tried before comes after all that was not."""
        job = self.fresh.popleft() if self.fresh else heapq.heappop(self.later)[2]
        if not self.turns:
            self.round_began_at = now
        self.turns += 1
        self.running[job] = None
        self.probing += self.open
        self.probes -= self.open
        # In step with the clock, so that waking up late loses no turn; but turns are not saved up.
        self.ready_at = max(self.ready_at, now - 0.005) + (self.gap if self.open else self.slowed_gap)
        job.turn, job.asked_at, job.probe = self.turns, now, self.open
        return job

    def put_back(self, job: Job, at: float, order: int) -> None:
        """Let a URL wait for its next request."""
        heapq.heappush(self.later, (at, order, job))

    def take_all(self) -> list[Job]:
        """Everything that waits; nothing does afterwards."""
        jobs = [*self.fresh, *(job for _, _, job in self.later)]
        self.fresh.clear()
        self.later.clear()
        return jobs

    def stop(self, job: Job) -> None:
        """A request is over."""
        del self.running[job]
        self.probing -= job.probe

    def learn(self, job: Job, fetched: Fetched, now: float) -> bool:
        """Treat the host by what a request to it ended with; return whether the URL may be tried again."""
        self.stop(job)
        self.recent.pop(job.text, None)
        self.recent[job.text] = fetched.worth_retrying
        if len(self.recent) > _RECENT:
            del self.recent[next(iter(self.recent))]
        if not fetched.worth_retrying:
            self._do_well(job, now)
            return False
        if self.failing_since == math.inf:
            self.failing_since = max(job.asked_at, self.alive_at)
        can_wait = self._keep_away(job, fetched.retry_after, now)
        over = job.probe and not self.probing and not (self.probes and self.fresh)
        if not (self.fresh or self.unending):
            self.open = False  # what was asked for gets the tries it has
        elif not self.open and self._most_fail:
            self.open, self.pause = True, 0.0
            self._back_off(now)
        elif self.open and over:
            self._back_off(now)
        if self.open:
            self._look_for_the_end(fetched, now, waits=can_wait, over=over)
        elif fetched.overloaded:
            self._ease(job, fetched, now)
        return can_wait and self.given_up is None

    @property
    def _most_fail(self) -> bool:
        failed = sum(self.recent.values())
        return failed >= min(_FAILURE_THRESHOLD, self.urls) and 2 * failed > len(self.recent)

    def _do_well(self, job: Job, now: float) -> None:
        took = now - job.asked_at
        self.typical = took if not self.typical else 0.9 * self.typical + 0.1 * took
        self.alive_at, self.failing_since = now, math.inf
        if self.open:
            self.open = False
            self.recent.clear()
            self._slow_down(now)
            self.ready_at = max(now, self.away_until)
        else:
            self.limit = min(self.cap, self.limit + 1 / self.limit)
            self.slowed_gap = max(self.gap, 0.95 * self.slowed_gap)

    def _keep_away(self, job: Job, seconds: float | None, now: float) -> bool:
        """Pause as long as the host asks for; return whether that can be waited for at all."""
        if seconds is None:
            return True
        # Where others came meanwhile it is the URL's own matter.
        own = job.deferred_at < self.alive_at
        more = max(0.0, now + seconds - max(now, self.away_until))
        if (seconds if own else self.paused + more) > self.longest_pause:
            return False
        job.deferred_at = now
        if not own:
            self.paused += more
            self.failing_since += more
            self.away_until = max(self.away_until, now + seconds)
            self.ready_at = max(self.ready_at, self.away_until)
        return True

    def _ease(self, job: Job, fetched: Fetched, now: float) -> None:
        """Slow down for an overload, unless that was known: by its round, or of this URL alone."""
        if job.turn <= self.round_began or job.last is not None:
            return
        failed = sum(self.recent.values())
        if fetched.status is Status.TIMED_OUT and (failed < 2 or 4 * failed < len(self.recent)):
            return  # one picture that hangs or drips among many that come
        # Who asked for a pause gets half of what it had, however little; of the others no rate is known.
        answered = self.away_until > now > self.round_began_at
        asked = self.turns - self.round_began
        self._slow_down(now, asked / (now - self.round_began_at) if answered else 0.0)

    def _slow_down(self, now: float, rate: float = 0.0) -> None:
        """Half of what it had at once, and in a second, which was `rate` if that was less."""
        self.slowed_gap = min(_SLOWEST, 2 * max(self.slowed_gap, 1 / rate if rate else 0.0))
        self.limit = max(1.0, self.limit / 2)
        self.round_began, self.round_began_at = self.turns, max(now, self.ready_at)

    def _back_off(self, now: float) -> None:
        """Let some time go by before the next probes; the last are made when the give-up time is over."""
        self.probes = _PROBES
        self.pause = min(2 * self.pause or _FIRST_PAUSE, _LONGEST_PAUSE)
        pause_ends = now + self.pause * random.uniform(0.5, 1.0)  # noqa: S311
        last = max(now, self.failing_since + self.give_up_time)
        self.ready_at = max(self.ready_at, min(pause_ends, last))

    def _look_for_the_end(self, last: Fetched, now: float, *, waits: bool, over: bool) -> None:
        """Give up a host that wants too long a pause, or whose last probes failed when its time was over."""
        failing = now - self.failing_since
        if self.given_up is None and not waits:
            self._give_up(last, failing, last.retry_after or 0.0)
        elif self.given_up is None and over and failing >= self.give_up_time:
            self._give_up(last, failing, _STAYS_OPEN)

    def _give_up(self, last: Fetched, failing: float, seconds: float) -> None:
        failed = sum(self.recent.values())
        seconds = min(max(seconds, _STAYS_OPEN), _LONGEST_OPEN)
        self.given_up = OpenCircuit(
            f"not asked for: the circuit of {self.name} is open for {seconds / 60:.0f} min, since {failed} "
            f"of the last {len(self.recent)} pictures asked of it failed and none came in {failing:.1f} s; "
            f"the last: {last.reason}",
            datetime.now(UTC) + timedelta(seconds=seconds),
        )


class Hosts:
    """Hands out URLs so that no host gets more at once, or more a second, than it should and bears.

    `circuits` is the folder in which the chunks of a plan tell each other whose circuits are open; None where
    there is nobody to tell. A table that stays open forgets hosts that nothing waits for.
    """

    def __init__(self, settings: Settings, circuits: Path | None, *, stays_open: bool = False) -> None:
        self._settings = settings
        self._circuits = circuits
        self._stays_open = stays_open
        self._hosts: dict[str, Host] = {}
        self._line: list[tuple[float, int, Host]] = []
        """A heap of the hosts to ask, by when. Where a host moved forward its old place is still there."""
        self._order = itertools.count()
        self.waiting = 0
        """URLs that have no result yet."""

    def add(self, text: str, url: Url) -> Fetched | None:
        """Queue a URL; where its host's circuit stays open, don't, but return the answer for it."""
        host = self._hosts.get(url.server)
        if host is None or (host.given_up is not None and host.given_up.over):
            host = self._met(url.server)
        if host.given_up is not None:
            return host.given_up.answer
        if self._stays_open and host.idle:
            host.paused = 0.0
        host.urls += 1
        host.fresh.append(Job(text, url, host))
        self.waiting += 1
        self._line_up(host)
        return None

    @property
    def next_at(self) -> float:
        """When `take` may have something."""
        return self._line[0][0] if self._line else math.inf

    def take(self, now: float) -> Job | None:
        """The next URL whose host may get it by now."""
        while self._line and self._line[0][0] <= now:
            at, _, host = heapq.heappop(self._line)
            if at != host.in_line_at:
                continue
            host.in_line_at = math.inf
            # It may have been slowed down since it lined up.
            job = host.hand_out(now) if host.next_at <= now else None
            self._line_up(host)
            if job is not None:
                job.requests += 1
                return job
        return None

    def finish(self, job: Job, fetched: Fetched, now: float) -> list[Result]:
        """Take in what a request ended with.

        Returns:
            What is over by it: nothing where the URL gets another try; where the host is given up, everything
            that waited for it.
        """
        host = job.host
        known = host.given_up
        job.attempts += 1
        again = host.learn(job, fetched, now)
        job.last = fetched
        results: list[Result] = []
        if again and job.attempts < self._settings.download_attempts:
            host.put_back(job, now + _pause(fetched, job.attempts), next(self._order))
        else:
            results.append((job.text, fetched, job.requests))
        if host.given_up is not known and host.given_up is not None:
            left = host.take_all()
            results += [(each.text, each.last or host.given_up.answer, each.requests) for each in left]
            log.warning("%d pictures are %s", len(left), host.given_up.reason)
            if self._circuits is not None:
                host.given_up.keep(self._circuits, host.name)
        self.waiting -= len(results)
        self._line_up(host)
        return results

    def stragglers(self, now: float, *, full: bool) -> list[Job]:
        """Requests whose places others wait for, at their hosts or, when it is `full`, at any."""
        anywhere = full and self.next_at <= now
        return [
            job
            for host in self._hosts.values()
            if host.typical and (anywhere or (host.fresh and len(host.running) >= int(host.limit)))
            for job in host.running
            if not (job.postponed or job.probe) and now - job.asked_at > max(_STRAGGLES, 10 * host.typical)
        ]

    def postpone(self, job: Job, now: float) -> None:
        """A request was broken off for the sake of others: its URL comes after all that were not asked."""
        host = job.host
        host.stop(job)
        job.postponed = True
        job.last = timed_out(f"not whole after {now - job.asked_at:.1f} s, while others waited")
        host.put_back(job, now, next(self._order))
        self._line_up(host)

    def _met(self, name: str) -> Host:
        if self._stays_open and len(self._hosts) >= _MOST_HOSTS:
            self._hosts = {known: host for known, host in self._hosts.items() if not host.idle}
        settings = self._settings
        host = Host(
            name,
            settings.downloads_per_host,
            1.0 / settings.requests_per_second_per_host,
            settings.host_patience,
            settings.host_pause,
            self._stays_open,
        )
        if self._circuits is not None:
            host.given_up = OpenCircuit.recalled(self._circuits, name)
        self._hosts[name] = host
        return host

    def _line_up(self, host: Host) -> None:
        at = host.next_at
        if at < host.in_line_at:
            host.in_line_at = at
            heapq.heappush(self._line, (at, next(self._order), host))


def _pause(fetched: Fetched, attempts: int) -> float:
    """Seconds until a URL is worth another request."""
    if fetched.retry_after is not None:
        return fetched.retry_after
    # Jitter keeps the chunks of a run from coming back all at once.
    pause: float = min(_FIRST_BACK_OFF * 2 ** (attempts - 1), _LONGEST_BACK_OFF) * random.uniform(0.5, 1.5)  # noqa: S311
    return pause
