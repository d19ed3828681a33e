import itertools
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import files
from tasks.fetching import hosts
from tasks.fetching.answers import Fetched
from tasks.fetching.client import Limits
from tasks.fetching.hosts import Host, Hosts, Job, OpenCircuit, Result
from tasks.settings import Settings
from tasks.statuses import Status
from tasks.urls import read

PHOTO = Fetched(content=b"photo")
GONE = Fetched(status=Status.GONE, reason="the server answered 404")
BROKEN = Fetched(status=Status.UNREACHABLE, reason="the server answered 500", worth_retrying=True)
BUSY = Fetched(
    status=Status.UNREACHABLE, reason="the server answered 503", worth_retrying=True, overloaded=True
)
SILENT = Fetched(status=Status.TIMED_OUT, reason="no answer in time", worth_retrying=True, overloaded=True)
USUAL = Limits(connect=5, silence=10, whole=60)


def limited(seconds: float) -> Fetched:
    return Fetched(
        status=Status.RATE_LIMITED,
        reason=f"the server answered 429 and asked us to come again after {seconds:g} s",
        worth_retrying=True,
        overloaded=True,
        retry_after=seconds,
    )


# One host, by a clock of the test's own


def host_with(
    urls: int, cap: int = 16, patience: float = 15.0, gap: float = 0.0, pause: float = 900.0
) -> Host:
    host = Host("cdn.example", cap, gap, patience, pause)
    host.urls = urls
    for number in range(urls):
        text = f"http://cdn.example/{number}"
        host.fresh.append(Job(text, read(text), host))
    return host


def handed_out(host: Host, now: float) -> list[Job]:
    """Everything that may be asked for at that time."""
    jobs = []
    while host.next_at <= now:
        jobs.append(host.hand_out(now))
    return jobs


def answered(host: Host, jobs: Sequence[Job], fetched: Fetched, now: float) -> list[bool]:
    """Whether each of these requests, all ending alike, leaves its URL another one."""
    return [host.learn(job, fetched, now) for job in jobs]


def test_a_host_starts_with_its_cap() -> None:
    assert len(handed_out(host_with(100, cap=16), 0.0)) == 16


def test_a_host_gets_only_so_many_a_second() -> None:
    host = host_with(100, cap=16, gap=0.25)
    for number in range(10):
        assert host.next_at <= number * 0.25
        host.hand_out(number * 0.25)
        assert host.next_at == pytest.approx((number + 1) * 0.25, abs=0.006)


@pytest.mark.parametrize("overload", [BUSY, SILENT, limited(0)])
def test_overload_halves_what_a_host_gets_once_a_round(overload: Fetched) -> None:
    host = host_with(100, cap=16)
    first_round = handed_out(host, 0.0)
    answered(host, first_round[:3], PHOTO, 1.0)
    answered(host, first_round[3:5], overload, 1.0)
    answered(host, first_round[5:7], PHOTO, 1.0)
    answered(host, first_round[7:9], overload, 1.0)
    assert int(host.limit) == 8, "four failures of one round are one sign"
    assert len(handed_out(host, 1.0)) == 1, "seven are still on their way"


def test_overload_halves_the_rate_that_there_was_and_good_answers_bring_it_back() -> None:
    host = host_with(1000, cap=16, gap=0.01)
    now = 0.0
    for _ in range(50):  # one at a time, twenty a second
        now = max(now + 0.05, host.next_at)
        answered(host, [host.hand_out(now)], PHOTO, now)
    answered(host, [host.hand_out(now)], limited(0.001), now)
    began = now
    for _ in range(5):
        now = max(now, host.next_at)
        host.stop(host.hand_out(now))
    assert (now - began) / 4 == pytest.approx(0.1, rel=0.1), "ten a second, whatever it might have had"
    gaps = [host.slowed_gap]
    for _ in range(60):
        now = max(now, host.next_at)
        answered(host, [host.hand_out(now)], PHOTO, now)
        gaps.append(host.slowed_gap)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == host.gap


