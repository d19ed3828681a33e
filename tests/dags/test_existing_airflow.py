"""The DAGs and the plugin in an Airflow that has others, as docs/existing_airflow.md says how to add them."""

import json
import os
import re
import subprocess
import sys

import pytest

from tasks.settings import REPOSITORY

PAGE = (REPOSITORY / "docs" / "existing_airflow.md").read_text()
PREFIX = "picture_features_"

THEIR_DAG = """
from airflow.sdk import DAG, task

@task(pool="gpu", queue="io")
def work(): ...

with DAG(dag_id="housekeeping", schedule=None):
    work()
"""
THEIR_PLUGIN = """
from airflow.plugins_manager import AirflowPlugin

class Theirs(AirflowPlugin):
    name = "theirs"
"""
# What such an Airflow finds, asked in a process of its own with its settings.
ASK = """
import json
from airflow import plugins_manager
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag

found = {}
for bundle in DagBundlesManager().get_all_dag_bundles():
    bundle.initialize()
    bag = DagBag(str(bundle.path), bundle_path=bundle.path, bundle_name=bundle.name)
    found[bundle.name] = [sorted(bag.dags), bag.import_errors]
plugins, errors = plugins_manager._get_plugins()
print("ANSWER" + json.dumps([found, sorted(plugin.name for plugin in plugins), errors]))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What an Airflow with another shop's DAG and plugin finds once ours are added."""
    folder = tmp_path_factory.mktemp("existing")
    for name in ("home", "dags", "plugins"):
        (folder / name).mkdir()
    (folder / "dags" / "housekeeping.py").write_text(THEIR_DAG)
    (folder / "plugins" / "theirs.py").write_text(THEIR_PLUGIN)
    (line,) = re.findall(r"```python\n\s*(.+?)\n\s*```", PAGE)
    (folder / "plugins" / "picture_features.py").write_text(line)
    (bundles,) = re.findall(r"BUNDLE_CONFIG_LIST='(\[.+?\])'", PAGE, re.DOTALL)
    environment = os.environ | {
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder / "plugins"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": bundles.replace(
            "/opt/picture-feature-index", str(REPOSITORY)
        ),
    }
    asked = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert asked.returncode == 0, asked.stderr
    return json.loads(asked.stdout.partition("ANSWER")[2])


def test_both_shops_dags_and_plugins_are_there(found):
    bundles, plugins, errors = found
    ours = {path.stem for path in (REPOSITORY / "dags").glob("*.py")} - {"alerts", "feature_stages"}
    assert bundles == {"dags-folder": [["housekeeping"], {}], "picture-features": [sorted(ours), {}]}
    assert (plugins, errors) == (["feature_index", "theirs"], {})


def test_the_page_names_all_that_is_added(found):
    rows = dict(re.findall(r"(?m)^\| (\w[\w ]*) \| (.+) \|$", PAGE))

    def named(row):
        return set(re.findall(r"`([\w-]+)`", rows[row]))

    bundles, _, _ = found
    assert named("DAGs") == set(bundles["picture-features"][0])
    assert named("pools") == set(json.loads((REPOSITORY / "dags" / "pools.json").read_text()))
    assert all(name.startswith(PREFIX) for row in ("pools", "queues") for name in named(row))
