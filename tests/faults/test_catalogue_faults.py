"""A real PostgreSQL whose connections are cut at chosen moments, and which takes none for a while."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from tasks.errors import ServiceUnavailableError
from tasks.runs import packs
from tasks.runs.run import Request
from tasks.search.index import SearchIndex
from tasks.shop.catalogue import Catalogue
from tasks.shop.connections import Services
from tasks.stages import index, plan
from tests.fault_proxy import TcpProxy
from tests.shop_fixtures import CATEGORY, NOON, some_vector, url_of

pytestmark = pytest.mark.usefixtures("chosen_version")

ITEMS = 12_000
"""Several pages of what planning reads at once."""
NIGHT = Request("faults", "night", NOON.replace(hour=0), NOON.replace(hour=23))
EVERYTHING = Request("faults", "category", category_ids=(CATEGORY,))


@pytest.fixture(scope="module")
def socket_path(postgres_url):
    """The Unix socket that PostgreSQL listens at."""
    url = sa.make_url(postgres_url)
    return f"{url.query['host']}/.s.PGSQL.{url.port or 5432}"


@pytest.fixture
def postgres(socket_path):
    """A TCP port that leads to PostgreSQL."""
    with TcpProxy(socket_path) as proxy:
        yield proxy


@pytest.fixture
def shop(new_shop, postgres):
    """A shop whose catalogue the stages reach through the proxy, and the test itself directly."""
    shop = new_shop("timestamptz")
    catalogue = replace(shop.services.catalogue, host="127.0.0.1", port=postgres.port, password="hunter2")
    return replace(shop, services=Services(catalogue, shop.services.search))


def fill(shop):
    shop.catalogue.execute(
        "insert into items (item_id, item_name, category_id, img_url, registered_at) "
        f"select lpad(cast(i as text), 8, '0'), 'blue shirt', '{CATEGORY}', "
        "'https://pictures.example/' || i / 3 || '.jpg', '2026-10-01 12:00:00+00' "
        f"from generate_series(1, {ITEMS}) as n(i)"
    )


def rows_of(planned):
    return [tuple(row.values()) for row in packs.rows(planned.items)]


def assert_told(error, postgres):
    """Where the catalogue is, and no secret."""
    assert f"127.0.0.1:{postgres.port}/shop does not answer" in str(error.value)
    assert "hunter2" not in str(error.value) + repr(error.value.__cause__)


@pytest.mark.parametrize("request_", [NIGHT, EVERYTHING], ids=lambda request: request.run)
def test_a_connection_cut_while_rows_are_read(shop, postgres, request_):
    fill(shop)
    undisturbed = plan.run(request_, shop.settings(), shop.services)
    everything = rows_of(undisturbed)
    assert len(everything) == ITEMS
    whole = postgres.bytes_from_server

    for share in (0, 0.01, 0.2, 0.5, 0.8, 0.99):
        postgres.cut_after = postgres.bytes_from_server + int(whole * share)
        plans = set(undisturbed.folder.parent.glob("*/plan.json"))
        with pytest.raises(ServiceUnavailableError) as told:
            plan.run(request_, shop.settings(), shop.services)
        assert_told(told, postgres)
        assert set(undisturbed.folder.parent.glob("*/plan.json")) == plans
        assert not list(undisturbed.folder.parent.glob("*/.items*")), "nothing half-written stays"

    postgres.cut_after = None
    again = plan.run(request_, shop.settings(), shop.services)
    assert rows_of(again) == everything
    assert (again.planned, again.current, again.bounds) == (ITEMS, 0, undisturbed.bounds)


def test_a_catalogue_that_takes_no_connections_for_a_while(shop, postgres):
    shop.catalogue.add("a", url_of("a"))
    postgres.refuse()
    with pytest.raises(ServiceUnavailableError) as told:
        plan.run(EVERYTHING, shop.settings(), shop.services)
    assert_told(told, postgres)
    assert not shop.client.indices.exists(index=shop.index)

    postgres.listen()
    assert [row[0] for row in rows_of(plan.run(EVERYTHING, shop.settings(), shop.services))] == ["a"]


def in_the_middle(act):
    """A stage's progress that acts once when half of the rows have come."""

    def progress(results, stage, total):  # noqa: ARG001
        for number, result in enumerate(results):
            if number == ITEMS // 2:
                act()
            yield result

    return progress