@pytest.mark.parametrize("stumbling", [BROKEN, Fetched(status=Status.UNREACHABLE, worth_retrying=True)])
def test_a_picture_that_the_server_stumbles_over_is_no_overload(stumbling: Fetched) -> None:
    host = host_with(100, cap=16)
    answered(host, handed_out(host, 0.0)[:4], stumbling, 1.0)
    assert host.limit == 16
    assert not host.open


def test_good_answers_bring_a_host_back_by_one_place_a_round() -> None:
    host = host_with(1000, cap=8)
    host.limit = 1.0
    places = []
    for now in range(10, 30):
        jobs = handed_out(host, now)
        places.append(len(jobs))
        answered(host, jobs, PHOTO, now)
    assert places[0] == 1
    assert all(0 <= after - before <= 1 for before, after in itertools.pairwise(places))
    assert places.index(8) <= 12, "seven rounds, and what rounding down costs"
    assert places[-5:] == [8] * 5


# Its circuit


def test_a_circuit_opens_when_most_of_the_urls_asked_last_failed() -> None:
    host = host_with(500)
    jobs = handed_out(host, 0.0)
    answered(host, jobs[:4], PHOTO, 1.0)
    answered(host, jobs[4:8], BROKEN, 1.0)
    assert not host.open, "four are not most of eight"
    answered(host, jobs[8:9], BROKEN, 1.0)
    assert host.open


def test_it_is_urls_that_are_counted_not_failures() -> None:
    host = host_with(500, cap=1)
    answered(host, [host.hand_out(0.0)], PHOTO, 0.0)
    job = host.hand_out(0.0)
    for now in range(50):
        host.learn(job, SILENT, now)
        host.put_back(job, now, now)
        host.fresh, fresh = host.fresh.__class__(), host.fresh
        job = host.hand_out(now)
        host.fresh = fresh
    assert not host.open


def test_failures_in_a_row_do_not_open_the_circuit_of_a_host_that_does_well() -> None:
    """Ninety-nine faulty URLs among many, ten of them in a row."""
    host = host_with(500, cap=1)
    for number in range(100):
        fetched = BROKEN if 40 <= number < 50 else PHOTO
        host.learn(host.hand_out(number), fetched, number)
        assert not host.open


@pytest.mark.parametrize("good_at", [0, 1, 3])
def test_one_good_probe_closes_the_circuit_and_the_host_goes_on_more_slowly(good_at: int) -> None:
    host = host_with(500)
    answered(host, handed_out(host, 0.0), SILENT, 10.0)
    assert host.open
    assert 10.1 < host.next_at <= 10.25
    probes = handed_out(host, host.next_at + 0.1)
    assert len(probes) == 4, "a drip cannot be the only probe"
    assert {job.text for job in probes} == {f"http://cdn.example/{n}" for n in range(16, 20)}, "not asked yet"
    assert host.limits(USUAL) == Limits(connect=2, silence=3, whole=6)
    for number, job in enumerate(probes):
        host.learn(job, PHOTO if number == good_at else SILENT, 11.0)
    assert host.given_up is None
    assert not host.open
    assert host.limits(USUAL) == USUAL
    assert 4 <= host.limit <= 8


def test_a_good_answer_to_what_was_asked_before_closes_it_too() -> None:
    host = host_with(500)
    jobs = handed_out(host, 0.0)
    answered(host, jobs[:8], SILENT, 10.0)
    assert host.open
    answered(host, jobs[8:], GONE, 10.01)
    assert not host.open
    assert host.given_up is None
    assert 4 <= len(handed_out(host, 20.0)) <= 8


