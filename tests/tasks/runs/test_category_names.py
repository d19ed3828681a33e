"""Tests of tasks/runs/category_names.py."""

import json
from pathlib import Path

import pytest

from tasks.runs.category_names import CategoryNames
from tasks.settings import Settings

NAMES = {"00000030": "t-shirt", "shoes/boots": "Stiefel", "shoes": "Schuhe", "30": "t"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "var")


def test_an_id_is_shown_with_its_name_and_found_by_both() -> None:
    names = CategoryNames(NAMES)
    assert names.of("00000030") == "00000030 t-shirt"
    assert names.of("00000040") == "00000040"
    for id_ in [*NAMES, "00000040", "any", ""]:
        assert names.id_of(names.of(id_)) == names.id_of(id_) == id_
    assert names.id_of("00000030 hat") == "00000030 hat"
    assert names.among(["30", "40"]) == {"30": "t"}


def test_what_is_saved_is_loaded_and_what_changed_is_seen(settings: Settings) -> None:
    assert CategoryNames.load(settings).of("30") == "30"
    CategoryNames(NAMES).save(settings)
    assert CategoryNames.load(settings).of("30") == "30 t"
    CategoryNames({"30": "other"}).save(settings)
    assert CategoryNames.load(settings).of("30") == "30 other"
    CategoryNames({}).save(settings)
    assert CategoryNames.load(settings).of("30") == "30"


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\udcff"])
def test_a_file_that_holds_none_is_no_error(settings: Settings, content: str) -> None:
    settings.data_dir.mkdir()
    (settings.data_dir / "category_names.json").write_text(content, errors="surrogateescape")
    assert CategoryNames.load(settings).of("30") == "30"
    CategoryNames(NAMES).save(settings)
    assert json.loads((settings.data_dir / "category_names.json").read_text()) == NAMES


def test_the_first_of_them_say_how_many_are_left() -> None:
    names = CategoryNames(NAMES)
    assert names.first(4) == ["00000030 t-shirt", "30 t", "shoes Schuhe", "shoes/boots Stiefel"]
    assert names.first(3) == ["00000030 t-shirt", "30 t", "shoes Schuhe", "and 1 more"]
    assert CategoryNames().first(3) == []
