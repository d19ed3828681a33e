"""An HTTP/2 server over TLS on the loopback interface, which counts its connections and their streams."""

import socket
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import h2.config
import h2.connection
import h2.events


class H2Server:
    """Answers each path with its body, `contents`; anything else is a 404. Use it in a `with` block."""

    def __init__(self, certificate: Path, contents: Mapping[str, bytes], wait_for: int = 1) -> None:
        """`wait_for`: streams that have to be open on a connection before the first is answered."""
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._tls.set_alpn_protocols(["h2"])
        self._contents = contents
        self._wait_for = wait_for
        self.authorities: list[list[str]] = []
        """Of each connection, what its streams asked: host and port."""
        self.most_streams = 0

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        asked: list[str] = []
        self.authorities.append(asked)
        waiting: dict[int, str] = {}
        try:
            with self._tls.wrap_socket(plain, server_side=True) as connection:
                protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
                protocol.initiate_connection()
                connection.sendall(protocol.data_to_send())
                while data := connection.recv(65_536):
                    for event in protocol.receive_data(data):
                        if isinstance(event, h2.events.RequestReceived):
                            headers = dict(event.headers or ())
                            asked.append(headers[b":authority"].decode())
                            waiting[event.stream_id] = headers[b":path"].decode()
                            self.most_streams = max(self.most_streams, len(waiting))
                    if len(waiting) >= self._wait_for or len(asked) > self._wait_for:
                        for stream, path in waiting.items():
                            self._answer(protocol, stream, path)
                        waiting.clear()
                    connection.sendall(protocol.data_to_send())
        except OSError:
            return

    def _answer(self, protocol: h2.connection.H2Connection, stream: int, path: str) -> None:
        body = self._contents.get(path)
        protocol.send_headers(stream, [(":status", "404" if body is None else "200")], end_stream=not body)
        if body:
            protocol.send_data(stream, body, end_stream=True)