def test_a_dead_host_is_probed_with_growing_pauses_and_then_given_up() -> None:
    host = host_with(500, cap=16, patience=15.0)
    answered(host, handed_out(host, 0.0), SILENT, 0.01)
    asked = []
    now = 0.01
    while host.given_up is None:
        assert host.next_at > now
        now = host.next_at
        jobs = handed_out(host, now)
        assert len(jobs) == 4
        asked.append(now)
        answered(host, jobs[:3], SILENT, now)
        assert host.given_up is None, "another probe is on its way"
        answered(host, jobs[3:], SILENT, now)

    pauses = [after - before for before, after in itertools.pairwise([0.01, *asked])]
    shares = [pause / min(0.25 * 2**number, 2) for number, pause in enumerate(pauses[:-1])]
    assert all(0.499 <= share <= 1.001 for share in shares)
    assert min(shares) < 0.99, "chunks must not come back all at once"
    assert asked[-1] == 15.0, "it has its last chance when the give-up time is over"
    assert host.given_up.answer.status == Status.CIRCUIT_OPEN
    assert host.given_up.reason == (
        "not asked for: the circuit of cdn.example is open for 5 min, since 20 of the last 20 pictures asked "
        "of it failed and none came in 15.0 s; the last: no answer in time"
    )
    assert abs(host.given_up.until - datetime.now(UTC) - timedelta(minutes=5)) < timedelta(seconds=10)
    assert len(host.take_all()) == 500 - 16 - 4 * len(asked)
    assert host.next_at == float("inf")


def test_a_host_that_gets_one_request_at_once_has_as_many_probes() -> None:
    host = host_with(500, cap=1, patience=15.0)
    for now in range(5):
        host.learn(host.hand_out(now), SILENT, now)
    assert host.open
    now, asked = host.next_at, 0
    while host.next_at <= now:
        host.learn(host.hand_out(now), SILENT, now)
        asked += 1
    assert asked == 4


def test_a_host_is_not_given_up_without_a_probe() -> None:
    """All that it was asked for drips for a minute: so much is not known of the others."""
    host = host_with(500, patience=15.0)
    answered(host, handed_out(host, 0.0), SILENT, 60.0)
    assert host.open
    assert host.given_up is None
    probes = handed_out(host, 61.0)
    answered(host, probes, SILENT, 66.0)
    assert host.given_up is not None


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
    assert host.next_at - now >= 1
    now = host.next_at
    answered(host, handed_out(host, now), PHOTO, now)
    host.slowed_gap = host.gap
    answered(host, [host.hand_out(now) for _ in range(5)], SILENT, now)
    assert 0.1 < host.next_at - now <= 0.25


def test_one_good_answer_begins_the_give_up_time_anew() -> None:
    host = host_with(5000, cap=4, patience=15.0)
    now, requests = 0.0, 0
    while now < 600:
        for job in handed_out(host, now):
            requests += 1
            # Fifty failures or 14 seconds of them, whatever comes first, and then one picture.
            alive = requests % 50 == 0 or now - host.alive_at > 14
            host.learn(job, GONE if alive else SILENT, now)
        now = max(host.next_at, now + 0.1)
    assert host.given_up is None
    assert requests > 100


def test_a_host_of_four_urls_uses_up_their_tries() -> None:
    """Nothing is there to be spared, so that it is not given up; but it is not waited for as long again."""
    host = host_with(4, cap=16, patience=0.001)
    jobs = handed_out(host, 0.0)
    assert answered(host, jobs, SILENT, 10.0) == [True] * 4
    for order, job in enumerate(jobs):
        host.put_back(job, 10.5, order)
    assert len(handed_out(host, 12.0)) == 4
    assert host.limits(USUAL) == Limits(connect=2, silence=3, whole=60)
    assert answered(host, jobs, SILENT, 15.0) == [True] * 4
    assert host.given_up is None


def test_limits_that_are_shorter_stay_so() -> None:
    host = host_with(500)
    answered(host, handed_out(host, 0.0), SILENT, 1.0)
    assert host.limits(Limits(connect=0.1, silence=0.2, whole=0.3)) == Limits(0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("attempts", "middle"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (6, 16), (7, 30), (20, 30)]
)
def test_a_url_that_failed_waits_longer_each_time_and_never_the_same(attempts: int, middle: float) -> None:
    waits = {hosts._pause(BROKEN, attempts) for _ in range(200)}
    assert middle * 0.5 <= min(waits) < middle * 0.7
    assert middle * 1.3 < max(waits) <= middle * 1.5


