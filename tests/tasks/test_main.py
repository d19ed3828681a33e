"""Tests of `python -m tasks`: whole runs with the real model, without Airflow."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from local_stack.garments import draw
from local_stack.process import free_port
from tasks import __main__ as module
from tasks.inference import model
from tasks.runs import packs
from tasks.search.index import SearchIndex
from tasks.search.mapping import FEATURE, URL, VERSION
from tasks.settings import REPOSITORY, Settings
from tests.scripted_server import Reply
from tests.shop_fixtures import NOON, as_uri, some_vector

CATEGORY = "00000010"
NIGHT = ("--from", (NOON - timedelta(hours=1)).isoformat(), "--to", (NOON + timedelta(hours=1)).isoformat())
ITEMS = ("007", "KR-1", "3", "4", "5")

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def version(model_version):
    return model_version


def environment(shop, image_server, **changes):
    """The variables that name this shop, over those of the machine."""
    ours = {
        "AIRFLOW_CONN_SHOP_CATALOG": as_uri(shop.catalogue.connection),
        "AIRFLOW_CONN_SHOP_SEARCH": f"http://{shop.services.search.host}:{shop.services.search.port}",
        "FEATURES_DATA_DIR": str(shop.data_dir),
        "FEATURES_INDEX": shop.index,
        "FEATURES_IMAGE_HOSTS": image_server.host,
    }
    others = {
        k: v for k, v in os.environ.items() if not k.startswith(("FEATURES_", "AIRFLOW_", "ELASTICSEARCH_"))
    }
    return {name: value for name, value in (others | ours | changes).items() if value is not None}


def command(*arguments):
    return [sys.executable, "-m", "tasks", *arguments]


@pytest.fixture
def run_here(image_server, monkeypatch, capsys, loaded_model):
    """Runs the command inside this process; gives its exit code, what it printed and its report."""
    monkeypatch.setattr("tasks.stages.extract.load", lambda _: loaded_model)

    def run(shop, *arguments, subcommand="run", **changes):
        with monkeypatch.context() as patched:
            for name, value in environment(shop, image_server, **changes).items():
                patched.setenv(name, value)
            patched.setattr(sys, "argv", ["tasks", subcommand, *arguments])
            code = module.main()
        return code, capsys.readouterr(), newest_report(shop)

    return run


def newest_report(shop):
    reports = sorted(
        shop.data_dir.glob("command_line/*/report.json"), key=lambda path: path.stat().st_mtime_ns
    )
    return json.loads(reports[-1].read_text()) if reports else None


def statuses(shop, report):
    """Every done item's status, from all outcomes of the report's plan, each item once."""
    rows = [
        row
        for path in (shop.data_dir / report["dag"] / report["run"] / report["plan"]).glob(
            "*/outcomes.parquet"
        )
        for row in packs.rows(path)
    ]
    by_item = {row["item_id"]: row["status"] for row in rows}
    assert len(by_item) == len(rows)
    return by_item


def serve(image_server, path, seed, **reply):
    image_server.answer(path, Reply(body=draw(CATEGORY, seed).data, **reply))
    return image_server.url(path)


def stock(shop, image_server, *item_ids, **reply):
    for seed, item_id in enumerate(item_ids):
        shop.stock(item_id, img_url=serve(image_server, f"/{item_id}.jpg", seed, **reply))


def requested(image_server):
    """The paths asked for since the last call, in any order."""
    paths = sorted(request.path for request in image_server.requests)
    image_server.requests.clear()
    return paths


def test_a_night_again_changed_and_forced(shop, image_server, run_here, version):
    stock(shop, image_server, *ITEMS)
    shop.stock("other night", img_url=image_server.url("/other.jpg"), registered_at=NOON - timedelta(days=1))
    others = shop.sources()

    code, printed, report = run_here(shop, *NIGHT)
    assert (code, report["counts"], report["planned"]) == (0, {"indexed": 5}, 5)
    assert requested(image_server) == sorted(f"/{item_id}.jpg" for item_id in ITEMS)
    assert shop.versions() == dict.fromkeys(ITEMS, version) | {"other night": None}
    for item_id, source in shop.sources().items():
        assert {name: source[name] for name in others[item_id]} == others[item_id]
    assert re.search(r"indexed +5\n", printed.out)

    # The same night again: nothing is fetched, nothing is written.
    before = shop.sequence_numbers()
    code, printed, report = run_here(shop, *NIGHT)
    assert (code, report["counts"], report["planned"]) == (0, {"current": 5}, 5)
    assert requested(image_server) == []
    assert shop.sequence_numbers() == before

    # One item has a new picture, in the catalogue and in its document.
    url = serve(image_server, "/new.jpg", 77)
    shop.catalogue.change("3", img_url=url)
    shop.client.update(index=shop.index, id="3", doc={"img_url": url}, refresh=True)
    before, old = shop.sequence_numbers(), shop.vector("3")
    code, printed, report = run_here(shop, *NIGHT)
    assert (code, report["counts"]) == (0, {"current": 4, "indexed": 1})
    assert requested(image_server) == ["/new.jpg"]
    assert {i for i, number in shop.sequence_numbers().items() if number != before[i]} == {"3"}
    assert shop.sources()["3"][URL] == url
    assert (shop.vector("3") != old).any()

    # Forced, everything is done again, and comes out the same.
    before, old = shop.sequence_numbers(), {item_id: shop.vector(item_id) for item_id in ITEMS}
    code, printed, report = run_here(shop, *NIGHT, "--force")
    assert (code, report["counts"], report["force"]) == (0, {"indexed": 5}, True)
    assert len(requested(image_server)) == 5
    assert all(shop.sequence_numbers()[item_id] > before[item_id] for item_id in ITEMS)
    # Another batch may sum its floats in another order.
    assert all(abs(shop.vector(item_id) - old[item_id]).max() < 1e-4 for item_id in ITEMS)


def test_each_item_ends_in_exactly_one_status(shop, image_server, run_here):
    stock(shop, image_server, "good", "twin", "plain", "late")
    shop.stock("shares", img_url=image_server.url("/good.jpg"))
    image_server.answer("/twin.jpg", Reply(body=draw(CATEGORY, 0).data))  # the picture of "good"
    shop.catalogue.add("no document", serve(image_server, "/none.jpg", 9))
    shop.stock("gone", img_url=image_server.url("/gone.jpg"))
    image_server.answer("/cut.jpg", Reply(body=draw(CATEGORY, 1).data[:900]))
    shop.stock("cut", img_url=image_server.url("/cut.jpg"))
    shop.stock("elsewhere", img_url="http://127.0.0.1:9/x.jpg")
    shop.stock("relative", img_url="/x.jpg")
    shop.catalogue.add("null", None)
    shop.catalogue.add("", image_server.url("/good.jpg"))
    shop.write_document("late", img_url="https://pictures.example/before.jpg")

    code, printed, report = run_here(shop, *NIGHT, FEATURES_FAILURE_BUDGET="0.9", FEATURES_CHUNK_SIZE="3")

    found = statuses(shop, report)
    assert found == {
        "good": "indexed",
        "twin": "indexed",
        "plain": "indexed",
        "shares": "indexed",
        "late": "waiting_for_document",
        "no document": "waiting_for_document",
        "gone": "gone",
        "cut": found["cut"],
        "elsewhere": "blocked_address",
        "relative": "invalid_url",
        "null": "invalid_url",
        "(empty)": "invalid_row",
    }
    assert found["cut"] in ("corrupt", "not_a_picture")
    assert report["counts"] == Counter(found.values())
    assert report["planned"] == 12
    assert report["chunks"] > 2
    assert code == 0
    # A URL of two items is fetched once.
    assert Counter(requested(image_server))["/good.jpg"] == 1
    assert (shop.vector("good") == shop.vector("twin")).all()
    assert (shop.vector("good") == shop.vector("shares")).all()
    assert re.search(r"gone +gone: the server answered 404\n", printed.out)


def test_too_many_failures_fail_the_run(sqlite_shop, image_server, run_here):
    stock(sqlite_shop, image_server, "good")
    sqlite_shop.stock("gone", img_url=image_server.url("/gone.jpg"))
    code, printed, report = run_here(sqlite_shop, *NIGHT)
    assert code == 1
    assert report["state"] == "failed"
    assert report["counts"] == {"indexed": 1, "gone": 1}
    assert "1 of 2 items failed (1 gone)" in printed.err
    assert "report.json" in printed.err


def test_a_stage_that_fails_leaves_a_report(sqlite_shop, image_server, run_here):
    stock(sqlite_shop, image_server, "a", "b")
    settings = {"index.blocks.write": True}
    sqlite_shop.client.indices.put_settings(index=sqlite_shop.index, settings=settings)
    code, printed, report = run_here(sqlite_shop, *NIGHT)
    assert code == 1
    assert "block" in printed.err  # what was wrong, not that something was unfinished
    assert report["counts"] == {"unfinished": 2}
    assert report["state"] == "failed"

    settings = {"index.blocks.write": False}
    sqlite_shop.client.indices.put_settings(index=sqlite_shop.index, settings=settings)
    code, printed, report = run_here(sqlite_shop, *NIGHT)
    assert (code, report["counts"]) == (0, {"indexed": 2})


def test_last_night_is_what_it_takes_by_itself(sqlite_shop, image_server, run_here):
    now = datetime.now(ZoneInfo("Asia/Seoul"))
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for item_id, time_ in {
        "last night": midnight - timedelta(hours=1),
        "first of it": midnight - timedelta(days=1),
        "today": midnight,
        "before": midnight - timedelta(days=1, microseconds=1),
    }.items():
        sqlite_shop.stock(item_id, img_url=serve(image_server, "/a.jpg", 1), registered_at=time_)
    code, _, report = run_here(sqlite_shop)
    assert code == 0
    assert set(statuses(sqlite_shop, report)) == {"last night", "first of it"}
    assert report["without_feature"] is None

    code, printed, report = run_here(sqlite_shop, "--reconcile")
    assert code == 0
    assert {origin: of_it["counts"] for origin, of_it in report["origins"].items()} == {
        "changed": {"current": 2},
        "reconciled": {"indexed": 2},
    }
    assert "changed 2, reconciled 2\n" in printed.out
    assert set(sqlite_shop.versions().values()) == {report["feature_version"]}


def test_a_preview(sqlite_shop, image_server, run_here):
    stock(sqlite_shop, image_server, *ITEMS)
    before = sqlite_shop.sequence_numbers()
    code, printed, report = run_here(sqlite_shop, "--category", CATEGORY, "--dry-run")
    assert code == 0
    assert report["counts"] == {"current": 0, "to_do": 5}
    assert re.search(r"to_do +5\n", printed.out)
    assert requested(image_server) == []
    assert sqlite_shop.sequence_numbers() == before
    (described,) = sqlite_shop.client.indices.get_mapping(index=sqlite_shop.index).values()
    assert FEATURE not in described["mappings"]["properties"]


def test_all_items_and_those_of_a_category_named_all(sqlite_shop, image_server, run_here):
    shop, names = sqlite_shop, {"FEATURES_CATEGORY_PATTERN": "[a-z]+"}
    stock(shop, image_server, "1", "2")
    shop.stock("named all", img_url=image_server.url("/1.jpg"), category_id="all")
    shop.stock("in none", img_url=image_server.url("/2.jpg"), category_id=None)
    _, _, report = run_here(shop, "--category", "all", "--dry-run", **names)
    assert (report["planned"], report["all_items"]) == (1, False)
    _, _, report = run_here(shop, "--all", "--dry-run", **names)
    assert (report["planned"], report["all_items"]) == (4, True)
    assert requested(image_server) == []

    code, _, report = run_here(shop, "--all", **names)
    assert (code, report["counts"]) == (0, {"indexed": 4})
    assert set(shop.versions().values()) == {report["feature_version"]}
    code, _, report = run_here(shop, "--all", **names)
    assert (code, report["counts"]) == (0, {"current": 4})


# As a command -----------------------------------------------------------------------------------


def test_the_command_as_a_person_gives_it(sqlite_shop, image_server, version):
    stock(sqlite_shop, image_server, "007", "KR-1")
    done = subprocess.run(
        command("run", "--category", CATEGORY, "--run", "by hand"),
        env=environment(sqlite_shop, image_server),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split() for line in lines[:2]] == [["planned", "2"], ["indexed", "2"]]
    assert [line.split()[0] for line in lines[2:]] == ["plan", "download", "extract", "index", "bottleneck:"]
    assert "Traceback" not in done.stderr
    assert sqlite_shop.versions() == {"007": version, "KR-1": version}
    report = json.loads((sqlite_shop.data_dir / "command_line" / "by hand" / "report.json").read_text())
    assert report["category_ids"] == [CATEGORY]
    assert report["feature_version"] == version
    assert report["precision"] == model.load(Settings(data_dir=sqlite_shop.data_dir)).precision


def incompatible(shop, **mappings):
    shop.client.indices.create(index=shop.index, mappings=mappings)


def second_version(shop):
    shop.stock("a")
    SearchIndex(shop.services.search, shop.index).prepare()
    doc = {FEATURE: some_vector(1).tolist(), VERSION: "inception_v3-ffffffffffff-pad299"}
    shop.client.update(index=shop.index, id="a", doc=doc, refresh=True)


NOWHERE = "127.0.0.1:9"
"""The discard port: no listener."""
BAD = {
    "catalogue that does not answer": (
        {"AIRFLOW_CONN_SHOP_CATALOG": f"postgres://reader:hunter2@{NOWHERE}/shop"},
        NIGHT,
        ["catalogue", NOWHERE, "shop_catalog"],
    ),
    "catalogue that is not there": (
        {"AIRFLOW_CONN_SHOP_CATALOG": "sqlite:////nowhere/catalogue.db"},
        NIGHT,
        ["/nowhere/catalogue.db"],
    ),
    "Elasticsearch that does not answer": (
        {"AIRFLOW_CONN_SHOP_SEARCH": f"http://elastic:hunter2@{NOWHERE}"},
        NIGHT,
        ["Elasticsearch", NOWHERE, "shop_search"],
    ),
    "no connection": ({"AIRFLOW_CONN_SHOP_SEARCH": None}, NIGHT, ["AIRFLOW_CONN_SHOP_SEARCH"]),
    "no model": ({"FEATURES_MODEL_DIR": "/nowhere/model"}, NIGHT, ["/nowhere/model", "make model"]),
    "another model": ({"FEATURES_MODEL_DIGEST": "0" * 64}, NIGHT, ["FEATURES_MODEL_DIGEST"]),
    "no hosts": ({"FEATURES_IMAGE_HOSTS": None}, NIGHT, ["FEATURES_IMAGE_HOSTS"]),
    "a setting that cannot be": ({"FEATURES_CHUNK_SIZE": "many"}, NIGHT, ["FEATURES_CHUNK_SIZE", "many"]),
    "a category that is none": ({}, ("--category", "30"), ["'30'", "FEATURES_CATEGORY_PATTERN"]),
    "all, and some of them": (
        {},
        ("--all", "--category", CATEGORY),
        ["all items takes neither categories nor times"],
    ),
    "all, and those of a range": ({}, ("--all", "--from", "2026-10-05"), ["neither categories nor times"]),
    "a range that ends first": (
        {},
        ("--from", "2026-10-05", "--to", "2026-10-01"),
        ["2026-10-05", "2026-10-01", "ends before it starts"],
    ),
    "a time that is none": ({}, ("--from", "yesterday"), ["--from", "'yesterday'"]),
    "a run's name that escapes": ({}, (*NIGHT, "--run", "../../etc"), ["'../../etc'"]),
}


@pytest.mark.parametrize(("changes", "arguments", "said"), BAD.values(), ids=BAD)
def test_what_a_person_has_to_set_right(sqlite_shop, image_server, refusal, changes, arguments, said):
    stock(sqlite_shop, image_server, "007")
    refused(sqlite_shop, image_server, refusal, changes, arguments, said)


def test_a_refusal_as_a_person_meets_it(sqlite_shop, image_server):
    """The others run in this process; here is the whole of what one prints, and its exit code."""
    stock(sqlite_shop, image_server, "007")

    def refusal(environment, *arguments):
        done = subprocess.run(
            command("run", *arguments),
            env=environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    refused(sqlite_shop, image_server, refusal, *BAD["Elasticsearch that does not answer"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda shop: incompatible(shop, properties={FEATURE: {"type": "dense_vector", "dims": 512}}),
            ["imagenet_feature", "512", "2048"],
        ),
        (lambda shop: incompatible(shop, _source={"excludes": ["imagenet_*"]}), ["_source", "imagenet_*"]),
        (second_version, ["inception_v3-ffffffffffff-pad299", "FEATURES_MIX_VERSIONS"]),
    ],
    ids=["mapping", "_source", "second version"],
)
def test_an_index_that_a_person_has_to_set_right(sqlite_shop, image_server, refusal, make, said):
    make(sqlite_shop)
    sqlite_shop.catalogue.add("007", image_server.url("/007.jpg"))
    refused(sqlite_shop, image_server, refusal, {}, NIGHT, said)


@pytest.fixture
def refusal(monkeypatch, capsys, caplog):
    """Runs the command inside this process; gives its exit code and what it printed, warnings included."""
    caplog.set_level("INFO")

    def run(environment, *arguments):
        caplog.clear()
        with monkeypatch.context() as patched:
            patched.setattr(os, "environ", environment)
            patched.setattr(sys, "argv", ["tasks", "run", *arguments])
            code = module.main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err + caplog.text

    return run


def refused(shop, image_server, refusal, changes, arguments, said):
    """Run the command; it must end at once with one message, having touched nothing."""
    index = shop.client.indices.get_mapping(index=shop.index), shop.sequence_numbers()
    code, printed, errors = refusal(environment(shop, image_server, **changes), *arguments)
    assert code == 1
    assert "Traceback" not in errors
    assert "hunter2" not in errors
    assert printed == ""
    for part in said:
        assert part in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert requested(image_server) == []
    assert (shop.client.indices.get_mapping(index=shop.index), shop.sequence_numbers()) == index


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help")])
def test_help(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["tasks", *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for part in {"--help": ["AIRFLOW_CONN_SHOP_CATALOG"], "run": ["--category", "--all", "--dry-run"]}[
        arguments[0]
    ]:
        assert part in printed


def test_ctrl_c_leaves_nothing_half_written(sqlite_shop, image_server, run_here):
    shop = sqlite_shop
    stock(shop, image_server, *ITEMS, delay=0.5)
    before = shop.sequence_numbers()
    process = subprocess.Popen(
        command("run", *NIGHT, "--run", "stopped"),
        env=environment(shop, image_server, FEATURES_DOWNLOADS="2"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests in the background of a shell ignore Ctrl-C, and what they start would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while not image_server.requests and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "Stopped" in err
    assert out == ""
    # Only the plan was finished, and the report says so; no file is there in part.
    files = {path.name for path in Path(shop.data_dir / "command_line").rglob("*") if path.is_file()}
    assert files == {"items.parquet", "resolved.parquet", "plan.json", "report.json"}
    (report,) = Path(shop.data_dir / "command_line").rglob("report.json")
    assert json.loads(report.read_text())["counts"] == {"unfinished": 5}
    assert shop.sequence_numbers() == before

    code, _, report = run_here(shop, *NIGHT, "--run", "stopped")
    assert (code, report["counts"]) == (0, {"indexed": 5})


def test_a_failed_item_is_tried_again_until_it_succeeds(sqlite_shop, image_server, run_here, version):
    shop = sqlite_shop
    stock(shop, image_server, "fine", "late", "gone")
    late = shop.sources()["late"]
    shop.client.delete(index=shop.index, id="late", refresh=True)
    image_server.answer("/gone.jpg", Reply(404))
    assert run_here(shop, *NIGHT, FEATURES_FAILURE_BUDGET="1")[2]["counts"] == {
        "indexed": 1,
        "waiting_for_document": 1,
        "gone": 1,
    }
    requested(image_server)

    code, printed, _ = run_here(shop, subcommand="failures")
    assert code == 0
    lines = [line.split("\t") for line in printed.out.splitlines()]
    assert [(line[0], line[2], line[3]) for line in sorted(lines)] == [
        ("gone", "gone", "1"),
        ("late", "waiting_for_document", "1"),
    ]
    # Nothing is due within the first hour, and so nothing is done.
    code, _, report = run_here(shop, subcommand="retry")
    assert (code, report["planned"], requested(image_server)) == (0, 0, [])

    shop.client.index(index=shop.index, id="late", document=late, refresh=True)
    code, _, report = run_here(
        shop, "--status", "waiting_for_document", "--status", "gone", subcommand="retry"
    )
    assert (code, report["counts"]) == (0, {"indexed": 1, "gone": 1})
    assert requested(image_server).count("/late.jpg") == 1
    assert shop.versions() == {"fine": version, "late": version, "gone": None}
    lines = run_here(shop, subcommand="failures")[1].out.splitlines()
    assert [line.split("\t")[::3][:2] for line in lines] == [["gone", "2"]]

    image_server.answer("/gone.jpg", Reply(body=draw(CATEGORY, 9).data))
    assert run_here(shop, "--item", "gone", subcommand="retry")[2]["counts"] == {"indexed": 1}
    assert run_here(shop, subcommand="failures")[1].out == ""


@pytest.mark.parametrize("down", [None, "catalogue", "search", "ledger"])
def test_no_password_or_key_is_shown_or_left_behind(new_shop, image_server, run_here, tmp_path, down):
    shop = new_shop("timestamptz")
    stock(shop, image_server, "fine", "gone")
    image_server.answer("/gone.jpg", Reply(404))
    catalogue, search = shop.services.catalogue, shop.services.search
    closed = free_port()
    # The servers of these tests ask for no log-in, and take any.
    host = "127.0.0.1" if down == "catalogue" else str(catalogue.host).replace("/", "%2F")
    port = f":{closed}" if down == "catalogue" else ""
    connections = {
        "AIRFLOW_CONN_SHOP_CATALOG": f"postgres://{catalogue.login}:s3cret-pg@{host}{port}/{catalogue.schema}",
        "AIRFLOW_CONN_SHOP_SEARCH": json.dumps(
            {
                "conn_type": "elasticsearch",
                "host": search.host,
                "port": closed if down == "search" else search.port,
                "extra": {"api_key": "s3cret-key"},
            }
        ),
        "AIRFLOW_CONN_FEATURE_LEDGER": f"postgres://ledger:s3cret-ledger@127.0.0.1:{closed}/ledger"
        if down == "ledger"
        else f"sqlite:///{tmp_path}/ledger.db",
    }
    code, printed, _ = run_here(shop, *NIGHT, FEATURES_FAILURE_BUDGET="1", **connections)

    assert code == (1 if down else 0)
    names = {"catalogue": "shop_catalog", "search": "shop_search", "ledger": "feature_ledger"}
    assert names.get(down, "gone") in printed.out + printed.err
    assert "s3cret" not in printed.out + printed.err
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert down in ("catalogue", "search") or any(path.name == "report.json" for path in left)
    assert [path for path in left if b"s3cret" in path.read_bytes()] == []


def test_what_is_given_up_is_listed(sqlite_shop, image_server, run_here):
    sqlite_shop.stock("ftp", img_url="ftp://pictures.example/a.jpg")
    stock(sqlite_shop, image_server, "gone")
    image_server.answer("/gone.jpg", Reply(404))
    run_here(sqlite_shop, *NIGHT, FEATURES_FAILURE_BUDGET="1")
    _, printed, _ = run_here(sqlite_shop, "--given-up", subcommand="failures")
    (line,) = printed.out.splitlines()
    assert line.split("\t")[:5] == ["ftp", CATEGORY, "invalid_url", "1", "given up"]
    assert "1 items" in printed.err


def test_the_table_of_statuses_in_the_docs_is_the_code_s(sqlite_shop, run_here):
    code, printed, _ = run_here(sqlite_shop, subcommand="statuses")
    assert code == 0
    assert printed.out in (REPOSITORY / "docs" / "statuses.md").read_text()
