"""A process that decodes pictures one after another and may be lost: `tasks.pictures.decoders` starts it.

A request on its standard input is a slot, a length and the picture's bytes. It writes the tensor into
that slot of the memory it shares with its parent, and then a line of fixed length says how it went.
"""

import mmap
import os
import resource
import signal
import struct
import sys
import warnings

import numpy as np
from numpy.typing import NDArray

from tasks.pictures.confinement import confine
from tasks.pictures.picture import SIDE, BadPictureError, decode, load_everything, to_tensor
from tasks.statuses import Status

REQUEST = struct.Struct("<II")
"""The slot for the tensor and how many bytes of picture follow."""

PIPE_BYTES = 1 << 18
"""So that most pictures wait in the pipe of their process, and not with its parent for the pipe."""

ANSWER_BYTES = 256
"""Length of every answer: words in UTF-8, then zeros."""

READY = "ready"
"""The first answer: it has started and its limits hold."""

DONE = "done"
"""The tensor is in its slot."""

INCOMPLETE = "incomplete"
"""So it is, but without the last rows of its picture. Any other answer is a status, a space and the
reason."""


def serve(memory: int, max_pixels: int, max_memory: int, seconds: float) -> None:
    """Answer requests until standard input ends, as it does with the parent.

    Args:
        memory: the file of the tensors' slots, float32 [slots, 299, 299, 3].
        max_pixels: the most pixels a picture's header may claim.
        max_memory: bytes of address space that this process may have.
        seconds: to decode one picture; this process ends after them, with or without its parent.
    """
    tensors = np.frombuffer(mmap.mmap(memory, 0), np.float32).reshape(-1, SIDE, SIDE, 3)
    # What libraries print must neither be taken for an answer nor fill the log, as libjpeg does with each
    # picture that it minds; what Python says goes there.
    answers = os.dup(1)
    sys.stderr = os.fdopen(os.dup(2), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # without a parent there is nobody to complain to
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whatever the parent made of it
    for limit, value in (
        (resource.RLIMIT_AS, max_memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    # What waits in the pipe, in one read.
    requests = open(0, "rb", buffering=PIPE_BYTES, closefd=False)  # noqa: SIM115
    load_everything()
    confine()
    _answer(answers, READY)
    while len(header := requests.read(REQUEST.size)) == REQUEST.size:
        slot, length = REQUEST.unpack(header)
        content = requests.read(length)
        # The kernel ends us when it rings: no handler, which code that hangs would never get to.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        outcome = _decoded(content, tensors[slot], max_pixels, max_memory)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _answer(answers, outcome)


def _decoded(content: bytes, tensor: NDArray[np.float32], max_pixels: int, max_memory: int) -> str:
    try:
        picture = decode(content, max_pixels)
        to_tensor(picture, tensor)
    except BadPictureError as error:
        return f"{error.status} {error.reason}"
    except MemoryError:
        return f"{Status.CORRUPT} decoding it needs more than {max_memory // 1_000_000} MB"
    return INCOMPLETE if picture.incomplete else DONE


def _answer(answers: int, words: str) -> None:
    os.write(answers, words.encode(errors="replace")[:ANSWER_BYTES].ljust(ANSWER_BYTES, b"\0"))


if __name__ == "__main__":
    memory, max_pixels, max_memory, seconds = sys.argv[1:]
    serve(int(memory), int(max_pixels), int(max_memory), float(seconds))
    # At once: what Python does at its end is more than is left to us.
    os._exit(0)
