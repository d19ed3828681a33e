"""Whole runs without Airflow: how the stages of several chunks go side by side, and end together."""

import json
import time

import pytest

from local_stack.garments import draw
from tasks import pipeline, reports
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.runs import Request
from tests.scripted_server import Reply

CATEGORY = "00000010"
ITEMS = ("a", "b", "c")


pytestmark = pytest.mark.usefixtures("model_version")


@pytest.fixture
def run(sqlite_shop, image_server, monkeypatch, loaded_model):
    """Runs all items, one a chunk, and gives the report."""
    for stage in ("extract", "pipeline"):
        monkeypatch.setattr(f"tasks.{stage}.load", lambda _: loaded_model)
    for seed, item_id in enumerate(ITEMS):
        image_server.answer(f"/{item_id}.jpg", Reply(body=draw(CATEGORY, seed).data))
        sqlite_shop.stock(item_id, img_url=image_server.url(f"/{item_id}.jpg"))
    request = Request("pipeline", "run", category_ids=(CATEGORY,))
    settings = sqlite_shop.settings(image_hosts=(image_server.host,), chunk_size=1)

    def run():
        try:
            return pipeline.run(request, settings, sqlite_shop.services)
        finally:
            run.report = json.loads(reports.path(request, settings).read_text())

    run.data_dir = settings.data_dir
    return run


def after(stage, monkeypatch, what):
    """Have `what` called with a chunk's number before the stage does the chunk."""
    real = stage.run

    def watched(chunk, *arguments):
        what(chunk.number)
        return real(chunk, *arguments)

    monkeypatch.setattr(stage, "run", watched)


def until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_the_next_chunk_downloads_and_the_last_one_is_written_while_one_is_computed(
    run, sqlite_shop, image_server, monkeypatch
):
    asked = image_server.requests

    def computing(number):
        if number < 2:
            until(lambda: f"/{ITEMS[number + 1]}.jpg" in {request.path for request in asked})
        if number > 0:
            until(
                lambda: sqlite_shop.client.get(index=sqlite_shop.index, id=ITEMS[number - 1])["_version"] > 1
            )

    after(pipeline.extract, monkeypatch, computing)
    assert run()["counts"] == {"indexed": 3}
    assert sorted(request.path for request in asked) == ["/a.jpg", "/b.jpg", "/c.jpg"]


def test_an_index_that_refuses_ends_the_run_before_the_next_chunk_is_done(run, sqlite_shop, monkeypatch):
    blocked = {"index.blocks.write": True}
    sqlite_shop.client.indices.put_settings(index=sqlite_shop.index, settings=blocked)
    computed, refused = [], []
    write, compute = pipeline.index.run, pipeline.extract._Device.compute

    def writing(*arguments):
        try:
            return write(*arguments)
        except ConfigurationError as error:
            refused.append(error)
            raise

    def computing(device, batch):
        if computed:
            until(lambda: refused)
        computed.append(device)
        return compute(device, batch)

    def extracting(number):
        if number > 0:
            until(lambda: computed)

    with monkeypatch.context() as patched:
        after(pipeline.extract, patched, extracting)
        patched.setattr(pipeline.index, "run", writing)
        patched.setattr(pipeline.extract._Device, "compute", computing)
        with pytest.raises(ConfigurationError, match="block"):
            run()
    assert run.report["counts"] == {"unfinished": 3}
    assert len(list(run.data_dir.rglob("features.parquet"))) == 1

    blocked = {"index.blocks.write": False}
    sqlite_shop.client.indices.put_settings(index=sqlite_shop.index, settings=blocked)
    assert run()["counts"] == {"indexed": 3}


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("stage", ["download", "extract", "index"])
def test_an_error_of_any_stage_comes_out_and_the_next_run_does_the_rest(stage, failing, run, monkeypatch):
    def fail(number):
        if number == failing:
            raise ServiceUnavailableError(f"{stage} of {number}")

    with monkeypatch.context() as patched:
        after(getattr(pipeline, stage), patched, fail)
        with pytest.raises(ServiceUnavailableError, match=f"{stage} of {failing}"):
            run()
    counts = run.report["counts"]
    assert sum(counts.values()) == run.report["planned"] == 3
    assert counts["unfinished"] >= 1
    counts = run()["counts"]
    assert sum(counts.values()) == 3
    assert counts.keys() <= {"indexed", "current"}


def test_who_has_had_enough_waits_for_no_chunk(run, image_server, monkeypatch):
    # It is asked to stop while the second chunk is fetched.
    image_server.answer("/b.jpg", Reply(body=draw(CATEGORY, 1).data, delay=1))
    fetched = []

    def enough(number):
        if number == 0:
            until(lambda: 1 in fetched)
            raise KeyboardInterrupt

    after(pipeline.extract, monkeypatch, enough)
    after(pipeline.download, monkeypatch, fetched.append)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.report["counts"] == {"unfinished": 3}
    assert 2 not in fetched


def test_a_chunk_makes_ready_while_the_one_before_is_computed(run, monkeypatch):
    ready = []
    decoders = pipeline.extract.Decoders

    class Counted(decoders):
        def __enter__(self):
            ready.append(self)
            return super().__enter__()

    computed = []
    monkeypatch.setattr(pipeline.extract, "Decoders", Counted)
    compute = pipeline.extract._Device.compute

    def watched(device, batch):
        # All but the last one have one behind them that has its decoders.
        until(lambda: len(ready) > min(len(computed) + 1, 2))
        computed.append(device)
        return compute(device, batch)

    monkeypatch.setattr(pipeline.extract._Device, "compute", watched)
    assert run()["counts"] == {"indexed": 3}
    assert len(computed) == 3
