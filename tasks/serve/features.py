"""Pictures to features for requests that come at any moment, by the fetcher, decoders and model of a run.

Each request is a thread: it waits for its picture, for a decoder, and for the batch that its picture is in.
"""

import hashlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tasks.fetching.answers import Fetched
from tasks.fetching.downloads import Downloads
from tasks.inference.model import Model, load, unusable
from tasks.pictures.decoders import Decoders, Tensor, usual_number
from tasks.pictures.picture import BadPictureError
from tasks.serve.answers import refused
from tasks.serve.batches import Batches
from tasks.settings import Settings
from tasks.statuses import Status

log = logging.getLogger(__name__)

_ENDING = Fetched(status=Status.UNREACHABLE, reason="the process is ending")
_ATTEMPTS = 2
"""Requests for one picture: who asks for its feature waits, and can ask again."""


@dataclass(frozen=True)
class Feature:
    """One picture's."""

    image: str
    """sha256 of the picture."""
    vector: NDArray[np.float32]
    """[2048]"""


class Features:
    """Computes features, for any number of threads at once, within a `with` block.

    It does not take the device's lock, which a chunk holds for minutes: the two share the device.

    Its methods raise InferenceError with the pipeline's own status where there is no feature, and
    ServiceUnavailableError where decoders cannot be started on this machine.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ending = ExitStack()
        self._decoders: queue.Queue[Decoders] = queue.Queue()
        self._counted = threading.Lock()
        self.pictures = 0
        """Computed so far."""
        self.batches = 0
        """In so many batches."""

    def __enter__(self) -> Self:
        """Start everything.

        Raises:
            ConfigurationError: as `tasks.inference.model.load` does.
            ServiceUnavailableError: decoders cannot be started on this machine.
        """
        with self._ending as ending:
            for _ in range(usual_number()):  # they start while the model is loaded
                self._decoders.put(ending.enter_context(Decoders(self._settings, 1)))
            self.model: Model = load(self._settings)
            self._computing = Batches(
                self._compute, sizes=_sizes(self._settings.batch_size), workers=self.model.streams
            )
            ending.callback(self._computing.close)
            self._downloads = _Downloads(self._settings)
            ending.callback(self._downloads.close)
            self._ending = ending.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    def of_url(self, url: str) -> Feature:
        """The feature of the picture at a URL."""
        return self.of_picture(self.fetched(url))

    def fetched(self, url: str) -> bytes:
        """The picture at a URL, as the bytes of its file."""
        fetched = self._downloads.fetch(url)
        if fetched.status is not None:
            raise refused(fetched.status, fetched.reason)
        return fetched.content

    def of_picture(self, content: bytes) -> Feature:
        """The feature of a picture, given as the bytes of its file."""
        vector = self._computing(self.decoded(content))
        (reason,) = unusable(vector[np.newaxis])
        if reason:
            raise refused(Status.VECTOR_REFUSED, reason)
        return Feature(hashlib.sha256(content).hexdigest(), vector)

    def decoded(self, content: bytes) -> Tensor:
        """The tensor [299, 299, 3] of a picture, from 0 to 1."""
        decoders = self._decoders.get()
        try:
            (decoded,) = (_copied(decoded) for _, decoded in decoders.decode([("", content)]))
        finally:
            self._decoders.put(decoders)
        if isinstance(decoded, BadPictureError):
            raise refused(decoded.status, decoded.reason)
        return decoded

    def _compute(self, tensors: Sequence[Tensor]) -> Sequence[NDArray[np.float32]]:
        features = self.model.compute(np.stack(tensors))
        with self._counted:
            self.pictures += len(tensors)
            self.batches += 1
        return list(features)


def _sizes(most: int) -> list[int]:
    """Those that batches have: for each that it meets, the model keeps its weights and results once more."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def _copied(decoded: Tensor | BadPictureError) -> Tensor | BadPictureError:
    return decoded if isinstance(decoded, BadPictureError) else decoded.copy()


class _Downloads:
    """Fetches single pictures as politely as a chunk does; a URL on its way is not asked for again."""

    def __init__(self, settings: Settings) -> None:
        longest = settings.serve_timeout / _ATTEMPTS
        self._settings = settings.model_copy(
            update={
                "download_attempts": min(_ATTEMPTS, settings.download_attempts),
                "transfer_timeout": min(settings.transfer_timeout, longest),
                "host_pause": min(settings.host_pause, longest),
            }
        )
        self._lock = threading.Lock()
        self._wanted: dict[str, Future[Fetched]] = {}
        self._new: deque[str] = deque()
        """Those of them that the loop has not taken yet."""
        self._closing = False
        self._downloads = Downloads(self._settings, None, stays_open=True)
        self._thread = threading.Thread(target=self._run, name="downloads", daemon=True)
        self._thread.start()

    def fetch(self, url: str) -> Fetched:
        """What the requests for `url` ended with."""
        with self._lock:
            result = self._wanted.get(url)
            if result is None and not self._closing:
                result = self._wanted[url] = Future()
                self._new.append(url)
                self._downloads.wake()
        return result.result() if result else _ENDING

    def close(self) -> None:
        """Let everyone go who waits."""
        with self._lock:
            self._closing = True
            self._downloads.wake()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            try:
                self._step()
            except Exception as error:  # it belongs to the requests, and this thread to all that follow
                log.exception("Pictures cannot be fetched; what was asked for is given up.")
                self._start_anew(error)
        self._downloads.close()
        for url in list(self._wanted):
            self._answer(url, _ENDING)

    def _step(self) -> None:
        while self._new:
            url = self._new.popleft()
            if (answer := self._downloads.add(url)) is not None:
                self._answer(url, answer)
        for url, answer, _ in self._downloads.step():
            self._answer(url, answer)

    def _answer(self, url: str, answer: Fetched | Exception) -> None:
        with self._lock:
            result = self._wanted.pop(url)
        if isinstance(answer, Exception):
            result.set_exception(answer)
        else:
            result.set_result(answer)

    def _start_anew(self, error: Exception) -> None:
        with self._lock:
            broken, self._downloads = self._downloads, Downloads(self._settings, None, stays_open=True)
            given_up = self._wanted.keys() - set(self._new)
        broken.close()
        for url in given_up:
            self._answer(url, error)
