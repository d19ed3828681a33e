"""Asks the inference process, `python -m tasks.serve`, over its Unix socket: for what imports no TensorFlow."""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from tasks.errors import FeatureIndexError
from tasks.model import DIMENSIONS, feature_version
from tasks.settings import Settings

VERSION_HEADER = "X-Feature-Version"
"""Of which version a feature is that an answer holds."""

_SLACK = 5.0
"""Seconds longer than the process takes at most, so that its own answer to a slow request arrives."""


class InferenceError(FeatureIndexError):
    """There is no feature, and why."""

    def __init__(self, http_status: int, status: str, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.status = status
        """One of tasks/statuses.py, or what is wrong with the request or the process, in one word."""
        self.message = message


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
        return self._feature("POST", "/feature", content)

    def request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/octet-stream"
    ) -> Answer:
        """Pass a request on as it is; `path` with its query."""
        path_of_socket = self._settings.data_dir / self._settings.serve_socket
        connection = _Connection(path_of_socket, self._settings.serve_timeout + _SLACK)
        try:
            connection.request(method, path, body or None, {"Content-Type": content_type} if body else {})
            response = connection.getresponse()
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
        except (FileNotFoundError, ConnectionRefusedError):
            raise _unavailable(
                f"The inference process is not running: nothing listens at {path_of_socket}. Start it with "
                "`python -m tasks.serve`, or with `make up`."
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise _unavailable(
                f"The inference process at {path_of_socket} did not answer: {str(error) or type(error).__name__}."
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
            version = answer.headers[VERSION_HEADER.lower()]
        except (ValueError, KeyError, TypeError):
            raise _unavailable("The inference process gave an answer that cannot be read.") from None
        if feature.shape != (DIMENSIONS,):
            raise _unavailable(f"The inference process gave a feature of shape {feature.shape}.")
        if version != (wanted := feature_version(self._settings)):
            raise _unavailable(
                f"The inference process computes features of {version}, and the model here is {wanted}. "
                "Start it anew."
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


def _unavailable(message: str) -> InferenceError:
    return InferenceError(503, "unavailable", message)
