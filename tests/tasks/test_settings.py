import os
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr, ValidationError

from tasks.errors import ConfigurationError
from tasks.settings import REPOSITORY, Settings

VALUES: dict[str, tuple[str, str, Any]] = {
    "FEATURES_DATA_DIR": ("data_dir", "/mnt/features", Path("/mnt/features")),
    "FEATURES_INDEX": ("index", "img_list_2", "img_list_2"),
    "FEATURES_DOCUMENT_URL_FIELD": ("document_url_field", "image.src", "image.src"),
    "FEATURES_DOCUMENT_CATEGORY_FIELD": ("document_category_field", "taxonomy.id", "taxonomy.id"),
    "FEATURES_DOCUMENT_NAME_FIELD": ("document_name_field", "none", "none"),
    "FEATURES_IMAGE_HOSTS": ("image_hosts", "cdn.example.com", ("cdn.example.com",)),
    "FEATURES_IMAGE_HEADERS": (
        "image_headers",
        '{"bucket.example:8443": "Authorization: Bearer abc"}',
        {"bucket.example:8443": SecretStr("Authorization: Bearer abc")},
    ),
    "FEATURES_PROXY": (
        "proxy",
        "http://user:pass@proxy.example:3128",
        SecretStr("http://user:pass@proxy.example:3128"),
    ),
    "FEATURES_CA_FILE": ("ca_file", "/etc/ssl/shop.pem", Path("/etc/ssl/shop.pem")),
    "FEATURES_TIME_ZONE": ("time_zone", "Europe/Berlin", ZoneInfo("Europe/Berlin")),
    "FEATURES_NIGHTLY_SCHEDULE": ("nightly_schedule", "30 2 * * *", "30 2 * * *"),
    "FEATURES_CATEGORY_PATTERN": ("category_pattern", "[a-z]+(/[a-z]+)*", "[a-z]+(/[a-z]+)*"),
    "FEATURES_CATEGORY_NAMES_SQL": ("category_names_sql", "/sql/names.sql", Path("/sql/names.sql")),
    "FEATURES_FAILURE_BUDGET": ("failure_budget", "0.2", 0.2),
    "FEATURES_CREATE_DOCUMENTS": ("create_documents", "true", True),
    "FEATURES_MIX_VERSIONS": ("mix_versions", "true", True),
    "FEATURES_MODEL_DIR": ("model_dir", "/opt/model", Path("/opt/model")),
    "FEATURES_MODEL_DIGEST": ("model_digest", "0f" * 32, "0f" * 32),
    "FEATURES_PRECISION": ("precision", "float32", "float32"),
    "FEATURES_RECONCILE_ITEMS": ("reconcile_items", "0", 0),
    "FEATURES_CHUNK_SIZE": ("chunk_size", "20000", 20_000),
    "FEATURES_DOWNLOADS": ("downloads", "7", 7),
    "FEATURES_DOWNLOADS_PER_HOST": ("downloads_per_host", "3", 3),
    "FEATURES_REQUESTS_PER_SECOND_PER_HOST": ("requests_per_second_per_host", "0.5", 0.5),
    "FEATURES_DOWNLOAD_ATTEMPTS": ("download_attempts", "1", 1),
    "FEATURES_CONNECT_TIMEOUT": ("connect_timeout", "1.5", 1.5),
    "FEATURES_HOST_PATIENCE": ("host_patience", "0.3", 0.3),
    "FEATURES_HOST_PAUSE": ("host_pause", "60", 60.0),
    "FEATURES_READ_TIMEOUT": ("read_timeout", "2.5", 2.5),
    "FEATURES_TRANSFER_TIMEOUT": ("transfer_timeout", "120", 120.0),
    "FEATURES_MAX_IMAGE_BYTES": ("max_image_bytes", "1000000", 1_000_000),
    "FEATURES_MAX_IMAGE_PIXELS": ("max_image_pixels", "1000000", 1_000_000),
    "FEATURES_DECODE_TIMEOUT": ("decode_timeout", "5", 5.0),
    "FEATURES_USER_AGENT": ("user_agent", "shop/1 (ops@shop.example)", "shop/1 (ops@shop.example)"),
    "FEATURES_BATCH_SIZE": ("batch_size", "64", 64),
    "FEATURES_BULK_SIZE": ("bulk_size", "100", 100),
    "FEATURES_BULK_REQUESTS": ("bulk_requests", "2", 2),
    "FEATURES_RETRY_ATTEMPTS": ("retry_attempts", "3", 3),
    "FEATURES_RETRY_FIRST_HOURS": ("retry_first_hours", "0.5", 0.5),
    "FEATURES_RETRY_ITEMS": ("retry_items", "1000", 1_000),
    "FEATURES_SERVE_SOCKET": ("serve_socket", "/run/features.sock", Path("/run/features.sock")),
    "FEATURES_SERVE_INDEX": ("serve_index", "items_2", "items_2"),
    "FEATURES_SERVE_REQUESTS": ("serve_requests", "8", 8),
    "FEATURES_SERVE_TIMEOUT": ("serve_timeout", "30", 30.0),
    "FEATURES_SERVE_MEMORY": ("serve_memory", "2000000000", 2_000_000_000),
    "FEATURES_EXACT_SEARCH_DOCUMENTS": ("exact_search_documents", "0", 0),
    "FEATURES_NIGHTLY_DEADLINE_HOURS": ("nightly_deadline_hours", "4.5", 4.5),
    "FEATURES_ALERT_MAIL_TO": ("alert_mail_to", "search@shop.example", "search@shop.example"),
    "FEATURES_KEEP_DAYS": ("keep_days", "30", 30.0),
    "FEATURES_KEEP_BYTES": ("keep_bytes", "5000000", 5_000_000),
    "FEATURES_KEEP_REPORTS_DAYS": ("keep_reports_days", "90", 90.0),
}


