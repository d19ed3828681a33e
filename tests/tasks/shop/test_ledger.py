"""Tests of tasks/shop/ledger.py against SQLite and PostgreSQL."""

import dataclasses
import gc
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local_stack.process import free_port
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.runs.run import Plan, Request
from tasks.settings import Settings
from tasks.shop import database, ledger
from tasks.shop.connections import LEDGER, Connection
from tasks.shop.ledger import Failure, ItemOutcome, Ledger
from tasks.statuses import Status
from tests.shop_fixtures import NOON

GONE, UNFINISHED, INDEXED = Status.GONE, Status.UNFINISHED, Status.INDEXED
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
SEOUL = timezone(timedelta(hours=9))

SQLITE = pytest.mark.parametrize("kind", ["sqlite"])
POSTGRESQL = pytest.mark.parametrize("kind", ["timestamptz"], ids=["postgresql"])

# One process and its children, so that a child needs no import of its own.
processes = multiprocessing.get_context("fork")


@pytest.fixture(params=["sqlite", "timestamptz"], ids=["sqlite", "postgresql"])
def kind(request):
    return request.param


@pytest.fixture
def store(kind, new_catalogue):
    """A database that a ledger may be in; it holds another table already."""
    return new_catalogue(kind)


@pytest.fixture
def connection(store):
    return dataclasses.replace(store.connection, conn_id=LEDGER)


@pytest.fixture
def new_ledger(connection, tmp_path):
    """Makes another ledger of the same database, with other settings."""

    def make(**changes):
        return Ledger(connection, Settings(data_dir=tmp_path, **changes))

    return make


@pytest.fixture
def book(new_ledger):
    return new_ledger()


def planned(number, name=""):
    """The plan made `number` hours after noon."""
    return Plan(
        folder=Path("/var/nightly/run") / (name or f"plan-{number:012x}"),
        request=Request("tests", "run"),
        feature_version="v",
        planned=1,
        current=0,
        created_at=NOON + number * HOUR,
    )


def ended(status, *item_ids, img_url="https://a/1.jpg", reason=None, category_id="00000010"):
    return [ItemOutcome(item_id, category_id, img_url, status, reason) for item_id in item_ids]


def held(book):
    return {failure.item_id: failure for failure in book.matching()}


def due(book, now, at_most=1_000):
    return book.due(now, at_most).failures


def attempts(book):
    return {item_id: failure.attempts for item_id, failure in held(book).items()}


def test_a_failure_is_written_with_all_that_is_known_of_it(book):
    book.record(planned(0), ended(GONE, "0007", reason="the server answered 404"), now=NOON + HOUR)
    assert list(book.matching()) == [
        Failure(
            item_id="0007",
            category_id="00000010",
            img_url="https://a/1.jpg",
            status=GONE,
            reason="the server answered 404",
            attempts=1,
            first_at=NOON + HOUR,
            last_at=NOON + HOUR,
            next_at=NOON + 2 * HOUR,
            plan_id="plan-000000000000",
            planned_at=planned(0).created_at,
        )
    ]
    (failure,) = book.matching()
    assert {failure.first_at.tzinfo, failure.last_at.tzinfo, failure.next_at.tzinfo} == {UTC}


def test_now_is_the_present_where_none_is_given(book):
    before = datetime.now(UTC)
    book.record(planned(0), ended(GONE, "a"))
    assert before <= held(book)["a"].last_at <= datetime.now(UTC)


# By hand: which statuses leave no row, and which leave one that no schedule takes up again.
FINE = {"current", "indexed"}
FOR_A_PERSON = {
    "invalid_row",
    "invalid_url",
    "blocked_address",
    "too_large",
    "unsupported_format",
    "too_many_pixels",
    "vector_refused",
}


@pytest.mark.parametrize("status", list(Status))
def test_each_status_leaves_what_it_should(book, status):
    book.record(planned(0), ended(status, "a"), now=NOON)
    if status.value in FINE:
        assert held(book) == {}
    else:
        assert held(book)["a"].status is status
        # What was not asked for is tried first: it is due at once.
        due = NOON if status is Status.CIRCUIT_OPEN else NOON + HOUR
        assert held(book)["a"].next_at == (None if status.value in FOR_A_PERSON else due)


@pytest.mark.parametrize(
    ("changes", "hours"),
    [
        ({}, [1, 2, 4, 8, 16, 24, 24, 24, 24, None, None]),
        ({"retry_first_hours": 0.5, "retry_attempts": 3}, [0.5, 1, None, None]),
        ({"retry_first_hours": 24}, [24, 24, 24]),
        ({"retry_first_hours": 7}, [7, 14, 24, 24]),
        ({"retry_attempts": 1}, [None, None]),
    ],
    ids=["by default", "half an hour thrice", "a day", "seven hours", "one attempt"],
)
def test_waits_double_up_to_a_day_until_the_item_is_given_up(new_ledger, changes, hours):
    book = new_ledger(**changes)
    seen = []
    for number in range(len(hours)):
        now = NOON + number * timedelta(days=2)
        book.record(planned(48 * number), ended(GONE, "a"), now=now)
        failure = held(book)["a"]
        assert failure.attempts == number + 1
        assert (failure.first_at, failure.last_at) == (NOON, now)
        seen.append(failure.next_at and (failure.next_at - now) / HOUR)
    assert seen == hours


@SQLITE
def test_however_many_attempts_are_allowed_the_wait_is_a_day(store, new_ledger):
    book = new_ledger(retry_attempts=100_000)
    book.record(planned(0), ended(GONE, "a"), now=NOON)
    store.execute("update failures set attempts = 50000")
    book.record(planned(1), ended(GONE, "a"), now=NOON)
    assert held(book)["a"].attempts == 50_001
    assert held(book)["a"].next_at == NOON + timedelta(days=1)


@pytest.mark.parametrize("zone", [UTC, SEOUL], ids=["UTC", "Seoul"])
def test_an_item_is_due_from_its_very_microsecond(book, zone):
    book.record(planned(0), ended(GONE, "a"), now=(NOON + MICROSECOND).astimezone(zone))
    due_at = NOON + HOUR + MICROSECOND
    assert due(book, (due_at - MICROSECOND).astimezone(zone)) == []
    assert due(book, due_at.astimezone(zone)) == list(book.matching()) != []


