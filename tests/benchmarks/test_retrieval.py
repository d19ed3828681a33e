"""The features of a real shop's photos are good for search, exact and as Elasticsearch finds them."""

import csv
import hashlib
import shutil

import numpy as np
import pytest
from sklearn.decomposition import PCA

from benchmarks import compact, retrieval
from benchmarks.figures import Figure, table
from benchmarks.record import DOCS
from benchmarks.shop import running_shop
from tasks import files
from tests.shop_fixtures import remember_model

OF_EACH_CATEGORY = 20
CATEGORIES = 10


@pytest.fixture(scope="module")
def sample(shop_photos, tmp_path_factory):
    """A shop with the first photos of each category: a fifth of all, and of the time they take."""
    with (shop_photos / "items.csv").open(newline="") as table_of_all:
        rows = list(csv.DictReader(table_of_all))
    by_category = {}
    for row in rows:
        by_category.setdefault(row["category_id"], []).append(row)
    chosen = [row for of_category in by_category.values() for row in of_category[:OF_EACH_CATEGORY]]
    assert len(chosen) == OF_EACH_CATEGORY * CATEGORIES
    folder = tmp_path_factory.mktemp("sample")
    (folder / "images").mkdir()
    for row in chosen:
        path = row["img_path"].lstrip("/")
        shutil.copy(shop_photos / path, folder / path)
    with (folder / "items.csv").open("w", newline="") as table_of_some:
        writer = csv.DictWriter(table_of_some, rows[0])
        writer.writeheader()
        writer.writerows(chosen)
    return folder


@pytest.fixture(scope="module")
def shop(sample, elasticsearch_url):
    """The sample's shop, backfilled: both tests search the same features, and neither changes them."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ELASTICSEARCH_URL", elasticsearch_url)
        with running_shop(sample) as running:
            remember_model(running.data_dir)
            running.backfill()
            yield running


@pytest.mark.model
def test_compact_vectors_find_what_scikit_learn_s_find(shop, capsys):
    figures = compact.found(shop)
    ids, categories, features = retrieval.read_back(shop)
    with capsys.disabled():
        print(f"\n{table('compact', figures)}")

    value = {figure.name: figure.value for figure in figures}
    items = OF_EACH_CATEGORY * CATEGORIES
    assert value["items searched with"] == items
    roots = np.sqrt(features / np.linalg.norm(features, axis=1, keepdims=True))
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    folds = np.array([int.from_bytes(hashlib.sha256(item.encode()).digest()) % 5 for item in ids])
    hits = []
    for number in range(5):
        out = folds == number
        pca = PCA(128, svd_solver="full").fit(roots[~out])
        vectors = pca.transform(roots)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        nearest = np.argsort(-(vectors[out] @ vectors[~out].T), axis=1)[:, :5]
        hits.append(categories[~out][nearest] == categories[out][:, np.newaxis])
    same = np.concatenate(hits)
    # Elasticsearch chooses whom to compare exactly by rounded vectors.
    assert value["1-NN accuracy, compact vectors"] == pytest.approx(same[:, 0].mean(), abs=0.0224)
    assert value["precision at 5, compact vectors"] == pytest.approx(same.mean(), abs=0.0224)
    # A byte a number, and what Elasticsearch keeps beside to correct them.
    beside = value["bytes of a compact int8 vector"] - 128
    assert 0 <= beside <= 16
    assert value["bytes of a feature's int8 vector"] == 2048 + beside


@pytest.mark.model
def test_photos_find_their_own_category(shop, capsys):
    figures = retrieval.measure(shop)
    with capsys.disabled():
        print(f"\n{table('retrieval', figures)}")

    value = {figure.name: figure.value for figure in figures}
    assert value["documents with a feature"] == OF_EACH_CATEGORY * CATEGORIES
    exact_first, exact_precision = value["1-NN accuracy, exact"], value["precision at 5, exact"]
    # Among fewer photos fewer are near. By chance it would be a tenth.
    assert 0.5 <= exact_first < 1
    assert 0.4 <= exact_precision < 1
    knn = "approximate (num_candidates 100)"
    # Of all photos 0.01 may differ, by chance; chance is √5 times as large among a fifth of them.
    assert abs(value[f"1-NN accuracy, {knn}"] - exact_first) < 0.0224
    assert abs(value[f"precision at 5, {knn}"] - exact_precision) < 0.0224
    assert 0.9 < value["recall at 5 of approximate against exact"] <= 1


def test_all_photos_met_the_goals_when_last_measured():
    recorded = files.read_json(DOCS / "figures.json")["retrieval"]["figures"]
    figures = {figure["name"]: Figure.from_json(figure) for figure in recorded}
    assert figures["documents with a feature"].value == 1000
    assert figures["1-NN accuracy, exact"].at_least == 0.735
    assert figures["precision at 5, exact"].at_least == 0.70
    assert figures["largest difference of approximate from exact"].at_most == 0.01
    assert all(figure.met for figure in figures.values())
