"""An HTTP client on libcurl: any number of transfers at once, in the event loop of one thread."""

import math
import os
import re
import socket
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import certifi
import pycurl

from tasks.errors import ConfigurationError
from tasks.fetching.addresses import AddressPolicy, RefusedURLError
from tasks.fetching.answers import (
    PICTURES,
    REDIRECTS,
    Fetched,
    refused,
    timed_out,
    unreachable,
    without_picture,
)
from tasks.settings import Settings
from tasks.statuses import Status
from tasks.urls import ImageHosts, InvalidURLError, Url, read

RESOLVING = "resolving names"
CONNECTING = "connecting"
HANDSHAKE = "TLS handshakes"
FIRST_BYTE = "waiting for the first byte"
TRANSFERRING = "transferring"

_MAX_REDIRECTS = 5
_NAME_LASTS = 60.0
"""Seconds for which a name's addresses are taken for known."""
_MOST_NAMES = 1_000
"""That are remembered: strangers choose them."""
_MOST_DISCARDED = 65_536
_LONGEST_DISCARDING = 1.0
"""Bytes and seconds that are spent on the body of an answer without a picture, so that its connection can be
kept."""
_AFTER = re.compile(r" after \d+ ms|\(?\d+ ms\)?")
"""What of libcurl's messages differs each time; reports count reasons."""
_LONGEST_SELECT = 0.02
"""Seconds: libcurl has timers of its own, and is not woken by what other threads have for us."""
_SPACE_BEFORE_COLON = re.compile(rb"(?im)^(content-length|transfer-encoding)[ \t]+:")
_CERTIFICATE = re.compile(r"verify result: (.*?)(?: \(\d+\))?$")
_OF_A_KEPT_CONNECTION = (pycurl.E_FTP_WEIRD_SERVER_REPLY, pycurl.E_UNSUPPORTED_PROTOCOL)

Done = Callable[[Fetched], None]
CheckBy = Callable[[float], None]


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    connect: float
    """To resolve a name, and again to connect, TLS included."""
    silence: float
    """Without a byte."""
    whole: float
    """For one picture, redirects included."""


