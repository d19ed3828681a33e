"""The features of a real shop's 1,000 photos are good for search, exact and as Elasticsearch finds them."""

from benchmarks import retrieval
from benchmarks.figures import table
from benchmarks.shop import running_shop


def test_photos_find_their_own_category(shop_photos, elasticsearch_url, monkeypatch, capsys):
    monkeypatch.setenv("ELASTICSEARCH_URL", elasticsearch_url)
    with running_shop(shop_photos) as shop:
        figures = retrieval.measure(shop)
    with capsys.disabled():
        print(f"\n{table('retrieval', figures)}")

    value = {figure.name: figure.value for figure in figures}
    assert value["documents with a feature"] == 1000
    exact_first, exact_precision = value["1-NN accuracy, exact"], value["precision at 5, exact"]
    assert 0.735 <= exact_first < 1
    assert 0.70 <= exact_precision < 1
    knn = "approximate (num_candidates 100)"
    assert abs(value[f"1-NN accuracy, {knn}"] - exact_first) < 0.0101
    assert abs(value[f"precision at 5, {knn}"] - exact_precision) < 0.0101
    assert 0.9 < value["recall at 5 of approximate against exact"] <= 1
    assert all(figure.met for figure in figures)
