"""Tests of tasks/serve/concurrency.py: how many are worked on at once, and for how long."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from tasks.serve.answers import InferenceError
from tasks.serve.concurrency import ConcurrencyLimit


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def test_what_has_no_place_is_refused_at_once_and_the_place_comes_back() -> None:
    async def ask() -> None:
        limit, gate = ConcurrencyLimit(2, 10), threading.Event()
        under_way = [asyncio.create_task(limit.run(lambda: gate.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(InferenceError) as refused:
            await limit.run(lambda: True)
        assert (refused.value.status, refused.value.http_status) == ("busy", 429)
        assert refused.value.headers == {"Retry-After": "1"}
        gate.set()
        assert await asyncio.gather(*under_way) == [True, True]
        assert await limit.run(lambda: "again") == "again"
        assert limit.running == 0

    run(ask())


def test_what_takes_too_long_is_answered_and_keeps_its_place_until_it_is_over() -> None:
    async def ask() -> None:
        limit, gate = ConcurrencyLimit(1, 0.05), threading.Event()
        over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            gate.wait(10)
            loop.call_soon_threadsafe(loop.call_later, 0.05, over.set)

        with pytest.raises(InferenceError, match=r"longer than 0\.05 s") as refused:
            await limit.run(work)
        assert refused.value.http_status == 504
        with pytest.raises(InferenceError) as refused:
            await limit.run(lambda: True)
        assert refused.value.status == "busy"
        gate.set()
        await asyncio.wait_for(over.wait(), 10)
        assert limit.running == 0

    run(ask())


@pytest.mark.parametrize("error", [ValueError("its own"), TimeoutError("its own")])
def test_an_error_of_the_work_comes_out_as_it_is_and_frees_the_place(error: Exception) -> None:
    async def ask() -> None:
        limit = ConcurrencyLimit(1, 10)

        def work() -> None:
            raise error

        with pytest.raises(type(error), match="its own"):
            await limit.run(work)
        assert limit.running == 0

    run(ask())


def test_nothing_is_read_without_a_place_and_a_place_is_not_lost_over_reading() -> None:
    async def ask() -> None:
        limit, gate, read = ConcurrencyLimit(1, 0.1), threading.Event(), []

        async def some() -> int:
            read.append(1)
            return 20

        async def none() -> int:
            raise ValueError("cut off")

        async def never() -> int:
            await asyncio.sleep(30)
            return 0

        assert await limit.run_after_reading(some, lambda given: given + 1) == 21
        with pytest.raises(ValueError, match="cut off"):
            await limit.run_after_reading(none, str)
        with pytest.raises(InferenceError) as refused:
            await limit.run_after_reading(never, str)
        assert refused.value.status == "too_slow"
        under_way = asyncio.create_task(limit.run(lambda: gate.wait(10)))
        await asyncio.sleep(0)
        with pytest.raises(InferenceError) as refused:
            await limit.run_after_reading(some, str)
        assert (refused.value.status, read) == ("busy", [1])
        gate.set()
        assert await under_way

    run(ask())