def test_items_of_one_url_come_together_and_the_given_up_are_never_due(book, monkeypatch):
    monkeypatch.setattr(ledger, "_READ_AT_ONCE", 2)
    urls = {"d": "x", "b": "y", "c": "x", "a": None, "e": "x", "f": "", "given up": "a"}
    for number, (item_id, url) in enumerate(urls.items()):
        status = Status.TOO_LARGE if item_id == "given up" else GONE
        book.record(planned(number), [ItemOutcome(item_id, "00000010", url, status, None)], now=NOON)
    assert [failure.item_id for failure in due(book, NOON + HOUR)] == ["a", "f", "c", "d", "e", "b"]
    assert [failure.item_id for failure in book.given_up()] == ["given up"]
    everything = ["a", "f", "given up", "c", "d", "e", "b"]
    assert [failure.item_id for failure in book.matching()] == everything


@pytest.mark.parametrize("status", [INDEXED, Status.CURRENT])
def test_success_removes_the_row_whatever_had_failed(book, status):
    book.record(planned(0), ended(GONE, "a", "b"))
    book.record(planned(1), ended(Status.TOO_LARGE, "b"))
    book.record(planned(2), ended(status, "a", "b", "never failed"))
    assert held(book) == {}


def test_a_new_failure_replaces_what_was_known(book):
    book.record(planned(0), ended(GONE, "a", reason="404"), now=NOON)
    book.record(
        planned(5),
        ended(Status.TOO_LARGE, "a", reason="9 bytes", category_id="00000020"),
        now=NOON + 5 * HOUR,
    )
    assert held(book)["a"] == Failure(
        *("a", "00000020", "https://a/1.jpg", Status.TOO_LARGE, "9 bytes", 2, NOON, NOON + 5 * HOUR, None),
        plan_id="plan-000000000005",
        planned_at=planned(5).created_at,
    )


@pytest.mark.parametrize(
    ("was", "is_now"),
    [("https://a/1", "https://a/2"), (None, "https://a/1"), ("https://a/1", None), (None, "")],
)
def test_another_url_begins_anew(new_ledger, was, is_now):
    book = new_ledger(retry_attempts=2)
    for number in range(3):
        book.record(planned(number), ended(GONE, "a", img_url=was), now=NOON + number * HOUR)
    assert held(book)["a"].next_at is None
    later = NOON + 9 * HOUR
    book.record(planned(9), ended(GONE, "a", img_url=is_now), now=later)
    failure = held(book)["a"]
    assert (failure.img_url, failure.attempts) == (is_now, 1)
    assert (failure.first_at, failure.next_at) == (later, later + HOUR)


def test_no_url_stays_the_same_url(book):
    for number in range(3):
        book.record(planned(number), ended(GONE, "a", img_url=None))
    assert attempts(book) == {"a": 3}


def test_what_was_never_asked_for_counts_no_attempt_and_is_due_at_once(new_ledger):
    book = new_ledger(retry_attempts=2)
    for number in range(5):
        book.record(planned(number), ended(Status.CIRCUIT_OPEN, "a"), now=NOON)
    (failure,) = due(book, NOON)
    assert (failure.status, failure.attempts, failure.next_at) == (Status.CIRCUIT_OPEN, 0, NOON)
    book.record(planned(5), ended(GONE, "a"), now=NOON)
    assert due(book, NOON) == []
    (failure,) = due(book, NOON + HOUR)
    assert failure.attempts == 1


def test_unfinished_counts_no_attempt_and_never_gives_up(new_ledger):
    book = new_ledger(retry_attempts=2)
    for number in range(4):
        book.record(planned(number), ended(UNFINISHED, "a"), now=NOON)
        assert attempts(book) == {"a": 0}
        assert held(book)["a"].next_at == NOON + HOUR
    for number, next_at in (4, NOON + HOUR), (5, None):
        book.record(planned(number), ended(GONE, "a"), now=NOON)
        assert held(book)["a"].next_at == next_at
    assert attempts(book) == {"a": 2}
    # What was given up is tried again after a run that could not tell.
    book.record(planned(6), ended(UNFINISHED, "a"), now=NOON)
    assert (attempts(book), held(book)["a"].next_at) == ({"a": 2}, NOON + HOUR)


def test_recording_the_same_again_changes_nothing(book):
    outcomes = ended(GONE, "a", reason="404") + ended(UNFINISHED, "b") + ended(INDEXED, "c")
    book.record(planned(0), ended(GONE, "a", "c"), now=NOON)
    book.record(planned(1), outcomes, now=NOON + HOUR)
    once = held(book)
    book.record(planned(1), outcomes, now=NOON + 9 * HOUR)
    assert held(book) == once
    assert attempts(book) == {"a": 2, "b": 0}
    # Another reason is news.
    book.record(planned(1), ended(GONE, "a", reason="410"), now=NOON + 9 * HOUR)
    assert (held(book)["a"].reason, held(book)["a"].next_at) == ("410", NOON + 11 * HOUR)
    assert attempts(book) == {"a": 2, "b": 0}


def test_what_a_plan_finds_out_later_takes_the_place_of_what_it_wrote(book):
    """As after an operator clears a chunk that did not finish."""
    book.record(planned(0), ended(GONE, "a"), now=NOON)
    book.record(planned(1), ended(UNFINISHED, "a", "b", "c"), now=NOON + HOUR)
    assert attempts(book) == {"a": 1, "b": 0, "c": 0}
    now = NOON + 3 * HOUR
    book.record(
        planned(1), ended(Status.CORRUPT, "a", reason="cut") + ended(GONE, "b") + ended(INDEXED, "c"), now=now
    )
    assert attempts(book) == {"a": 2, "b": 1}
    a = held(book)["a"]
    assert (a.status, a.reason, a.first_at, a.last_at) == (Status.CORRUPT, "cut", NOON, now)
    assert a.next_at == now + 2 * HOUR
    # And back, should the files be gone by then: as if it had been recorded so from the start.
    book.record(planned(1), ended(UNFINISHED, "a"), now=now)
    assert attempts(book) == {"a": 1, "b": 1}


def test_a_plan_recorded_again_adds_nothing(book):
    book.record(planned(0), ended(GONE, "a", "b"))
    book.record(planned(1), ended(INDEXED, "a"))
    book.record(planned(0), ended(GONE, "a", "b") + ended(UNFINISHED, "new"))
    assert attempts(book) == {"b": 1}


