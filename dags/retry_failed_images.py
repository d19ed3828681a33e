"""
# Retry of failed images

Retries the items in the ledger of failures, those that still have no feature.

1. **plan** reads the due items from the ledger, takes their present rows from the catalogue, skips what is
   current by now, and splits the rest into chunks.
2. **features**, for each chunk: **download**, **extract**, **index**.
3. **summarise** counts the items by status, writes `report.json` and the ledger.

**When an item is due.** An hour after it failed for the first time, then after 2, 4, 8 and so on, at most 24
hours; after ten runs it is given up and stays listed. What only a person can mend (a blocked address, a
picture that is too large) does not come back by itself: docs/statuses.md explains each status. An item that
succeeds, or leaves the catalogue, leaves the ledger; one whose URL changes starts again at the first attempt.

**How many.** An hourly run takes `FEATURES_RETRY_ITEMS` at most, the longest due first; the report says how
many more are due. Items of a run that is queued or running are left to it. An hour in which nothing was due
leaves no report. Once a day the run also looks through what is given up, which need not be listed for ever.

**By hand.** Trigger the DAG with categories, statuses or item ids to retry the items that match all of these,
due or not, given up or not, for example after a host was allowed or a limit raised. With nothing filled in it
retries what is due.

**When it fails.** Items that fail once more do not fail a retry, however many they are; a task that fails
does. Its log ends with what to do; the next hour tries again.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Context, Param

from dags.feature_stages import (
    AT_ONCE,
    CATEGORIES,
    CATEGORY_ID,
    RETRY,
    TAGS,
    default_args,
    feature_stages,
    filled_in,
)
from tasks.runs.run import Request, Retry
from tasks.statuses import Status

IN_LEDGER = [status.value for status in Status if status.failure or status.retried]


def _request(context: Context) -> Request:
    params = context["params"]
    return Request(
        dag=context["dag_run"].dag_id,
        run=context["dag_run"].run_id,
        retry=Retry(
            category_ids=filled_in(params["category_ids"]),
            statuses=tuple(map(Status, filled_in(params["statuses"]))),
            item_ids=filled_in(params["item_ids"]),
        ),
        scheduled=context["dag_run"].run_type == "scheduled",
    )


with DAG(
    dag_id="retry_failed_images",
    description="Retries items without a feature, hourly or chosen by hand",
    doc_md=__doc__,
    # Half past, when a night that starts at a full hour is planned.
    schedule="30 * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=AT_ONCE,
    default_args=default_args(RETRY),
    tags=TAGS,
    params={
        "category_ids": Param(
            [],
            type=["null", "array"],
            title="Categories",
            description="Only items of these categories: ids, one per line." + CATEGORIES,
            items=CATEGORY_ID,
        ),
        "statuses": Param(
            [],
            type=["null", "array"],
            title="Statuses",
            description="Only items with one of these statuses.",
            items={"type": "string", "enum": IN_LEDGER},
            examples=IN_LEDGER,
        ),
        "item_ids": Param(
            [],
            type=["null", "array"],
            title="Items",
            description="Only these items: ids, one per line.",
            items={"type": "string"},
        ),
    },
):
    feature_stages(_request)
