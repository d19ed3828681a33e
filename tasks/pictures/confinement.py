"""What a decoder may still ask of the kernel once it is ready: to read its pictures and write its answers,
and for memory and time. Anything else ends it.

It is a seccomp filter, see seccomp(2), in the kernel's byte code (classic BPF).
"""

import ctypes
import errno
import os
import platform
import struct
from typing import NamedTuple

_SECCOMP_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_PR_SET_NO_NEW_PRIVS = 38

_KILL_PROCESS, _ALLOW = 0x8000_0000, 0x7FFF_0000
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 32
"""Where they lie in what the filter is given, the lower halves of the arguments."""

_PROT_EXEC = 4


class _Calls(NamedTuple):
    """The numbers of one architecture's system calls."""

    architecture: int
    seccomp: int
    allowed: tuple[int, ...]
    """read, write, munmap, mremap, madvise, brk, rt_sigprocmask, rt_sigreturn, setitimer, futex,
    clock_gettime, sched_yield, restart_syscall, getpid, gettid, exit, exit_group."""
    mapping: tuple[int, ...]
    """mmap and mprotect: allowed for memory that is not to be executed."""
    killing: int
    """tgkill: allowed upon oneself, as abort() does."""


_CALLS = {
    "x86_64": _Calls(
        0xC000_003E,
        317,
        (0, 1, 11, 25, 28, 12, 14, 15, 38, 202, 228, 24, 219, 39, 186, 60, 231),
        (9, 10),
        234,
    ),
    "aarch64": _Calls(
        0xC000_00B7,
        277,
        (63, 64, 215, 216, 233, 214, 135, 139, 103, 98, 113, 124, 128, 172, 178, 93, 94),
        (222, 226),
        131,
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def confine() -> None:
    """Leave this process, all its threads included, nothing but the calls above; there is no way back.

    Raises:
        OSError: the kernel knows no such filter.
    """
    calls = _CALLS.get(platform.machine())
    if calls is None:
        raise OSError(errno.ENOSYS, f"no seccomp filter is known for {platform.machine()}")
    code = _filter(calls, os.getpid())
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code) // 8, code)
    if (
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        or libc.syscall(calls.seccomp, _SECCOMP_SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program)) != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel takes no seccomp filter: {os.strerror(number)}")


def _filter(calls: _Calls, pid: int) -> bytes:
    """The instructions, each a code, how many to leave out if it holds and if not, and a value."""
    kill, allow = (_RETURN, 0, 0, _KILL_PROCESS), (_RETURN, 0, 0, _ALLOW)
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, calls.architecture),
        kill,
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in calls.allowed:
        instructions += [(_IF_EQUAL, 0, 1, number), allow]
    for number in calls.mapping:
        instructions += [
            (_IF_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _THIRD_ARGUMENT),
            (_IF_ANY_BIT, 0, 1, _PROT_EXEC),
            kill,
            allow,
        ]
    instructions += [
        (_IF_EQUAL, 0, 3, calls.killing),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_IF_EQUAL, 0, 1, pid),
        allow,
        kill,
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
