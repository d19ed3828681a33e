import csv
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tasks.errors import ConfigurationError, ServiceUnavailableError
from tasks.inference.model import DIMENSIONS, Model, feature_version
from tasks.pictures.picture import decode, to_tensor
from tasks.runs import packs
from tasks.runs.run import Chunk, Plan
from tasks.settings import REPOSITORY, Settings
from tasks.stages import extract
from tests.plans import plan_over
from tests.shop_fixtures import remember_model

pytestmark = pytest.mark.model

Features = NDArray[np.float32]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Features]:
    """A real SavedModel that is quick: a picture's mean colour times a kernel, which comes with it."""
    import tensorflow as tf

    kernel = np.random.default_rng(5).random((3, DIMENSIONS), np.float32)

    class Tiny(tf.Module):
        variables: Any = ()

        @tf.function(input_signature=[tf.TensorSpec([None, 299, 299, 3], tf.float32)])
        def __call__(self, images: Any) -> Any:
            return tf.reduce_mean(images, [1, 2]) @ self.variables[0]

    folder = tmp_path_factory.mktemp("tiny") / "model"
    model = Tiny()
    model.variables = [tf.Variable(kernel)]
    tf.saved_model.save(model, str(folder))
    return folder, kernel


@pytest.fixture(autouse=True)
def own_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the device's lock out of the way of whatever else this machine computes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def settings(tiny: tuple[Path, Features], tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", model_dir=tiny[0], batch_size=4, precision="float32")


@pytest.fixture
def expected(tiny: tuple[Path, Features]) -> Callable[[bytes], Features]:
    """The tiny model's feature of a picture, computed without the model."""
    return lambda content: to_tensor(decode(content, 1_000_000)).mean(axis=(0, 1)) @ tiny[1]


def picture(number: int) -> bytes:
    """A picture unlike any other number's."""
    colour = np.random.default_rng(number).integers(20, 256, 3)
    file = io.BytesIO()
    Image.fromarray(np.full((30, 20 + number % 7, 3), colour, np.uint8)).save(file, "PNG")
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def plan(settings: Settings, chunks: Sequence[Iterable[bytes | None]], version: str = "") -> Plan:
    """A plan whose chunks have downloaded these pictures; None is one that did not come."""
    number = 0
    bounds = [0]
    rows: list[list[dict[str, Any]]] = []
    for contents in chunks:
        rows.append([])
        for content in contents:
            row: dict[str, Any] = {"img_url": f"http://cdn.example.com/{number}.jpg"}
            if content is None:
                row |= {"status": "gone", "reason": "the server answered 404"}
            else:
                row |= {"content": content, "sha256": sha256(content)}
            rows[-1].append(row)
            number += 1
        bounds.append(number)
    urls = [row["img_url"] for chunk in rows for row in chunk]
    made = plan_over(settings.data_dir, urls, bounds, version or feature_version(settings))
    for chunk, its_rows in zip(made.chunks, rows, strict=True):
        with packs.writing(chunk.pictures, packs.PICTURES) as pack:
            for row in its_rows:
                pack.add(row)
    return made


