"""Where a scheduled night takes up: the ledger's word first, Airflow's where the ledger knows nothing."""

import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.runs.run import Plan
from tasks.settings import REPOSITORY, Settings
from tasks.shop.ledger import Ledger

NIGHTLY = "nightly_feature_index"
TEN = datetime(2026, 10, 10, 15, tzinfo=UTC)
"""When the night in question begins."""


class Nights:
    """Runs of the past, as Airflow answers a task that asks, and as the ledger took them down."""

    def __init__(self, folder):
        self.ledger = Ledger(None, Settings(data_dir=folder))
        self.runs = []

    def ran(self, day, run_type="scheduled", state="success", *, recorded=True):
        start = datetime(2026, 10, day, 15, tzinfo=UTC)
        run_id = f"{run_type}__{(start + timedelta(days=1)).isoformat()}"
        self.runs = [run for run in self.runs if run.run_id != run_id]
        self.runs.append(SimpleNamespace(run_id=run_id, logical_date=start, state=state))
        if recorded:
            request = self.request(start, run_type)
            folder = Path(f"plan-{len(self.runs)}-{state}")
            plan = Plan(folder, request, "v", planned=0, current=0, created_at=datetime.now(UTC))
            self.ledger.record(plan, [], failed=state == "failed")

    def get_previous_ti(self, logical_date):
        earlier = [run for run in self.runs if run.logical_date < logical_date]
        return max(earlier, key=lambda run: run.logical_date, default=None)

    def get_dagrun_state(self, dag_id, run_id):
        assert dag_id == NIGHTLY
        return next(run.state for run in self.runs if run.run_id == run_id)

    def request(self, start, run_type="scheduled"):
        """What the DAG asks for when a run of this type begins."""
        end = start + timedelta(days=1)
        run = SimpleNamespace(
            dag_id=NIGHTLY,
            run_id=f"{run_type}__{end.isoformat()}",
            run_type=run_type,
            logical_date=start,
            data_interval_start=start,
            data_interval_end=end,
        )
        return self.request_of({"dag_run": run, "ti": self})

    request_of = None


@pytest.fixture
def nights(tmp_path, monkeypatch):
    nightly = runpy.run_path(str(REPOSITORY / "dags" / "nightly_feature_index.py"))
    found = Nights(tmp_path)
    found.request_of = nightly["_request"]
    monkeypatch.setitem(nightly["_request"].__globals__, "ledger", lambda: found.ledger)
    return found


def _october(day):
    return datetime(2026, 10, day, 15, tzinfo=UTC)


DAY = timedelta(days=1)
"""The overlap."""


def test_a_night_takes_up_where_the_last_good_one_ended(nights):
    nights.ran(8)
    nights.ran(9)
    request = nights.request(TEN)
    assert (request.start, request.end) == (TEN - DAY, TEN + DAY)
    assert request.interval == (TEN, TEN + DAY)
    assert request.notices == ()


def test_missed_and_failed_nights_are_caught_up(nights):
    nights.ran(4)
    nights.ran(5)
    # The 6th and the 7th were missed.
    nights.ran(8, state="failed")
    nights.ran(9, state="failed")
    assert nights.request(TEN).start == _october(6) - DAY


def test_backfills_and_triggered_runs_do_not_count(nights):
    nights.ran(5)
    nights.ran(7, "backfill")
    nights.ran(8, "manual")
    assert nights.request(TEN).start == _october(6) - DAY


def test_a_night_brings_lost_features_back_unless_it_is_given_an_interval(nights):
    assert nights.request(TEN).reconcile
    assert not nights.request(TEN, "manual").reconcile
    assert not nights.request(TEN, "backfill").reconcile
    by_hand = SimpleNamespace(
        dag_id=NIGHTLY,
        run_id="manual__1",
        run_type="manual",
        data_interval_start=None,
        data_interval_end=None,
    )
    assert nights.request_of({"dag_run": by_hand, "ti": nights}).reconcile


@pytest.mark.parametrize("run_type", ["manual", "backfill"])
def test_a_run_that_is_not_the_schedule_s_takes_its_interval_alone(nights, run_type):
    nights.ran(5)
    request = nights.request(TEN, run_type)
    assert (request.start, request.end, request.scheduled) == (TEN, TEN + DAY, False)
    assert request.notices == ()


def test_a_first_night_says_that_it_is_one(nights):
    nights.ran(8, "manual")
    request = nights.request(TEN)
    assert request.start == TEN - DAY
    [notice] = request.notices
    assert "Neither the ledger nor Airflow has an earlier nightly run" in notice


def test_where_no_night_ever_succeeded_all_are_caught_up(nights):
    nights.ran(6, state="failed")
    nights.ran(8, "manual")
    nights.ran(9, state="failed")
    request = nights.request(TEN)
    assert request.start == _october(6) - DAY
    [notice] = request.notices
    assert str(_october(6)) in notice


def test_a_lost_ledger_or_one_of_an_earlier_version_loses_no_night(nights):
    nights.ran(3, recorded=False)
    nights.ran(4, recorded=False)
    nights.ran(7, "manual", recorded=False)
    nights.ran(8, state="failed", recorded=False)
    request = nights.request(TEN)
    # Airflow does not tell where the 4th ended, so that night is done again.
    assert request.start == _october(4) - DAY
    [notice] = request.notices
    assert str(_october(4)) in notice
    # From then on the ledger knows.
    nights.ran(10)
    after = nights.request(_october(11))
    assert (after.start, after.notices) == (_october(11) - DAY, ())


def test_an_airflow_that_forgot_its_runs_loses_no_night(nights):
    nights.ran(5)
    nights.runs.clear()
    request = nights.request(TEN)
    assert (request.start, request.notices) == (_october(6) - DAY, ())


def test_an_older_night_cleared_and_run_again_moves_nothing_back(nights):
    for day in (5, 6, 8, 9):
        nights.ran(day)
    # It takes up where it did the first time, and not what came after it.
    assert nights.request(_october(8)).start == _october(7) - DAY
    nights.ran(8)
    assert nights.request(TEN).start == TEN - DAY
    nights.ran(8, state="failed")
    assert nights.request(TEN).start == TEN - DAY


def test_a_night_that_fails_when_run_again_no_longer_counts(nights):
    nights.ran(8)
    nights.ran(9)
    nights.ran(9, state="failed")
    assert nights.request(TEN).start == _october(9) - DAY
    nights.ran(9)
    assert nights.request(TEN).start == TEN - DAY
