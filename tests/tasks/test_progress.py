"""What a stage says of how far it is."""

import re

import pytest

from tasks import progress
from tasks.progress import reported


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; it begins at 0."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def taking(clock, count, seconds):
    """So many results, each after so many seconds."""
    for number in range(count):
        clock.now += seconds
        yield number


def test_it_passes_everything_on_and_tells_from_time_to_time(clock):
    words = []
    assert list(reported(words.append, every=10)(taking(clock, 45, 0.5), "extract", 45)) == list(range(45))
    # 0.5 s an item: after 10 s there are 20, after 20 s there are 40, and at the end all.
    assert words == [
        "20 of 45 done, 2.0/s, 12 s left",
        "40 of 45 done, 2.0/s, 2 s left",
        "45 of 45 done, 2.0/s",
    ]


def test_without_a_total_it_foretells_no_end(clock):
    words = []
    list(reported(words.append, every=1)(taking(clock, 2_000, 0.001), "plan", 0))
    assert words[-1] == "2,000 done, 1000.0/s"
    assert not any("left" in word for word in words)


def test_the_first_result_does_not_wait_for_the_second():
    asked = []

    def results():
        for number in range(3):
            asked.append(number)
            yield number

    shown = iter(reported(lambda _: None)(results(), "index", 3))
    assert next(shown) == 0
    assert asked == [0]


def test_work_goes_on_when_it_cannot_be_reported(clock, caplog):
    tried = []

    def broken(words):
        tried.append(words)
        raise ConnectionError("the API server is away")

    assert list(reported(broken, every=1)(taking(clock, 10, 1.0), "download", 10)) == list(range(10))
    assert len(tried) == 1
    assert re.search("The progress cannot be reported.*the API server is away", caplog.text, re.DOTALL)


def test_an_error_of_the_work_itself_comes_through():
    def results():
        yield 1
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        list(reported(lambda _: None)(results(), "index", 2))
