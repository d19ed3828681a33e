"""Properties of planning and counting that hold for any items and any ends of their chunks."""

import itertools
import json
from collections import Counter
from datetime import UTC, datetime
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.errors import ConfigurationError, RunFailedError
from tasks.runs import packs, reports
from tasks.runs.run import Plan, Request
from tasks.settings import Settings
from tasks.shop.ledger import Ledger
from tasks.stages import plan, summarise
from tasks.stages.plan import LARGEST_CHUNK, MOST_CHUNKS, chunk_bounds, chunk_size
from tasks.statuses import Status

urls = st.none() | st.sampled_from(["https://a/1", "https://a/2", "https://b/1", "not a URL", ""])
categories = st.sampled_from(["00000010", "00000020"])
# In any order: a shop's own statement may forget to keep the items of one URL together.
rows = st.lists(st.fixed_dictionaries({"img_url": urls, "category_id": categories}), max_size=40)


@given(rows, st.integers(1, 12), st.integers(1, 12))
def test_chunks_cover_every_item_once_in_order_whatever_the_urls(rows, size, largest):
    size = min(size, largest)
    with mock.patch.object(plan, "LARGEST_CHUNK", largest):
        bounds, labels = chunk_bounds(iter(rows), size)

    assert bounds[0] == 0
    assert bounds[-1] == len(rows)
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    assert all(size <= length <= largest for length in lengths[:-1])
    assert all(0 < length <= largest for length in lengths[-1:])
    for bound, length in zip(bounds[1:-1], lengths[:-1], strict=True):
        assert length == largest or rows[bound]["img_url"] != rows[bound - 1]["img_url"]
    spans = [f"items {start + 1}-{stop} · " for start, stop in itertools.pairwise(bounds)]
    assert [label[: len(span)] for label, span in zip(labels, spans, strict=True)] == spans


@given(st.integers(0, 3 * MOST_CHUNKS * LARGEST_CHUNK), st.integers(1, LARGEST_CHUNK))
def test_a_run_has_about_a_hundred_chunks_or_the_largest_ones(to_do, wanted):
    settings = Settings(chunk_size=wanted)
    if to_do > MOST_CHUNKS * LARGEST_CHUNK:
        with pytest.raises(ConfigurationError, match="Split the run"):
            chunk_size(to_do, settings)
        return
    size = chunk_size(to_do, settings)
    chunks = -(-to_do // size)
    assert wanted <= size <= LARGEST_CHUNK
    assert chunks <= 100 or (size == LARGEST_CHUNK and chunks <= MOST_CHUNKS)
    assert size in (wanted, LARGEST_CHUNK) or -(-to_do // (size - 1)) > 100, "no larger than need be"


# From the items to the report -------------------------------------------------------------------

ENDS = sorted(set(Status) - {Status.CURRENT, Status.UNFINISHED})
FILES = ("pictures", "features", "outcomes")


@st.composite
def runs(draw):
    """Items, how they are cut, and of each chunk the files that are there and its items' statuses."""
    items = draw(rows)
    bounds, labels = chunk_bounds(items, draw(st.integers(1, 10)))
    chunks = [
        (
            draw(st.sets(st.sampled_from(FILES))),
            draw(st.lists(st.sampled_from(ENDS), min_size=stop - start, max_size=stop - start)),
        )
        for start, stop in itertools.pairwise(bounds)
    ]
    return items, bounds, labels, chunks


@hypothesis_settings(max_examples=40, deadline=None)
@given(runs(), st.integers(0, 30))
def test_every_item_is_counted_once_whichever_files_are_missing(tmp_path_factory, run, current):
    items, bounds, labels, chunks = run
    settings = Settings(data_dir=tmp_path_factory.mktemp("counted"), failure_budget=0.5)
    planned = Plan(
        folder=settings.data_dir / "d" / "r" / "plan-1",
        request=Request("d", "r", category_ids=("00000010",)),
        feature_version="v",
        planned=len(items) + current,
        current=current,
        created_at=datetime.now(UTC),
        bounds=bounds,
        labels=labels,
    )
    with packs.writing(planned.items, packs.ITEMS) as pack:
        for number, item in enumerate(items):
            pack.add({"item_id": f"i{number}", **item})
    planned.save()
    expected = Counter({Status.CURRENT: current})
    for chunk, (files, statuses) in zip(planned.chunks, chunks, strict=True):
        if "pictures" in files:
            with packs.writing(chunk.pictures, packs.PICTURES) as pack:
                pack.statistics |= {"seconds": 1.0, "bytes": 10, "requests": 1}
        if "features" in files:
            with packs.writing(chunk.features, packs.FEATURES) as pack:
                pack.statistics |= {"seconds": 1.0, "precision": "float32", "device": "cpu"}
        if "outcomes" in files:
            expected.update(statuses)
            with packs.writing(chunk.outcomes, packs.OUTCOMES) as pack:
                for number, status in zip(range(chunk.start, chunk.stop), statuses, strict=True):
                    outcome = {"item_id": f"i{number}", "status": status}
                    pack.add(outcome | {"img_url": items[number]["img_url"], "reason": "as told"})
                pack.statistics |= {"seconds": 1.0}
        else:
            expected[Status.UNFINISHED] += chunk.stop - chunk.start

    try:
        summarise.run(planned, settings, Ledger(None, settings))
        failed = False
    except RunFailedError:
        failed = True

    report = json.loads(reports.path(planned.request, settings).read_text())
    assert report["counts"] == {status.value: count for status, count in expected.items() if count}
    assert sum(report["counts"].values()) == report["planned"] == len(items) + current
    lost = sum(count for status, count in expected.items() if status.failure) - expected[Status.UNFINISHED]
    assert failed == (expected[Status.UNFINISHED] > 0 or 2 * lost > report["planned"])
    assert (report["state"] == "failed") == failed
