"""The figures that are kept, and the pages printed from them."""

import re

import pytest

from benchmarks import capacity, record
from benchmarks.figures import Figure
from tasks import files

README = f"before\n{record.BEGIN}\nold\n{record.END}\nafter\n"


@pytest.fixture
def docs(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "DOCS", tmp_path)
    monkeypatch.setattr(record, "README", tmp_path / "README.md")
    monkeypatch.setattr(capacity, "TEMPLATES", tmp_path)
    for name in capacity.PAGES:
        (tmp_path / f"{name}.jinja").write_text("")
    monkeypatch.setattr(record, "machine", lambda: "1 core")
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def test_what_is_measured_anew_takes_its_old_place_and_the_rest_stays(docs):
    order = ["one", "two", "three"]
    record.record({"three": [Figure("third", 1.5, at_most=2)], "one": [Figure("first", 1)]}, order)
    record.record({"two": [Figure("second", 3.0, "s")], "three": [Figure("third", 2.5, at_most=2)]}, order)
    held = files.read_json(docs / "figures.json")
    assert list(held) == order
    values = {name: [figure["value"] for figure in result["figures"]] for name, result in held.items()}
    assert values == {"one": [1], "two": [3.0], "three": [2.5]}
    page = (docs / "figures.md").read_text()
    assert page.index("first | 1 |") < page.index("second | 3.0 s |") < page.index("third | 2.500 |")
    assert "third | 1.500" not in page
    assert (docs / "README.md").read_text().splitlines() == [
        "before",
        record.BEGIN,
        "| figure | measured | goal | `ARGS=` | measured on |",
        "| :-- | --: | --: | :-- | :-- |",
        f"| third | **2.500** | ≤ 2 | `three` | {held['three']['date']}, 1 core |",
        record.END,
        "after",
    ]


def test_a_benchmark_that_is_gone_leaves_the_pages(docs):
    record.record({"old": [Figure("former", 1, at_least=1)]}, ["old"])
    record.record({"new": [Figure("present", 1, at_least=1)]}, ["new"])
    assert list(files.read_json(docs / "figures.json")) == ["new"]
    assert "former" not in (docs / "README.md").read_text() + (docs / "figures.md").read_text()


@pytest.mark.parametrize("readme", ["nothing", record.BEGIN, f"{record.END} {record.BEGIN}"])
def test_a_readme_without_its_marks_is_refused(readme):
    with pytest.raises(ValueError, match=r"README\.md lacks"):
        record.with_table(readme, "table")


def test_each_row_names_the_machine_and_the_day_of_its_own_benchmark(docs, monkeypatch):
    record.record({"one": [Figure("first", 1, at_least=1)]}, ["one", "two"])
    held = files.read_json(docs / "figures.json")
    held["one"]["date"] = "2026-11-01"
    files.write_json(docs / "figures.json", held)
    monkeypatch.setattr(record, "machine", lambda: "another machine")
    record.record({"two": [Figure("second", 2, at_least=1)]}, ["one", "two"])
    table = (docs / "README.md").read_text()
    assert "| first | 1 | ≥ 1 | `one` | 2026-11-01, 1 core |" in table
    assert re.search(r"\| second \| 2 \| ≥ 1 \| `two` \| [-0-9]{10}, another machine \|", table)


def test_the_pages_show_what_is_kept():
    results = files.read_json(record.DOCS / "figures.json")
    readme = record.README.read_text(encoding="utf-8")
    assert (record.DOCS / "figures.md").read_text(encoding="utf-8") == record.page(results)
    for name in capacity.PAGES:
        assert (record.DOCS / name).read_text(encoding="utf-8") == capacity.page(name, results)
    assert record.with_table(readme, record.readme_table(results)) == readme