def test_a_plan_recorded_again_does_not_count_on_top_of_another_s_failure(book):
    book.record(planned(2), ended(GONE, "a"))
    book.record(planned(3), ended(INDEXED, "a"))
    # A plan from before them, whose end was late.
    book.record(planned(1), ended(UNFINISHED, "a"))
    book.record(planned(2), ended(GONE, "a"))
    assert attempts(book) == {"a": 0}


def test_an_earlier_plan_leaves_a_later_one_s_row_alone(book):
    book.record(planned(5), ended(GONE, "failed", "succeeded", "resolved"), now=NOON)
    before = held(book)
    book.record(
        planned(4),
        ended(Status.CORRUPT, "failed") + ended(INDEXED, "succeeded"),
        ["resolved"],
        now=NOON + HOUR,
    )
    assert held(book) == before


def test_of_two_plans_of_one_moment_one_is_the_later(book):
    first, second = planned(0, "plan-a"), planned(0, "plan-b")
    book.record(first, ended(GONE, "a"))
    book.record(second, ended(GONE, "a"))
    assert attempts(book) == {"a": 2}
    once = held(book)
    book.record(first, ended(GONE, "a"))
    book.record(first, ended(INDEXED, "a"))
    assert held(book) == once


def test_settled_items_leave_with_or_without_a_row(book):
    book.record(planned(0), ended(GONE, "a", "b", "c"))
    book.record(planned(1), ended(GONE, "b"), iter(["a", "not there"]))
    assert attempts(book) == {"b": 2, "c": 1}
    book.record(planned(1), [], ["b"])
    assert attempts(book) == {"c": 1}


def test_a_plan_without_items_is_recorded_too(book):
    book.record(planned(0), [])
    book.record(planned(0), ended(GONE, "a"))
    assert held(book) == {}


def night(number, run, dag="nightly"):
    """The plan of the scheduled night that begins `number` days after noon."""
    start = NOON + number * DAY
    request = Request(dag, run, start - DAY, start + DAY, interval=(start, start + DAY), scheduled=True)
    return dataclasses.replace(planned(24 * number, f"plan-{dag}-{run}"), request=request)


def test_the_last_night_that_succeeded_is_known(book):
    assert book.covered_until("nightly", NOON) is None
    for number in (2, 0, 1):
        book.record(night(number, f"r{number}"), ended(GONE, "a"))
    assert book.covered_until("nightly", NOON + 9 * DAY) == NOON + 3 * DAY
    assert book.covered_until("another", NOON + 9 * DAY) is None
    # Those that began before, to the microsecond, in whatever zone the time is given.
    assert book.covered_until("nightly", (NOON + 2 * DAY).astimezone(SEOUL)) == NOON + 2 * DAY
    assert book.covered_until("nightly", NOON + 2 * DAY + MICROSECOND) == NOON + 3 * DAY
    assert book.covered_until("nightly", NOON) is None


def test_only_nights_that_succeeded_are_covered(book):
    book.record(night(0, "good"), [])
    book.record(night(1, "bad"), ended(GONE, "a"), failed=True)
    by_hand = dataclasses.replace(night(2, "by hand").request, scheduled=False)
    book.record(dataclasses.replace(night(2, "by hand"), request=by_hand), [])
    assert book.covered_until("nightly", NOON + 9 * DAY) == NOON + DAY


def test_what_a_night_ended_with_last_counts(book):
    for number in (0, 1):
        book.record(night(number, f"r{number}"), [])
        book.record(night(number, f"r{number}"), [])
    book.record(night(1, "r1"), [], failed=True)
    assert book.covered_until("nightly", NOON + 9 * DAY) == NOON + DAY
    book.record(night(1, "r1"), [])
    assert book.covered_until("nightly", NOON + 9 * DAY) == NOON + 2 * DAY
    # An older one moves nothing back.
    book.record(night(0, "r0"), [])
    book.uncover("nightly", "r0")
    book.uncover("another", "r1")
    assert book.covered_until("nightly", NOON + 9 * DAY) == NOON + 2 * DAY
    book.uncover("nightly", "r1")
    assert book.covered_until("nightly", NOON + 9 * DAY) is None


def test_a_night_is_covered_with_its_failures_or_not_at_all(book):
    def breaks():
        yield from ended(GONE, "a")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError):
        book.record(night(0, "r"), breaks())
    assert book.covered_until("nightly", NOON + 9 * DAY) is None
    assert held(book) == {}


@pytest.mark.usefixtures("old")
def test_a_ledger_of_an_earlier_version_knows_no_night_and_gets_the_table(store, book):
    store.execute("drop table covered_nights")
    assert book.covered_until("nightly", NOON + 9 * DAY) is None
    book.uncover("nightly", "r0")
    book.record(night(0, "r0"), [])
    assert book.covered_until("nightly", NOON + 9 * DAY) == NOON + DAY
    assert set(held(book)) == {"a", "b"}


def test_only_what_matches_every_filter_is_given(book, monkeypatch):
    monkeypatch.setattr(ledger, "_READ_AT_ONCE", 2)
    book.record(
        planned(0),
        ended(GONE, "a", "b", category_id="00000010")
        + ended(GONE, "c", category_id="00000020")
        + ended(Status.TOO_LARGE, "d", "e", category_id="00000020")
        + ended(UNFINISHED, "f", category_id=None),
    )

    def ids(**filters):
        return "".join(failure.item_id for failure in book.matching(**filters))

    assert ids() == "abcdef"
    assert ids(category_ids=["00000020"]) == "cde"
    assert ids(category_ids=["00000020", "00000010"]) == "abcde"
    assert ids(statuses=[GONE, UNFINISHED]) == "abcf"
    assert ids(item_ids=["f", "e", "c", "b", "b", "left"]) == "bcef"
    assert ids(category_ids=["00000020"], statuses=[GONE]) == "c"
    assert ids(category_ids=["00000020"], item_ids=["a", "d", "c"]) == "cd"
    assert ids(category_ids=["00000020"], statuses=[Status.TOO_LARGE], item_ids=["c", "d", "e"]) == "de"
    assert ids(category_ids=["00000030"]) == ids(statuses=[Status.CORRUPT]) == ids(item_ids=["left"]) == ""


