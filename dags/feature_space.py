"""
# Feature space

Learns from the features in the index what search by photo needs: compact vectors, 128-bit codes, and a
model that tells the category of a picture. It starts on Sundays at 7 in `FEATURES_TIME_ZONE`.

1. **snapshot** reads all features of the current version from the index into one file,
   `spaces/snapshot.h5` in the data dir.
2. **fit** learns from four fifths of the items, evaluates with the other fifth, and publishes the space,
   unless the published one is better. Then `compact_vectors` starts, which writes the compact vectors of the
   new space into all documents.

**Which items.** A fifth of the items, by a hash of their ids, is never learnt from, so that every space is
evaluated with items that it does not know. Categories with fewer than 20 items are left out, and counted.

**When it fails.** The log ends with what to do. A new space that is worse than the published one is not
published: the published one stays, and the log has both evaluations.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, task

from dags.feature_stages import IO, SEARCHING, SPACE, TAGS, UPKEEP, default_args, progress, services
from tasks.settings import Settings


@task(queue=IO, pool=SEARCHING, execution_timeout=timedelta(hours=6))
def snapshot() -> int:
    """Read all features of the current version from the index."""
    from tasks.search.document_fields import DocumentFields
    from tasks.search.queries import ItemQueries
    from tasks.space import fit as stage

    settings = Settings.load()
    index = ItemQueries(services().search, settings.index, DocumentFields.of(settings))
    return stage.take_snapshot(index, settings, progress())


@task(queue=IO, pool=SEARCHING, execution_timeout=timedelta(hours=6), outlets=[SPACE])
def fit() -> dict[str, Any]:
    """Learn a space, evaluate it, and publish it."""
    from tasks.space import fit as stage

    facts = stage.fit(Settings.load())
    print(stage.described(facts))
    return facts


with DAG(
    dag_id="feature_space",
    description="Learns from all features what search by photo needs",
    doc_md=__doc__,
    # On Sundays at 7, when a night has usually ended.
    schedule=CronTriggerTimetable("0 7 * * 0", timezone=Settings.load().time_zone.key),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(UPKEEP),
    tags=TAGS,
):
    snapshot() >> fit()
