"""A real PostgreSQL and a real MariaDB whose connections are cut at chosen moments, and which take none for a
while."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest
import sqlalchemy as sa

from local_stack import mariadb
from tasks.errors import ServiceUnavailableError
from tasks.runs import packs
from tasks.runs.run import Request
from tasks.search.index import SearchIndex
from tasks.shop.catalogue import Catalogue
from tasks.shop.connections import Services
from tasks.stages import index, plan
from tests.fault_proxy import TcpProxy
from tests.shop_fixtures import CATEGORY, NOON, SmallShop, mariadb_catalogue, some_vector, url_of

pytestmark = pytest.mark.usefixtures("chosen_version")

ITEMS = 12_000
"""Several pages of what planning reads at once."""
NIGHT = Request("faults", "night", NOON.replace(hour=0), NOON.replace(hour=23))
EVERYTHING = Request("faults", "category", category_ids=(CATEGORY,))


@dataclass(frozen=True)
class Kind:
    """What a kind of server has of its own."""

    times: str
    """The type of a catalogue's times."""
    rows: str
    """Gives id, name and URL of so many items, three of a URL; {name} is the name."""


KINDS = {
    "postgresql": Kind(
        "timestamptz",
        "select lpad(cast(i as text), 8, '0'), {name}, 'https://pictures.example/' || i / 3 || '.jpg' "
        f"from generate_series(1, {ITEMS}) as n(i)",
    ),
    "mariadb": Kind(
        "datetime(6)",
        "select lpad(seq, 8, '0'), {name}, concat('https://pictures.example/', seq div 3, '.jpg') "
        f"from seq_1_to_{ITEMS}",
    ),
}


@pytest.fixture
def kind() -> str:
    """Which of KINDS; tests that say nothing else are of PostgreSQL."""
    return "postgresql"


both_kinds = pytest.mark.parametrize("kind", KINDS)
of_mariadb = pytest.mark.parametrize("kind", ["mariadb"])


@pytest.fixture
def socket_path(kind, request):
    """The Unix socket that the server listens at."""
    if kind == "mariadb":
        return request.getfixturevalue("mariadb_socket")
    url = sa.make_url(request.getfixturevalue("postgres_url"))
    return f"{url.query['host']}/.s.PGSQL.{url.port or 5432}"


@pytest.fixture
def server(socket_path):
    """A TCP port that leads to it."""
    with TcpProxy(socket_path) as proxy:
        yield proxy


def behind(proxy: TcpProxy, shop: SmallShop) -> SmallShop:
    """A shop whose catalogue the stages reach through the proxy, and the test itself directly."""
    direct = shop.services.catalogue
    catalogue = replace(direct, host="127.0.0.1", port=proxy.port, password="hunter2", extra={})
    return replace(shop, services=Services(catalogue, shop.services.search))


@pytest.fixture
def shop(new_shop, server, kind):
    return behind(server, new_shop(KINDS[kind].times))


LONG = "repeat('x', 2000)"
"""A name so long that the server cannot have sent all rows before the first are read."""


def fill(shop, kind, name="'blue shirt'"):
    shop.catalogue.execute(
        "insert into items (item_id, item_name, img_url, category_id, registered_at) "
        f"select given.*, '{CATEGORY}', :noon from ({KINDS[kind].rows.format(name=name)}) as given",
        {"noon": shop.catalogue._stored(NOON)},
    )


def rows_of(planned):
    return [tuple(row.values()) for row in packs.rows(planned.items)]


def assert_told(error, shop):
    """Where the catalogue is, and no secret."""
    catalogue = shop.services.catalogue
    assert f"127.0.0.1:{catalogue.port}/{catalogue.schema} does not answer" in str(error.value)
    assert "hunter2" not in str(error.value) + repr(error.value.__cause__)


@both_kinds
@pytest.mark.parametrize("request_", [NIGHT, EVERYTHING], ids=lambda request: request.run)
def test_a_connection_cut_while_rows_are_read(shop, server, kind, request_):
    fill(shop, kind)
    undisturbed = plan.run(request_, shop.settings(), shop.services)
    everything = rows_of(undisturbed)
    assert len(everything) == ITEMS
    whole = server.bytes_from_server

    for share in (0, 0.01, 0.2, 0.5, 0.8, 0.99):
        server.cut_after = server.bytes_from_server + int(whole * share)
        plans = set(undisturbed.folder.parent.glob("*/plan.json"))
        with pytest.raises(ServiceUnavailableError) as told:
            plan.run(request_, shop.settings(), shop.services)
        assert_told(told, shop)
        assert set(undisturbed.folder.parent.glob("*/plan.json")) == plans
        assert not list(undisturbed.folder.parent.glob("*/.items*")), "nothing half-written stays"

    server.cut_after = None
    again = plan.run(request_, shop.settings(), shop.services)
    assert rows_of(again) == everything
    assert (again.planned, again.current, again.bounds) == (ITEMS, 0, undisturbed.bounds)