# Pauses that it asks for


def test_a_host_that_asks_for_a_while_gets_nothing_for_that_while_and_then_half() -> None:
    host = host_with(500, cap=8)
    jobs = handed_out(host, 0.0)
    answered(host, jobs[1:], PHOTO, 1.0)
    assert answered(host, jobs[:1], limited(60), 1.0) == [True]
    assert host.next_at == 61.0
    assert len(handed_out(host, 61.0)) <= 4


def test_those_that_ask_for_a_pause_together_ask_for_one() -> None:
    host = host_with(500, cap=8)
    jobs = handed_out(host, 0.0)
    answered(host, jobs, limited(60), 1.0)
    assert host.next_at == 61.0
    assert host.paused == 60.0
    assert host.given_up is None


def test_pauses_do_not_count_as_time_in_which_a_host_fails() -> None:
    host = host_with(500, cap=8, patience=15.0)
    now = 0.0
    for _ in range(5):
        answered(host, handed_out(host, now), limited(60), now)
        assert host.next_at >= now + 60
        now = host.next_at
    assert host.given_up is None
    answered(host, handed_out(host, now), PHOTO, now)
    assert not host.open


@pytest.mark.parametrize(("asked_for", "minutes"), [(901, 15), (7200, 120), (86_400, 360), (1e300, 360)])
def test_a_host_of_which_most_urls_ask_for_too_long_is_given_up(asked_for: float, minutes: float) -> None:
    host = host_with(500, cap=8)
    jobs = handed_out(host, 0.0)
    assert answered(host, jobs[:4], limited(asked_for), 1.0) == [False] * 4, "no request will do them good"
    assert host.given_up is None
    host.learn(jobs[4], limited(asked_for), 1.0)
    assert host.given_up is not None
    assert abs(host.given_up.until - datetime.now(UTC) - timedelta(minutes=minutes)) < timedelta(seconds=15)


def test_one_url_that_asks_for_a_year_ends_no_other() -> None:
    host = host_with(500, cap=8)
    jobs = handed_out(host, 0.0)
    assert answered(host, jobs[:1], limited(365 * 86_400), 1.0) == [False]
    answered(host, jobs[1:], PHOTO, 1.1)
    assert handed_out(host, 1.2), "it goes on at once"
    assert host.given_up is None
    assert host.paused == 0


def test_all_pauses_together_have_a_limit() -> None:
    host = host_with(500, cap=1, pause=100)
    now, can_wait = 0.0, []
    for _ in range(4):
        now = max(now, host.next_at)
        job = host.hand_out(now)
        can_wait.append(host.learn(job, limited(40), now))
    assert can_wait == [True, True, False, False]
    assert host.paused == 80


def test_a_url_that_says_it_again_while_others_come_speaks_for_itself_alone() -> None:
    host = host_with(500, cap=4)
    job, *others = handed_out(host, 0.0)
    host.learn(job, limited(5), 1.0)
    answered(host, others, PHOTO, 1.1)
    host.put_back(job, 6.0, 1)
    others = handed_out(host, 8.0)
    answered(host, others, PHOTO, 8.1)
    host.fresh.clear()
    (job,) = handed_out(host, 9.0)
    assert host.learn(job, limited(5), 9.0)
    assert host.paused == 5, "the host was answering others"


# Notes for the chunks that follow


def test_a_note_is_found_by_the_host_alone(tmp_path: Path) -> None:
    circuit = OpenCircuit("사진 없음", datetime.now(UTC) + timedelta(minutes=5))
    circuit.keep(tmp_path, "cdn.example:8080")

    assert OpenCircuit.recalled(tmp_path, "cdn.example:8080") == circuit
    assert OpenCircuit.recalled(tmp_path, "cdn.example") is None
    assert OpenCircuit.recalled(tmp_path / "not there", "cdn.example:8080") is None