def test_counts_tell_what_waits_from_what_is_given_up(new_ledger):
    book = new_ledger(retry_attempts=2)
    book.record(planned(0), ended(GONE, "a", "b"))
    book.record(
        planned(1), ended(GONE, "b", "c", "d") + ended(Status.TOO_LARGE, "e") + ended(UNFINISHED, "f")
    )
    counts = book.counts()
    assert counts == {
        "gone": {"waiting": 3, "given_up": 1},
        "too_large": {"waiting": 0, "given_up": 1},
        "unfinished": {"waiting": 1, "given_up": 0},
    }
    assert list(counts) == [status for status in Status if status in counts]


ODD = [
    "0007",
    "7",
    "O'Brien",
    'a"b',
    "');drop table failures;--",
    "%(x)s :now ?",
    "셔츠-ü",
    "\\",
    " a",
    "A",
    "a",
]


def test_ids_and_texts_stay_what_they_are(book):
    outcomes = [ItemOutcome(odd, odd, odd, GONE, odd) for odd in ODD]
    book.record(planned(0), outcomes, now=NOON)
    assert held(book) == {
        odd: Failure(
            *(odd, odd, odd, GONE, odd, 1, NOON, NOON, NOON + HOUR),
            plan_id=planned(0).folder.name,
            planned_at=NOON,
        )
        for odd in ODD
    }
    assert len(due(book, NOON + HOUR)) == len(ODD)
    for odd in ODD:
        assert [failure.item_id for failure in book.matching(item_ids=[odd])] == [odd]
        assert [failure.item_id for failure in book.matching(category_ids=[odd])] == [odd]
    book.record(planned(1), ended(INDEXED, *ODD[::2]), ODD[1:4:2])
    assert set(held(book)) == set(ODD[1::2]) - set(ODD[1:4:2])


def test_what_strangers_wrote_cannot_stop_a_recording(book):
    url = "https://a/\0.jpg"
    for number in range(2):
        book.record(planned(number), ended(GONE, "a", img_url=url, reason="Location: \0"))
    failure = held(book)["a"]
    assert (failure.img_url, failure.reason) == ("https://a/\ufffd.jpg", "Location: \ufffd")
    assert failure.attempts == 2


class Model:
    """The ledger by its rules: each row remembers every plan's last word about its URL."""

    def __init__(self):
        self.recorded = set()
        self.rows = {}

    def record(self, plan, outcomes, settled, now):
        again = plan in self.recorded
        self.recorded.add(plan)
        for item_id, (url, status, reason) in outcomes.items():
            row = self.rows.get(item_id)
            if row and row["plan"] > plan:
                continue
            if status in ("indexed", "current"):
                self.rows.pop(item_id, None)
            elif row and row["plan"] == plan:
                if row["words"][-1] != (status, reason):
                    row["words"][-1] = (status, reason)
                    row["last"] = now
            elif not again:
                goes_on = row and row["url"] == url
                self.rows[item_id] = {
                    "plan": plan,
                    "url": url,
                    "words": [*(row["words"] if goes_on else []), (status, reason)],
                    "first": row["first"] if goes_on else now,
                    "last": now,
                }
        for item_id in settled:
            if item_id in self.rows and self.rows[item_id]["plan"] <= plan:
                del self.rows[item_id]

    def failures(self):
        return {item_id: self.failure(item_id, row) for item_id, row in self.rows.items()}

    def failure(self, item_id, row):
        status, reason = row["words"][-1]
        tries = sum(word not in ("unfinished", "circuit_open") for word, _ in row["words"])
        wait = {1: 1, 2: 2}.get(tries)  # hours; at the third attempt the item is given up
        if status == "unfinished":
            # As long as it has failed by now, and an hour; a day at most.
            wait = min(1 + (row["last"] - row["first"]) / HOUR, 24)
        if status == "circuit_open":
            wait = 0
        if status == "too_large":
            wait = None
        next_at = None if wait is None else row["last"] + wait * HOUR
        status = Status(status)
        return Failure(
            *(item_id, "00000010", row["url"], status, reason, tries, row["first"], row["last"], next_at),
            plan_id=planned(row["plan"]).folder.name,
            planned_at=planned(row["plan"]).created_at,
        )


ITEMS = ["a", "b"]
WORDS = ["indexed", "current", "gone", "too_large", "superseded", "unfinished", "circuit_open"]


@st.composite
def recordings(draw):
    """Recordings of three plans, each any number of times, with other outcomes of the same URLs each time."""
    urls = {plan: {item: draw(st.sampled_from(["u", "v"])) for item in ITEMS} for plan in range(3)}
    word = st.tuples(st.sampled_from(WORDS), st.sampled_from([None, "r"]))
    words = st.dictionaries(st.sampled_from(ITEMS), word)
    settled = st.lists(st.sampled_from(ITEMS), max_size=1)
    steps = draw(st.lists(st.tuples(st.integers(0, 2), words, settled), min_size=1, max_size=8))
    return [
        (plan, {item: (urls[plan][item], *said) for item, said in outcomes.items()}, gone)
        for plan, outcomes, gone in steps
    ]


def check(steps, repeated, store, book):
    """Record step by step, each `repeated` times over, and compare with the model after each."""
    book.record(planned(99), [])
    store.execute("delete from failures")
    store.execute("delete from recorded_plans")
    model = Model()
    for hour, (plan, outcomes, settled) in enumerate(steps):
        now = NOON + hour * HOUR
        model.record(plan, outcomes, settled, now)
        said = [ItemOutcome(item, "00000010", url, Status(s), r) for item, (url, s, r) in outcomes.items()]
        for again in range(repeated):
            book.record(planned(plan), said, settled, now + again * HOUR / 7)
        assert held(book) == model.failures()


SHARED_STORE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@SQLITE
@settings(max_examples=40, **SHARED_STORE)
@given(steps=recordings(), repeated=st.integers(1, 2))
def test_any_sequence_of_recordings_ends_as_the_rules_say(store, new_ledger, steps, repeated):
    check(steps, repeated, store, new_ledger(retry_attempts=3))


@POSTGRESQL
@settings(max_examples=10, **SHARED_STORE)
@given(steps=recordings(), repeated=st.integers(1, 2))
def test_any_sequence_ends_so_in_postgresql_too(store, new_ledger, steps, repeated):
    check(steps, repeated, store, new_ledger(retry_attempts=3))


