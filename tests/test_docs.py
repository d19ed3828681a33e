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


def sql_in(document: str) -> list[str]:
    return re.findall(r"```sql\n(.+?)```", (REPOSITORY / "docs" / document).read_text(), re.DOTALL)


@pytest.mark.parametrize("kind", CATALOGUE_KINDS)
def test_the_view_that_chooses_a_picture_gives_each_item_once(kind, new_catalogue) -> None:
    _, view, *_ = sql_in("your_catalogue.md")
    shop = new_catalogue(kind, indexes=False)
    time = shop.time
    shop.execute("drop table items")
    shop.execute(
        f"create table product (id integer, title text, category text, created {time}, modified {time})"
    )
    shop.execute("create table picture (id integer, product integer, url text, position integer)")
    shop.execute(view)
    earlier, later = shop._stored(NOON - timedelta(days=1)), shop._stored(NOON)
    shop.execute(
        "insert into product values (:id, 'shirt', '00000030', :created, :modified)",
        *(
            {"id": n, "created": earlier, "modified": time}
            for n, time in ((1, earlier), (2, earlier), (3, later))
        ),
    )
    pictures = [(1, "b", 2), (1, "a", 1), (2, "c", 1), (2, "d", 1), (3, "e", 0)]
    shop.execute(
        "insert into picture values (:id, :product, :url, :position)",
        *(
            {"id": n, "product": product, "url": url, "position": position}
            for n, (product, url, position) in enumerate(pictures)
        ),
    )

    catalogue = Catalogue(shop.connection)
    urls = {item.item_id: item.img_url for item in catalogue.changed(EARLIEST, LATEST)}
    assert urls == {"1": "a", "2": "c", "3": "e"}
    assert {item.item_id for item in catalogue.changed(NOON, LATEST)} == {"3"}


@pytest.mark.parametrize("kind", CATALOGUE_KINDS)
def test_the_statement_of_names_gives_names(kind, new_catalogue, tmp_path) -> None:
    _, _, names, *_ = sql_in("your_catalogue.md")
    shop = new_catalogue(kind)
    shop.execute(f"create table category (code {shop.text}, title {shop.text})")
    shop.execute("insert into category values ('00000030', 't-shirt')")
    (tmp_path / "names.sql").write_text(names)
    assert Catalogue(shop.connection).category_names(tmp_path / "names.sql") == {"00000030": "t-shirt"}


@pytest.mark.parametrize("kind", CATALOGUE_KINDS)
def test_the_view_of_the_example_is_a_catalogue(kind, new_catalogue, tmp_path, monkeypatch) -> None:
    view, _, _, indexes, told = sql_in("your_catalogue.md")
    shop = new_catalogue(kind, indexes=False)
    time = shop.time
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

    assert len(catalogue.missing_indexes()) == 3
    monkeypatch.setattr(database, "STATEMENTS", shutil.copytree(database.STATEMENTS, tmp_path / "sql"))
    for dialect in ("sqlite", "postgresql", "mysql"):
        (tmp_path / "sql" / "catalogue" / f"indexes_{dialect}.sql").write_text(told)
    assert catalogue.missing_indexes() == []