def test_a_note_holds_for_its_time(tmp_path: Path) -> None:
    OpenCircuit("x", datetime.now(UTC) - timedelta(seconds=1)).keep(tmp_path, "cdn.example")
    assert OpenCircuit.recalled(tmp_path, "cdn.example") is None


GOOD_NOTE = {"host": "cdn.example", "until": "2999-01-01T00:00:00+00:00", "reason": "x"}


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        GOOD_NOTE | {"until": "soon"},
        GOOD_NOTE | {"until": 5},
        GOOD_NOTE | {"until": "2999-01-01T00:00:00"},
        {key: value for key, value in GOOD_NOTE.items() if key != "reason"},
    ],
)
def test_a_damaged_note_is_none(tmp_path: Path, damaged: Any) -> None:
    OpenCircuit("x", datetime.now(UTC) + timedelta(minutes=5)).keep(tmp_path, "cdn.example")
    (note,) = tmp_path.iterdir()
    files.write_json(note, GOOD_NOTE)
    assert OpenCircuit.recalled(tmp_path, "cdn.example"), "the note is read when it is whole"

    if isinstance(damaged, str):
        note.write_text(damaged)
    else:
        files.write_json(note, damaged)
    assert OpenCircuit.recalled(tmp_path, "cdn.example") is None


def test_a_note_of_other_bytes_or_no_file_is_none(tmp_path: Path) -> None:
    OpenCircuit("x", datetime.now(UTC) + timedelta(minutes=5)).keep(tmp_path, "cdn.example")
    (note,) = tmp_path.iterdir()
    note.write_bytes(b"\xff\xfe\x00")
    assert OpenCircuit.recalled(tmp_path, "cdn.example") is None
    note.unlink()
    note.mkdir()
    assert OpenCircuit.recalled(tmp_path, "cdn.example") is None


# All hosts together


def table(folder: Path | None, *urls: str, stays_open: bool = False, **changed: Any) -> Hosts:
    changed = {"requests_per_second_per_host": 1e6} | changed
    made = Hosts(Settings(**changed), folder, stays_open=stays_open)
    for url in urls:
        assert made.add(url, read(url)) is None
    return made


def taken(made: Hosts, now: float) -> Job:
    job = made.take(now)
    assert job is not None
    return job


def test_spellings_of_one_host_share_its_places(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        "http://CDN.example/1",
        "http://cdn.example./2",
        "http://cdn.example:80/3",
        downloads_per_host=2,
    )
    assert [taken(made, now).host.name for now in (0.0, 1.0)] == ["cdn.example:80"] * 2
    assert made.take(2.0) is None
    assert made.next_at == float("inf")


def test_a_url_that_failed_is_tried_again_and_the_rest_first(tmp_path: Path) -> None:
    made = table(tmp_path, *(f"http://cdn.example/{n}" for n in range(3)), downloads_per_host=1)
    first = taken(made, 0.0)
    assert made.finish(first, BROKEN, 0.0) == []
    for now in (10.0, 11.0):
        assert made.finish(taken(made, now), PHOTO, now)[0][1:] == (PHOTO, 1)
    assert taken(made, 12.0) is first
    assert made.finish(first, PHOTO, 12.0) == [(first.text, PHOTO, 2)]
    assert made.waiting == 0


