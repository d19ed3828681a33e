"""The alerts of a nightly run that failed or is overdue, on a real mail server and a real webhook."""

import email
import json
from email.policy import default
from types import SimpleNamespace

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message

from dags.alerts import run_failed, run_overdue
from local_stack.process import free_port
from tasks.errors import ConfigurationError
from tests.dags.webhook import webhook

RUN = "scheduled__2026-11-23T15:00:00+00:00"
LINK = "/dags/nightly_feature_index/runs/scheduled__2026-11-23T15%3A00%3A00%2B00%3A00"
HOSTILE = "The run failed: </b><script>alert(1)</script> {{ 7 * 7 }} {% raise %}"


@pytest.fixture(autouse=True)
def nothing_set_up(monkeypatch):
    for name in ("WEBHOOK", "MAIL"):
        monkeypatch.delenv(f"AIRFLOW_CONN_FEATURE_ALERTS_{name}", raising=False)


@pytest.fixture
def mails(monkeypatch):
    """The mails that came."""
    received = []

    class Keeping(Message):
        def handle_message(self, message):
            received.append(email.message_from_bytes(message.as_bytes(), policy=default))

    server = Controller(Keeping(), hostname="127.0.0.1", port=free_port())
    server.start()
    extra = {"from_email": "index@shop.example", "disable_ssl": True, "disable_tls": True}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": server.port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_FEATURE_ALERTS_MAIL", json.dumps(connection))
    monkeypatch.setenv("FEATURES_ALERT_MAIL_TO", "search@shop.example, night@shop.example")
    yield received
    server.stop()


@pytest.fixture
def hook(monkeypatch):
    with webhook() as hook:
        connection = {"conn_type": "http", "host": hook.url}
        monkeypatch.setenv("AIRFLOW_CONN_FEATURE_ALERTS_WEBHOOK", json.dumps(connection))
        yield hook


def failed(message):
    run = SimpleNamespace(dag_id="nightly_feature_index", run_id=RUN)
    run_failed({"dag_run": run, "exception": RuntimeError(message)})


def test_a_failed_night_is_told_by_both_with_reason_and_link(mails, hook, monkeypatch):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/shop/")
    failed("The run failed: 9 of 40 items failed (9 gone)")
    [(path, body)] = hook.posts
    assert path == "/services/shop"
    assert body["link"] == f"https://airflow.example/shop{LINK}"
    assert (body["dag"], body["run"], body["what"]) == ("nightly_feature_index", RUN, "failed")
    assert body["text"].splitlines() == [
        "nightly_feature_index: failed",
        "The run failed: 9 of 40 items failed (9 gone)",
        f"https://airflow.example/shop{LINK}",
    ]
    [mail] = mails
    assert mail["subject"] == "nightly_feature_index: failed"
    assert mail["from"] == "index@shop.example"
    assert {a.strip() for a in mail["to"].split(",")} == {"search@shop.example", "night@shop.example"}
    text = mail.get_body(("html",)).get_content()
    assert "9 of 40 items failed (9 gone)" in text
    assert f"https://airflow.example/shop{LINK}" in text


def test_an_overdue_run_is_alerted(hook, monkeypatch):
    monkeypatch.setenv("FEATURES_NIGHTLY_DEADLINE_HOURS", "2.5")
    run_overdue({"dag_run": {"dag_id": "nightly_feature_index", "dag_run_id": RUN}, "deadline": {}})
    [(_, body)] = hook.posts
    assert body["what"] == "overdue"
    assert "not done 2.5 hours after" in body["why"]
    assert body["link"].endswith(LINK)


def test_what_strangers_wrote_stays_text(mails, hook):
    failed(HOSTILE)
    [(_, body)] = hook.posts
    assert body["why"] == HOSTILE
    [mail] = mails
    content = mail.get_body(("html",)).get_content()
    assert "<script>" not in content
    assert "{{ 7 * 7 }} {% raise %}" in content


def test_a_webhook_that_fails_keeps_no_mail_back_and_is_not_hushed_up(mails, hook):
    hook.code = 500
    with pytest.raises(Exception, match="500"):
        failed("The run failed")
    assert len(mails) == 1


def test_mail_to_nobody_says_which_setting_is_missing_and_keeps_the_webhook_not_back(
    mails, hook, monkeypatch
):
    monkeypatch.delenv("FEATURES_ALERT_MAIL_TO")
    with pytest.raises(ConfigurationError, match="FEATURES_ALERT_MAIL_TO"):
        failed("The run failed")
    assert len(hook.posts) == 1
    assert not mails


def test_where_nothing_is_set_up_nobody_is_told(caplog):
    caplog.set_level("INFO")
    failed("The run failed")
    assert "No alert is sent" in caplog.text