class Client:
    """Fetches pictures for one thread, which calls `poll` again and again.

    Proxies, cookies, passwords and caches that the environment or a server may suggest are off, as libcurl
    has them by default; what is set below is what differs from that.
    """

    def __init__(self, settings: Settings) -> None:
        """A client without a transfer.

        Raises:
            ConfigurationError: FEATURES_CA_FILE cannot be read.
        """
        self._settings = settings
        self._policy = AddressPolicy(settings.image_hosts)
        self._proxied = bool(settings.proxy.get_secret_value())
        self._headers = ["Accept: image/*", "Accept-Encoding: identity"]
        self._headers_of = [
            (ImageHosts([host]), [*self._headers, header.get_secret_value()])
            for host, header in settings.image_headers.items()
        ]
        self._certificates = _certificates(settings.ca_file) if settings.ca_file else None
        self.seconds: dict[str, float] = defaultdict(float)
        """Spent on the transfers that have ended, by what they waited for."""
        self.idle_seconds = 0.0
        self._transfers: dict[pycurl.Curl, Transfer] = {}
        self._running: set[Transfer] = set()
        self._ended: list[tuple[Transfer, Fetched]] = []
        """Those whose end has not been delivered yet."""
        self._idle: list[Transfer] = []
        self._check_at: float = math.inf
        """When the first limit of a transfer may be reached."""
        self._names: dict[str, tuple[list[str], float]] = {}
        self._asked: dict[str, list[Transfer]] = {}
        """The transfers that wait for a name's addresses."""
        self._answered: deque[tuple[str, list[str] | OSError]] = deque()
        """What the resolving threads have found."""
        self._woken = threading.Event()
        self._at_libcurl = 0
        """Transfers that libcurl has."""
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, settings.downloads)
        self._multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, settings.downloads)
        self._multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, settings.downloads_per_host)
        self._multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, settings.downloads_per_host)

    @property
    def running(self) -> int:
        """Transfers that have not ended."""
        return len(self._running)

    def start(self, url: Url, limits: Limits, done: Done) -> "Transfer":
        """Request a URL once, following redirects, each checked like the first; `poll` calls `done`."""
        transfer = self._idle.pop() if self._idle else self._new_transfer()
        transfer.begin(limits, done)
        self._running.add(transfer)
        self._check_by(min(transfer.deadline, time.monotonic() + limits.silence))
        self._go_to(transfer, url)
        return transfer

    def cancel(self, transfer: "Transfer") -> None:
        """Break a transfer off; nobody is called."""
        self._stop(transfer)
        self._idle.append(transfer)

    def wake(self) -> None:
        """Let `poll` return soon; for any thread."""
        self._woken.set()

    def poll(self, timeout: float) -> None:
        """Let the transfers go on until something has happened, for so many seconds at most."""
        began = time.monotonic()
        if not self._ended and (until := min(began + timeout, self._check_at)) > began:
            self._wait(began, until)
        self._woken.clear()
        self._multi.perform()
        self._take_ended()
        while self._answered:
            self._take_name(*self._answered.popleft())
        if (now := time.monotonic()) >= self._check_at:
            self._check_limits(now)
        self._deliver()

    def _wait(self, began: float, until: float) -> None:
        """Until something has come, or until then at the latest; select(2) on a few hundred sockets takes a
        fifth less of a picture's CPU than epoll(7) with libcurl's calls for each change."""
        if self._at_libcurl:
            until = min(until, began + _LONGEST_SELECT)
        # Without a socket to watch it returns at once.
        if not (self._at_libcurl and self._multi.select(until - began)):
            self._woken.wait(until - time.monotonic())
        self.idle_seconds += time.monotonic() - began

    def close(self) -> None:
        """Break all transfers off and hang up."""
        for transfer in list(self._running):
            self.cancel(transfer)
        for handle in self._transfers:
            handle.close()
        self._multi.close()
        if self._certificates:
            self._certificates.close()

    # libcurl's side

    def _new_transfer(self) -> "Transfer":
        settings = self._settings
        handle = pycurl.Curl()
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.PROXY, settings.proxy.get_secret_value()),  # empty, it keeps the environment's away
            (pycurl.NOPROXY, ""),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS),
            (pycurl.PIPEWAIT, 1),
            (pycurl.PATH_AS_IS, 1),  # `read` has dealt with its dots
            (pycurl.USERAGENT, settings.user_agent),
            # What comes encoded nevertheless is decoded: identity is what the header above asks for.
            (pycurl.ACCEPT_ENCODING, ""),
            (pycurl.MAXFILESIZE_LARGE, settings.max_image_bytes),
            (pycurl.BUFFERSIZE, 65_536),
            (pycurl.CAINFO, self._certificates.name if self._certificates else certifi.where()),
            (pycurl.PROXY_CAINFO, certifi.where()),
        ):
            handle.setopt(option, value)
        policy = None if self._proxied else self._policy
        made = Transfer(handle, policy, settings.max_image_bytes, self._check_by)
        self._transfers[handle] = made
        return made

    def _take_ended(self) -> None:
        left = 1
        while left:
            left, good, bad = self._multi.info_read()
            for handle in good:
                self._take(self._transfers[handle], pycurl.E_OK, "")
            for handle, code, message in bad:
                self._take(self._transfers[handle], code, message)

    # A transfer's way

    def _go_to(self, transfer: "Transfer", url: Url) -> None:
        """Ask for what may be asked for; of a name the addresses have to be known first."""
        transfer.url, transfer.resolving_since = url, 0.0
        try:
            self._policy.check_host(url)
        except RefusedURLError as error:
            self._end(transfer, refused(error))
            return
        if url.is_address or self._proxied:
            self._ask(transfer, [])
            return
        addresses, until = self._names.get(url.host, ([], 0.0))
        now = time.monotonic()
        if now < until:
            self._connect(transfer, addresses)
            return
        transfer.resolving_since = now
        self._check_by(now + transfer.limits.connect)
        if url.host not in self._asked:
            self._asked[url.host] = []
            # The system's resolver knows no limit and cannot be stopped. The thread is left to it, and as a
            # daemon keeps no process alive.
            threading.Thread(target=self._resolve, args=(url.host,), name="resolver", daemon=True).start()
        self._asked[url.host].append(transfer)

    def _resolve(self, name: str) -> None:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            self._answered.append((name, list(dict.fromkeys(str(entry[4][0]) for entry in found))))
        except (OSError, UnicodeError) as error:
            self._answered.append((name, error if isinstance(error, OSError) else OSError(str(error))))
        self.wake()

    def _take_name(self, name: str, found: list[str] | OSError) -> None:
        now = time.monotonic()
        if isinstance(found, list):
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
            self._names[name] = found, now + _NAME_LASTS
        for transfer in self._asked.pop(name):
            self.seconds[RESOLVING] += now - transfer.resolving_since
            transfer.resolving_since = 0.0
            if isinstance(found, list):
                self._connect(transfer, found)
            else:
                self._end(transfer, unreachable(f"the name {name} does not resolve: {found.strerror}"))

    def _connect(self, transfer: "Transfer", addresses: list[str]) -> None:
        """Ask a host of these addresses, every one of which it may have."""
        url = transfer.url
        try:
            for address in addresses:
                self._policy.check_address(url, address)
        except RefusedURLError as error:
            self._end(transfer, refused(error))
            return
        known = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
        self._ask(transfer, [f"+{url.host}:{url.port}:{known}"])

    def _ask(self, transfer: "Transfer", resolve: list[str]) -> None:
        url = transfer.url
        headers = next((own for host, own in self._headers_of if host.lists(url)), self._headers)
        transfer.expect(headers, resolve)
        self._multi.add_handle(transfer.handle)
        self._at_libcurl += 1

    def _take(self, transfer: "Transfer", code: int, message: str) -> None:
        """What libcurl's part of the way ended with."""
        self._measure(transfer)
        self._remove(transfer)
        if transfer.status in REDIRECTS and (location := transfer.header(b"location")):
            self._redirect(transfer, location)
        elif code == pycurl.E_BAD_CONTENT_ENCODING and transfer.header(b"content-encoding"):
            # Encoded as nobody can tell, or only by its header: as browsers do, it is taken as it comes.
            transfer.raw = True
            self._ask(transfer, transfer.resolve)
        elif (
            code in _OF_A_KEPT_CONNECTION
            and not transfer.fresh
            and not transfer.handle.getinfo(pycurl.NUM_CONNECTS)
        ):
            # A kept connection had more to say than its last answer: no word on this picture.
            transfer.fresh = True
            self._ask(transfer, transfer.resolve)
        else:
            self._end(transfer, self._outcome(transfer, code, message))

    def _redirect(self, transfer: "Transfer", location: bytes) -> None:
        transfer.redirects += 1
        if transfer.redirects > _MAX_REDIRECTS:
            self._end(
                transfer,
                Fetched(status=Status.UNREACHABLE, reason=f"more than {_MAX_REDIRECTS} redirects"),
            )
            return
        try:
            # As browsers do: bytes that are no ASCII are meant as they are, whatever they encode.
            target = quote(location, safe="".join(map(chr, range(0x80))))
            url = read(target, transfer.url)
        except InvalidURLError as error:
            self._end(transfer, Fetched(status=Status.INVALID_URL, reason=f"redirected: {error}"))
            return
        self._go_to(transfer, url)

    def _outcome(self, transfer: "Transfer", code: int, message: str) -> Fetched:
        limit = self._settings.max_image_bytes
        status = transfer.status
        if code == pycurl.E_OK and status in PICTURES and transfer.whole:
            return Fetched(content=b"".join(transfer.body))
        if transfer.failure is not None:
            raise transfer.failure
        if transfer.refusal is not None and code != pycurl.E_OK:
            return refused(transfer.refusal)
        if message.startswith("CONNECT tunnel failed"):
            return unreachable(f"the proxy: {message}")
        if status not in (0, *PICTURES):
            return without_picture(status, transfer.header(b"retry-after"))
        if transfer.size > limit:
            return Fetched(status=Status.TOO_LARGE, reason=f"more than {limit} bytes")
        if code == pycurl.E_FILESIZE_EXCEEDED:
            size = transfer.header(b"content-length").decode("latin-1")
            announced = size.isdecimal() and int(size) > limit
            return Fetched(
                status=Status.TOO_LARGE,
                reason=f"{size} bytes, more than {limit}" if announced else f"more than {limit} bytes",
            )
        if code == pycurl.E_WRITE_ERROR:
            raise RuntimeError("what came could not be taken from libcurl; standard error says why")
        return _failed(transfer, code, _AFTER.sub("", message))

    def _measure(self, transfer: "Transfer") -> None:
        """Count the seconds of a request by what they were spent on, as libcurl states them."""
        info, seconds = transfer.handle.getinfo, self.seconds
        now = time.monotonic() - transfer.asked_at
        connected, shaken = info(pycurl.CONNECT_TIME), info(pycurl.APPCONNECT_TIME)
        if began := info(pycurl.STARTTRANSFER_TIME):
            seconds[CONNECTING] += connected
            seconds[HANDSHAKE] += max(0.0, shaken - connected)
            seconds[FIRST_BYTE] += max(0.0, began - info(pycurl.PRETRANSFER_TIME))
            seconds[TRANSFERRING] += max(0.0, now - began)
        elif not (info(pycurl.NUM_CONNECTS) or info(pycurl.PRIMARY_IP)):
            seconds[CONNECTING] += now
        elif info(pycurl.NUM_CONNECTS) and transfer.url.scheme == "https" and not shaken:
            seconds[HANDSHAKE] += now
        else:
            seconds[FIRST_BYTE] += now

    def _check_limits(self, now: float) -> None:
        """End the transfers that have reached a limit; find out when the next one may."""
        self._check_at = math.inf
        # Of the others the end is known, and about to be delivered.
        for transfer in [each for each in self._running if each.asked_at or each.resolving_since]:
            at, reason = transfer.limit(now)
            if now >= at:
                self._stop(transfer)
                status = transfer.status
                known = status and status not in PICTURES
                self._end(
                    transfer,
                    without_picture(status, transfer.header(b"retry-after")) if known else timed_out(reason),
                )
            else:
                self._check_by(at)

    def _check_by(self, at: float) -> None:
        self._check_at = min(self._check_at, at)

    def _stop(self, transfer: "Transfer") -> None:
        """Take a transfer from wherever it is."""
        if transfer.resolving_since:
            self.seconds[RESOLVING] += time.monotonic() - transfer.resolving_since
            self._asked[transfer.url.host].remove(transfer)
        elif transfer.asked_at:
            self._measure(transfer)
            self._remove(transfer)
        transfer.resolving_since = 0.0
        self._running.discard(transfer)

    def _remove(self, transfer: "Transfer") -> None:
        self._multi.remove_handle(transfer.handle)
        self._at_libcurl -= 1
        transfer.asked_at = 0.0

    def _end(self, transfer: "Transfer", fetched: Fetched) -> None:
        transfer.body = []
        self._ended.append((transfer, fetched))

    def _deliver(self) -> None:
        while self._ended:
            transfer, fetched = self._ended.pop()
            self._running.discard(transfer)
            self._idle.append(transfer)
            transfer.done(fetched)


