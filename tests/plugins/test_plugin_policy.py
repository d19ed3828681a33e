"""What the plugin owes the processes that load it, checked without a server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {"tensorflow", "tensorflow_hub", "keras", "pandas", "elasticsearch", "pyarrow", "jinja2.ext"}

ASK = """
import json, sys
from airflow import plugins_manager
before = set(sys.modules)
plugins, errors = plugins_manager._get_plugins()
print("ANSWER" + json.dumps([
    sorted(set(sys.modules) - before),
    [plugin.name for plugin in plugins],
    errors,
    [view for plugin in plugins for view in plugin.external_views if plugin.name == "feature_index"],
]))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = str(tmp_path_factory.mktemp("airflow"))
    environment = {"AIRFLOW_HOME": home, "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins")}
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        env=environment | {"PATH": "/usr/bin:/bin"},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(asked.stdout.partition("ANSWER")[2])
    return dict(zip(("modules", "plugins", "errors", "views"), answer, strict=True))


def test_airflow_finds_one_plugin_and_takes_no_part_of_it_for_another(loaded: dict[str, Any]) -> None:
    assert loaded["errors"] == {}
    assert "feature_index" in loaded["plugins"]
    assert not {"access", "app", "pages", "failures", "runs", "services"} & set(loaded["modules"])


def test_loading_it_imports_nothing_heavy_and_not_the_pages(loaded: dict[str, Any]) -> None:
    assert not HEAVY & set(loaded["modules"])
    assert not [name for name in loaded["modules"] if name.startswith(("plugins.", "tasks"))]


def test_views_are_relative_so_that_they_hold_under_a_path(loaded: dict[str, Any]) -> None:
    assert [view["destination"] for view in loaded["views"]] == ["nav", "dag_run"]
    for view in loaded["views"]:
        assert view["href"].startswith("feature-index/")
