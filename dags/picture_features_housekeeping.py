"""
# Housekeeping

Removes the files of old runs from the data dir, so that the disk does not fill up.

1. **remove_expired** removes, in this order,
   - the plans, pictures and features of a run, `FEATURES_KEEP_DAYS` after they were last written to;
   - the oldest of them, while all together take more than `FEATURES_KEEP_BYTES`;
   - reports, after `FEATURES_KEEP_REPORTS_DAYS`;
   - files that were never finished, or moved aside as damaged, after a day.

**What stays.** Everything of a run that is queued or running, all other files in the data dir, and the
index.

**Clearing a task of an old run.** Once its plan is gone, its tasks fail with a message that says so. Then
clear `plan` with everything downstream: it makes a new plan of what is not current.

**When it fails.** The log ends with what could not be removed; everything else was. The next hourly run tries
again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, task

from dags.feature_stages import IO, SEARCHING, TAGS, UPKEEP, default_args, is_active
from tasks.settings import Settings


@task(queue=IO, pool=SEARCHING, execution_timeout=timedelta(hours=1))
def remove_expired() -> dict[str, int]:
    """Remove what has expired and belongs to no run that is queued or running."""
    from tasks import housekeeping

    return housekeeping.run(Settings.load(), is_active)


with DAG(
    dag_id="picture_features_housekeeping",
    description="Removes the files of old runs",
    doc_md=__doc__,
    # Away from the full hour and from half past, when the other DAGs begin.
    schedule="45 * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(UPKEEP),
    tags=TAGS,
):
    remove_expired()