def test_when_a_host_is_given_up_what_was_asked_keeps_its_own_status(tmp_path: Path) -> None:
    urls = [f"http://busy/{number}" for number in range(12)]
    made = table(tmp_path, *urls, "http://other/1", downloads_per_host=8)
    jobs = {job.text: job for job in (taken(made, now) for now in range(9))}
    assert made.finish(jobs[urls[0]], BROKEN, 10.0) == [], "it gets another try"
    answer = limited(7200)
    for url in urls[1:4]:
        assert made.finish(jobs[url], answer, 10.0) == [(url, answer, 1)]
    ended = made.finish(jobs[urls[4]], answer, 10.0)

    assert ended[0] == (urls[4], answer, 1)
    assert (urls[0], BROKEN, 1) in ended, "its own status"
    not_asked = {url: (fetched.status, count) for url, fetched, count in ended[1:] if url != urls[0]}
    assert not_asked == dict.fromkeys(urls[8:], (Status.CIRCUIT_OPEN, 0))
    # What was on its way counts as what it brings, and gets no other try.
    assert made.finish(jobs[urls[5]], PHOTO, 11.0) == [(urls[5], PHOTO, 1)]
    assert made.finish(jobs[urls[6]], SILENT, 11.0) == [(urls[6], SILENT, 1)]
    assert made.finish(jobs[urls[7]], SILENT, 11.0) == [(urls[7], SILENT, 1)]
    assert made.waiting == 1
    assert OpenCircuit.recalled(tmp_path, "busy:80")
    assert OpenCircuit.recalled(tmp_path, "other:80") is None

    later = Hosts(Settings(), tmp_path)
    standing = later.add("http://BUSY/20", read("http://BUSY/20"))
    assert standing is not None
    assert standing.status == Status.CIRCUIT_OPEN
    assert "asked us to come again after 7200 s" in standing.reason
    assert later.waiting == 0


def stuck(made: Hosts, count: int) -> list[Job]:
    """Requests to a host that has answered one other in a tenth of a second."""
    made.finish(taken(made, 0.0), PHOTO, 0.1)
    return [taken(made, 0.2) for _ in range(count)]


def test_what_keeps_others_waiting_loses_its_place_and_comes_after_them(tmp_path: Path) -> None:
    made = table(tmp_path, *(f"http://cdn.example/{n}" for n in range(5)), downloads_per_host=2)
    slow = stuck(made, 2)
    assert made.stragglers(1.1, full=False) == []
    assert made.stragglers(1.3, full=False) == slow
    for job in slow:
        made.postpone(job, 1.3)
    for _ in range(2):
        job = taken(made, 1.4)
        assert job not in slow
        made.finish(job, PHOTO, 1.5)
    again = [taken(made, 2.0), taken(made, 2.0)]
    assert set(again) == set(slow)
    assert made.stragglers(60.0, full=True) == [], "it has all the time there is now"
    ends = [made.finish(job, SILENT, 62.0) for job in again]
    assert ends == [[], []], "that it lost its place was no try"
    assert [job.requests for job in again] == [2, 2]


def test_what_keeps_nobody_waiting_keeps_its_place(tmp_path: Path) -> None:
    made = table(tmp_path, *(f"http://cdn.example/{n}" for n in range(3)), downloads_per_host=2)
    slow = stuck(made, 2)
    assert made.stragglers(30.0, full=True) == []
    made.add("http://other.example/", read("http://other.example/"))
    assert made.stragglers(30.0, full=False) == []
    assert made.stragglers(30.0, full=True) == slow, "where all places are taken, other hosts count too"


def test_a_host_that_is_always_slow_has_no_stragglers(tmp_path: Path) -> None:
    made = table(tmp_path, *(f"http://cdn.example/{n}" for n in range(9)), downloads_per_host=2)
    made.finish(taken(made, 0.0), PHOTO, 3.0)
    slow = [taken(made, 3.0), taken(made, 3.0)]
    assert made.stragglers(30.0, full=True) == []
    assert made.stragglers(34.0, full=True) == slow


OUTCOMES = [PHOTO, PHOTO, GONE, BROKEN, BUSY, SILENT, limited(0.002), limited(7200)]


