import itertools
import queue
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import files
from tasks.fetching import hosts
from tasks.fetching.fetch import Fetched
from tasks.fetching.hosts import Host, HostQueues, Job, LeftAlone, Result
from tasks.settings import Settings
from tasks.statuses import Status

PHOTO = Fetched(content=b"photo")
GONE = Fetched(status=Status.GONE, reason="the server answered 404")
BROKEN = Fetched(status=Status.UNREACHABLE, reason="the server answered 500", worth_retrying=True)
BUSY = Fetched(
    status=Status.UNREACHABLE, reason="the server answered 503", worth_retrying=True, overloaded=True
)
SILENT = Fetched(status=Status.TIMED_OUT, reason="no answer in time", worth_retrying=True, overloaded=True)


def limited(seconds: float) -> Fetched:
    return Fetched(
        status=Status.RATE_LIMITED,
        reason=f"the server answered 429 and asked to be left alone for {seconds:g} s",
        worth_retrying=True,
        overloaded=True,
        retry_after=seconds,
    )


# One host, by a clock of the test's own


def host_with(urls: int, cap: int = 16, patience: float = 15.0) -> Host:
    host = Host("cdn.example", cap, patience, limit=cap)
    host.urls = urls
    host.fresh.extend(Job(f"http://cdn.example/{number}", host) for number in range(urls))
    return host


def handed_out(host: Host, now: float) -> list[Job]:
    """Everything that may be asked for at that time."""
    jobs = []
    while host.next_at <= now:
        jobs.append(host.hand_out(now, gap=0.0))
    return jobs


def answered(host: Host, jobs: Sequence[Job], fetched: Fetched, now: float) -> LeftAlone | None:
    """The news, if any, from these requests' all ending alike."""
    news = [host.learn(job, fetched, now) for job in jobs]
    return next((one for one in news if one is not None), None)


def test_a_host_starts_with_its_cap() -> None:
    assert len(handed_out(host_with(100, cap=16), 0.0)) == 16


def test_a_host_gets_only_so_many_a_second() -> None:
    host = host_with(100, cap=16)
    for number in range(10):
        assert host.next_at <= number * 0.25
        host.hand_out(number * 0.25, gap=0.25)
        assert host.next_at == (number + 1) * 0.25


@pytest.mark.parametrize("overload", [BUSY, SILENT, limited(0)])
def test_overload_halves_what_a_host_gets_once_a_round(overload: Fetched) -> None:
    host = host_with(100, cap=16)
    first_round = handed_out(host, 0.0)
    answered(host, first_round[:3], overload, 1.0)
    answered(host, first_round[3:4], GONE, 1.0)
    answered(host, first_round[4:7], overload, 1.0)
    assert int(host.limit) == 8, "six failures of one round are one sign"
    assert handed_out(host, 1.0) == [], "nine are still on their way"

    answered(host, first_round[7:9], PHOTO, 1.1)
    (second_round,) = handed_out(host, 1.1)
    answered(host, [second_round], overload, 1.2)
    assert int(host.limit) == 4
    answered(host, first_round[9:], PHOTO, 1.3)
    assert len(handed_out(host, 1.3)) in (4, 5)


def test_a_picture_that_the_server_stumbles_over_is_no_overload() -> None:
    host = host_with(100, cap=16)
    answered(host, handed_out(host, 0.0)[:4], BROKEN, 1.0)
    assert host.limit == 16


def test_a_host_always_keeps_one_place() -> None:
    host = host_with(4, cap=4)
    for places in (4, 2, 1, 1, 1):
        jobs = handed_out(host, 0.0)
        assert len(jobs) == places
        answered(host, jobs, BUSY, 0.0)
        host.fresh.extend(jobs)


def test_good_answers_bring_a_host_back_by_one_place_a_round() -> None:
    host = host_with(1000, cap=8)
    answered(host, handed_out(host, 0.0), SILENT, 1.0)
    places = []
    for now in range(10, 30):
        jobs = handed_out(host, now)
        places.append(len(jobs))
        answered(host, jobs, PHOTO, now)
    assert places[0] == 1
    assert all(0 <= after - before <= 1 for before, after in itertools.pairwise(places))
    assert places.index(8) <= 12, "seven rounds, and what rounding down costs"
    assert places[-5:] == [8] * 5


