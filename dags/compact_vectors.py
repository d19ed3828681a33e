"""
# Compact vectors

Writes the compact vectors of the published feature space into all documents, from the features that these
hold; no picture is fetched. It starts when `feature_space` has published a space, and when a run has written
features, since it also finds what others have lost meanwhile.

1. **compact** looks for documents with a feature of the current version that lack a compact vector of the
   published space, and writes it; where there are none, this takes two requests.

**What it leaves.** A document that is written by others meanwhile is read again: its compact vector is always
that of the feature that it has. Compact vectors of documents that have lost their feature are taken away.
Stopped anywhere and started again, it does the rest. As long as no space is published, it skips.

**When it fails.** The log ends with what to do.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.feature_stages import (
    FEATURES,
    IO,
    SEARCHING,
    SPACE,
    TAGS,
    UPKEEP,
    default_args,
    progress,
    services,
)
from tasks.settings import Settings


@task(queue=IO, pool=SEARCHING, execution_timeout=timedelta(hours=12))
def compact() -> dict[str, Any]:
    """Write the compact vectors that documents lack."""
    from tasks.inference.model import identity
    from tasks.space.published import Reader
    from tasks.stages import compact as stage

    settings = Settings.load()
    if Reader(settings, identity(settings)).usable is None:
        raise AirflowSkipException("No feature space is published that could be used: run feature_space.")
    result = stage.run(settings, services().search, progress())
    print(stage.described(result))
    return result


with DAG(
    dag_id="compact_vectors",
    description="Writes the feature space's compact vectors into all documents",
    doc_md=__doc__,
    schedule=(SPACE | FEATURES),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=default_args(UPKEEP),
    tags=TAGS,
):
    compact()
