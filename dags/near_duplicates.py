"""
# Near-duplicates

Brings items that show the same picture, perhaps recompressed, resized, cropped a little or with a logo, into
groups: `imagenet_feature_group` of their documents is the same then, so that a shop's search can collapse on
it. It starts when a run has written features, as each night does.

1. **find** compares the pictures that are new with those that lead groups, by the features in the index, and
   writes the groups into the documents. Pictures that features alone cannot decide of are fetched and looked
   at.

**What it leaves.** Every document with a feature has a group; one that shows what no other shows is alone in
its own. A group is named by the sha256 of the picture that leads it, and keeps that name as long as this
picture is in the index. A picture that changed leaves its group at once, with its new feature.

**Before the first feature space.** It takes the codes of a space that `feature_space` has published, and
skips as long as there is none.

**When it fails.** The log ends with what to do; what is written stays, and the next run does the rest.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.feature_stages import (
    DOWNLOADS,
    FEATURES,
    IO,
    SEARCHING,
    TAGS,
    UPKEEP,
    default_args,
    progress,
    services,
)
from tasks.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk import Context


@task(queue=IO, pool=SEARCHING, execution_timeout=timedelta(hours=12))
def find() -> dict[str, Any]:
    """Compare new pictures, and write the groups."""
    from tasks.duplicates import find as stage
    from tasks.inference.model import identity
    from tasks.space import published

    settings = Settings.load()
    if not _written(get_current_context()):
        raise AirflowSkipException("No feature has been written since.")
    if not published.pointer(settings).exists():
        raise AirflowSkipException("No feature space is published yet: run feature_space.")
    model = identity(settings)
    report = stage.find(services().search, model, settings.shared_by(DOWNLOADS), progress())
    print(stage.described(report))
    return report


def _written(context: Context) -> bool:
    """Whether a run that this one was started by has written a feature; by hand it is always started."""
    events = [event for found in context["triggering_asset_events"].values() for event in found]
    return not events or any(event.extra.get("counts", {}).get("indexed") for event in events)


with DAG(
    dag_id="near_duplicates",
    description="Brings items that show the same picture into groups",
    doc_md=__doc__,
    schedule=[FEATURES],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(UPKEEP),
    tags=TAGS,
):
    find()