@pytest.fixture(autouse=True)
def no_settings_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FEATURES_"):
            monkeypatch.delenv(name)


def test_the_defaults_are_the_contracts() -> None:
    settings = Settings.load()
    assert settings.data_dir == REPOSITORY / "var"
    assert settings.index == "img_list"
    assert settings.image_hosts == ()
    assert settings.model_dir == REPOSITORY / "model" / "inception_v3"
    assert not settings.create_documents
    assert not settings.mix_versions


def test_every_setting_is_in_the_table_above() -> None:
    assert {field for field, _, _ in VALUES.values()} == set(Settings.model_fields)


@pytest.mark.parametrize("variable", VALUES)
def test_each_variable_sets_its_field_alone(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, text, value = VALUES[variable]
    defaults = Settings.load()
    monkeypatch.setenv(variable, text)
    settings = Settings.load()
    assert getattr(settings, field) == value
    assert getattr(defaults, field) != value
    assert settings.model_dump(exclude={field}) == defaults.model_dump(exclude={field})


@pytest.mark.parametrize("variable", VALUES)
def test_an_empty_variable_means_the_default(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "")
    assert Settings.load() == Settings()
    assert Settings.load().data_dir == REPOSITORY / "var"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FEATURES_PRECISION", "int8"),
        ("FEATURES_CHUNK_SIZE", "many"),
        ("FEATURES_CHUNK_SIZE", "0"),
        ("FEATURES_CHUNK_SIZE", "20001"),
        ("FEATURES_FAILURE_BUDGET", "1.5"),
        ("FEATURES_FAILURE_BUDGET", "-0.1"),
        ("FEATURES_FAILURE_BUDGET", "nan"),
        ("FEATURES_CREATE_DOCUMENTS", "perhaps"),
        ("FEATURES_MIX_VERSIONS", "2"),
        ("FEATURES_MODEL_DIGEST", "0f0f"),
        ("FEATURES_MODEL_DIGEST", "G" * 64),
        ("FEATURES_DOWNLOADS", "0"),
        ("FEATURES_DOWNLOADS_PER_HOST", "-1"),
        ("FEATURES_REQUESTS_PER_SECOND_PER_HOST", "0"),
        ("FEATURES_DOWNLOAD_ATTEMPTS", "0"),
        ("FEATURES_CONNECT_TIMEOUT", "0"),
        ("FEATURES_READ_TIMEOUT", "inf"),
        ("FEATURES_TRANSFER_TIMEOUT", "5s"),
        ("FEATURES_MAX_IMAGE_BYTES", "20MB"),
        ("FEATURES_MAX_IMAGE_PIXELS", "0"),
        ("FEATURES_USER_AGENT", "상점"),
        ("FEATURES_USER_AGENT", "shop/1\r\nCookie: a=b"),
        ("FEATURES_IMAGE_HOSTS", "https://cdn.example.com"),
        ("FEATURES_IMAGE_HOSTS", "cdn.example.com,cdn.example.com/images"),
        ("FEATURES_IMAGE_HOSTS", "::1:9001"),
        ("FEATURES_IMAGE_HOSTS", "cdn.example.com,10.0.0.7"),
        ("FEATURES_IMAGE_HOSTS", "cdn.*"),
        ("FEATURES_IMAGE_HOSTS", "*.internal:8080"),
        ("FEATURES_DOCUMENT_URL_FIELD", "image..src"),
        ("FEATURES_DOCUMENT_URL_FIELD", ".image"),
        ("FEATURES_DOCUMENT_URL_FIELD", "image.*"),
        ("FEATURES_DOCUMENT_CATEGORY_FIELD", "category_id,item_name"),
        ("FEATURES_DOCUMENT_NAME_FIELD", "imagenet_feature_version"),
        ("FEATURES_BATCH_SIZE", "0"),
        ("FEATURES_BULK_SIZE", "5001"),
        ("FEATURES_BULK_REQUESTS", "11"),
        ("FEATURES_TIME_ZONE", "KST"),
        ("FEATURES_TIME_ZONE", "+09:00"),
        ("FEATURES_TIME_ZONE", "asia/seoul "),
        ("FEATURES_TIME_ZONE", "Europe"),
        ("FEATURES_TIME_ZONE", "../../etc/passwd"),
        ("FEATURES_TIME_ZONE", "x" * 300),
        ("FEATURES_NIGHTLY_SCHEDULE", "at midnight"),
        ("FEATURES_NIGHTLY_SCHEDULE", "@daily"),
        ("FEATURES_NIGHTLY_SCHEDULE", "0 0 * *"),
        ("FEATURES_NIGHTLY_SCHEDULE", "0 0 * * * *"),
        ("FEATURES_NIGHTLY_SCHEDULE", "0 24 * * *"),
        ("FEATURES_NIGHTLY_SCHEDULE", "a b c d e"),
        ("FEATURES_NIGHTLY_SCHEDULE", "0 0 31 2 *"),
        ("FEATURES_NIGHTLY_SCHEDULE", "R R * * *"),
        ("FEATURES_NIGHTLY_SCHEDULE", "0 h(0-3) * * *"),
        ("FEATURES_CATEGORY_PATTERN", "[0-9"),
        ("FEATURES_CATEGORY_PATTERN", "a)(b"),
        ("FEATURES_CATEGORY_PATTERN", "(?i)[a-z]+"),
        ("FEATURES_CATEGORY_PATTERN", "*"),
    ],
)
def test_a_value_that_cannot_be_is_named(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as refused:
        Settings.load()
    assert f"{variable}={text!r}" in str(refused.value)
    assert str(refused.value).count("FEATURES_") == 1


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FEATURES_IMAGE_HEADERS", "Authorization: secret"),
        ("FEATURES_IMAGE_HEADERS", '["secret"]'),
        ("FEATURES_IMAGE_HEADERS", '{"bucket.example": "secret"}'),
        ("FEATURES_IMAGE_HEADERS", '{"bucket.example": "A: secret\\r\\nB: c"}'),
        ("FEATURES_IMAGE_HEADERS", '{"*": "Authorization: secret"}'),
        ("FEATURES_IMAGE_HEADERS", '{"a/b": "Authorization: secret"}'),
        ("FEATURES_PROXY", "user:secret@proxy.example:3128"),
        ("FEATURES_PROXY", "socks5://user:secret@proxy.example"),
        ("FEATURES_PROXY", "http://user:secret@:80"),
    ],
)
def test_a_secret_that_cannot_be_is_not_told(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError, match=variable) as refused:
        Settings.load()
    assert "secret" not in str(refused.value)


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        proxy="http://user:secret@proxy.example", image_headers={"bucket.example": "Authorization: secret"}
    )
    assert "secret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_behind_a_proxy_hosts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURES_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("FEATURES_IMAGE_HOSTS", "cdn.example, *")
    with pytest.raises(ConfigurationError, match=r"name the hosts in FEATURES_IMAGE_HOSTS instead of \*"):
        Settings.load()
    monkeypatch.setenv("FEATURES_IMAGE_HOSTS", "cdn.example, *.cdn.example")
    assert Settings.load().image_hosts == ("cdn.example", "*.cdn.example")


