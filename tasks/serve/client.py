"""Asks the inference process, `python -m tasks.serve`, over its socket: for what imports no TensorFlow."""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from tasks.inference.model import DIMENSIONS, Identity, identity
from tasks.serve.answers import FINGERPRINT_HEADER, VERSION_HEADER, InferenceError, refused
from tasks.settings import Settings
from tasks.statuses import Status

__all__ = ["Answer", "Inference", "InferenceError"]

_SLACK = 5.0
"""Seconds longer than the process takes at most, so that its own answer to a slow request arrives."""


@dataclass(frozen=True)
class Answer:
    """What the process answered."""

    http_status: int
    body: bytes
    headers: Mapping[str, str]


class Inference:
    """A client; threads may share one.

    Every method raises InferenceError with the status `unavailable` where no process answers.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def longest(self) -> float:
        """Seconds that a request takes at most."""
        return self._settings.serve_timeout + _SLACK

    def feature_of_url(self, url: str) -> NDArray[np.float32]:
        """The feature [2048] of the picture at a URL, fetched as the DAGs would.

        Raises:
            InferenceError: there is none; its status says why.
        """
        return self._feature("GET", f"/getImagenetFeature?{urlencode({'img_url': url})}")

    def feature_of_picture(self, content: bytes) -> NDArray[np.float32]:
        """The feature [2048] of a picture, given as the bytes of its file.

        Raises:
            InferenceError: there is none; its status says why.
        """
        if len(content) > self._settings.max_image_bytes:
            raise refused(
                Status.TOO_LARGE, f"{len(content)} bytes, more than {self._settings.max_image_bytes}"
            )
        return self._feature("POST", "/feature", content)

    def request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/octet-stream"
    ) -> Answer:
        """Pass a request on as it is; `path` with its query."""
        socket_path = self._settings.data_dir / self._settings.serve_socket
        connection = _Connection(socket_path, self.longest)
        try:
            connection.request(method, path, body or None, {"Content-Type": content_type} if body else {})
            response = connection.getresponse()
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
        except (FileNotFoundError, ConnectionRefusedError):
            raise refused(
                "unavailable",
                f"The inference process is not running: nothing listens at {socket_path}. Start it with "
                "`python -m tasks.serve`, or with `make up`.",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise refused(
                "unavailable",
                f"The inference process at {socket_path} did not answer: {error or type(error).__name__}.",
            ) from None
        finally:
            connection.close()

    def _feature(self, method: str, path: str, body: bytes = b"") -> NDArray[np.float32]:
        answer = self.request(method, path, body)
        try:
            found = json.loads(answer.body)
            if answer.http_status != 200:
                error = found["error"]
                raise InferenceError(answer.http_status, str(error["status"]), str(error["message"]))
            feature = np.array(found["imagenet_feature"], np.float32)
            # A process of an earlier release does not give its fingerprint.
            made = answer.headers.get(FINGERPRINT_HEADER.lower(), "")
            model = Identity(answer.headers[VERSION_HEADER.lower()], made)
        except (ValueError, KeyError, TypeError):
            raise refused(
                "unavailable", "The inference process gave an answer that cannot be read."
            ) from None
        if feature.shape != (DIMENSIONS,):
            raise refused("unavailable", f"The inference process gave a feature of shape {feature.shape}.")
        if not model.same_as(ours := identity(self._settings)):
            raise refused(
                "unavailable",
                f"The inference process computes features of {model}, and the model here is {ours}. "
                "Restart it.",
            )
        return feature


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