def test_a_dead_host_gets_single_requests_with_growing_pauses_and_then_none() -> None:
    host = host_with(500, cap=16, patience=15.0)
    news = answered(host, handed_out(host, 0.0), SILENT, 0.01)
    asked = []
    now = 0.01
    while news is None:
        assert host.next_at > now
        now = host.next_at
        jobs = handed_out(host, now)
        assert len(jobs) == 1
        asked.append(now)
        news = answered(host, jobs, SILENT, now)

    pauses = [after - before for before, after in itertools.pairwise([0.01, *asked])]
    shares = [pause / min(0.25 * 2**number, 5) for number, pause in enumerate(pauses[:-1])]
    assert all(0.499 <= share <= 1.001 for share in shares)
    assert min(shares) < 0.99, "chunks must not come back all at once"
    assert asked[-1] == 15.0, "it has its last chance when patience ends"
    assert news is host.left_alone
    assert news.answer.status == Status.TIMED_OUT
    assert news.answer.reason == (
        f"{16 + len(asked)} failures of cdn.example in 15.0 s and no other answer, the last: "
        "no answer in time; the host is left alone for 5 min"
    )
    assert abs(news.until - datetime.now(UTC) - timedelta(minutes=5)) < timedelta(seconds=10)
    assert len(host.take_all()) == 500 - 16 - len(asked)
    assert host.next_at == float("inf")


def test_requests_that_were_on_their_way_do_not_lengthen_the_pause() -> None:
    host = host_with(500, cap=16)
    jobs = handed_out(host, 0.0)
    answered(host, jobs[:5], SILENT, 5.0)
    ready_at = host.ready_at
    answered(host, jobs[5:], SILENT, 5.1)
    assert host.ready_at == ready_at <= 5.25


def test_pauses_are_short_again_after_a_good_answer() -> None:
    host = host_with(500, cap=5)
    answered(host, handed_out(host, 0.0), SILENT, 0.01)
    for _ in range(4):
        now = host.next_at
        answered(host, handed_out(host, now), SILENT, now)
    assert host.next_at - now >= 2
    now = host.next_at
    answered(host, handed_out(host, now), PHOTO, now)
    for _ in range(5):
        answered(host, [host.hand_out(now, gap=0.0)], SILENT, now)
    assert 0.1 < host.next_at - now <= 0.25


def test_one_good_answer_begins_everything_anew() -> None:
    host = host_with(5000, cap=4, patience=15.0)
    now, news, requests = 0.0, None, 0
    while now < 600:
        for job in handed_out(host, now):
            requests += 1
            # Fifty failures or 14 seconds of them, whatever comes first, and then one picture.
            alive = requests % 50 == 0 or now - host.alive_at > 14
            news = news or host.learn(job, GONE if alive else SILENT, now)
        now = max(host.next_at, now + 0.1)
    assert news is None
    assert host.left_alone is None
    assert requests > 100


def test_a_time_in_which_nothing_was_asked_is_no_failing_time() -> None:
    host = host_with(500, cap=8)
    answered(host, handed_out(host, 0.0)[:1], PHOTO, 1.0)
    host.in_flight = 0
    slow, *rest = handed_out(host, 1000.0)
    assert answered(host, rest, BUSY, 1000.5) is None
    # Nor is the time until a good answer, for a request that was on its way before it.
    fast = host.hand_out(1020.0, gap=0.0)
    assert answered(host, [fast], PHOTO, 1030.0) is None
    assert answered(host, [slow, *handed_out(host, 1031.0)], SILENT, 1032.0) is None
    assert answered(host, [host.hand_out(1040.0, 0.0) for _ in range(5)], SILENT, 1044.0) is None
    assert answered(host, [host.hand_out(1044.5, 0.0)], SILENT, 1045.0) is not None


def test_a_host_of_four_urls_is_not_held_back() -> None:
    host = host_with(4, cap=16, patience=0.001)
    for now in (1.0, 2.0, 3.0):
        jobs = handed_out(host, now)
        assert len(jobs) == 4
        assert answered(host, jobs[:2], BUSY, now + 0.5) is None
        host.in_flight = 0
        host.fresh.extend(jobs)
        host.limit = 16


@pytest.mark.parametrize(
    ("attempts", "middle"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (6, 16), (7, 30), (20, 30)]
)
def test_a_url_that_failed_waits_longer_each_time_and_never_the_same(attempts: int, middle: float) -> None:
    waits = {hosts._back_off(BROKEN, attempts) for _ in range(200)}
    assert middle * 0.5 <= min(waits) < middle * 0.7
    assert middle * 1.3 < max(waits) <= middle * 1.5


