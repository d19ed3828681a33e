"""Pictures to tensors, in processes that bytes from anywhere may crash, hang or fill.

A decoder that is lost costs the picture it was at, and not before a second one was lost over it: the
first may have been killed for another reason. Nothing that a decoder says is trusted: its answers are
short lines of a known form, and its tensors are numbers in shared memory.
"""

import contextlib
import fcntl
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ServiceUnavailableError
from tasks.machine import cores
from tasks.pictures.decoder_process import ANSWER_BYTES, DONE, INCOMPLETE, PIPE_BYTES, READY, REQUEST
from tasks.pictures.picture import SIDE, BadPictureError
from tasks.settings import REPOSITORY, Settings
from tasks.statuses import Status

Tensor = NDArray[np.float32]
Decoded = tuple[str, Tensor | BadPictureError]

# -S, because what `site` does at each start takes a fifth of it; the parent's path has all there is.
COMMAND = (sys.executable, "-P", "-S", "-m", "tasks.pictures.decoder_process")

_MOST = 16
"""Decoders in a pool: whoever hands out pictures and takes back tensors is busy with fewer."""

_AT_ONCE = 4
"""Pictures that one process has at once, so that it need not wait for us between two of them."""

_STARTS = 3
"""Starts in a row that may fail before it is the machine's fault."""

_START_SECONDS = 60.0

_BASE_MEMORY = 675_000_000
"""Bytes, of which OpenCV's libraries are 173 million that are mapped and hardly touched."""
_MEMORY_A_PIXEL = 32
"""Bytes; the hungriest decoder, WebP's, takes half of it."""

_REFUSALS = {
    status.value: status
    for status in (
        Status.NOT_A_PICTURE,
        Status.UNSUPPORTED_FORMAT,
        Status.TOO_MANY_PIXELS,
        Status.CORRUPT,
    )
}


class Decoders:
    """A pool of decoder processes, which start and end with its `with` block."""

    def __init__(self, settings: Settings, processes: int | None = None) -> None:
        """A pool of so many processes, by default `usual_number`."""
        self._settings = settings
        self._processes = processes or usual_number()
        self._decoders: list[_Decoder] = []
        self._failed_starts = 0
        # What lost decoders had: what they were at may be to blame, what waited behind it is not.
        self._suspects: deque[_Picture] = deque()
        self._returned: deque[_Picture] = deque()
        self.incomplete: set[str] = set()
        """Keys of pictures decoded without their last rows, which their files lack."""

    def __enter__(self) -> Self:
        try:
            self._fill_up()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def decode(self, pictures: Iterable[tuple[str, bytes]]) -> Iterator[Decoded]:
        """Decode pictures, given as key and bytes; each key comes back once, in any order.

        A few pictures a process are taken ahead of who takes the results. A tensor, float32
        [299, 299, 3], is only good until the next result is asked for: copy what has to last.

        Raises:
            ServiceUnavailableError: decoders cannot be started on this machine.
        """
        source = (_Picture(key, content) for key, content in pictures)
        try:
            while True:
                self._feed(source)
                if not any(decoder.work for decoder in self._decoders):
                    return
                answered, overdue = self._wait()
                for decoder in answered:
                    yield from self._answer_of(decoder)
                for decoder in overdue:
                    yield from self._lost(decoder, late=True)
        finally:
            # If the caller stops early, what the decoders still have is nobody's any more.
            for decoder in [decoder for decoder in self._decoders if decoder.work]:
                self._decoders.remove(decoder)
                decoder.end()

    def _end(self) -> None:
        for decoder in self._decoders:
            decoder.end()

    def _feed(self, source: Iterator["_Picture"]) -> None:
        self._fill_up()
        while free := [decoder for decoder in self._decoders if decoder.has_room]:
            picture = self._returned.popleft() if self._returned else next(source, None)
            if picture is None:
                return
            min(free, key=lambda decoder: len(decoder.work)).send(picture)

    def _fill_up(self) -> None:
        while len(self._decoders) < self._processes:
            try:
                decoder = _Decoder(self._settings)
            except OSError as error:
                raise ServiceUnavailableError(f"A decoder process cannot be started: {error}.") from error
            self._decoders.append(decoder)
            if self._suspects:
                # The first of a fresh decoder: if that is lost too, nothing else can be to blame.
                decoder.send(self._suspects.popleft())

    def _wait(self) -> tuple[list["_Decoder"], list["_Decoder"]]:
        """Wait for something to read, writing what pipes take; who can be read, and who is overdue."""
        poll = select.poll()
        for decoder in self._decoders:
            poll.register(decoder.answers, select.POLLIN)
            if decoder.unsent:
                poll.register(decoder.requests, select.POLLOUT)
        patience = min(decoder.due for decoder in self._decoders) - time.monotonic()
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, patience) * 1_000)}
        now = time.monotonic()
        answered, overdue = [], []
        for decoder in self._decoders:
            if decoder.unsent and decoder.requests in ready:
                decoder.write()
                decoder.since = now
            if decoder.answers in ready:
                answered.append(decoder)
                decoder.since = now
            # However long ago we last looked: only who has nothing to say now is late.
            elif decoder.due <= now:
                overdue.append(decoder)
        return answered, overdue

    def _answer_of(self, decoder: "_Decoder") -> Iterator[Decoded]:
        answer = decoder.read()
        word, _, reason = answer.partition(" ")
        if word == READY and not decoder.ready:
            decoder.ready = True
            self._failed_starts = 0
        elif decoder.ready and decoder.work and (word in (DONE, INCOMPLETE) or word in _REFUSALS):
            picture, slot = decoder.work.popleft()
            if word == INCOMPLETE:
                self.incomplete.add(picture.key)
            try:
                refusal = _REFUSALS.get(word)
                yield picture.key, BadPictureError(refusal, reason) if refusal else decoder.tensors[slot]
            finally:
                decoder.free.append(slot)
        else:
            yield from self._lost(decoder, "gave an answer that means nothing" if answer else "")

    def _lost(self, decoder: "_Decoder", reason: str = "", late: bool = False) -> Iterator[Decoded]:
        """End a decoder, and say of the picture it was at what became of it, once that is certain."""
        self._decoders.remove(decoder)
        ending = decoder.end()
        late = late or ending == -signal.SIGALRM
        reason = f"took longer than {decoder.patience:g} s" if late else reason or _in_words(ending)
        pictures = [picture for picture, _ in decoder.work]
        if not decoder.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise ServiceUnavailableError(
                    f"{_STARTS} decoder processes in a row were lost before they were ready; the last one "
                    f"{reason}. What they wrote stands before this in the log; if there is nothing, see that "
                    "the machine has memory and room for processes left."
                )
        elif pictures:
            picture = pictures.pop(0)
            if picture.suspected or late:
                yield picture.key, BadPictureError(Status.CORRUPT, f"the decoder {reason}")
            else:
                picture.suspected = True
                self._suspects.append(picture)
        for picture in pictures:
            (self._suspects if picture.suspected else self._returned).append(picture)


