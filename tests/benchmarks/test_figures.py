"""Figures beside their goals, for people and for programs."""

import json

import pytest

from benchmarks.figures import Figure, table


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure("share", 0.735, at_least=0.735), True),
        (Figure("share", 0.7349, at_least=0.735), False),
        (Figure("ratio", 1.25, at_most=1.25), True),
        (Figure("ratio", 1.2501, at_most=1.25), False),
        (Figure("share", 0.1), True),
    ],
)
def test_goal_is_met_up_to_its_own_value(figure, met):
    assert figure.met is met


def test_table_shows_each_kind_of_number_and_marks_a_missed_goal():
    figures = [
        Figure("documents", 1000, at_least=1000),
        Figure("time", 80.26, "s"),
        Figure("ratio", 1.3, at_most=1.25),
        Figure("cosine", 0.999771, at_least=0.9997),
    ]
    assert table("cost", figures).splitlines() == [
        "| cost | value | goal | met |",
        "| :-- | --: | --: | :-- |",
        "| documents | 1,000 | ≥ 1,000 | yes |",
        "| time | 80.3 s |  |  |",
        "| ratio | 1.300 | ≤ 1.25 | **no** |",
        "| cosine | 0.99977 | ≥ 0.9997 | yes |",
    ]


@pytest.mark.parametrize(
    "figure",
    [Figure("time", 80.26, "s"), Figure("ratio", 1.3, at_most=1.25), Figure("count", 7, at_least=7)],
)
def test_json_brings_the_figure_back_and_tells_its_verdict(figure):
    value = json.loads(json.dumps(figure.to_json()))
    assert Figure.from_json(value) == figure
    assert value["met"] is (figure.met if figure.goal else None)
