"""
# Nightly feature index

Gives every item registered or changed since the last successful night its picture feature.

1. **plan** reads the catalogue, leaves out what the index has already, and splits the rest into chunks.
2. **features**, for each chunk:
   1. **download** fetches the pictures in parallel;
   2. **extract** computes their features;
   3. **index** writes them into the documents.
3. **summarise** counts what became of every item, writes `report.json`, and fails the run if an item is
   unfinished or more items failed than `FEATURES_FAILURE_BUDGET` allows.

**Which items.** A scheduled night starts where the last successful scheduled one ended, less one day of
overlap: nights that were missed or failed, and items written late to the catalogue, are caught up. A
backfill or a run triggered with an interval takes exactly that interval; one without takes the last
complete night. What is current is skipped, so running a night twice is safe. Which nights succeeded is kept
in the ledger; where that knows none, Airflow is asked, and the report says so.

**When it fails.** The log of the failed task ends with what is wrong and what to do. Then clear `plan`
with everything downstream: what is done is skipped, the rest is done again.

**Who is told.** That a night failed, or is not done `FEATURES_NIGHTLY_DEADLINE_HOURS` after it was queued,
goes to the connections `feature_alerts_webhook` and `feature_alerts_mail`, as far as they are set up. Set
them in the environment (`AIRFLOW_CONN_FEATURE_ALERTS_WEBHOOK`): Airflow 3.3 lets the word of a late night
read no other ones.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import (
    DAG,
    Context,
    CronDataIntervalTimetable,
    DeadlineAlert,
    DeadlineReference,
    SyncCallback,
)

from dags.alerts import run_failed, run_overdue
from dags.feature_stages import DEFAULT_ARGS, TAGS, feature_stages, ledger
from tasks.runs.run import Request, caught_up, last_night
from tasks.settings import Settings


def _request(context: Context) -> Request:
    dag_run = context["dag_run"]
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    notices: tuple[str, ...] = ()
    if start is None or end is None:
        start, end = last_night(datetime.now(UTC))
        notices = (f"The run has no interval, so it takes the last complete night, {start} to {end}.",)
    from_ = start
    scheduled = dag_run.run_type == "scheduled"
    if scheduled:
        covered_until = ledger().covered_until(dag_run.dag_id, before=start)
        if covered_until is None:
            covered_until, notices = _by_airflow(context)
        from_ = caught_up(start, covered_until)
    return Request(
        dag=dag_run.dag_id,
        run=dag_run.run_id,
        start=from_,
        end=end,
        interval=(start, end),
        scheduled=scheduled,
        notices=notices,
    )


def _by_airflow(context: Context) -> tuple[datetime | None, tuple[str, ...]]:
    """Where a night takes up that the ledger knows none before, and what to say of it.

    Airflow tells neither a run's type nor where its interval ended, but its id and where it began: so the
    last successful night is done again, or, where none has succeeded, all of them from the first.
    """
    ti, dag_run = context["ti"], context["dag_run"]
    taken_up, before = None, dag_run.logical_date
    while (earlier := ti.get_previous_ti(logical_date=before)) is not None:
        before = earlier.logical_date
        if earlier.run_id.startswith("scheduled__"):
            taken_up = before
            if ti.get_dagrun_state(dag_run.dag_id, earlier.run_id) == "success":
                break
    if taken_up is None:
        return None, (
            "Neither the ledger nor Airflow knows an earlier night, so the run takes its own interval and "
            "the day before it. What was registered earlier takes category_backfill.",
        )
    return taken_up, (
        "The ledger knows no earlier night, as after an upgrade or when it was lost, so the run takes up the "
        f"night that began at {taken_up}, by what Airflow knows.",
    )


with DAG(
    dag_id="nightly_feature_index",
    description="Picture features for everything registered or changed since the last successful night",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 0 * * *", "Asia/Seoul"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=Settings.load().nightly_deadline_hours),
        callback=SyncCallback(run_overdue),
        name="night",
    ),
    default_args=DEFAULT_ARGS,
    tags=TAGS,
):
    feature_stages(_request, on_failure=run_failed)
