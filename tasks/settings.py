"""Every setting, named once: the environment variable is FEATURES_ and the field's name in capitals."""

import itertools
import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from croniter import croniter
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.errors import ConfigurationError
from tasks.urls import ImageHosts, InvalidURLError, read

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout: where sql/, model/ and a relative data dir are."""

Seconds = Annotated[float, Field(gt=0, le=3_600)]


class Settings(BaseSettings):
    """What an operator can set. A relative path is resolved against the repository."""

    # A variable that is there but empty, as compose files leave them, means the default.
    model_config = SettingsConfigDict(env_prefix="FEATURES_", env_ignore_empty=True, frozen=True)

    data_dir: Path = Path("var")
    """Where plans, stage files and reports go; a folder that all workers share."""
    index: str = "img_list"
    """The Elasticsearch index, or alias, whose documents get the feature."""
    document_url_field: str = "img_url"
    """Where the shop's documents hold the URL of an item's picture: a field, dotted where it is inside
    another one, such as `image.src`; `none` where they do not hold it, and the catalogue's URL alone counts.
    """
    document_category_field: str = "category_id"
    """Where they hold the id of an item's category, likewise; with `none` pages count no categories."""
    document_name_field: str = "item_name"
    """Where they hold an item's name, likewise; with `none` items are found by their id alone."""
    image_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts pictures may come from, separated by commas; `*.cdn.example` is every host below that name, `*`
    any public one, and a private or loopback one counts only where it is listed as host:port."""
    image_headers: Annotated[dict[str, SecretStr], NoDecode] = Field(default_factory=dict)
    """A header for each of some hosts, as private buckets want one: JSON, `{"host": "Name: value"}`. It goes
    to that host alone, at every port, or to one where the host is given as host:port."""
    proxy: SecretStr = SecretStr("")
    """The proxy that pictures are asked for through, `http://proxy.example:3128`; a user and password may
    stand before the host. It is the proxy then that resolves names and has to keep addresses inside from
    us, so `*` cannot be among the image hosts."""
    ca_file: Path | None = None
    """Certificates, in PEM, that image servers' may be signed by besides the public ones."""
    time_zone: ZoneInfo = ZoneInfo("Asia/Seoul")
    """The shop's time zone, by its IANA name, such as Europe/Berlin: its nights are of this zone, and so is a
    time given without one."""
    nightly_schedule: str = "0 0 * * *"
    """When the nightly run starts, in the shop's time zone: a cron expression of five fields."""
    category_pattern: str = "[0-9]{8}"
    """What a category id is, as a regular expression of Python's that matches all of it. It guards the forms,
    the command and the HTTP API against slips; the nightly run takes items of any category."""
    category_names_sql: Path | None = None
    """The statement that gives the names of the shop's categories, where it is not
    sql/catalogue/category_names.sql; without either there are only ids."""
    failure_budget: float = Field(default=0.05, ge=0, le=1)
    """Share of the planned items that may fail before the run does."""
    create_documents: bool = False
    """Write whole catalogue rows into the index, for one that no core server fills."""
    mix_versions: bool = False
    """Let features of a second version into an index, as when a new model is rolled out."""

    model_dir: Path = Path("model/inception_v3")
    """The SavedModel."""
    model_digest: str = Field(default="", pattern="^([0-9a-f]{64}(-[0-9a-f]{64})?)?$")
    """The digest that the model must have: that of its weights, a hyphen, and its fingerprint, which for the
    model of `make model` may be left out; empty accepts what is there."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the model's multiplications; auto is bfloat16 where this CPU is faster with it, else
    float32."""

    reconcile_items: int = Field(default=100_000, ge=0)
    """Items whose documents lost their feature that a night takes besides what changed, at most; with 0 it
    does not look for them."""
    chunk_size: int = Field(default=2_500, ge=1, le=20_000)
    """Items in a chunk, while a run has at most 100 of them."""
    downloads: int = Field(default=32, ge=1)
    """Pictures one chunk downloads at once."""
    downloads_per_host: int = Field(default=16, ge=1)
    """Pictures a run downloads at once from one host. A chunk may have a share of it: this divided by the
    slots of the pool picture_features_image_download, the chunks that download at once on all machines."""
    requests_per_second_per_host: float = Field(default=500.0, gt=0)
    """Requests a run starts in a second at one host; a chunk's share is as above."""
    download_attempts: int = Field(default=3, ge=1)
    """Requests for one picture before its last failure counts."""
    connect_timeout: Seconds = 5.0
    """Seconds to resolve a name, and again to connect, TLS included."""
    host_patience: Seconds = 15.0
    """The give-up time: seconds in which a host gives nothing but failures before its circuit stays open."""
    host_pause: Seconds = 900.0
    """Seconds that a chunk waits for one host in all because it answers Retry-After; what it would have to
    wait longer for is left to the hourly retry."""
    read_timeout: Seconds = 10.0
    """Seconds without a byte."""
    transfer_timeout: Seconds = 60.0
    """Seconds for one picture as a whole, redirects included."""
    max_image_bytes: int = Field(default=20_000_000, ge=1)
    """Bytes of one picture."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of one picture, by its header."""
    decode_timeout: Seconds = 20.0
    """Seconds to decode one picture; a decoder that takes longer is ended."""
    user_agent: str = Field(
        default="picture-feature-index/1.0 (shop picture search; see FEATURES_USER_AGENT)", pattern="^[ -~]+$"
    )
    """How we name ourselves to image servers, in ASCII; put a contact address here."""

    batch_size: int = Field(default=32, ge=1)
    """Pictures the model takes at once."""
    bulk_size: int = Field(default=250, ge=1, le=5_000)
    """Documents in one request to Elasticsearch that carries vectors."""
    bulk_requests: int = Field(default=4, ge=1, le=10)
    """Such requests that one task has under way at once."""

    retry_attempts: int = Field(default=10, ge=1)
    """Runs that try an item, the first one included, before the hourly retry gives it up."""
    retry_first_hours: float = Field(default=1.0, gt=0, le=24)
    """Hours from the first failure to the first retry; each later wait is twice as long, up to a day."""
    retry_items: int = Field(default=50_000, ge=1)
    """Items that one hourly retry takes at most, the longest due first; the next ones take the others."""

    serve_socket: Path = Path("serve.sock")
    """Where `python -m tasks.serve` listens, a Unix socket; a relative path is one in the data dir."""
    serve_index: str = "tf_img_list"
    """The index whose whole documents the HTTP API writes."""
    serve_requests: int = Field(default=64, ge=1, le=1_000)
    """Requests of the HTTP API served at once; further ones get 429 with Retry-After."""
    serve_timeout: Seconds = 60.0
    """Seconds for one request of the HTTP API as a whole."""
    serve_memory: int = Field(default=5_000_000_000, ge=1_000_000_000)
    """Bytes that the process behind the HTTP API may take for its data."""

    exact_search_documents: int = Field(default=20_000, ge=0)
    """Documents up to which the page Search by photo offers exact search."""

    nightly_deadline_hours: float = Field(default=6.0, gt=0)
    """Hours after which a nightly run that is not done is overdue, and an alert is sent."""
    alert_mail_to: str = ""
    """Who gets the mails of the connection feature_alerts_mail, separated by commas."""

    keep_days: float = Field(default=7.0, gt=0)
    """Days that a run's plans, pictures and features stay on disk; nothing of a running run is removed."""
    keep_bytes: int = Field(default=100_000_000_000, ge=0)
    """Bytes that all of them may take together; beyond that the oldest are removed first."""
    keep_reports_days: float = Field(default=365.0, gt=0)
    """Days that reports stay."""

    @field_validator("image_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(host.strip() for host in value.split(",") if host.strip())

    @field_validator("image_hosts")
    @classmethod
    def _that_can_match(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return ImageHosts(value).entries

    @field_validator("image_headers", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("a JSON object is wanted, host to header") from None

    @field_validator("image_headers")
    @classmethod
    def _sendable(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        ImageHosts(value)
        for host, header in value.items():
            if "*" in host or not re.fullmatch(
                r"[A-Za-z0-9!#$%&'*+.^_`|~-]+: ?[ -~]+", header.get_secret_value()
            ):
                raise ValueError(f"{host}: one host and one header, Name: value, are wanted")
        return value

    @field_validator("time_zone", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        try:
            return ZoneInfo(value) if isinstance(value, str) else value
        except (KeyError, OSError, ValueError):  # unknown, a folder of zones, no file of a zone
            raise ValueError("a time zone by its IANA name is wanted, such as Europe/Berlin") from None

    @field_validator("nightly_schedule")
    @classmethod
    def _that_comes(cls, value: str) -> str:
        # Times drawn by lot, as R and H ask for, would differ from process to process.
        if len(value.split()) != 5 or re.search(r"(?i)(?<![a-z])[rh](?![a-z])", value):
            raise ValueError("a cron expression of five fields is wanted, such as 30 2 * * *")
        try:
            croniter(value).get_prev()
        except ValueError as error:
            raise ValueError(f"no time is ever like that ({error})") from None
        return value

    @field_validator("category_pattern")
    @classmethod
    def _of_regular_expressions(cls, value: str) -> str:
        try:
            re.compile(value)
            re.compile(f"^(?:{value})?$")  # as forms have it
        except re.error as error:
            raise ValueError(f"no regular expression ({error})") from None
        return value

    @field_validator("proxy")
    @classmethod
    def _of_http(cls, value: SecretStr) -> SecretStr:
        # A user is the proxy's, so it is left out of what is read.
        scheme, found, server = value.get_secret_value().rpartition("://")
        try:
            if found:
                read(f"{scheme}://{server.rpartition('@')[2]}")
        except InvalidURLError as error:
            raise ValueError(str(error)) from None
        if value.get_secret_value() and not found:
            raise ValueError("http:// or https:// and a host are wanted")
        return value

    @model_validator(mode="after")
    def _no_star_behind_a_proxy(self) -> Self:
        if self.proxy.get_secret_value() and "*" in self.image_hosts:
            raise ValueError(
                "with FEATURES_PROXY the proxy alone sees addresses: name the hosts in FEATURES_IMAGE_HOSTS "
                "instead of *"
            )
        return self

    @field_validator("document_url_field", "document_category_field", "document_name_field")
    @classmethod
    def _dotted_path(cls, value: str) -> str:
        # Elasticsearch's lists of fields are joined by commas, and * stands for any of them.
        if value.startswith("imagenet_feature") or not re.fullmatch(
            r"([^.,*\x00-\x1f]+\.)*[^.,*\x00-\x1f]+", value
        ):
            raise ValueError(
                "the name of one field of the shop's documents is wanted, such as image.src, or none"
            )
        return value

    @model_validator(mode="after")
    def _no_field_within_another(self) -> Self:
        names = (self.document_url_field, self.document_category_field, self.document_name_field)
        for one, other in itertools.permutations((name for name in names if name != "none"), 2):
            if f"{other}.".startswith(f"{one}."):
                raise ValueError(
                    "FEATURES_DOCUMENT_URL_FIELD, FEATURES_DOCUMENT_CATEGORY_FIELD and "
                    f"FEATURES_DOCUMENT_NAME_FIELD must be three fields: {one} cannot hold {other}"
                )
        return self

    @field_validator("data_dir", "model_dir", "ca_file", "category_names_sql")
    @classmethod
    def _from_repository(cls, value: Path | None) -> Path | None:
        return value and REPOSITORY / value

    def is_category_id(self, text: str) -> bool:
        """Whether the text can be the id of one of the shop's categories."""
        return re.fullmatch(self.category_pattern, text) is not None

    def shared_by(self, chunks: int) -> Self:
        """The settings of one of so many chunks that download at once: its share of what a host may get."""
        return self.model_copy(
            update={
                "downloads_per_host": max(1, self.downloads_per_host // chunks),
                "requests_per_second_per_host": self.requests_per_second_per_host / chunks,
            }
        )

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            ConfigurationError: naming the variable that holds a value it cannot hold.
        """
        try:
            return cls()
        except ValidationError as error:
            problems = "; ".join(_named(e["loc"], e["input"]) + e["msg"] for e in error.errors())
            raise ConfigurationError(f"Invalid settings: {problems}.") from None


def _named(location: tuple[int | str, ...], value: object) -> str:
    """A variable and its value, without the value where it is a secret."""
    if not location:
        return ""
    field = str(location[0])
    secret = field in ("image_headers", "proxy")
    return f"FEATURES_{field.upper()}{'' if secret else f'={value!r}'}: "
