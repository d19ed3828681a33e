"""The wiring that the DAGs share: plan, then download, extract and index chunk by chunk, then summarise.

Each task turns what Airflow knows into plain values and calls its stage in tasks/.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import (
    Asset,
    AssetAlias,
    Connection,
    Context,
    ExceptionRetryPolicy,
    RetryAction,
    RetryDecision,
    RetryRule,
    TriggerRule,
    WeightRule,
    get_current_context,
    task,
    task_group,
)
from airflow.sdk.exceptions import AirflowNotFoundException

from tasks.progress import Progress, reported
from tasks.runs.category_names import CategoryNames
from tasks.runs.run import Chunk, Plan, Request
from tasks.settings import Settings
from tasks.shop.connections import LEDGER, Services
from tasks.shop.connections import Connection as ServiceConnection

if TYPE_CHECKING:
    from tasks.shop.ledger import Ledger

TAGS = ["picture-features"]

# An Airflow that has other DAGs, too, may have queues and pools of its own with plainer names.
IO, GPU = "picture_features_io", "picture_features_gpu"
"""Queues."""
DOWNLOADING = "picture_features_image_download"
COMPUTING = "picture_features_gpu"
SEARCHING = "picture_features_elasticsearch"
PLANNING = "picture_features_planning"
"""Pools, as pools.json has them."""

_POOLS = json.loads(Path(__file__).with_name("pools.json").read_text())
DOWNLOADS: int = _POOLS[DOWNLOADING]["slots"]
"""Chunks that download at once, on all workers: they share what one host may get."""
AT_ONCE: int = sum(pool["slots"] for pool in _POOLS.values())
"""Tasks that one run may have at once: as many as the pools let. Airflow's own limit of 16 knows nothing of
them."""

NIGHT, RETRY, BACKFILL, UPKEEP = 40, 30, 20, 10
"""Whose tasks are first where several runs wait for one pool."""

CATEGORY_ID = {"type": "string", "pattern": f"^(?:{Settings.load().category_pattern})?$"}
"""What a line of a form is that takes category ids; one that is left empty comes as an empty text."""

_NAMED = CategoryNames.load(Settings.load()).first(30)
CATEGORIES = f" The shop has: {', '.join(_NAMED)}." if _NAMED else ""
"""What forms say besides of the categories, where the catalogue gives their names."""

FEATURES = Asset("picture_features", uri="picture-features://index")
"""The features in the index. A run that ends well leaves an event with its counts, on which the DAGs of
others may be scheduled; a preview leaves none."""
SPACE = Asset("picture_feature_space", uri="picture-features://space")
"""The published feature space; each one leaves an event."""
_WRITTEN = AssetAlias("picture_features_written")


class FailSayingWhy(ExceptionRetryPolicy):
    """Makes the error's own message the reason, which ends the log and is kept with the task."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """As the rules say, with the message where they fail the task."""
        decision = super().evaluate(exception, try_number, max_tries, context)
        return RetryDecision.fail(str(exception)) if decision.action is RetryAction.FAIL else decision


_DEFAULT_ARGS = {
    "owner": "shop-search",
    "retries": 3,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    # What a person has to mend fails at once; everything else may pass by itself.
    "retry_policy": FailSayingWhy(
        rules=[
            RetryRule("tasks.errors.ConfigurationError", RetryAction.FAIL),
            RetryRule("tasks.errors.RunFailedError", RetryAction.FAIL),
        ]
    ),
    # Airflow would add the weights of what follows: a chunk's first stage would go before another's last.
    "weight_rule": WeightRule.ABSOLUTE,
}


def default_args(priority: int) -> dict[str, Any]:
    """What all tasks of a DAG have in common."""
    return _DEFAULT_ARGS | {"priority_weight": priority}


MakeRequest = Callable[[Context], Request]