@dataclass
class _Picture:
    key: str
    content: bytes
    suspected: bool = False
    """Whether a decoder was lost over it."""


class _Decoder:
    """One decoder process, what it has to do, and the memory that its tensors come back in."""

    def __init__(self, settings: Settings) -> None:
        """Start it; it says itself when it is ready.

        Raises:
            OSError: the machine has no room for it.
        """
        pixels = settings.max_image_pixels
        memory = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory, _AT_ONCE * SIDE * SIDE * 3 * np.dtype(np.float32).itemsize)
            # A decoder that cut it short would end us, who read it, with a bus error.
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.tensors = np.frombuffer(mmap.mmap(memory, 0), np.float32).reshape(_AT_ONCE, SIDE, SIDE, 3)
            limits = (memory, pixels, _BASE_MEMORY + _MEMORY_A_PIXEL * pixels, settings.decode_timeout)
            self._process = subprocess.Popen(
                [*COMMAND, *map(str, limits)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=(memory,),
                env=environment(),
            )
        finally:
            os.close(memory)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.requests, self.answers = self._input.fileno(), self._output.fileno()
        os.set_blocking(self.requests, False)
        with contextlib.suppress(OSError):  # a user may have only so much of it
            fcntl.fcntl(self.requests, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.ready = False
        self.work: deque[tuple[_Picture, int]] = deque()
        """What it has not answered yet, and the slot for each; it is at the first."""
        self.free = deque(range(_AT_ONCE))
        """Slots of `tensors` that nobody needs."""
        self.unsent = memoryview(b"")
        """What of its last request its pipe has no room for."""
        self.since = time.monotonic()
        """When it last had something new to do, or did something."""
        self._seconds = settings.decode_timeout

    @property
    def has_room(self) -> bool:
        return bool(self.free) and not self.unsent

    @property
    def patience(self) -> float:
        """Seconds for what it is at."""
        return self._seconds if self.ready else _START_SECONDS

    @property
    def due(self) -> float:
        """When it has to have done something."""
        return self.since + self.patience if self.work or not self.ready else math.inf

    def send(self, picture: _Picture) -> None:
        """Give it one more picture, which takes a free slot."""
        if not self.work and self.ready:
            self.since = time.monotonic()
        slot = self.free.popleft()
        self.work.append((picture, slot))
        self.unsent = memoryview(REQUEST.pack(slot, len(picture.content)) + picture.content)
        self.write()

    def write(self) -> None:
        """Write as much as its pipe takes."""
        try:
            self.unsent = self.unsent[self._input.write(self.unsent) or 0 :]
        except BrokenPipeError:
            # It has ended, which reading from it will tell.
            self.unsent = memoryview(b"")

    def read(self) -> str:
        """Its next answer, empty when it has ended; a picture may have made it say anything."""
        answer = self._output.read(ANSWER_BYTES) or b""
        if len(answer) not in (0, ANSWER_BYTES):
            return "?"
        words = answer.rstrip(b"\0").decode(errors="replace")
        return "".join(letter if letter.isprintable() else "?" for letter in words)

    def end(self) -> int:
        """End it, unless it has ended by itself; its exit status, or minus the signal that ended it."""
        self._process.kill()
        self._input.close()
        self._output.close()
        return self._process.wait()


def usual_number() -> int:
    """How many decoders a machine's model is fed by: one for each core, within reason."""
    return min(cores(), _MOST)


def environment() -> dict[str, str]:
    """All that a decoder inherits: no connection, no password, nothing that hostile bytes could want."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
        "OPENBLAS_NUM_THREADS": "1",
        # glibc would otherwise give a picture's memory back and ask for it anew with the next one,
        # which takes as long as decoding a small one.
        "MALLOC_MMAP_THRESHOLD_": "8388608",
        "MALLOC_TRIM_THRESHOLD_": "67108864",
    }


def _in_words(ending: int) -> str:
    if ending >= 0:
        return f"ended with exit status {ending}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was ended by {names.get(-ending, f'signal {-ending}')}"