@both_kinds
def test_a_catalogue_that_takes_no_connections_for_a_while(shop, server):
    shop.catalogue.add("a", url_of("a"))
    server.refuse()
    with pytest.raises(ServiceUnavailableError) as told:
        plan.run(EVERYTHING, shop.settings(), shop.services)
    assert_told(told, shop)
    assert not shop.client.indices.exists(index=shop.index)

    server.listen()
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


def killed(shop):
    """As an administrator of MariaDB ends a connection."""
    others = "information_schema.processlist where db = database() and id != connection_id()"
    with shop.catalogue.engine.connect() as connection:
        for number in connection.scalars(sa.text(f"select id from {others}")).all():
            connection.execute(sa.text(f"kill {number}"))


def wait_for_recovery(shop):
    until = time.monotonic() + 30
    while True:
        try:
            return shop.catalogue.execute("select 1")
        except sa.exc.OperationalError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("postgresql", ended_by_an_administrator),
        ("postgresql", idle_for_too_long),
        ("postgresql", crashed),
        ("mariadb", killed),
    ],
)
def test_a_database_that_ends_the_session_itself(shop, kind, end):
    fill(shop, kind, LONG)
    if end is idle_for_too_long:
        shop.catalogue.execute("alter database shop set idle_in_transaction_session_timeout = '100ms'")
    with pytest.raises(ServiceUnavailableError) as told:
        plan.run(EVERYTHING, shop.settings(), shop.services, in_the_middle(lambda: end(shop)))
    assert_told(told, shop)

    wait_for_recovery(shop)
    if end is idle_for_too_long:
        shop.catalogue.execute("alter database shop reset all")
    assert len(rows_of(plan.run(EVERYTHING, shop.settings(), shop.services))) == ITEMS


@of_mariadb
def test_a_server_that_is_shut_down_while_rows_are_read(new_shop, kind):
    """One of its own: others are not to notice."""
    with mariadb.running() as socket_path, TcpProxy(socket_path) as proxy:
        catalogue = mariadb_catalogue(socket_path, "shop", KINDS[kind].times)
        shop = replace(new_shop("sqlite"), catalogue=catalogue)
        shop = behind(proxy, replace(shop, services=Services(catalogue.connection, shop.services.search)))
        fill(shop, kind, LONG)

        def shut_down():
            with suppress(sa.exc.OperationalError):  # its commit comes too late
                catalogue.execute("shutdown")

        # In the middle, and when it is down.
        for progress in (in_the_middle(shut_down), lambda results, *_: results):
            with pytest.raises(ServiceUnavailableError) as told:
                plan.run(EVERYTHING, shop.settings(), shop.services, progress)
            assert_told(told, shop)
        assert not list(shop.data_dir.glob("faults/*/*/plan.json"))


@of_mariadb
def test_a_server_that_is_impatient_waits_for_us(shop, kind):
    """While another service keeps us from reading on, as a busy Elasticsearch does."""
    fill(shop, kind, LONG)
    shop.catalogue.execute("set global net_write_timeout = 1")
    try:
        slowly = in_the_middle(lambda: time.sleep(2.5))
        assert plan.run(EVERYTHING, shop.settings(), shop.services, slowly).planned == ITEMS
    finally:
        shop.catalogue.execute("set global net_write_timeout = default")


@both_kinds
@pytest.mark.parametrize("how", ["cut", "refused"])
def test_a_catalogue_that_is_gone_while_features_are_written(shop, server, how):
    """It is asked about documents with another URL. Those written by then are not written again."""
    ids = ["a", "b", "late", "z"]
    shop.stock(*ids)
    SearchIndex(shop.services.search, shop.index).prepare()
    shop.client.update(index=shop.index, id="late", doc={"img_url": "https://pictures.example/0.jpg"})
    before = shop.sequence_numbers()
    vectors = {item_id: some_vector(seed) for seed, item_id in enumerate(ids)}
    chunk = shop.chunk(vectors)
    if how == "cut":
        before_asking = server.bytes_from_server
        Catalogue(shop.services.catalogue).urls(["late"])
        once = server.bytes_from_server - before_asking
        server.cut_after = server.bytes_from_server + once - 20
    else:
        server.refuse()

    with pytest.raises(ServiceUnavailableError) as told:
        # One after the other, so that it is known what comes before.
        index.run(chunk, shop.settings(bulk_size=1, bulk_requests=1), shop.services)
    assert_told(told, shop)
    assert not chunk.outcomes.exists()
    between = shop.sequence_numbers()
    written = {item_id for item_id in ids if between[item_id] != before[item_id]}
    assert written == {"a", "b"}

    server.cut_after = None
    if how == "refused":
        server.listen()
    index.run(chunk, shop.settings(bulk_size=1), shop.services)
    statuses = {row["item_id"]: row["status"] for row in packs.rows(chunk.outcomes)}
    assert statuses == dict.fromkeys("abz", "indexed") | {"late": "waiting_for_document"}
    after = shop.sequence_numbers()
    assert {item_id for item_id in ids if after[item_id] != between[item_id]} == {"z"}
    for item_id in "abz":
        assert np.allclose(shop.vector(item_id), vectors[item_id], rtol=3e-7, atol=0)
