"""
# Nightly feature index

Gives every item registered or changed since the last successful night its picture feature. It starts by
`FEATURES_NIGHTLY_SCHEDULE` in `FEATURES_TIME_ZONE`: at midnight in Seoul, if they are not set.

1. **plan** reads the catalogue, skips what the index has already, and splits the rest into chunks.
2. **features**, for each chunk:
   1. **download** fetches the pictures in parallel;
   2. **extract** computes their features;
   3. **index** writes them into the documents.
3. **summarise** counts the items by status, writes `report.json`, and fails the run if an item is
   unfinished or more items failed than `FEATURES_FAILURE_BUDGET` allows.

**Which items.** A scheduled run starts where the last successful scheduled one ended, minus one day of
overlap: missed and failed nights, and items that reached the catalogue late, are caught up. A backfill run,
or one triggered with an interval, covers exactly that interval; one without covers the last complete night.
Current features are skipped, so running a night twice is safe. The ledger records which nights succeeded; if
it has no record, Airflow's history is used, and the report says so.

**Features that got lost** come back: after what changed, a scheduled night, or one triggered without an
interval, also takes the items whose documents lack a current feature for no reason on record, at most
`FEATURES_RECONCILE_ITEMS` a night. The report tells changed, caught up and reconciled apart.

**When it fails.** The log of the failed task ends with the cause and the remedy. Then clear `plan` with
everything downstream: current features are skipped, the rest is done again.

**Alerts.** One alert is sent when a run fails, or is not done `FEATURES_NIGHTLY_DEADLINE_HOURS` after it was
queued, to the connections `feature_alerts_webhook` and `feature_alerts_mail`, if they exist. Set them in the
environment (`AIRFLOW_CONN_FEATURE_ALERTS_WEBHOOK`): in Airflow 3.3 deadline callbacks read connections from
the environment only.
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
from dags.feature_stages import AT_ONCE, NIGHT, TAGS, default_args, feature_stages, ledger
from tasks.runs.nights import caught_up, last_night
from tasks.runs.run import Request
from tasks.settings import Settings


def _request(context: Context) -> Request:
    dag_run = context["dag_run"]
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    notices: tuple[str, ...] = ()
    given = start is not None and end is not None
    if start is None or end is None:
        start, end = last_night(datetime.now(UTC), Settings.load())
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
        # Who names an interval wants that one and nothing else.
        reconcile=scheduled or not given,
        notices=notices,
    )


def _by_airflow(context: Context) -> tuple[datetime | None, tuple[str, ...]]:
    """Where a night starts if the ledger has no earlier one, and the notice that says so.

    Airflow's public interface gives neither the type of an earlier run nor the end of its interval, but its
    id and logical date: so the last successful night is done again or, if none succeeded, all of them.
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
            "Neither the ledger nor Airflow has an earlier nightly run, so this one covers its own interval "
            "and the day before it. For items registered earlier, trigger category_backfill.",
        )
    return taken_up, (
        "The ledger has no earlier nightly run, as after an upgrade or a loss, so this run starts with the "
        f"night that began at {taken_up}, from Airflow's history.",
    )


settings = Settings.load()

with DAG(
    dag_id="nightly_feature_index",
    description="Picture features for everything registered or changed since the last successful night",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable(settings.nightly_schedule, settings.time_zone.key),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=settings.nightly_deadline_hours),
        callback=SyncCallback(run_overdue),
        name="night",
    ),
    max_active_tasks=AT_ONCE,
    default_args=default_args(NIGHT),
    tags=TAGS,
):
    feature_stages(_request, on_failure=run_failed)
