"""Tests of tasks/serve/features.py: the real model, real decoders and HTTP, asked by many at once."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.fetching.addresses import AddressPolicy
from tasks.inference.model import Model
from tasks.pictures.picture import decode, to_tensor
from tasks.serve import features
from tasks.serve.answers import InferenceError
from tasks.serve.features import Features
from tasks.settings import Settings
from tests.picture_files import saved
from tests.scripted_server import Reply, ScriptedServer

pytestmark = pytest.mark.model


class Gate:
    """The model, each batch computed when it is let through."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.sizes: list[int] = []
        self.begun = threading.Semaphore(0)
        self.may = threading.Semaphore(0)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.sizes.append(len(batch))
        self.begun.release()
        assert self.may.acquire(timeout=30)
        return self._model.compute(batch)


@pytest.fixture
def gate(loaded_model: Model, monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(loaded_model)
    gated = dataclasses.replace(loaded_model, _network=gate, streams=1)
    monkeypatch.setattr(features, "load", lambda _: gated)
    return gate


@pytest.fixture
def computing(gate: Gate, met_model: tuple[str, Path], image_server: ScriptedServer) -> Iterator[Features]:
    settings = Settings(data_dir=met_model[1], image_hosts=(image_server.host,))
    with Features(settings) as started:
        assert gate.sizes == [], "nothing is computed before anybody asks"
        yield started


def picture(seed: int) -> bytes:
    return saved(np.random.default_rng(seed).integers(0, 256, (30, 30, 3), np.uint8), "PNG")


def test_requests_at_once_share_a_batch_and_each_gets_its_own(
    computing: Features, gate: Gate, loaded_model: Model
) -> None:
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(computing.of_picture, picture(0))
        assert gate.begun.acquire(timeout=30)
        others = [threads.submit(computing.of_picture, picture(seed)) for seed in (1, 2, 3)]
        deadline = time.monotonic() + 30
        while len(computing._computing._waiting) < 3:
            assert time.monotonic() < deadline
        gate.may.release(3)
        found = [future.result(30) for future in (first, *others)]
    assert gate.sizes == [1, 2, 1]  # of the sizes, the largest that fits
    assert (computing.pictures, computing.batches) == (4, 3)
    for seed, feature in enumerate(found):
        alone = loaded_model.compute(to_tensor(decode(picture(seed), 10**6))[None])[0]
        np.testing.assert_allclose(feature.vector, alone, atol=0.02)
        assert len({other.image for other in found}) == 4


def test_a_picture_refused_leaves_the_others_of_its_batch_alone(computing: Features, gate: Gate) -> None:
    gate.may.release(100)
    with ThreadPoolExecutor(3) as threads:
        good = [threads.submit(computing.of_picture, picture(seed)) for seed in (1, 2)]
        bad = threads.submit(computing.of_picture, b"<html>")
        with pytest.raises(InferenceError) as refused:
            bad.result(30)
        assert refused.value.status == "not_a_picture"
        assert all(future.result(30).vector.any() for future in good)


@pytest.mark.parametrize(("value", "reason"), [(0.0, "all zeros"), (float("nan"), "not finite")])
def test_a_feature_that_means_nothing_is_refused(
    computing: Features, monkeypatch: pytest.MonkeyPatch, value: float, reason: str
) -> None:
    useless = np.full((1, 2048), value, np.float32)
    monkeypatch.setattr(computing, "model", dataclasses.replace(computing.model, _network=lambda _: useless))
    with pytest.raises(InferenceError, match=reason) as refused:
        computing.of_picture(picture(1))
    assert (refused.value.http_status, refused.value.status) == (422, "vector_refused")


def test_an_error_of_the_fetcher_itself_is_that_of_what_is_on_its_way(
    computing: Features, gate: Gate, image_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_server.answer("/1.png", Reply(body=picture(1)))
    gate.may.release(100)
    with monkeypatch.context() as patched:
        patched.setattr(AddressPolicy, "check_host", lambda *_: 1 / 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                computing.of_url(image_server.url("/1.png"))
    assert computing.of_url(image_server.url("/1.png")).vector.any()


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (32, [1, 2, 4, 8, 16, 32]), (5, [1, 2, 4, 5])]
)
def test_sizes_are_few_and_end_with_the_setting(most: int, sizes: list[int]) -> None:
    assert features._sizes(most) == sizes
