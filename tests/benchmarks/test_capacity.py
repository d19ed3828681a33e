"""docs/capacity.md and docs/first_fill.md take their numbers from the figures and from settings."""

import pytest

from benchmarks import capacity
from benchmarks.figures import Figure

RESULTS = {
    "speed": {
        "date": "2026-11-01",
        "machine": "1 core",
        "figures": [Figure("pictures a second", 12.5).to_json(), Figure("pictures", 4_000).to_json()],
    }
}


@pytest.fixture
def template(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "TEMPLATES", tmp_path)
    return tmp_path / "capacity.md.jinja"


@pytest.mark.parametrize(
    ("text", "page"),
    [
        (
            "{{ figure('speed', 'pictures') }} at {{ figure('speed', 'pictures a second') }}",
            "4,000 at 12.500",
        ),
        ("{{ (1000000 / value('speed', 'pictures a second')) | duration }}", "22 h 13 min"),
        ("{{ source('speed') }}", "`speed`, 2026-11-01, 1 core"),
        ("{{ default('chunk_size') }}", "2500"),
        ("{{ slots('picture_features_image_download') }}", "2"),
        ("{{ 0.2345 | figures }}, {{ 230.4 | figures(3) }}, {{ 2712 | figures }}", "0.23, 230, 2,700"),
    ],
)
def test_a_template_shows_figures_and_what_follows_from_them(template, text, page):
    template.write_text(text)
    assert capacity.page("capacity.md", RESULTS) == page


@pytest.mark.parametrize("name", ["no such figure", "Pictures"])
def test_a_figure_that_is_not_there_is_named(template, name):
    template.write_text(f"{{{{ figure('speed', '{name}') }}}}")
    with pytest.raises(KeyError, match=name):
        capacity.page("capacity.md", RESULTS)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(15.4, "15 s"), (89, "89 s"), (90, "2 min"), (3_569, "59 min"), (3_570, "1 h 0 min")],
)
def test_durations(seconds, shown):
    assert capacity.duration(seconds) == shown