def test_a_host_that_asks_for_a_while_gets_nothing_for_that_while() -> None:
    host = host_with(500, cap=8)
    jobs = handed_out(host, 0.0)
    answered(host, jobs[:1], limited(30), 1.0)
    answered(host, jobs[1:], PHOTO, 1.0)
    assert host.next_at == 31.0


@pytest.mark.parametrize(("asked_for", "hours"), [(31, 31 / 3600), (7200, 2), (86_400, 6), (1e300, 6)])
def test_a_host_that_asks_for_more_is_left_alone_for_it_some_hours_at_most(
    asked_for: float, hours: float
) -> None:
    host = host_with(1, cap=8)
    answer = limited(asked_for)
    news = answered(host, handed_out(host, 0.0), answer, 1.0)
    assert news is not None
    assert news.answer == answer, "its own words say best why"
    assert abs(news.until - datetime.now(UTC) - timedelta(hours=hours)) < timedelta(seconds=10)


# Notes for the chunks that follow


def test_a_note_is_found_by_the_host_alone(tmp_path: Path) -> None:
    until = datetime.now(UTC) + timedelta(minutes=5)
    LeftAlone(Fetched(status=Status.TIMED_OUT, reason="사진 없음"), until).keep(tmp_path, "cdn.example:8080")

    found = LeftAlone.recalled(tmp_path, "cdn.example:8080")
    assert found == LeftAlone(Fetched(status=Status.TIMED_OUT, reason="사진 없음"), until)
    assert LeftAlone.recalled(tmp_path, "cdn.example") is None
    assert LeftAlone.recalled(tmp_path / "not there", "cdn.example:8080") is None


def test_a_note_holds_for_its_time(tmp_path: Path) -> None:
    LeftAlone(BUSY, datetime.now(UTC) - timedelta(seconds=1)).keep(tmp_path, "cdn.example")
    assert LeftAlone.recalled(tmp_path, "cdn.example") is None


GOOD_NOTE = {"host": "cdn.example", "until": "2999-01-01T00:00:00+00:00", "status": "gone", "reason": "x"}


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        GOOD_NOTE | {"status": "no such status"},
        GOOD_NOTE | {"status": None},
        GOOD_NOTE | {"until": "soon"},
        GOOD_NOTE | {"until": 5},
        GOOD_NOTE | {"until": "2999-01-01T00:00:00"},
        {key: value for key, value in GOOD_NOTE.items() if key != "reason"},
    ],
)
def test_a_damaged_note_is_none(tmp_path: Path, damaged: Any) -> None:
    LeftAlone(GONE, datetime.now(UTC) + timedelta(minutes=5)).keep(tmp_path, "cdn.example")
    (note,) = tmp_path.iterdir()
    files.write_json(note, GOOD_NOTE)
    assert LeftAlone.recalled(tmp_path, "cdn.example"), "the note is read when it is whole"

    if isinstance(damaged, str):
        note.write_text(damaged)
    else:
        files.write_json(note, damaged)
    assert LeftAlone.recalled(tmp_path, "cdn.example") is None


def test_a_note_of_other_bytes_or_no_file_is_none(tmp_path: Path) -> None:
    LeftAlone(GONE, datetime.now(UTC) + timedelta(minutes=5)).keep(tmp_path, "cdn.example")
    (note,) = tmp_path.iterdir()
    note.write_bytes(b"\xff\xfe\x00")
    assert LeftAlone.recalled(tmp_path, "cdn.example") is None
    note.unlink()
    note.mkdir()
    assert LeftAlone.recalled(tmp_path, "cdn.example") is None


# All hosts together


def queues_over(folder: Path, urls: Sequence[str], **changed: Any) -> HostQueues:
    queues = HostQueues(Settings(**({"requests_per_second_per_host": 1e6} | changed)), folder)
    for url in urls:
        assert queues.add(url) is None
    return queues


@pytest.fixture
def queues_of(tmp_path: Path) -> Iterator[Callable[..., HostQueues]]:
    """Makes queues with these URLs; they are closed when the test is over."""
    made: list[HostQueues] = []

    def make(*urls: str, **changed: Any) -> HostQueues:
        made.append(queues_over(tmp_path, urls, **changed))
        return made[-1]

    yield make
    for queues in made:
        queues.close()


def taken(queues: HostQueues) -> Job:
    job = queues.take()
    assert job is not None
    return job


