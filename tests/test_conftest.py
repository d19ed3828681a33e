import socket

import pytest
import sqlalchemy


@pytest.mark.parametrize("address", ["192.0.2.1", "shop.example", "::ffff:192.0.2.1"])
def test_guard_refuses_other_machines(address: str):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe, pytest.raises(RuntimeError, match=address):
        probe.connect((address, 80))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_guard_lets_this_machine_through(host: str):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as probe:
        probe.connect((host, server.getsockname()[1]))
        assert probe.getpeername() == server.getsockname()


def test_postgres_answers(postgres_url: str):
    with sqlalchemy.create_engine(postgres_url).connect() as connection:
        assert connection.scalar(
            sqlalchemy.text("select timestamptz '2026-01-01 09:00+09' = '2026-01-01 00:00Z'")
        )
