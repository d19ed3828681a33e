"""Plans made by hand, for tests of the stages that follow planning."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tasks.runs import packs
from tasks.runs.run import Plan, Request


def plan_over(
    folder: Path, urls: Sequence[str | None], bounds: Sequence[int] = (), version: str = "test-version"
) -> Plan:
    """A saved plan in the data dir `folder`: item i has the i-th URL; chunks are cut at `bounds`."""
    request = Request("test", "run")
    plan = Plan(
        folder=request.folder(folder) / "plan-1",
        request=request,
        feature_version=version,
        planned=len(urls),
        current=0,
        created_at=datetime.now(UTC),
        bounds=tuple(bounds) or (0, len(urls)),
        labels=("all",) * max(len(bounds) - 1, 1),
    )
    with packs.writing(plan.items, packs.ITEMS) as pack:
        for number, url in enumerate(urls):
            pack.add(
                {
                    "item_id": f"{number:08}",
                    "item_name": f"item {number}",
                    "category_id": "00000010",
                    "img_url": url,
                }
            )
    plan.save()
    return plan
