"""Word to people when a night needs them, by the channels that are set up: a webhook, e-mail, or both.

The texts hold what strangers wrote, such as a host's answer, so they never pass through a template.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

from airflow.sdk import Connection, Context
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowSecretsBackendAccessDenied

from tasks.settings import Settings

WEBHOOK = "feature_alerts_webhook"
"""The HTTP connection whose host is the webhook's URL. It gets JSON; `text` is what chat services show."""
MAIL = "feature_alerts_mail"
"""The SMTP connection, with `from_email` in its extra; FEATURES_ALERT_MAIL_TO says who gets the mail."""

log = logging.getLogger(__name__)


def night_failed(context: Context) -> None:
    """Tell that the run failed, and why; called once, when its last task has failed for good."""
    run = context["dag_run"]
    _tell(run.dag_id, run.run_id, "failed", str(context.get("exception") or "its last task was killed"))


def night_late(context: Mapping[str, Any]) -> None:
    """Tell that the run is not done although its deadline has passed."""
    run = context["dag_run"]
    hours = Settings.load().nightly_deadline_hours
    _tell(
        run["dag_id"],
        run["dag_run_id"],
        "late",
        f"The run is not done {hours:g} hours after it was queued (FEATURES_NIGHTLY_DEADLINE_HOURS). "
        "Its tasks show what it waits for.",
    )


def _tell(dag: str, run: str, what: str, why: str) -> None:
    from airflow.providers.http.notifications.http import HttpNotifier
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    title, link = f"{dag}: {what}", _link(dag, run)
    text = f"{title}\n{why}\n{link}"
    notifiers: list[Any] = []
    if _is_set_up(WEBHOOK):
        body = {"text": text, "dag": dag, "run": run, "what": what, "why": why, "link": link}
        notifiers.append(HttpNotifier(http_conn_id=WEBHOOK, json=body))
    if _is_set_up(MAIL):
        to = Settings.load().alert_mail_to
        mail = html.escape(text).replace("\n", "<br>\n")
        notifiers.append(SmtpNotifier(smtp_conn_id=MAIL, to=to, subject=title, html_content=mail))
    if not notifiers:
        log.info("Nobody is told: there is neither a connection %s nor %s.", WEBHOOK, MAIL)
    with ExitStack() as all_tried:
        # Each is tried, whatever becomes of the other one; an error still ends in the log.
        for notifier in notifiers:
            all_tried.callback(notifier.notify, {})


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
    from airflow.sdk.configuration import conf

    base = conf.get("api", "base_url", fallback="").rstrip("/")
    return f"{base}/dags/{quote(dag, safe='')}/runs/{quote(run, safe='')}"
