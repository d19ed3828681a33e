"""
# Category backfill

Gives every item of the chosen categories, or of the whole catalogue, its picture feature, unless the feature
is current.

1. **plan** reads the catalogue, skips what the index has already, and splits the rest into chunks.
2. **features**, for each chunk: **download**, **extract**, **index**.
3. **summarise** counts the items by status, writes `report.json`, and fails the run if an item is
   unfinished or more items failed than `FEATURES_FAILURE_BUDGET` allows.

**Safe to start twice.** Current features are skipped, so a second run does only the rest; `force` recomputes
everything, for example after pictures were replaced under the same URL.

**First fill.** `all_items` takes the whole catalogue: docs/first_fill.md says in which order, how long it
takes and how to stop it.

**Preview.** `dry_run` counts the items and those already current, and estimates traffic and time.
Nothing is fetched or written.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Context, Param

from dags.feature_stages import (
    AT_ONCE,
    BACKFILL,
    CATEGORIES,
    CATEGORY_ID,
    TAGS,
    default_args,
    feature_stages,
    filled_in,
)
from tasks.errors import ConfigurationError
from tasks.runs.run import Request, parse_time
from tasks.settings import Settings


def _request(context: Context) -> Request:
    params = context["params"]
    start, end = params["registered_from"], params["registered_to"]
    category_ids = filled_in(params["category_ids"])
    if not category_ids and not params["all_items"]:
        raise ConfigurationError(
            "No category is given. Enter one or more category ids, one per line, or choose all items."
        )
    zone = Settings.load().time_zone
    return Request(
        dag=context["dag_run"].dag_id,
        run=context["dag_run"].run_id,
        start=parse_time(start, "registered_from", zone) if start else None,
        end=parse_time(end, "registered_to", zone) if end else None,
        category_ids=category_ids,
        all_items=params["all_items"],
        force=params["force"],
        dry_run=params["dry_run"],
    )


with DAG(
    dag_id="category_backfill",
    description="Picture features for the items of chosen categories",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=4,
    max_active_tasks=AT_ONCE,
    default_args=default_args(BACKFILL),
    tags=TAGS,
    params={
        "category_ids": Param(
            None,
            type=["null", "array"],
            title="Categories",
            description="Category ids, one per line; FEATURES_CATEGORY_PATTERN says what they look like."
            + CATEGORIES,
            items=CATEGORY_ID,
            minItems=1,
        ),
        "all_items": Param(
            False,
            type="boolean",
            title="All items",
            description="The whole catalogue instead, as for the first fill. Preview it first.",
        ),
        "registered_from": Param(
            None,
            type=["null", "string"],
            format="date-time",
            title="Registered from",
            description="Only items registered at or after this time. Empty: no lower bound.",
        ),
        "registered_to": Param(
            None,
            type=["null", "string"],
            format="date-time",
            title="Registered before",
            description="Only items registered before this time. Empty: no upper bound.",
        ),
        "dry_run": Param(
            False,
            type="boolean",
            title="Preview (dry run)",
            description="Count the items and estimate traffic and time; nothing is fetched or written.",
        ),
        "force": Param(
            False,
            type="boolean",
            title="Recompute even if current",
            description="Fetch and compute everything again, as after pictures were replaced at their URLs.",
        ),
    },
):
    feature_stages(_request)