def test_nothing_is_written_when_the_outcomes_break_off(book, monkeypatch):
    monkeypatch.setattr(ledger, "_WRITTEN_AT_ONCE", 2)
    book.record(planned(0), ended(GONE, "a", "b"))
    before = held(book)

    def breaking_off():
        yield from ended(INDEXED, "a", "b") + ended(GONE, "c", "d")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        book.record(planned(1), breaking_off())
    with pytest.raises(ZeroDivisionError):
        book.record(planned(1), ended(INDEXED, "a"), (1 // 0 for _ in "x"))
    assert held(book) == before
    # Nor is the plan taken for recorded.
    book.record(planned(1), ended(INDEXED, "a") + ended(GONE, "c"))
    assert attempts(book) == {"b": 1, "c": 1}


def test_nothing_is_left_of_a_first_recording_that_broke_off(book, store):
    with pytest.raises(ZeroDivisionError):
        book.record(planned(0), (1 // 0 for _ in "x"))
    assert held(book) == {}
    with store.engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["items"]


@POSTGRESQL
def test_a_connection_cut_in_the_middle_leaves_the_ledger_as_it_was(book, store, monkeypatch):
    monkeypatch.setattr(ledger, "_WRITTEN_AT_ONCE", 2)
    book.record(planned(0), ended(GONE, "a", "b"))
    before = held(book)

    def cut():
        yield from ended(INDEXED, "a", "b") + ended(GONE, "c", "d")
        with store.engine.connect() as connection:
            ended_now = connection.scalars(
                sa.text(
                    "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                    "where datname = current_database() and pid <> pg_backend_pid()"
                )
            ).all()
        assert ended_now == [True]
        yield from ended(GONE, "e", "f")

    with pytest.raises(ServiceUnavailableError, match=r"ledger .*does not answer.*feature_ledger"):
        book.record(planned(1), cut())
    assert held(book) == before
    book.record(planned(1), ended(INDEXED, "a", "b"))
    assert held(book) == {}


@SQLITE
def test_a_process_killed_in_the_middle_leaves_the_ledger_as_it_was(book, connection):
    book.record(planned(0), ended(GONE, "a", "b"))
    before = held(book)

    def deadly():
        # More than SQLite keeps in memory: some of it is in the file by then.
        yield from ended(INDEXED, "a")
        yield from ended(GONE, *map(str, range(30_000)), reason="x" * 100)
        os.kill(os.getpid(), signal.SIGKILL)

    child = processes.Process(target=lambda: book.record(planned(1), deadly()))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert Path(f"{connection.schema}-journal").stat().st_size > 0
    assert held(book) == before
    book.record(planned(1), ended(INDEXED, "a"))
    assert set(held(book)) == {"b"}


@contextmanager
def running(target):
    """A child process, ended at the latest with the block."""
    child = processes.Process(target=target)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def test_two_processes_record_one_after_the_other(book):
    """Into a ledger that is not there yet, so that both would create it."""
    begun, go_on, second_is_in = processes.Event(), processes.Event(), processes.Event()

    def first():
        begun.set()
        assert go_on.wait(60)
        yield from ended(GONE, "both", "first")

    def second():
        second_is_in.set()
        yield from ended(GONE, "both", "second")

    with running(lambda: book.record(planned(0), first(), now=NOON)) as one:
        assert begun.wait(60)
        with running(lambda: book.record(planned(1), second(), now=NOON + HOUR)) as other:
            assert not second_is_in.wait(0.5)
            go_on.set()
            one.join(60)
            other.join(60)
            assert (one.exitcode, other.exitcode) == (0, 0)
    assert attempts(book) == {"both": 2, "first": 1, "second": 1}
    assert held(book)["both"].next_at == NOON + HOUR + 2 * HOUR


def test_reading_keeps_no_recording_out(book, monkeypatch):
    monkeypatch.setattr(ledger, "_READ_AT_ONCE", 1)
    book.record(planned(0), ended(Status.TOO_LARGE, "a", "b", "c"), now=NOON)
    reading = book.given_up()
    assert next(reading).item_id == "a"
    book.record(planned(1), ended(INDEXED, "a", "b") + ended(UNFINISHED, "c"), now=NOON)
    # What is no longer given up by the time its page is read does not come.
    assert list(reading) == []


def count_of(outcomes, failing):
    """So many outcomes, one of `failing` a failure, made as they are asked for."""
    for number in range(outcomes):
        status = GONE if number % failing == 0 else INDEXED
        yield ItemOutcome(f"{number:08}", "00000010", f"https://a/{number}.jpg", status, None)


def test_outcomes_are_streamed(book):
    count = 200_000
    blocks = []
    gc.collect()  # what other tests left must not go meanwhile

    def watched(outcomes):
        for number, outcome in enumerate(outcomes):
            if number % 10_000 == 9_999:
                blocks.append(sys.getallocatedblocks())
            yield outcome

    book.record(planned(0), watched(count_of(count, failing=20)), watched(map(str, range(20_000))))
    assert len(blocks) == count // 10_000 + 2
    # Three an outcome: it and its two texts.
    assert max(blocks) - blocks[0] < 3 * count / 4
    assert sum(count["waiting"] for count in book.counts().values()) == count // 20


def test_an_item_that_succeeds_costs_a_share_of_a_look(book):
    book.record(planned(0), ended(GONE, "00000001"))
    statements = []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement.split()[0].lower())

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        book.record(planned(1), count_of(5_000, failing=10_000))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    # The first of them fails, the second had a row; the third is the counts'.
    assert Counter(statements)["delete"] == 1
    assert Counter(statements)["insert"] == 3
    assert len(statements) < 20


def test_without_a_connection_it_is_a_file_in_the_data_dir_made_by_the_first_recording(tmp_path):
    book = Ledger(None, Settings(data_dir=tmp_path))
    assert due(book, NOON) == list(book.matching()) == []
    assert book.counts() == {}
    assert list(tmp_path.iterdir()) == []
    book.record(planned(0), ended(GONE, "a"))
    assert attempts(book) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


def test_a_database_without_its_tables_gives_nothing_and_stays_as_it_is(book, store):
    assert due(book, NOON) == list(book.matching(item_ids=["a"])) == []
    assert book.counts() == {}
    with store.engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["items"]


@SQLITE
def test_sqlite_holds_times_as_texts_that_sort(book, store):
    book.record(planned(0), ended(GONE, "a"), now=NOON.astimezone(SEOUL))
    with store.engine.connect() as connection:
        row = connection.execute(
            sa.text("select first_at, last_at, next_at, planned_at, typeof(next_at) from failures")
        ).one()
        assert tuple(row) == (
            "2026-10-01 12:00:00.000000",
            "2026-10-01 12:00:00.000000",
            "2026-10-01 13:00:00.000000",
            "2026-10-01 12:00:00.000000",
            "text",
        )


@POSTGRESQL
def test_postgresql_holds_moments_whatever_its_own_time_zone(book, store):
    store.execute(f"alter database \"{store.connection.schema}\" set timezone = 'Asia/Seoul'")
    book.record(planned(0), ended(GONE, "a"), now=NOON)
    with store.engine.connect() as connection:
        assert connection.scalar(sa.text("show timezone")) == "Asia/Seoul"
        assert connection.scalar(sa.text("select next_at from failures")) == NOON + HOUR
    assert len(due(book, NOON + HOUR)) == 1
    assert due(book, NOON + HOUR - MICROSECOND) == []


TABLES = "failures, failure_counts, recorded_plans, covered_nights, ledger_state"


@pytest.fixture
def clerk(store, connection):
    """A user of PostgreSQL who may do nothing in the ledger's database but look into its schema."""
    name = "ledger_clerk"
    store.execute(f"create role {name} login")
    yield dataclasses.replace(connection, login=name)
    store.execute(f"drop owned by {name}")
    store.execute(f"drop role {name}")


@POSTGRESQL
def test_without_the_right_to_create_tables_it_says_what_to_grant(clerk, store, tmp_path):
    store.execute("grant usage on schema public to ledger_clerk")
    with pytest.raises(ConfigurationError, match=r"schema_1\.sql.*permission denied.*create tables"):
        Ledger(clerk, Settings(data_dir=tmp_path)).record(planned(0), ended(GONE, "a"))


@POSTGRESQL
@pytest.mark.parametrize("right", ["select", "insert", "update", "delete"])
def test_without_a_right_to_its_tables_it_says_what_to_grant(clerk, store, book, tmp_path, right):
    book.record(planned(0), ended(GONE, "a", "b"))
    rights = {"select", "insert", "update", "delete"} - {right}
    store.execute("grant usage on schema public to ledger_clerk")
    store.execute(f"grant {', '.join(rights)} on {TABLES} to ledger_clerk")
    with pytest.raises(ConfigurationError, match=r"permission denied for table .*select, insert, update"):
        Ledger(clerk, Settings(data_dir=tmp_path)).record(
            planned(1), ended(GONE, "a", "c") + ended(INDEXED, "b")
        )
    assert attempts(book) == {"a": 1, "b": 1}


@POSTGRESQL
def test_the_rights_it_names_are_enough(clerk, store, book, tmp_path):
    book.record(planned(0), ended(GONE, "a", "b"))
    store.execute("grant usage on schema public to ledger_clerk")
    store.execute(f"grant select, insert, update, delete on {TABLES} to ledger_clerk")
    clerks = Ledger(clerk, Settings(data_dir=tmp_path))
    for _ in range(2):
        clerks.record(planned(1), ended(GONE, "a", "c") + ended(INDEXED, "b"))
    assert attempts(clerks) == {"a": 2, "c": 1}


@POSTGRESQL
def test_the_right_to_create_tables_is_enough(clerk, store, tmp_path):
    store.execute("grant usage, create on schema public to ledger_clerk")
    clerks = Ledger(clerk, Settings(data_dir=tmp_path))
    clerks.record(planned(0), ended(GONE, "a"))
    assert attempts(clerks) == {"a": 1}


def test_a_connection_of_another_type_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"feature_ledger has the type 'mysql'.*sqlite or postgres"):
        Ledger(Connection(LEDGER, "mysql", host="h", password="hunter2"), Settings(data_dir=tmp_path))


def test_an_unreachable_server_is_named_and_no_password(tmp_path):
    port = free_port()
    connection = Connection(
        LEDGER, "postgres", host="127.0.0.1", port=port, login="clerk", password="hunter2", schema="ledger"
    )
    book = Ledger(connection, Settings(data_dir=tmp_path))
    for use in lambda: book.record(planned(0), []), lambda: due(book, NOON), book.counts:
        with pytest.raises(ServiceUnavailableError, match=f"127.0.0.1:{port}/ledger") as failed:
            use()
        assert "hunter2" not in str(failed.value) + repr(failed.value.__cause__)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    file = tmp_path / "none" / "ledger.db"
    book = Ledger(Connection(LEDGER, "sqlite", schema=str(file)), Settings(data_dir=tmp_path))
    assert list(book.matching()) == []
    with pytest.raises(ServiceUnavailableError, match=re.escape(str(file))):
        book.record(planned(0), ended(GONE, "a"))


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "ledger.db").write_text("no database\n" * 100)
    book = Ledger(None, Settings(data_dir=tmp_path))
    for use in lambda: book.record(planned(0), []), lambda: list(book.matching()):
        with pytest.raises(ConfigurationError, match="not a database"):
            use()


def test_a_table_of_someone_else_s_is_told(book, store):
    store.execute("create table failures (id integer)")
    with pytest.raises(ConfigurationError, match=r"does not fit the ledger.*item_id|next_at"):
        book.record(planned(0), ended(GONE, "a"))
    with pytest.raises(ConfigurationError, match=r"schema_1\.sql does not fit the ledger"):
        list(book.matching())


def test_a_recording_waits_for_another_one_but_not_for_ever(new_ledger, store, monkeypatch, tmp_path):
    if store.kind != "sqlite":
        # Should it wait for ever after all, the server ends this test.
        store.execute(f"alter database {store.connection.schema} set statement_timeout = '20s'")
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    shutil.copytree(database.STATEMENTS, tmp_path / "sql")
    monkeypatch.setattr(database, "STATEMENTS", tmp_path / "sql")
    begin = tmp_path / "sql" / "ledger" / "begin_postgresql.sql"
    begin.write_text(begin.read_text().replace("60s", "100ms"))
    book = new_ledger()

    def meanwhile():
        with pytest.raises(ServiceUnavailableError, match=r"locked|lock timeout"):
            new_ledger().record(planned(1), ended(GONE, "a"))
        yield from ended(GONE, "a")

    book.record(planned(0), meanwhile())
    assert attempts(book) == {"a": 1}


# Pages -------------------------------------------------------------------------------------------


def pages_of(book, size, **filters):
    """All pages, followed by their keys as the UI does it."""
    seen, after = [], None
    while page := book.page(after=after, at_most=size, **filters):
        seen += [failure.item_id for failure in page]
        after = page[-1].last_at, page[-1].item_id
    return seen


def test_pages_give_each_failure_once_in_either_order(book):
    # Two at each time, so that the key's second part counts.
    for hour, items in enumerate([("c", "a"), ("f", "b"), ("e", "d")]):
        book.record(planned(hour), ended(GONE, *items), now=NOON + hour * HOUR)
    for size in (1, 2, 3, 4, 6, 7):
        assert pages_of(book, size) == ["e", "d", "f", "b", "c", "a"]
        assert pages_of(book, size, latest_first=False) == list("abcdef")


def test_a_page_holds_what_matches_every_filter(book):
    book.record(planned(0), ended(GONE, "a", "b") + ended(Status.CORRUPT, "c", category_id="00000020"))
    assert pages_of(book, 5, status=GONE) == ["b", "a"]
    assert pages_of(book, 5, category_id="00000020") == ["c"]
    assert pages_of(book, 5, item_id="a") == ["a"]
    assert pages_of(book, 5, item_id="a", status=Status.CORRUPT) == []


def test_a_page_of_a_ledger_that_nothing_was_written_to_is_empty(book):
    assert book.page() == []


@pytest.mark.parametrize(
    ("read", "index", "is_sorted"),
    [
        (lambda book: book.due(NOON, 5), "failures_due", False),
        (lambda book: list(book.given_up()), "failures_due", False),
        (lambda book: book.page(), "failures_last", False),
        (lambda book: book.page(status=GONE), "failures_of_status", False),
        (lambda book: book.page(category_id="1"), "failures_of_category", False),
        (lambda book: book.page(status=GONE, latest_first=False), "failures_of_status_by_item", False),
        (lambda book: book.page(category_id="1", latest_first=False), "failures_of_category_by_item", False),
        (lambda book: list(book.matching(item_ids=["a", "b"])), "(failures_pkey|sqlite_auto\\w+)", True),
    ],
    ids=[
        "due",
        "given up",
        "last",
        "of status",
        "of category",
        "status by item",
        "category by item",
        "items",
    ],
)
def test_what_is_read_is_found_by_an_index(book, store, kind, read, index, is_sorted):
    book.record(planned(0), ended(GONE, "a"), now=NOON - DAY)
    asked = []

    def note(_connection, _cursor, statement, parameters, *_):
        if "from failures" in statement and "order by" in statement:
            asked.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        read(book)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    ((statement, parameters),) = asked
    with store.engine.connect() as connection:
        if kind == "sqlite":
            explained = connection.exec_driver_sql(f"explain query plan {statement}", parameters)
        else:
            # It would rather sort a table of one row.
            for way in ("seqscan", "bitmapscan", "sort"):
                connection.exec_driver_sql(f"set enable_{way} = off")
            explained = connection.exec_driver_sql(f"explain {statement}", parameters)
        steps = [str(step[-1]) for step in explained]
    assert any(re.search(rf"(?i)index (scan (backward )?using )?{index} ", step) for step in steps), steps
    assert any(re.search(r"TEMP B-TREE|Sort", step) for step in steps) is is_sorted, steps


# How much one retry takes ----------------------------------------------------------------------------


def test_the_longest_due_come_first_and_what_is_beyond_is_counted(book, monkeypatch):
    monkeypatch.setattr(ledger, "_READ_AT_ONCE", 2)
    for number, item_id in enumerate("edcba"):
        book.record(planned(number), ended(GONE, item_id, img_url=item_id), now=NOON + number * HOUR)
    now = NOON + 4 * HOUR  # when the one that failed last, an hour before, is due
    for at_most, taken, beyond in (1, "e", 3), (3, "cde", 1), (4, "bcde", 0), (5, "bcde", 0):
        found = book.due(now, at_most)
        assert ("".join(failure.item_id for failure in found.failures), found.beyond) == (taken, beyond)


def test_what_a_run_at_work_has_is_left_to_it(book, monkeypatch):
    monkeypatch.setattr(ledger, "_READ_AT_ONCE", 2)
    night = dataclasses.replace(planned(1), request=Request("nightly", "monday"))
    book.record(planned(0), ended(GONE, "a", "c", "e"), now=NOON)
    book.record(night, ended(UNFINISHED, "b", "d", "f", "g"), now=NOON)
    asked = []

    def is_active(dag, run):
        asked.append((dag, run))
        return dag == "nightly"

    found = book.due(NOON + HOUR, 3, is_active)
    assert [failure.item_id for failure in found.failures] == ["a", "c", "e"]
    assert found.beyond == 0
    assert sorted(asked) == [("nightly", "monday"), ("tests", "run")]
    assert [failure.item_id for failure in book.matching(is_active=is_active)] == ["a", "c", "e"]
    assert len(due(book, NOON + HOUR)) == 7


def test_unfinished_waits_twice_as_long_each_time_up_to_a_day(book):
    now, waits = NOON, []
    for number in range(8):
        book.record(planned(number), ended(UNFINISHED, "a"), now=now)
        failure = held(book)["a"]
        waits.append((failure.next_at - now) / HOUR)
        now = failure.next_at
    assert waits == [1, 2, 4, 8, 16, 24, 24, 24]


def test_a_day_after_a_sweep_the_next_is_due(book):
    assert book.sweep_is_due(NOON)
    book.record(planned(0), ended(GONE, "a"))
    assert book.sweep_is_due(NOON)
    book.record(dataclasses.replace(planned(1), swept=True), [])
    book.record(planned(2), [])
    swept_at = planned(1).created_at
    assert not book.sweep_is_due(swept_at + 23 * HOUR)
    # The schedule's next day, though this run began some seconds sooner than that one.
    assert book.sweep_is_due(swept_at + DAY - timedelta(seconds=30))


# Counts and versions ---------------------------------------------------------------------------------


def counted(book):
    """The counts, by reading all."""
    found = {}
    for failure in book.matching():
        count = found.setdefault(failure.status, {"waiting": 0, "given_up": 0})
        count["given_up" if failure.next_at is None else "waiting"] += 1
    return found


def test_counts_are_those_of_the_rows_whatever_was_recorded(new_ledger):
    book = new_ledger(retry_attempts=2)
    book.record(planned(0), ended(GONE, "a", "b", "c") + ended(Status.TOO_LARGE, "d", "e"))
    assert (
        book.counts()
        == counted(book)
        == {
            GONE: {"waiting": 3, "given_up": 0},
            Status.TOO_LARGE: {"waiting": 0, "given_up": 2},
        }
    )
    # Given up, another status, a success, one resolved, and a plan recorded again.
    outcomes = ended(GONE, "a") + ended(Status.TOO_LARGE, "b") + ended(INDEXED, "d") + ended(UNFINISHED, "f")
    for _ in range(2):
        book.record(planned(1), outcomes, ["e", "never failed"])
        assert (
            book.counts()
            == counted(book)
            == {
                GONE: {"waiting": 1, "given_up": 1},
                Status.TOO_LARGE: {"waiting": 0, "given_up": 1},
                UNFINISHED: {"waiting": 1, "given_up": 0},
            }
        )
    with pytest.raises(ZeroDivisionError):
        book.record(planned(2), ended(INDEXED, "a"), (1 // 0 for _ in "x"))
    assert book.counts() == counted(book)


WITHOUT_VERSION = """
create table failures (
    item_id text primary key, category_id text, img_url text, status text not null, reason text,
    attempts integer not null, first_at timestamptz not null, last_at timestamptz not null,
    next_at timestamptz, plan_id text not null, planned_at timestamptz not null
);
create index failures_next_at on failures (next_at, item_id);
create index failures_last_at on failures (last_at, item_id, category_id, status);
create index failures_status on failures (status, next_at);
create table recorded_plans (
    plan_id text primary key, planned_at timestamptz not null, recorded_at timestamptz not null
);
create table covered_nights (
    dag text not null, run text not null, starts_at timestamptz not null, ends_at timestamptz not null,
    recorded_at timestamptz not null, primary key (dag, run)
);
insert into failures values
    ('a', '00000010', 'https://a/1.jpg', 'gone', '404', 3, '2026-09-30 08:00:00.000000',
     '2026-09-30 12:00:00.000000', '2026-09-30 16:00:00.000000', 'plan-000000000000',
     '2026-09-30 11:00:00.000000'),
    ('b', null, null, 'invalid_url', 'empty', 1, '2026-09-30 12:00:00.000000', '2026-09-30 12:00:00.000000',
     null, 'plan-000000000000', '2026-09-30 11:00:00.000000');
insert into recorded_plans values
    ('plan-000000000000', '2026-09-30 11:00:00.000000', '2026-09-30 12:00:00.000000');
insert into covered_nights values
    ('nightly', 'r', '2026-09-28 15:00:00.000000', '2026-09-29 15:00:00.000000',
     '2026-09-29 16:00:00.000000')
"""
"""A ledger as the releases left it that kept no version of it."""


@pytest.fixture
def old(store, kind):
    if kind != "sqlite":
        store.execute(f"alter database {store.connection.schema} set timezone = 'UTC'")
        store.engine.dispose()
    for statement in WITHOUT_VERSION.split(";"):
        store.execute(statement)


@pytest.mark.usefixtures("old")
def test_a_ledger_of_the_last_release_keeps_its_rows_and_serves(book):
    moment = datetime(2026, 9, 30, tzinfo=UTC)
    assert book.counts() == {
        GONE: {"waiting": 1, "given_up": 0},
        Status.INVALID_URL: {"waiting": 0, "given_up": 1},
    }
    a = held(book)["a"]
    assert (a.category_id, a.img_url, a.status, a.reason, a.attempts) == (
        *("00000010", "https://a/1.jpg", GONE, "404", 3),
    )
    assert (a.first_at, a.last_at, a.next_at, a.planned_at) == tuple(
        moment + hours * HOUR for hours in (8, 12, 16, 11)
    )
    assert [failure.item_id for failure in book.given_up()] == ["b"]
    assert book.covered_until("nightly", NOON) == datetime(2026, 9, 29, 15, tzinfo=UTC)
    # Of its plans it is not known whose they are.
    assert [f.item_id for f in due(book, NOON)] == ["a"]
    assert [f.item_id for f in book.due(NOON, 9, lambda *_: True).failures] == ["a"]
    book.record(planned(1), ended(GONE, "a") + ended(INDEXED, "b") + ended(GONE, "c"))
    assert attempts(book) == {"a": 4, "c": 1}
    assert book.counts() == counted(book)


@pytest.mark.usefixtures("old")
def test_two_processes_bring_a_ledger_up_to_date_at_once(book):
    both_ready = processes.Barrier(2)

    def use(number):
        both_ready.wait(60)
        book.record(planned(number), ended(GONE, "a", f"of {number}"))

    with running(lambda: use(1)) as one, running(lambda: use(2)) as other:
        one.join(60)
        other.join(60)
        assert (one.exitcode, other.exitcode) == (0, 0)
    assert attempts(book).keys() == {"a", "b", "of 1", "of 2"}
    assert book.counts() == counted(book)


@pytest.mark.usefixtures("old")
def test_what_a_stopped_upgrade_began_is_undone(book, store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_SCHEMA", (*ledger._SCHEMA, "no_such_script"))
        with pytest.raises(FileNotFoundError):
            book.counts()
    with store.engine.connect() as connection:
        assert set(sa.inspect(connection).get_table_names()) == {
            *("items", "failures", "recorded_plans", "covered_nights")
        }
    assert attempts(book) == {"a": 3, "b": 1}


def test_a_ledger_of_a_later_release_is_refused(book, store):
    book.record(planned(0), ended(GONE, "a"))
    store.execute("update ledger_state set version = 99")
    for use in book.counts, lambda: book.record(planned(1), ended(INDEXED, "a")):
        with pytest.raises(ConfigurationError, match=r"version 99.*a later one has used it"):
            use()