@settings(max_examples=150, deadline=None)
@given(
    scripts=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4)),
        max_size=40,
    ),
    cap=st.integers(1, 4),
    places=st.integers(1, 6),
    attempts=st.integers(1, 4),
    patience=st.sampled_from([0.0001, 0.004, 10.0]),
    takes=st.lists(st.floats(0.0001, 3.0), min_size=1),
)
def test_every_url_gets_exactly_one_result_and_no_host_too_many_requests(
    scripts: list[tuple[int, list[Fetched]]],
    cap: int,
    places: int,
    attempts: int,
    patience: float,
    takes: list[float],
) -> None:
    """A script is a host and what the requests for one of its URLs end with, the last over and over."""
    outcomes = {f"http://host{host}/{number}": list(ends) for number, (host, ends) in enumerate(scripts)}
    with tempfile.TemporaryDirectory() as folder:
        made = table(
            Path(folder),
            *outcomes,
            downloads_per_host=cap,
            download_attempts=attempts,
            host_patience=patience,
        )
        assert made.waiting == len(scripts)
        now, durations = 0.0, itertools.cycle(takes)
        running: dict[Job, float] = {}
        requests: dict[str, list[Fetched]] = {url: [] for url in outcomes}
        results: list[Result] = []
        postponed: Counter[str] = Counter()
        while made.waiting:
            while len(running) < places and (job := made.take(now)):
                running[job] = now + next(durations)
            at_once = Counter(job.host.name for job in running)
            assert all(count <= cap for count in at_once.values())
            for job in made.stragglers(now, full=len(running) == places):
                del running[job]
                postponed[job.text] += 1
                made.postpone(job, now)
            ahead = [made.next_at] if len(running) < places else []
            now = max(now, min([*running.values(), *ahead]))
            for job in [job for job, at in running.items() if at <= now]:
                del running[job]
                ends = outcomes[job.text]
                requests[job.text].append(ends.pop(0) if len(ends) > 1 else ends[0])
                results += made.finish(job, requests[job.text][-1], now)
        circuits = {f"host{n}": OpenCircuit.recalled(Path(folder), f"host{n}:80") for n in range(4)}

    assert Counter(url for url, _, _ in results) == Counter(list(outcomes))
    for url, fetched, count in results:
        made_of_it = requests[url]
        assert count == len(made_of_it) + postponed[url]
        assert len(made_of_it) <= attempts
        assert postponed[url] <= 1
        circuit = circuits[url.split("/")[2]]
        if not count:
            assert circuit is not None, "not asked for although its host was not given up"
            assert fetched.status == Status.CIRCUIT_OPEN
        elif made_of_it:
            assert fetched == made_of_it[-1], "its own"
            settled = not fetched.worth_retrying or len(made_of_it) == attempts
            assert settled or circuit is not None or (fetched.retry_after or 0) > 900
        else:
            assert circuit is not None
            assert fetched.status == Status.TIMED_OUT


# Tables that stay open


def test_an_open_table_asks_a_host_again_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(None, *(f"http://cdn.example/{n}" for n in range(5)), stays_open=True)
    for job in [taken(made, float(now)) for now in range(5)]:
        made.finish(job, limited(1000), 0.0)
    answer = made.add("http://cdn.example/9", read("http://cdn.example/9"))
    assert answer is not None
    assert answer.status is Status.CIRCUIT_OPEN
    later = datetime.now(UTC) + timedelta(seconds=1001)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # noqa: ARG003
            return later

    monkeypatch.setattr(hosts, "datetime", Clock)
    assert made.add("http://cdn.example/9", read("http://cdn.example/9")) is None
    assert taken(made, 2000.0).text == "http://cdn.example/9"


def test_an_open_table_waits_for_a_host_that_asks_for_it_again_and_again() -> None:
    made = table(None, stays_open=True, host_pause=30)
    now = 0.0
    for number in range(10):
        url = f"http://cdn.example/{number}"
        assert made.add(url, read(url)) is None
        now = max(now, made.next_at)
        job = taken(made, now)
        assert made.finish(job, limited(20), now) == [], "it has not waited for long in this one's time"
        now += 21
        assert made.finish(taken(made, now), PHOTO, now) == [(url, PHOTO, 2)]


def test_an_open_table_forgets_hosts_that_nothing_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_MOST_HOSTS", 10)
    made = table(None, "http://waiting.example/1", stays_open=True)
    waiting = taken(made, 0.0)
    for number in range(50):
        url = f"http://stranger-{number}.example/1"
        made.add(url, read(url))
        made.finish(taken(made, 0.0), GONE, 0.0)
    assert len(made._hosts) <= 11
    assert waiting.host in made._hosts.values()
