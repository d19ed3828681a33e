"""The documents against what they are about: statuses, alerts, links and SQL."""

import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest

from dags.alerts import Kind
from tasks.shop import database
from tasks.shop.catalogue import EARLIEST, LATEST, Catalogue, Item
from tasks.statuses import Status
from tests.shop_fixtures import CATALOGUE_KINDS, NOON

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("*/*.md")]
RUNBOOK = (REPOSITORY / "docs" / "runbook.md").read_text()


def test_the_runbook_says_what_to_do_for_every_status_and_no_other() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.+?) \| (.*?) \|$", RUNBOOK[RUNBOOK.index("## Statuses") :])
    assert [status for status, *_ in rows] == [status.value for status in Status]
    # Only of what needs nobody there is nothing to mend.
    assert {status for status, _, mend in rows if not mend} <= {"indexed"}


def test_the_runbook_says_what_to_do_for_every_alert() -> None:
    assert set(re.findall(r"(?m)^### Alert `(\w+)`$", RUNBOOK)) == set(get_args(Kind))


def anchors(text: str) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("kind", CATALOGUE_KINDS)
def test_the_view_of_the_example_is_a_catalogue(kind, new_catalogue, tmp_path, monkeypatch) -> None:
    text = (REPOSITORY / "docs" / "your_catalogue.md").read_text()
    view, indexes, told = re.findall(r"```sql\n(.+?)```", text, re.DOTALL)
    shop = new_catalogue(kind, indexes=False)
    time = "text" if kind == "sqlite" else kind
    shop.execute("drop table items")
    shop.execute("create table product (id integer primary key, title text)")
    shop.execute(
        "create table listing (product integer, category text, image text, "
        f"created {time}, modified {time}, withdrawn {time})"
    )
    shop.execute(view)
    for index in filter(str.strip, indexes.split(";")):
        shop.execute(index)
    shop.execute("insert into product (id, title) values (7, 'blue shirt'), (8, 'red hat')")
    row = {"category": "00000030", "image": "https://img/7.jpg", "created": shop._stored(NOON)}
    rows = [row | {"id": 7, "withdrawn": None}, row | {"id": 8, "withdrawn": shop._stored(NOON)}]
    insert = "insert into listing (product, category, image, created, withdrawn)"
    shop.execute(f"{insert} values (:id, :category, :image, :created, :withdrawn)", *rows)

    catalogue = Catalogue(shop.connection)
    shirt = Item("7", "blue shirt", "00000030", "https://img/7.jpg")
    assert list(catalogue.changed(NOON, LATEST)) == [shirt]
    assert list(catalogue.changed(NOON + timedelta(microseconds=1), LATEST)) == []
    assert list(catalogue.of_categories(["00000030"], EARLIEST, LATEST)) == [shirt]
    assert list(catalogue.of_ids(["7", "8"])) == [shirt]
    assert catalogue.urls(["7"]) == {"7": "https://img/7.jpg"}

    assert len(catalogue.missing_indexes()) == 2
    monkeypatch.setattr(database, "STATEMENTS", shutil.copytree(database.STATEMENTS, tmp_path / "sql"))
    for dialect in ("sqlite", "postgresql"):
        (tmp_path / "sql" / "catalogue" / f"indexes_{dialect}.sql").write_text(told)
    assert catalogue.missing_indexes() == []
