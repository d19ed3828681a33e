"""
# Category backfill

Gives every item of some categories its picture feature, as far as it is not current.

1. **plan** reads the catalogue, leaves out what the index has already, and splits the rest into chunks.
2. **features**, for each chunk: **download**, **extract**, **index**.
3. **summarise** counts what became of every item, writes `report.json`, and fails the run if an item is
   unfinished or more items failed than `FEATURES_FAILURE_BUDGET` allows.

**Safe to press twice.** What is current is skipped, so a second run does only what is left; `force` does
everything again, as after a picture was replaced under the same URL.

**Look first.** `dry_run` counts the items, how many are current, and what traffic and time to expect.
Nothing is touched.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Context, Param

from dags.feature_stages import DEFAULT_ARGS, TAGS, feature_stages, filled_in
from tasks.errors import ConfigurationError
from tasks.runs.run import Request, parse_time


def _request(context: Context) -> Request:
    params = context["params"]
    start, end = params["registered_from"], params["registered_to"]
    category_ids = filled_in(params["category_ids"])
    if not category_ids:
        raise ConfigurationError("No category is given. Name one or more, one a line, such as 00000030.")
    return Request(
        dag=context["dag_run"].dag_id,
        run=context["dag_run"].run_id,
        start=parse_time(start, "registered_from") if start else None,
        end=parse_time(end, "registered_to") if end else None,
        category_ids=category_ids,
        force=params["force"],
        dry_run=params["dry_run"],
    )


with DAG(
    dag_id="category_backfill",
    description="Picture features for the items of some categories",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=4,
    default_args=DEFAULT_ARGS,
    tags=TAGS,
    params={
        "category_ids": Param(
            type="array",
            title="Categories",
            description="Category ids of 8 digits, one a line, such as 00000030.",
            items={"type": "string", "pattern": "^([0-9]{8})?$"},
            minItems=1,
        ),
        "registered_from": Param(
            None,
            type=["null", "string"],
            format="date-time",
            title="Registered from",
            description="Only items registered at this time or later. Empty: from the beginning.",
        ),
        "registered_to": Param(
            None,
            type=["null", "string"],
            format="date-time",
            title="Registered before",
            description="Only items registered before this time. Empty: without an end.",
        ),
        "dry_run": Param(
            False,
            type="boolean",
            title="Only look",
            description="Count the items and say what to expect; nothing is fetched or written.",
        ),
        "force": Param(
            False,
            type="boolean",
            title="Again from the start",
            description="Fetch and compute again even what is current, as after pictures were replaced.",
        ),
    },
):
    feature_stages(_request)
