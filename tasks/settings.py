"""Every setting, named once: the environment variable is FEATURES_ and the field's name in capitals."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.errors import ConfigurationError

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
    image_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts pictures may come from, separated by commas; `*` is any public one, and a private or
    loopback one counts only where it is listed as host:port."""
    failure_budget: float = Field(default=0.05, ge=0, le=1)
    """Share of the planned items that may fail before the run does."""
    create_documents: bool = False
    """Write whole catalogue rows into the index, for one that no core server fills."""
    mix_versions: bool = False
    """Let features of a second version into an index, as when a new model is rolled out."""

    model_dir: Path = Path("model/inception_v3")
    """The SavedModel."""
    model_digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """The weights' digest that the model must have; empty accepts what is there."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the model's multiplications; auto is bfloat16 where this CPU is faster with it, else
    float32."""

    chunk_size: int = Field(default=2_500, ge=1, le=20_000)
    """Items in a chunk, while a run has at most 100 of them."""
    downloads: int = Field(default=32, ge=1)
    """Pictures one chunk downloads at once."""
    downloads_per_host: int = Field(default=16, ge=1)
    """Pictures one chunk downloads at once from one host. Chunks that download at the same time, as many as
    the pool image_download has slots, add up, and so does the process behind the HTTP API."""
    requests_per_second_per_host: float = Field(default=500.0, gt=0)
    """Requests one chunk starts in a second at one host; they add up as those of downloads_per_host do."""
    download_attempts: int = Field(default=3, ge=1)
    """Requests for one picture before its last failure counts."""
    connect_timeout: Seconds = 5.0
    """Seconds to connect."""
    host_patience: Seconds = 15.0
    """Seconds in which a host gives nothing but failures before it is left alone for some minutes."""
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
    """Documents up to which the page of similar items offers exact search."""

    nightly_deadline_hours: float = Field(default=6.0, gt=0)
    """Hours after which a nightly run that is not done is overdue, and an alert is sent."""
    alert_mail_to: str = ""
    """Who gets the mails of the connection feature_alerts_mail, separated by commas."""

    keep_days: float = Field(default=7.0, gt=0)
    """Days that a run's plans, pictures and features stay on disk, and the kept graph of a model that no task
    has loaded since; nothing of a running run and no graph of the model in use is removed."""
    keep_bytes: int = Field(default=100_000_000_000, ge=0)
    """Bytes that all of them may take together; beyond that the oldest are removed first."""
    keep_reports_days: float = Field(default=365.0, gt=0)
    """Days that reports stay."""

    @field_validator("image_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if "/" in value:
            raise ValueError("hosts are expected, without https:// and without a path")
        return tuple(host.strip().lower() for host in value.split(",") if host.strip())

    @field_validator("data_dir", "model_dir")
    @classmethod
    def _from_repository(cls, value: Path) -> Path:
        return REPOSITORY / value

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            ConfigurationError: naming the variable that holds a value it cannot hold.
        """
        try:
            return cls()
        except ValidationError as error:
            problems = "; ".join(
                f"FEATURES_{'_'.join(map(str, e['loc'])).upper()}={e['input']!r}: {e['msg']}"
                for e in error.errors()
            )
            raise ConfigurationError(f"Invalid settings: {problems}.") from None
