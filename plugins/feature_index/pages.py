"""Turns what a route found out into an HTML page."""

import functools
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jinja2
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from fastapi import Request
from fastapi.responses import HTMLResponse

from plugins.feature_index.access import form_token
from tasks.pictures.picture import FORMATS
from tasks.runs.category_names import CategoryNames
from tasks.settings import Settings

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

PHOTO_TYPES = frozenset(f"image/{name.lower()}" for name in FORMATS)
"""Of photos that a page may show as part of itself."""

_PHOTO = re.compile(f"data:({'|'.join(sorted(PHOTO_TYPES))});base64,[A-Za-z0-9+/]*=*")
_HOST = re.compile(r"[a-z0-9._-]+(:[0-9]+)?")
"""What a content security policy can name; an IPv6 address it cannot."""


def page(
    request: Request,
    template: str,
    user: BaseUser | None,
    *,
    status: int = 200,
    image_hosts: Sequence[str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """A page made from a template, with the headers that keep it to itself.

    Templates also get `root`, the path of our pages, `airflow`, that of Airflow, `token` for forms, and
    `named`, which makes of a category's id what people know it by.

    Args:
        image_hosts: where the page's pictures may come from, as FEATURES_IMAGE_HOSTS lists hosts; None: it
            has no pictures.
    """
    root = request.scope["root_path"]
    nonce = secrets.token_urlsafe(16)
    html = _TEMPLATES.get_template(template).render(
        values,
        root=root,
        airflow=root.rpartition("/")[0],
        nonce=nonce,
        token=form_token(user) if user else "",
        named=_named(),
    )
    # Style and script stand in the page: in a sandboxed frame a browser asks for files without log-in.
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'self'"
    )
    if image_hosts is not None:
        policy += f"; img-src data: {' '.join(_image_sources(image_hosts))}"
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(html, status, headers)


def _named() -> Callable[[str | None], str]:
    names = functools.cache(lambda: CategoryNames.load(Settings.load()))
    return lambda category_id: names().of(category_id) if category_id else "-"


def _link(url: str | None) -> str | None:
    """A stranger's URL where it may become a link: http(s) alone."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None


def _picture(url: str | None) -> str | None:
    """What a page may show as a picture: a stranger's URL, http(s) alone, or a photo as a URL of its own."""
    return url if url and _PHOTO.fullmatch(url) else _link(url)


def _image_sources(hosts: Sequence[str]) -> list[str]:
    """The hosts as a content security policy lists them; one without a port stands for any of its ports."""
    if "*" in hosts:
        return ["http:", "https:"]
    named = [host if ":" in host else f"{host}:*" for host in hosts if _HOST.fullmatch(host)]
    return [f"{scheme}://{host}" for host in named for scheme in ("http", "https")]


def _time(value: str | datetime | None) -> str:
    if value is None:
        return "-"
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"


def _percent(part: int, whole: int) -> str:
    """A share that says 100 % only where nothing is missing."""
    if not whole:
        return "-"
    return "100 %" if part == whole else f"{min(part / whole, 0.999):.1%}".replace("%", " %")


_TEMPLATES.filters |= {
    "link": _link,
    "picture": _picture,
    "time": _time,
    "number": _number,
    "segment": lambda t: quote(t, safe=""),
}
_TEMPLATES.globals["percent"] = _percent
