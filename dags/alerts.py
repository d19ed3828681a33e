"""Alerts when a nightly run fails or is overdue, by the channels that are configured: a webhook, e-mail, or
both.

The texts quote strangers, such as a host's answer, so they never pass through a template.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

from airflow.sdk import Connection, Context
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowSecretsBackendAccessDenied

from tasks.errors import ConfigurationError
from tasks.settings import Settings

WEBHOOK = "feature_alerts_webhook"
"""The HTTP connection whose host is the webhook's URL. It gets JSON; `text` is what chat services show."""
MAIL = "feature_alerts_mail"
"""The SMTP connection, with `from_email` in its extra; FEATURES_ALERT_MAIL_TO says who gets the mail."""

Kind = Literal["failed", "overdue"]
"""What an alert is about; docs/runbook.md says what to do then."""

log = logging.getLogger(__name__)


def run_failed(context: Context) -> None:
    """Alert that the run failed, and why; called once, when its last task has failed for good."""
    run = context["dag_run"]
    _notify(run.dag_id, run.run_id, "failed", str(context.get("exception") or "its last task was killed"))


def run_overdue(context: Mapping[str, Any]) -> None:
    """Alert that the run is not done although its deadline has passed."""
    run = context["dag_run"]
    hours = Settings.load().nightly_deadline_hours
    _notify(
        run["dag_id"],
        run["dag_run_id"],
        "overdue",
        f"The run is not done {hours:g} hours after it was queued (FEATURES_NIGHTLY_DEADLINE_HOURS). "
        "Its tasks show what it is waiting for.",
    )


def _notify(dag: str, run: str, what: Kind, why: str) -> None:
    from airflow.providers.http.notifications.http import HttpNotifier

    title, link = f"{dag}: {what}", _link(dag, run)
    text = f"{title}\n{why}\n{link}"
    ways: list[Callable[[], None]] = []
    if _is_set_up(WEBHOOK):
        body = {"text": text, "dag": dag, "run": run, "what": what, "why": why, "link": link}
        ways.append(partial(HttpNotifier(http_conn_id=WEBHOOK, json=body).notify, {}))
    if _is_set_up(MAIL):
        ways.append(partial(_mail, title, text))
    if not ways:
        log.info("No alert is sent: there is neither a connection %s nor %s.", WEBHOOK, MAIL)
    with ExitStack() as all_tried:
        # Each is tried, whatever becomes of the other one; an error still ends in the log.
        for way in ways:
            all_tried.callback(way)


def _mail(title: str, text: str) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    to = Settings.load().alert_mail_to
    if not to:
        raise ConfigurationError(
            f"There is a connection {MAIL}, but FEATURES_ALERT_MAIL_TO does not say who gets the mail. "
            "Set it to one or more addresses, separated by commas, where the tasks run."
        )
    content = html.escape(text).replace("\n", "<br>\n")
    SmtpNotifier(smtp_conn_id=MAIL, to=to, subject=title, html_content=content).notify({})


def _is_set_up(conn_id: str) -> bool:
    try:
        return bool(Connection.get(conn_id))
    except AirflowNotFoundException:
        return False
    except AirflowSecretsBackendAccessDenied:
        # Airflow 3.3 lets a deadline's callback read the environment's connections, but none of its own.
        log.warning(
            "The connection %s is not in the environment; if it is Airflow's, it is not used.", conn_id
        )
        return False


def _link(dag: str, run: str) -> str:
    from airflow.sdk import conf

    base = conf.get("api", "base_url", fallback="").rstrip("/")
    return f"{base}/dags/{quote(dag, safe='')}/runs/{quote(run, safe='')}"