class Transfer:
    """One picture on its way, and the libcurl handle that it has meanwhile."""

    url: Url
    limits: Limits
    done: Done
    deadline: float
    redirects: int
    raw: bool
    """Whether the body is taken as it comes, whatever its Content-Encoding says."""
    fresh: bool
    """Whether it is asked for on a connection of its own."""

    def __init__(
        self, handle: pycurl.Curl, policy: AddressPolicy | None, most: int, check_by: CheckBy
    ) -> None:
        """A transfer with nothing to fetch yet; without a policy every address may be connected to."""
        self.handle = handle
        handle.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        self._lines: list[bytes] = []
        """Of the headers that have come, those of answers before the last included."""
        handle.setopt(pycurl.HEADERFUNCTION, self._lines.append)
        handle.setopt(pycurl.WRITEFUNCTION, self._take_body)
        self._policy = policy
        self._most = most
        self._check_by = check_by
        self.resolve: list[str] = []
        self._headers: list[str] = []
        self._options: tuple[float, bool, bool] | None = None
        self._lines_seen = self._status = 0
        self.resolving_since = self.asked_at = 0.0

    def begin(self, limits: Limits, done: Done) -> None:
        """Be another picture's."""
        self.limits, self.done = limits, done
        self.deadline = time.monotonic() + limits.whole
        self.redirects, self.raw, self.fresh = 0, False, False
        self._lines.clear()
        self._lines_seen = self._status = 0

    def expect(self, headers: list[str], resolve: list[str]) -> None:
        """Have libcurl ask for the URL, and take in what comes from now on."""
        setopt = self.handle.setopt
        setopt(pycurl.URL, self.url.text)
        if (options := (self.limits.connect, self.raw, self.fresh)) != self._options:
            setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(self.limits.connect * 1_000)))
            setopt(pycurl.HTTP_CONTENT_DECODING, not self.raw)
            setopt(pycurl.FRESH_CONNECT, self.fresh)
        self._options = options
        if headers is not self._headers:
            setopt(pycurl.HTTPHEADER, headers)
        if resolve != self.resolve:
            setopt(pycurl.RESOLVE, resolve)
        self._headers, self.resolve = headers, resolve
        self._lines.clear()
        self._lines_seen = self._status = 0
        self.body: list[bytes] = []
        self.size = 0
        """Bytes of the body so far, decoded."""
        self.refusal: RefusedURLError | None = None
        """Of an address that libcurl was about to connect to."""
        self.failure: BaseException | None = None
        """An error of ours in what libcurl called."""
        self.asked_at = self._heard_at = time.monotonic()
        self._pieces = 0

    @property
    def status(self) -> int:
        """Of the answer; 0 until its first line has come, where another answer may follow as well."""
        if len(self._lines) != self._lines_seen:
            self._lines_seen = len(self._lines)
            line = next((line for line in reversed(self._lines) if line.startswith(b"HTTP/")), b"")
            code = line.split(None, 2)[1:2]
            self._status = int(code[0]) if code and code[0].isdigit() and code[0][:1] != b"1" else 0
        return self._status

    @property
    def whole(self) -> bool:
        """Whether the answer ended where it says; libcurl takes one that ends in its headers, and passes over
        a length whose name has a space behind it."""
        head = b"".join(self._lines)
        if _SPACE_BEFORE_COLON.search(head):
            return not self.header(b"transfer-encoding") and self.header(b"content-length") in (
                b"",
                b"%d" % self.size,
            )
        return b"\n\r\n" in head or b"\n\n" in head

    @property
    def pieces(self) -> int:
        """A number that grows with whatever comes of an answer."""
        return self.size + len(self._lines)

    def header(self, name: bytes) -> bytes:
        """The value of the last header of that name, which is in lower case; empty where there is none."""
        for line in reversed(self._lines):
            found, _, value = line.partition(b":")
            if found.strip().lower() == name:
                return value.strip()
        return b""

    def limit(self, now: float) -> tuple[float, str]:
        """When to look again, and what is said if a limit is reached by then."""
        over = self.deadline, f"not whole after {self.limits.whole:g} s"
        if self.resolving_since:
            slow = self.resolving_since + self.limits.connect
            return min(over, (slow, f"the name {self.url.host} did not resolve in time"))
        if self.pieces != self._pieces:
            # They came since the last look: the clock is not read for each of them.
            self._pieces, self._heard_at = self.pieces, now
        sent = self.handle.getinfo(pycurl.PRETRANSFER_TIME)
        # While it connects, libcurl watches the time, and no silence can end sooner than one that begins now.
        heard_at = max(self._heard_at, self.asked_at + sent) if sent else now
        look_at = min(heard_at + self.limits.silence, now + self.limits.silence / 4)
        return min(over, (look_at, "no answer in time"))

    # What libcurl calls

    def _open_socket(self, purpose: int, address: Any) -> Any:  # noqa: ARG002
        family, kind, protocol, (host, *_) = address
        try:
            if self._policy is not None:
                self._policy.check_address(self.url, host)
            return socket.socket(family, kind, protocol)
        except RefusedURLError as error:
            self.refusal = error
        except BaseException as error:
            self.failure = error
        return pycurl.SOCKET_BAD

    def _take_body(self, data: bytes) -> int | None:
        if not self.size:
            self._wanted = self.status in PICTURES
            if not self._wanted:
                self.deadline = min(self.deadline, time.monotonic() + _LONGEST_DISCARDING)
                self._check_by(self.deadline)
        self.size += len(data)
        if self.size > (self._most if self._wanted else _MOST_DISCARDED):
            return 0
        if self._wanted:
            self.body.append(data)
        return None