OF_OTHERS = "from pg_stat_activity where datname = current_database() and pid != pg_backend_pid()"


def ended_by_an_administrator(shop):
    shop.catalogue.execute(f"select pg_terminate_backend(pid) {OF_OTHERS}")


def idle_for_too_long(shop):  # noqa: ARG001
    time.sleep(0.3)


def crashed(shop):
    """PostgreSQL ends every session when one dies so, and recovers."""
    with shop.catalogue.engine.connect() as connection:
        (pid,) = connection.scalars(sa.text(f"select pid {OF_OTHERS}"))
    os.kill(pid, signal.SIGKILL)


def wait_for_recovery(shop):
    until = time.monotonic() + 30
    while True:
        try:
            return shop.catalogue.execute("alter database shop reset all")
        except sa.exc.OperationalError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("end", [ended_by_an_administrator, idle_for_too_long, crashed])
def test_a_database_that_ends_the_session_itself(shop, postgres, end):
    fill(shop)
    if end is idle_for_too_long:
        shop.catalogue.execute("alter database shop set idle_in_transaction_session_timeout = '100ms'")
    with pytest.raises(ServiceUnavailableError) as told:
        plan.run(EVERYTHING, shop.settings(), shop.services, in_the_middle(lambda: end(shop)))
    assert_told(told, postgres)

    wait_for_recovery(shop)
    assert len(rows_of(plan.run(EVERYTHING, shop.settings(), shop.services))) == ITEMS


@pytest.mark.parametrize("how", ["cut", "refused"])
def test_a_catalogue_that_is_gone_while_features_are_written(shop, postgres, how):
    """It is asked about documents with another URL. Those written by then are not written again."""
    ids = ["a", "b", "late", "z"]
    shop.stock(*ids)
    SearchIndex(shop.services.search, shop.index).prepare()
    shop.client.update(index=shop.index, id="late", doc={"img_url": "https://pictures.example/0.jpg"})
    before = shop.sequence_numbers()
    vectors = {item_id: some_vector(seed) for seed, item_id in enumerate(ids)}
    chunk = shop.chunk(vectors)
    if how == "cut":
        before_asking = postgres.bytes_from_server
        Catalogue(shop.services.catalogue).urls(["late"])
        once = postgres.bytes_from_server - before_asking
        postgres.cut_after = postgres.bytes_from_server + once - 20
    else:
        postgres.refuse()

    with pytest.raises(ServiceUnavailableError) as told:
        # One after the other, so that it is known what comes before.
        index.run(chunk, shop.settings(bulk_size=1, bulk_requests=1), shop.services)
    assert_told(told, postgres)
    assert not chunk.outcomes.exists()
    between = shop.sequence_numbers()
    written = {item_id for item_id in ids if between[item_id] != before[item_id]}
    assert written == {"a", "b"}

    postgres.cut_after = None
    if how == "refused":
        postgres.listen()
    index.run(chunk, shop.settings(bulk_size=1), shop.services)
    statuses = {row["item_id"]: row["status"] for row in packs.rows(chunk.outcomes)}
    assert statuses == dict.fromkeys("abz", "indexed") | {"late": "waiting_for_document"}
    after = shop.sequence_numbers()
    assert {item_id for item_id in ids if after[item_id] != between[item_id]} == {"z"}
    for item_id in "abz":
        assert np.allclose(shop.vector(item_id), vectors[item_id], rtol=3e-7, atol=0)