def test_what_a_host_may_get_is_shared_by_the_chunks_of_a_run() -> None:
    settings = Settings(downloads_per_host=16, requests_per_second_per_host=500)
    share = settings.shared_by(3)
    assert (share.downloads_per_host, share.requests_per_second_per_host) == (5, pytest.approx(166.67, 1e-3))
    assert settings.shared_by(100).downloads_per_host == 1
    assert settings.shared_by(1) == settings


@pytest.mark.parametrize(
    ("url", "name", "fine"),
    [
        ("image.src", "image.alt", True),
        ("image", "image.alt", False),
        ("image.src", "image", False),
        ("title", "title", False),
        ("none", "none", True),
        ("image", "image_name", True),
    ],
)
def test_no_field_of_documents_is_within_another(
    url: str, name: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURES_DOCUMENT_URL_FIELD", url)
    monkeypatch.setenv("FEATURES_DOCUMENT_NAME_FIELD", name)
    if fine:
        assert Settings.load().document_url_field == url
    else:
        with pytest.raises(ConfigurationError, match="must be three fields"):
            Settings.load()


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURES_CHUNK_SIZE", "0")
    monkeypatch.setenv("FEATURES_BATCH_SIZE", "x")
    with pytest.raises(ConfigurationError, match=r"FEATURES_CHUNK_SIZE='0'.*FEATURES_BATCH_SIZE='x'"):
        Settings.load()


@pytest.mark.parametrize("variable", ["FEATURES_DATA_DIR", "FEATURES_MODEL_DIR"])
def test_a_relative_path_belongs_to_the_repository(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = VALUES[variable][0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "var/my-shop")
    assert getattr(Settings.load(), field) == REPOSITORY / "var" / "my-shop"
    assert (REPOSITORY / "tasks" / "settings.py").is_file()
    monkeypatch.setenv(variable, str(tmp_path))
    assert getattr(Settings.load(), field) == tmp_path


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("*", ("*",)),
        ("cdn.example.com,img.example.com", ("cdn.example.com", "img.example.com")),
        (
            " CDN.example.com , 127.0.0.1:8080,[::1]:8081, ",
            ("cdn.example.com", "127.0.0.1:8080", "[::1]:8081"),
        ),
        (" , ", ()),
    ],
)
def test_hosts_are_separated_by_commas(
    text: str, hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURES_IMAGE_HOSTS", text)
    assert Settings.load().image_hosts == hosts


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().index = "another"