def features(chunk: Chunk) -> dict[str, dict[str, Any]]:
    """The pack's rows by picture, each picture once, with the numbers of its feature."""
    rows = list(packs.rows(chunk.features))
    for row in rows:
        row["feature"] = row["feature"] and np.frombuffer(row["feature"], "<f4")
    by_picture = {row["sha256"]: row for row in rows}
    assert len(by_picture) == len(rows)
    return by_picture


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, loading the model is an error."""

    def load(_: Settings) -> Model:
        raise AssertionError("the model was loaded although nothing is to compute")

    return lambda: monkeypatch.setattr(extract, "load", load)


def test_pictures_without_their_last_rows_are_computed_and_counted(settings: Settings) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (800, 24, 3), np.uint8)).save(
        file, "JPEG", subsampling=0
    )
    whole = file.getvalue()
    assert not decode(whole, 1_000_000).incomplete
    contents = [picture(0), whole, whole[:-2], whole[:-3], whole[: len(whole) // 2]]
    first, second = plan(settings, [contents, contents[2:3]]).chunks

    assert extract.run(first, settings)["incomplete"] == 2
    found = features(first)
    assert [found[sha256(content)]["status"] for content in contents] == [None] * 4 + ["corrupt"]
    assert "incomplete" not in extract.run(second, settings), "computed before, and counted there"


def test_every_picture_gets_its_feature(
    settings: Settings, expected: Callable[[bytes], Features], no_model: Callable[[], None]
) -> None:
    contents = [picture(number) for number in range(11)]
    chunk = plan(settings, [[*contents, None, contents[3], None, contents[0]]]).chunks[0]

    statistics = extract.run(chunk, settings)

    found = features(chunk)
    assert set(found) == {sha256(content) for content in contents}
    for content in contents:
        row = found[sha256(content)]
        assert (row["status"], row["reason"]) == (None, None)
        np.testing.assert_allclose(row["feature"], expected(content), rtol=1e-4)
    assert statistics["pictures"] == statistics["computed"] == 11
    assert statistics["precision"] == "float32"
    assert statistics["device"] in ("cpu", "gpu")
    assert 0 < statistics["seconds"] < 60
    breakdown = statistics["time_breakdown"]
    assert set(breakdown) == {
        "starting",
        "waiting for the device",
        "waiting for pictures",
        "computing",
        "decoding",
    }
    assert min(breakdown["starting"], breakdown["computing"], breakdown["decoding"]) > 0
    assert breakdown["waiting for the device"] == statistics["waited"]
    one_after_another = breakdown["starting"] + breakdown["waiting for pictures"] + breakdown["computing"]
    assert one_after_another < statistics["seconds"]
    assert [path.name for path in chunk.folder.iterdir() if "features" in path.name] == ["features.parquet"]

    no_model()
    before = chunk.features.stat()
    assert extract.run(chunk, settings) == statistics, "a finished pack is taken as it is"
    assert chunk.features.stat() == before


def test_the_model_gets_no_more_than_a_batch(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    compute = Model.compute

    def watched(self: Model, batch: Features) -> Features:
        sizes.append(len(batch))
        return compute(self, batch)

    monkeypatch.setattr(Model, "compute", watched)
    contents = [picture(number) for number in range(10)]
    extract.run(plan(settings, [[contents[0], b"no picture", *contents]]).chunks[0], settings)
    assert sorted(sizes) == [2, 4, 4]


def test_a_picture_of_two_chunks_is_computed_once(
    settings: Settings, expected: Callable[[bytes], Features], no_model: Callable[[], None]
) -> None:
    first, second, third, broken = picture(1), picture(2), picture(3), picture(4)[:-40]
    chunks = plan(
        settings, [[first, second, broken], [second, third, second, broken], [third, first, broken]]
    ).chunks

    assert extract.run(chunks[0], settings)["computed"] == 3
    assert extract.run(chunks[1], settings)["computed"] == 1
    no_model()
    statistics = extract.run(chunks[2], settings)

    assert (statistics["computed"], statistics["pictures"]) == (0, 3)
    by_chunk = [features(chunk) for chunk in chunks]
    assert [set(found) for found in by_chunk] == [
        {sha256(content) for content in contents}
        for contents in ([first, second, broken], [second, third, broken], [third, first, broken])
    ]
    for found in by_chunk:
        assert found[sha256(broken)]["status"] == "corrupt"
        assert found[sha256(broken)]["reason"]
    for content, with_it in ((first, (0, 2)), (second, (0, 1)), (third, (1, 2))):
        for number in with_it:
            feature = by_chunk[number][sha256(content)]["feature"]
            np.testing.assert_allclose(feature, expected(content), rtol=1e-4)


def test_a_pack_of_another_chunk_is_read_once_and_one_that_comes_meanwhile_is_seen(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [[picture(1)], [picture(2)], [picture(1), picture(2), picture(3)]]
    early, late, chunk = plan(settings, contents).chunks
    extract.run(early, settings)
    read: list[Path] = []
    batches, locked = packs.batches, extract._sole_use_of

    def counted(path: Path, columns: list[str] | None = None, at_once: int = 500) -> Any:
        if columns == ["sha256"] and path in (early.features, late.features):
            read.append(path)
        return batches(path, columns, at_once)

    def meanwhile(device: str) -> Any:
        if not late.features.exists():
            so_far = len(read)
            with monkeypatch.context() as patched:
                patched.setattr(extract, "_sole_use_of", locked)
                extract.run(late, settings)
            del read[so_far:]  # what the late chunk itself has read
        return locked(device)

    monkeypatch.setattr(extract.packs, "batches", counted)
    monkeypatch.setattr(extract, "_sole_use_of", meanwhile)
    assert extract.run(chunk, settings)["computed"] == 1
    assert read == [early.features, late.features]
    assert set(features(chunk)) == {sha256(picture(number)) for number in (1, 2, 3)}


def test_another_chunk_s_damaged_features_are_its_own_business(
    settings: Settings, expected: Callable[[bytes], Features]
) -> None:
    damaged, chunk = plan(settings, [[picture(1)], [picture(1)]]).chunks
    damaged.features.parent.mkdir(parents=True, exist_ok=True)
    damaged.features.write_bytes(b"PAR1 and nothing else")
    assert extract.run(chunk, settings)["computed"] == 1
    np.testing.assert_allclose(
        features(chunk)[sha256(picture(1))]["feature"], expected(picture(1)), rtol=1e-4
    )
    assert damaged.features.read_bytes() == b"PAR1 and nothing else", "its own chunk looks after it"


def test_features_that_another_chunk_loses_meanwhile_are_missed_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = plan(settings, [[picture(1)], [picture(1), picture(2)]]).chunks
    extract.run(first, settings)
    compute = Model.compute

    def losing(model: Model, batch: Features) -> Features:
        # As when somebody clears the other chunk's download.
        first.features.unlink()
        return compute(model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Model, "compute", losing)
        with pytest.raises(ServiceUnavailableError, match="1 pictures"):
            extract.run(second, settings)
    assert not second.features.exists()
    assert extract.run(second, settings)["computed"] == 2
    assert set(features(second)) == {sha256(picture(1)), sha256(picture(2))}


def test_bad_pictures_cost_their_own_feature_alone(settings: Settings) -> None:
    line = io.BytesIO()
    Image.new("RGB", (2000, 1), "red").save(line, "PNG")
    large = io.BytesIO()
    Image.new("RGB", (200, 101), "red").save(large, "PNG")
    black = io.BytesIO()
    Image.new("RGB", (9, 9)).save(black, "PNG")
    bad = {
        b"<html>Not found</html>": "not_a_picture",
        b"": "not_a_picture",
        picture(1)[:60]: "corrupt",
        b"\xff\xd8\xff" + bytes(500): "corrupt",
        line.getvalue(): "not_a_picture",
        large.getvalue(): "too_many_pixels",
        black.getvalue(): "vector_refused",  # the tiny model's feature of black is all zeros
    }
    good = [picture(number) for number in range(5)]
    mixed = [content for pair in zip(bad, [*good, None, None], strict=True) for content in pair]
    chunk = plan(settings, [mixed]).chunks[0]

    statistics = extract.run(chunk, settings.model_copy(update={"max_image_pixels": 20_000}))

    found = features(chunk)
    assert statistics["pictures"] == len(found) == len(bad) + len(good)
    for content, status in bad.items():
        row = found[sha256(content)]
        assert row["status"] == status
        assert row["reason"]
        assert row["feature"] is None
    assert all(found[sha256(content)]["feature"].any() for content in good)


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, fault: float
) -> None:
    """No model that we could save gives one on purpose, so the model's answer is spoilt here."""
    contents = [picture(number) for number in range(3)]
    tensor = to_tensor(decode(contents[1], 1_000_000))
    compute = Model.compute

    def spoilt(self: Model, batch: Features) -> Features:
        given = compute(self, batch).copy()
        (place,) = np.flatnonzero((batch == tensor).all(axis=(1, 2, 3)))
        given[place, 7] = fault
        return given

    monkeypatch.setattr(Model, "compute", spoilt)
    chunk = plan(settings, [contents]).chunks[0]
    extract.run(chunk, settings)

    found = features(chunk)
    refused = found.pop(sha256(contents[1]))
    assert (refused["status"], refused["reason"]) == ("vector_refused", "the feature is not finite")
    assert refused["feature"] is None
    assert all(np.isfinite(row["feature"]).all() for row in found.values())


