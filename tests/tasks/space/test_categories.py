import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tasks.space.categories import CategoryModel, learnable, ranked, within
from tests.tasks.space.synthetic import features_of, shop

DIMS = 64


def shop_of(counts, seed=0):
    _, categories = shop(counts)
    return features_of(categories, seed, DIMS), categories


@pytest.mark.parametrize("counts", [{"hat": 60, "shoe": 60}, {"hat": 60, "shoe": 50, "dress": 40}])
def test_probabilities_are_those_of_scikit_learn(counts):
    features, categories = shop_of(counts)
    model = CategoryModel.learnt(features, categories)
    rooted = np.sqrt(features / features.sum(axis=1, keepdims=True)).astype(np.float64)
    regression = LogisticRegression(C=125, max_iter=1_000).fit(rooted, categories)
    asked, _ = shop_of(counts, seed=7)
    expected = regression.predict_proba(np.sqrt(asked / asked.sum(axis=1, keepdims=True)))
    assert model.categories == tuple(regression.classes_)
    np.testing.assert_allclose(model.probabilities(asked), expected, atol=2e-3)


def test_categories_of_few_items_and_of_none_are_left_out():
    features, categories = shop_of({"hat": 20, "shoe": 30, "rare": 19, "": 40})
    assert learnable(categories) == {"hat", "shoe"}
    assert CategoryModel.learnt(features, categories).categories == ("hat", "shoe")


@pytest.mark.parametrize("counts", [{"hat": 50}, {"hat": 50, "rare": 19}, {"": 100}])
def test_it_takes_two_categories(counts):
    features, categories = shop_of(counts)
    with pytest.raises(ValueError, match="no two categories"):
        CategoryModel.learnt(features, categories)


@pytest.mark.parametrize(
    ("probabilities", "found"),
    [
        ([0.1, 0.7, 0.2], ["b"]),
        ([0.1, 0.69, 0.21], ["b", "c"]),
        ([0.45, 0.1, 0.45], ["a", "c"]),
    ],
)
def test_where_it_is_not_sure_two_are_looked_through(probabilities, found):
    assert within(ranked(np.array(probabilities, np.float32), ["a", "b", "c"])) == found