def waits(queues: HostQueues) -> threading.Thread:
    """A thread that has nothing to take."""
    thread = threading.Thread(target=queues.take, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    return thread


def test_closing_lets_waiting_threads_go(queues_of: Callable[..., HostQueues]) -> None:
    queues = queues_of("http://host/1", "http://host/2", downloads_per_host=1)
    taken(queues)
    waiting = [waits(queues) for _ in range(3)]
    queues.close()
    for thread in waiting:
        thread.join(5)
        assert not thread.is_alive()


def test_the_last_result_lets_waiting_threads_go(queues_of: Callable[..., HostQueues]) -> None:
    queues = queues_of("http://host/1")
    job = taken(queues)
    waiting = [waits(queues) for _ in range(3)]
    assert queues.finish(job, PHOTO) == [("http://host/1", PHOTO, 1)]
    for thread in waiting:
        thread.join(5)
        assert not thread.is_alive()
    assert queues.waiting == 0


def test_spellings_of_one_host_share_its_places(queues_of: Callable[..., HostQueues]) -> None:
    queues = queues_of(
        "http://CDN.example/1", "http://cdn.example/2", "https://cdn.example/3", downloads_per_host=2
    )
    assert [taken(queues).host.name for _ in range(2)] == ["cdn.example", "cdn.example"]
    waits(queues)


def test_when_a_host_is_left_alone_all_that_waits_for_it_ends_at_once(
    queues_of: Callable[..., HostQueues], tmp_path: Path
) -> None:
    urls = [f"http://busy/{number}" for number in range(6)]
    queues = queues_of(*urls, "http://other/1", downloads_per_host=4)
    jobs = {job.url: job for job in (taken(queues) for _ in range(5))}
    assert queues.finish(jobs[urls[0]], BUSY) == [], "it gets another try"
    answer = limited(7200)

    ended = queues.finish(jobs[urls[1]], answer)

    assert sorted((url, attempts) for url, _, attempts in ended) == [
        (urls[0], 1),
        (urls[1], 1),
        (urls[4], 0),
        (urls[5], 0),
    ]
    assert {fetched for _, fetched, _ in ended} == {answer}
    # What was on its way counts as what it brings; a failure among it gets no other try.
    assert queues.finish(jobs[urls[2]], PHOTO) == [(urls[2], PHOTO, 1)]
    assert queues.finish(jobs[urls[3]], SILENT) == [(urls[3], answer, 1)]
    assert queues.waiting == 1
    assert LeftAlone.recalled(tmp_path, "busy")
    assert LeftAlone.recalled(tmp_path, "other") is None

    later = HostQueues(Settings(), tmp_path)
    standing = later.add("http://BUSY/7")
    assert standing is not None
    assert (standing.status, standing.reason) == (answer.status, answer.reason)
    assert later.waiting == 0


OUTCOMES = [PHOTO, PHOTO, GONE, BROKEN, BUSY, SILENT, limited(0.002), limited(7200)]


@settings(max_examples=80, deadline=None)
@given(
    scripts=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4)),
        max_size=30,
    ),
    cap=st.integers(1, 4),
    threads=st.integers(1, 6),
    attempts=st.integers(1, 4),
    patience=st.sampled_from([0.0001, 0.004, 10.0]),
)
def test_every_url_gets_exactly_one_result_and_no_host_too_many_requests(
    scripts: list[tuple[int, list[Fetched]]],
    cap: int,
    threads: int,
    attempts: int,
    patience: float,
) -> None:
    """A script is a host and what the requests for one of its URLs end with, the last over and over."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(hosts, "_FIRST_BACK_OFF", 0.001)
        patch.setattr(hosts, "_FIRST_PAUSE", 0.0005)
        patch.setattr(hosts, "_LONGEST_PAUSE", 0.002)
        outcomes = {f"http://host{host}/{number}": list(ends) for number, (host, ends) in enumerate(scripts)}
        queues = queues_over(
            Path(folder),
            list(outcomes),
            downloads_per_host=cap,
            download_attempts=attempts,
            host_patience=patience,
        )
        assert queues.waiting == len(scripts)
        lock = threading.Lock()
        in_flight: Counter[str] = Counter()
        most: Counter[str] = Counter()
        requests: dict[str, list[Fetched]] = {url: [] for url in outcomes}
        results: list[Result] = []

        def work() -> None:
            while (job := queues.take()) is not None:
                with lock:
                    in_flight[job.host.name] += 1
                    most[job.host.name] = max(most[job.host.name], in_flight[job.host.name])
                    ends = outcomes[job.url]
                    requests[job.url].append(ends.pop(0) if len(ends) > 1 else ends[0])
                    end = requests[job.url][-1]
                time.sleep(0.0003)
                with lock:
                    in_flight[job.host.name] -= 1
                results.extend(queues.finish(job, end))

        workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)
            assert not worker.is_alive(), "the queues never let a thread go"
        notes = {name: LeftAlone.recalled(Path(folder), name) for name in most}

    assert Counter(url for url, _, _ in results) == Counter(list(outcomes))
    assert queues.waiting == 0
    assert all(count <= cap for count in most.values())
    for url, fetched, made in results:
        assert made == len(requests[url]) <= attempts
        its_own = made > 0 and fetched == requests[url][-1]
        if its_own and (not fetched.worth_retrying or made == attempts):
            continue
        note = notes[url.split("/")[2]]
        assert note is not None, "no other try although its host was not left alone"
        assert fetched.reason == note.answer.reason


class CountingCondition(threading.Condition):
    """Counts the threads that it wakes."""

    woken = 0

    def notify(self, n: int = 1) -> None:
        self.woken += min(n, len(self._waiters))  # type: ignore[attr-defined]
        super().notify(n)


def takes(queues: HostQueues, into: "queue.Queue[Job | None]") -> None:
    threading.Thread(target=lambda: into.put(queues.take()), daemon=True).start()


def test_a_place_that_becomes_free_wakes_one_thread(queues_of: Callable[..., HostQueues]) -> None:
    queues = queues_of(*(f"http://host/{number}" for number in range(9)), downloads_per_host=1)
    queues._changed = changed = CountingCondition()
    first = taken(queues)
    into: queue.Queue[Job | None] = queue.Queue()
    for _ in range(8):
        takes(queues, into)
    while len(changed._waiters) < 8:  # type: ignore[attr-defined]
        time.sleep(0.001)

    queues.finish(first, PHOTO)

    second = into.get(timeout=5)
    assert second is not None
    assert changed.woken <= 2, "one for the free place, and one at most to watch when the host is next"
    queues.finish(second, PHOTO)
    assert into.get(timeout=5) is not None


def test_places_that_become_free_with_time_wake_a_thread_each(queues_of: Callable[..., HostQueues]) -> None:
    """Nobody but the waiting threads themselves is there to notice."""
    queues = queues_of(*(f"http://host/{number}" for number in range(4)), downloads_per_host=3)
    answer = replace(BROKEN, retry_after=0.2)
    for job in [taken(queues) for _ in range(3)]:
        assert queues.finish(job, answer) == []
    into: queue.Queue[Job | None] = queue.Queue()
    for _ in range(5):
        takes(queues, into)
    urls = {job.url for job in (into.get(timeout=5) for _ in range(3)) if job}
    assert len(urls) == 3
    assert into.empty(), "the host has three places"


# Queues that stay open


def open_queues(**changes: Any) -> HostQueues:
    return HostQueues(Settings(**changes), None, stays_open=True)


def test_open_queues_hand_out_what_comes_later_and_end_when_closed() -> None:
    queues = open_queues()
    taken: queue.Queue[Job | None] = queue.Queue()

    def take_all() -> None:
        while (job := queues.take()) is not None:
            taken.put(job)
            queues.finish(job, PHOTO)
        taken.put(None)

    thread = threading.Thread(target=take_all, daemon=True)
    thread.start()
    for number in range(3):  # it has nothing to do before each
        assert queues.add(f"http://cdn.example/{number}") is None
        assert taken.get(timeout=10).url == f"http://cdn.example/{number}"
    queues.close()
    assert taken.get(timeout=10) is None
    thread.join(10)


def test_open_queues_ask_a_host_again_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = open_queues()
    assert queues.add("http://cdn.example/1") is None
    job = queues.take()
    queues.finish(job, limited(60))
    assert queues.add("http://cdn.example/2").status is Status.RATE_LIMITED
    later = datetime.now(UTC) + timedelta(seconds=61)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # noqa: ARG003
            return later

    monkeypatch.setattr(hosts, "datetime", Clock)
    assert queues.add("http://cdn.example/3") is None
    assert queues.take().url == "http://cdn.example/3"


def test_open_queues_forget_hosts_that_nothing_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_MOST_HOSTS", 10)
    queues = open_queues()
    queues.add("http://waiting.example/1")
    waiting = queues.take()
    for number in range(50):
        queues.add(f"http://stranger-{number}.example/1")
        queues.finish(queues.take(), GONE)
    assert len(queues._hosts) <= 11
    assert waiting.host in queues._hosts.values()
