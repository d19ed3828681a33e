"""Whole runs without Airflow: how the stages of several chunks go side by side, and end together."""

import json
import time

import pytest

from local_stack.garments import draw
from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.runs import reports
from tasks.runs.run import Request
from tasks.stages import pipeline
from tests.scripted_server import Reply

CATEGORY = "00000010"
ITEMS = ("a", "b", "c")


pytestmark = [pytest.mark.model, pytest.mark.usefixtures("model_version")]


@pytest.fixture(autouse=True)
def model(monkeypatch, loaded_model):
    """Loaded once for all runs of this process."""
    for stage in ("extract", "pipeline"):
        monkeypatch.setattr(f"tasks.stages.{stage}.load", lambda _: loaded_model)


def stock(shop, image_server, **columns):
    for seed, item_id in enumerate(ITEMS):
        image_server.answer(f"/{item_id}.jpg", Reply(body=draw(CATEGORY, seed).data))
        shop.stock(item_id, img_url=image_server.url(f"/{item_id}.jpg"), **columns)


@pytest.fixture
def run(sqlite_shop, image_server):
    """Runs all items, one a chunk, and gives the report."""
    stock(sqlite_shop, image_server)
    request = Request("pipeline", "run", category_ids=(CATEGORY,))
    settings = sqlite_shop.settings(image_hosts=(image_server.host,), chunk_size=1)

    def run():
        try:
            return pipeline.run(request, settings, sqlite_shop.services)
        finally:
            run.report = json.loads(reports.path(request, settings).read_text())

    return run


def test_every_stage_on_mariadb_with_one_row_that_is_invalid(new_shop, image_server):
    shop = new_shop("datetime(6)")
    stock(shop, image_server, category_id="shoes/boots")
    shop.catalogue.execute("alter table items modify item_name varbinary(191)")
    shop.stock("bad", category_id="shoes/boots", item_name=b"\xff")
    settings = shop.settings(image_hosts=(image_server.host,), category_pattern=".+", failure_budget=1)
    ended = []
    for name in ("first", "second"):
        request = Request("pipeline", name, category_ids=("shoes/boots",))
        ended.append(pipeline.run(request, settings, shop.services)["counts"])
    assert ended == [{"indexed": 3, "invalid_row": 1}, {"current": 3, "invalid_row": 1}]
    assert {item_id for item_id, version in shop.versions().items() if version} == set(ITEMS)


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


def test_an_index_that_refuses_ends_the_run_before_the_last_chunk(run, sqlite_shop, monkeypatch):
    blocked = {"index.blocks.write": True}
    sqlite_shop.client.indices.put_settings(index=sqlite_shop.index, settings=blocked)
    computed = []
    after(pipeline.extract, monkeypatch, computed.append)
    with pytest.raises(ConfigurationError, match="block"):
        run()
    assert run.report["counts"] == {"unfinished": 3}
    assert 2 not in computed

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


def test_who_has_had_enough_waits_for_no_chunk(run, monkeypatch):
    fetched = []

    def enough(number):
        if number == 0:
            raise KeyboardInterrupt

    after(pipeline.extract, monkeypatch, enough)
    after(pipeline.download, monkeypatch, fetched.append)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.report["counts"] == {"unfinished": 3}
    assert 2 not in fetched
