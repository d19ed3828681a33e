"""Tests of tasks/serve/batches.py: what shares a batch, and what becomes of each."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tasks.serve.batches import Batches


class Gate:
    """Work that squares numbers, each batch when it is let through."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.may = threading.Semaphore(0)

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.release()
        assert self.may.acquire(timeout=10)
        if -1 in numbers:
            raise ValueError("a bad one")
        return [number**2 for number in numbers]

    def wait_for_batch(self) -> None:
        assert self.begun.acquire(timeout=10)

    def let_through(self, count: int) -> None:
        self.may.release(count)


def ask(threads: ThreadPoolExecutor, batches: Batches[int, int], *numbers: int) -> list[Future[int]]:
    """Ask for each in a thread of its own; all of them wait by then."""
    before = len(batches._waiting)
    futures = [threads.submit(batches, number) for number in numbers]
    deadline = time.monotonic() + 10
    while len(batches._waiting) < before + len(numbers):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return futures


@pytest.fixture
def threads():
    with ThreadPoolExecutor(40) as pool:
        yield pool


def busy_with(gate: Gate, threads: ThreadPoolExecutor, batches: Batches[int, int], workers: int) -> None:
    for _ in range(workers):
        threads.submit(batches, 0)
        gate.wait_for_batch()
    gate.batches.clear()


def test_a_lonely_one_waits_for_nobody() -> None:
    gate = Gate()
    gate.let_through(1)
    assert Batches(gate, sizes=range(1, 9))(3) == 9
    assert gate.batches == [[3]]


def test_what_comes_meanwhile_shares_a_batch_and_each_gets_its_own(threads) -> None:
    gate = Gate()
    batches = Batches(gate, sizes=range(1, 4))
    busy_with(gate, threads, batches, 1)
    futures = ask(threads, batches, 1, 2, 3, 4, 5)
    gate.let_through(3)
    assert [future.result(10) for future in futures] == [1, 4, 9, 16, 25]
    assert sorted(map(len, gate.batches)) == [2, 3]  # three are the most


def test_workers_divide_what_waits(threads) -> None:
    gate = Gate()
    batches = Batches(gate, sizes=range(1, 101), workers=2)
    busy_with(gate, threads, batches, 2)
    futures = ask(threads, batches, *range(1, 9))
    gate.let_through(1)
    gate.wait_for_batch()
    assert [len(batch) for batch in gate.batches] == [4]
    gate.let_through(10)
    assert [future.result(10) for future in futures] == [number**2 for number in range(1, 9)]


def test_a_batch_has_the_largest_size_that_fits(threads) -> None:
    gate = Gate()
    batches = Batches(gate, sizes=[1, 4, 6])
    busy_with(gate, threads, batches, 1)
    futures = ask(threads, batches, *range(16))
    gate.let_through(20)
    assert [future.result(10) for future in futures] == [number**2 for number in range(16)]
    assert list(map(len, gate.batches)) == [6, 6, 4]


def test_an_error_is_that_of_its_batch_alone(threads) -> None:
    gate = Gate()
    batches = Batches(gate, sizes=range(1, 3))
    busy_with(gate, threads, batches, 1)
    first = ask(threads, batches, 1) + ask(threads, batches, -1)
    later = ask(threads, batches, 2)
    gate.let_through(3)
    for future in first:
        with pytest.raises(ValueError, match="a bad one"):
            future.result(10)
    assert later[0].result(10) == 4


def test_a_result_too_few_is_an_error_and_leaves_nobody_waiting(threads) -> None:
    batches: Batches[int, int] = Batches(lambda numbers: [], sizes=range(1, 3))  # noqa: ARG005
    with pytest.raises(ValueError, match="zip"):
        threads.submit(batches, 1).result(10)


def test_what_waits_at_the_end_is_still_done_and_nothing_new(threads) -> None:
    gate = Gate()
    batches = Batches(gate, sizes=range(1, 3))
    busy_with(gate, threads, batches, 1)
    futures = ask(threads, batches, 5)
    batches.close()
    with pytest.raises(RuntimeError):
        batches(6)
    gate.let_through(2)
    assert futures[0].result(10) == 25