def feature_stages(make_request: MakeRequest, on_failure: Callable[[Context], None] | None = None) -> None:
    """Add the stages to the DAG being defined.

    Args:
        make_request: says what a run was asked to do.
        on_failure: called when a run has failed. It is the last task's, which fails when anything did and
            knows the reasons.
    """

    @task(queue=IO, pool=PLANNING, execution_timeout=timedelta(hours=2))
    def plan() -> list[dict[str, Any]]:
        """Read the catalogue, leave out what is current, and split the rest into chunks."""
        from tasks.stages import plan as stage

        context = get_current_context()
        planned = stage.run(make_request(context), Settings.load(), services(), progress(), is_active)
        # Relative, because workers may mount the data dir at different places.
        folder = str(planned.folder.relative_to(Settings.load().data_dir))
        context["ti"].xcom_push(key="plan", value=folder)
        return [{"plan": folder, "number": c.number, "label": c.label} for c in planned.chunks]

    @task(
        queue=IO,
        pool=DOWNLOADING,
        execution_timeout=timedelta(hours=6),
        map_index_template=_LABEL,
    )
    def download(chunk: dict[str, Any]) -> dict[str, Any]:
        """Fetch the chunk's pictures in parallel."""
        from tasks.stages import download as stage

        return stage.run(_chunk(chunk), Settings.load().shared_by(DOWNLOADS), progress())

    @task(queue=GPU, pool=COMPUTING, execution_timeout=timedelta(hours=6), map_index_template=_LABEL)
    def extract(chunk: dict[str, Any]) -> dict[str, Any]:
        """Compute the features of the chunk's pictures."""
        from tasks.stages import extract as stage

        return stage.run(_chunk(chunk), Settings.load(), progress())

    @task(queue=IO, pool=SEARCHING, execution_timeout=timedelta(hours=2), map_index_template=_LABEL)
    def index(chunk: dict[str, Any]) -> dict[str, Any]:
        """Write the features into their documents."""
        from tasks.stages import index as stage

        return stage.run(_chunk(chunk), Settings.load(), services(), progress())

    # Runs whatever happened: a run that died half-way needs its report most of all.
    @task(
        queue=IO,
        pool=PLANNING,
        execution_timeout=timedelta(hours=1),
        trigger_rule=TriggerRule.ALL_DONE,
        outlets=[_WRITTEN],
        on_failure_callback=on_failure,
    )
    def summarise() -> dict[str, int]:
        """Count what became of every item, write report and ledger, and fail a run that must fail."""
        from tasks.stages import summarise as stage

        context = get_current_context()
        folder = context["ti"].xcom_pull(task_ids="plan", key="plan")
        settings = Settings.load()
        if folder is None:
            dag_run = context["dag_run"]
            stage.run_without_plan(dag_run.dag_id, dag_run.run_id, settings, ledger())
        planned = Plan.load(settings.data_dir / folder)
        report = stage.run(planned, settings, ledger())
        if not planned.request.dry_run:
            counts = {"planned": report["planned"], **report["counts"]}
            context["outlet_events"][_WRITTEN].add(FEATURES, extra={"counts": counts})
        return report["counts"]

    @task_group
    def features(chunk: dict[str, Any]) -> None:
        """The stages of one chunk; while one chunk computes, the next one downloads."""
        download(chunk=chunk) >> extract(chunk=chunk) >> index(chunk=chunk)

    chunks = plan()
    features.expand(chunk=chunks) >> summarise()


def ledger() -> Ledger:
    """The ledger behind Airflow's connection feature_ledger."""
    from tasks.shop.ledger import Ledger

    return Ledger(_connection(LEDGER), Settings.load())


def is_active(dag: str, run: str) -> bool:
    """Whether Airflow has this run queued or running."""
    ti = get_current_context()["ti"]
    # A count, because it is 0 of a run that Airflow does not know, such as one without Airflow.
    return ti.get_dr_count(dag_id=dag, run_ids=[run], states=["queued", "running"]) > 0


def filled_in(lines: list[str] | None) -> tuple[str, ...]:
    """The lines of a form's field, each once; the form sends a line left empty as an empty string."""
    return tuple(dict.fromkeys(filter(None, lines or ())))


_LABEL = "{{ task.op_kwargs['chunk']['label'] }}"


def _chunk(value: dict[str, Any]) -> Chunk:
    return Chunk(Plan.load(Settings.load().data_dir / value["plan"]), value["number"])


def progress() -> Progress:
    """What a person who watches the task sees in its Task State Store tab."""
    store = get_current_context()["task_state_store"]
    return reported(lambda words: store.set("progress", words))


def services() -> Services:
    return Services.found_by(_connection)


def _connection(conn_id: str) -> ServiceConnection | None:
    try:
        return ServiceConnection.from_airflow(conn_id, Connection.get(conn_id))
    except AirflowNotFoundException:
        return None