def test_another_model_than_the_planned_one_is_refused(settings: Settings) -> None:
    chunk = plan(settings, [[picture(1)]], version="inception_v3-0123456789ab-pad299").chunks[0]
    with pytest.raises(ConfigurationError, match="0123456789ab") as refused:
        extract.run(chunk, settings)
    assert feature_version(settings) in str(refused.value)
    assert not list(chunk.folder.glob("*features*"))


def test_a_chunk_without_pictures_needs_no_model(settings: Settings, no_model: Callable[[], None]) -> None:
    chunk = plan(settings, [[None, None]]).chunks[0]
    no_model()
    assert extract.run(chunk, settings)["pictures"] == 0
    assert features(chunk) == {}


def test_a_chunk_that_was_not_downloaded_says_so(settings: Settings) -> None:
    chunk = plan(settings, [[picture(1)]]).chunks[0]
    chunk.pictures.unlink()
    with pytest.raises(ServiceUnavailableError, match=r"pictures\.parquet cannot be read"):
        extract.run(chunk, settings)


def test_what_breaks_off_leaves_nothing_and_can_be_done_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = plan(settings, [[picture(number) for number in range(9)]]).chunks[0]
    with monkeypatch.context() as patched:
        compute = Model.compute
        calls = []

        def failing(self: Model, batch: Features) -> Features:
            calls.append(len(batch))
            if len(calls) == 2:
                raise MemoryError
            return compute(self, batch)

        patched.setattr(Model, "compute", failing)
        with pytest.raises(MemoryError):
            extract.run(chunk, settings)
    assert [path.name for path in chunk.folder.iterdir()] == ["pictures.parquet"]
    assert extract.run(chunk, settings)["computed"] == 9


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def attempts(chunk: Chunk) -> int:
    """How many attempts have their own unfinished file of this chunk's features."""
    return len(list(chunk.folder.glob(".features.parquet.*")))


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def test_what_another_chunk_finishes_while_we_wait_for_the_device_is_taken(
    settings: Settings, expected: Callable[[bytes], Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = picture(1)
    first, second = plan(settings, [[content], [content, picture(2)]]).chunks
    loaded = threading.Event()
    load = extract.load

    def noting(given: Settings) -> Model:
        model = load(given)
        loaded.set()
        return model

    monkeypatch.setattr(extract, "load", noting)
    with extract._sole_use_of("cpu"), extract._sole_use_of("gpu"):
        thread, results = in_background(lambda: extract.run(second, settings))
        assert loaded.wait(60)
        with packs.writing(first.features, packs.FEATURES) as pack:
            pack.add({"sha256": sha256(content), "feature": expected(content).astype("<f4").tobytes()})
        assert not second.features.exists(), "it waits for the device"
    thread.join(60)
    assert results[0]["computed"] == 1
    assert set(features(second)) == {sha256(content), sha256(picture(2))}


def test_two_live_attempts_end_with_one_whole_file(
    settings: Settings, expected: Callable[[bytes], Features], tmp_path: Path
) -> None:
    """A zombie beside its retry: another process and we compute the same chunk at the same time."""
    contents = [picture(number) for number in range(6)]
    chunk = plan(settings, [contents]).chunks[0]
    script = """
import sys
from pathlib import Path
from tasks.stages import extract
from tasks.runs.run import Plan
from tasks.settings import Settings
data_dir, model_dir = map(Path, sys.argv[1:3])
settings = Settings(data_dir=data_dir, model_dir=model_dir, batch_size=4, precision="float32")
print(extract.run(Plan.load(Path(sys.argv[3])).chunks[0], settings)["computed"])
"""
    arguments = [settings.data_dir, settings.model_dir, chunk.plan.folder]
    with (tmp_path / "output").open("wb") as output:
        with extract._sole_use_of("cpu"), extract._sole_use_of("gpu"):
            zombie = subprocess.Popen(
                [sys.executable, "-c", script, *map(str, arguments)],
                cwd=REPOSITORY,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(tmp_path)},
                stdout=output,
                stderr=output,
            )
            thread, results = in_background(lambda: extract.run(chunk, settings))
            until(lambda: attempts(chunk) == 2 or zombie.poll() is not None)
        assert zombie.wait(60) == 0, (tmp_path / "output").read_text()
    thread.join(60)

    assert results[0]["computed"] == 6
    assert (tmp_path / "output").read_text().split()[-1] == "6", "each attempt did all of it"
    assert sorted(path.name for path in chunk.folder.iterdir()) == ["features.parquet", "pictures.parquet"]
    found = features(chunk)
    for content in contents:
        np.testing.assert_allclose(found[sha256(content)]["feature"], expected(content), rtol=1e-4)


def test_each_device_has_a_lock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[str] = []

    def use(device: str) -> None:
        with extract._sole_use_of(device):
            got.append(device)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with extract._sole_use_of("gpu"):
        same = threading.Thread(target=use, args=("gpu",), daemon=True)
        same.start()
        use("cpu")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        use("gpu")
        assert got == ["cpu", "gpu"]
        assert same.is_alive(), "the same device twice"
    same.join(10)
    assert got == ["cpu", "gpu", "gpu"]


def test_a_real_shop_keeps_feature_and_picture_together(shop_photos: Path, tmp_path: Path) -> None:
    """Twenty photos through the real model, in two orders and batch sizes: the same features."""
    settings = Settings(data_dir=tmp_path / "one", batch_size=8)
    for name in ("one", "two"):
        remember_model(tmp_path / name)
    version = feature_version(settings)
    with (shop_photos / "items.csv").open(newline="") as file:
        paths = [row["img_path"].lstrip("/") for row in csv.DictReader(file)][::40][:20]
    contents = [(shop_photos / path).read_bytes() for path in paths]
    found = []
    for changes, order in (
        ({}, contents),
        ({"data_dir": tmp_path / "two", "batch_size": 3}, [*contents[13:], *contents[:13]][::-1]),
    ):
        changed = settings.model_copy(update=changes)
        made = plan(changed, [order], version)
        assert extract.run(made.chunks[0], changed)["computed"] == len(set(contents)) >= 15
        rows = features(made.chunks[0])
        assert all(row["status"] is None for row in rows.values())
        found.append(np.array([rows[sha256(content)]["feature"] for content in dict.fromkeys(contents)]))

    one, two = found
    np.testing.assert_allclose(one, two, atol=2e-3)
    assert one.shape[1] == 2048
    assert (one >= 0).all()
    assert 1 < one.max() < 15, "as pictures in [0, 1] give; in [0, 255] it would be ten times that"
    cosine = (one / np.linalg.norm(one, axis=1, keepdims=True)) @ (
        two / np.linalg.norm(two, axis=1, keepdims=True)
    ).T
    assert (cosine.argmax(axis=1) == np.arange(len(one))).all(), "each is nearest to itself"
