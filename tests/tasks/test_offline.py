"""Export and find as a person gives the commands, with the real model on a few photos."""

import csv
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tasks import __main__ as command
from tasks.inference.model import Identity
from tasks.space.snapshot import writing
from tests.shop_fixtures import remember_model

pytestmark = pytest.mark.model

OF_EACH_CATEGORY = 2

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offline") / "var"
    remember_model(folder)
    return folder


@pytest.fixture(scope="module")
def photos(shop_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some photos in folders by category, and what is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    with (shop_photos / "items.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    taken: dict[str, int] = {}
    for row in rows:
        category = row["category_id"]
        taken[category] = taken.get(category, 0) + 1
        if taken[category] <= OF_EACH_CATEGORY:
            (folder / category).mkdir(exist_ok=True)
            shutil.copy(
                shop_photos / row["img_path"].lstrip("/"), folder / category / f"{row['item_id']}.JPG"
            )
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


@pytest.fixture
def run(data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `python -m tasks` inside this process, which has TensorFlow: exit code, output, errors."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setenv("FEATURES_DATA_DIR", str(data_dir))
        monkeypatch.delenv("FEATURES_IMAGE_HOSTS", raising=False)
        monkeypatch.setattr(sys, "argv", ["tasks", *map(str, arguments)])
        code = command.main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def exported(data_dir: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The file of all photos, and what the command printed."""
    file = tmp_path_factory.mktemp("exported") / "features.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURES_DATA_DIR", str(data_dir))
        patch.delenv("FEATURES_IMAGE_HOSTS", raising=False)
        patch.setattr(sys, "argv", ["tasks", "export", "--from", str(photos), "--to", str(file)])
        out, err = io.StringIO(), io.StringIO()
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert command.main() == 0
    return file, out.getvalue(), err.getvalue()


def test_a_folder_becomes_a_file_and_what_is_no_picture_is_named(
    exported: tuple[Path, str, str], photos: Path
) -> None:
    file, out, err = exported
    expected = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.JPG"))
    with h5py.File(file) as held:
        assert [name.decode() for name in held["dataset_2"]] == expected
        assert [name.decode() for name in held["items/category"]] == [Path(n).parent.name for n in expected]
        np.testing.assert_allclose(np.linalg.norm(held["dataset_1"], axis=1), 1, atol=1e-5)
    (line,) = out.splitlines()
    assert line.startswith("broken.png\tnot_a_picture: ")
    assert f"{len(expected)} items in {file}, 1 refused" in err


@pytest.mark.parametrize("how", [[], ["--candidates", "10"]])
def test_a_photo_smaller_and_recompressed_finds_its_own_first_and_the_sheet_shows_it(
    exported: tuple[Path, str, str], photos: Path, run: Run, tmp_path: Path, how: list[str]
) -> None:
    original = sorted(photos.rglob("*.JPG"))[5]
    photo, sheet = tmp_path / "asked.jpg", tmp_path / "sheets" / "result.png"
    with Image.open(original) as image:
        image.resize((image.width // 2, image.height // 2)).save(photo, quality=70)
    code, out, err = run("find", photo, "--in", exported[0], "--top", "3", "--sheet", sheet, *how)
    assert code == 0, err
    lines = [line.split("\t") for line in out.splitlines()]
    cosines = [float(cosine) for cosine, _ in lines]
    assert len(lines) == 3
    assert cosines == sorted(cosines, reverse=True)
    assert lines[0][1] == str(original.relative_to(photos))
    assert cosines[0] > 0.9
    with Image.open(sheet) as drawn:
        assert drawn.width > 4 * 299
        # The one asked with and the one found look alike.
        own, found = (np.asarray(drawn.crop((x, 24, x + 299, 323)), float) for x in (24, 371))
        assert np.abs(own - found).mean() < 15


def test_what_cannot_be_found_says_why(
    exported: tuple[Path, str, str], photos: Path, run: Run, tmp_path: Path
) -> None:
    file = exported[0]
    photo = next(photos.rglob("*.JPG"))
    assert run("find", tmp_path / "no.jpg", "--in", file)[::2] == (
        1,
        f"{tmp_path / 'no.jpg'} cannot be read: No such file or directory.\n",
    )
    code, _, err = run("find", photos / "broken.png", "--in", file)
    assert (code, "none of JPEG" in err) == (1, True)
    other = tmp_path / "other.h5"
    with writing(other, Identity("another-model")) as writer:
        writer.add(["a"], [""], [""], np.ones((1, 2048), np.float32))
    code, _, err = run("find", photo, "--in", other)
    assert (code, "holds features another-model" in err) == (1, True)


def test_an_export_of_nothing_leaves_no_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("export", "--from", tmp_path / "empty", "--to", tmp_path / "features.h5")
    assert code == 1
    assert "There are 0 features" in err
    assert not (tmp_path / "features.h5").exists()


def test_a_folder_that_is_not_there_is_said(run: Run, tmp_path: Path) -> None:
    code, _, err = run("export", "--from", tmp_path / "nowhere", "--to", tmp_path / "features.h5")
    assert (code, err) == (1, f"There is no folder {tmp_path / 'nowhere'}.\n")