def _certificates(ca_file: Path) -> IO[bytes]:
    """Those of the file beside the public ones, in a file that is gone once it is closed: what libcurl reads
    of one it keeps, and what it is given as bytes it reads again for each connection.
    """
    both = tempfile.NamedTemporaryFile(prefix="certificates-", suffix=".pem")  # noqa: SIM115
    try:
        both.write(Path(certifi.where()).read_bytes() + b"\n" + ca_file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"FEATURES_CA_FILE={ca_file} cannot be read: {error.strerror}.") from None
    both.flush()
    return both


def _failed(transfer: Transfer, code: int, message: str) -> Fetched:
    """A request that libcurl gave up, and why."""
    url, info = transfer.url, transfer.handle.getinfo
    if code == pycurl.E_OPERATION_TIMEDOUT:
        if info(pycurl.CONNECT_TIME):
            return timed_out(f"{url.host} did not finish the TLS handshake in time")
        return timed_out(f"{url.host} did not accept a connection in time")
    if code == pycurl.E_URL_MALFORMAT:
        return Fetched(status=Status.INVALID_URL, reason=f"not a URL: {message}"[:300])
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        why = _CERTIFICATE.search(message)
        return unreachable(f"the server's certificate is refused: {why[1] if why else message}")
    if code in (pycurl.E_COULDNT_CONNECT, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR) and (
        number := int(info(pycurl.OS_ERRNO))
    ):
        return unreachable(f"{url.server}: {os.strerror(number)}")
    if code in (pycurl.E_OK, pycurl.E_GOT_NOTHING, pycurl.E_PARTIAL_FILE):
        return unreachable("the connection ended before the answer did")
    return unreachable(message or f"libcurl's error {code}")
