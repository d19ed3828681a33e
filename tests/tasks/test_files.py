import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import ServiceUnavailableError
from tasks.files import atomic_write, identity, is_left_over, move_aside, read_json, write_json
from tasks.settings import REPOSITORY
from tests.interpreter import output_of


def test_a_file_is_there_once_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first half, ")
        assert temporary.parent == path.parent, "only within one file system is a rename atomic"
        assert not path.exists()
        with temporary.open("a") as file:
            file.write("second half")
    assert path.read_text() == "first half, second half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    path = tmp_path / "file.txt"
    with pytest.raises(error):
        write_half()
    assert list(tmp_path.iterdir()) == []

    path.write_text("old")
    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_attempts_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_write(path) as slow:
        slow.write_text("the zombie's ")
        with atomic_write(path) as quick:
            assert quick != slow
            quick.write_text("the retry's")
        assert path.read_text() == "the retry's"
        with slow.open("a") as file:
            file.write("whole text")
    assert path.read_text() == "the zombie's whole text"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    sizes = range(200)
    write_json(path, [0] * sizes[0])
    done = threading.Event()

    def write() -> None:
        for size in sizes:
            write_json(path, [size] * size)
        done.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    seen = set()
    while not done.is_set():
        value = read_json(path)
        assert value == [len(value)] * len(value)
        seen.add(len(value))
    writer.join()
    assert read_json(path) == [199] * 199
    assert len(seen) > 1


def test_killed_in_the_middle_nothing_appears(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    script = """
import os, sys, time
from pathlib import Path
from tasks.files import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("in the middle", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"in the middle\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert not path.exists()
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_json_is_for_people_too(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    value = {"label": "상의 · 3 hosts", "counts": {"indexed": 3}, "none": None, "share": 0.1}
    write_json(path, value)
    assert read_json(path) == value
    assert "상의" in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").count("\n") > 5


# What the disk may do


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o500)
    yield folder
    folder.chmod(0o700)


WRITE = """
import os, resource, sys
from pathlib import Path
from tasks.errors import ServiceUnavailableError
from tasks.files import write_json
user, limit, path = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
if int(user):
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
try:
    write_json(Path(path), ["x" * 1000] * 3000)
except ServiceUnavailableError as error:
    print(error)
"""


def error_of_writing(path: Path, *, user: int = 0, limit: int = 0) -> str:
    """What writing 3 MB says, in a process of its own that may be another user or limited in bytes."""
    return output_of(WRITE, user, limit, path)


def test_a_folder_that_cannot_be_written_is_named(read_only_folder: Path) -> None:
    # Root writes everywhere, so it becomes nobody, who may not even enter the folders above.
    message = error_of_writing(read_only_folder / "file.json", user=65534 if os.getuid() == 0 else 0)
    assert "Permission denied" in message
    assert str(read_only_folder / "file.json") in message
    assert list(read_only_folder.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk: both fail in the middle of a write."""
    message = error_of_writing(tmp_path / "file.json", limit=1_000_000)
    assert "File too large" in message
    assert "GB free" in message
    assert "what is finished is kept" in message
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(ServiceUnavailableError, match=r"No space left on device.*0\.0 GB free"):
            write_json(tmp_path / "file.json", ["x" * 1000] * 3000)
        assert list(tmp_path.iterdir()) == []
        write_json(tmp_path / "small.json", 1)
        assert read_json(tmp_path / "small.json") == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("below", ["file.json", "folder/file.json"])
def test_a_file_in_the_folders_place_is_named(tmp_path: Path, below: str) -> None:
    in_the_way = tmp_path / "var"
    in_the_way.write_text("")
    with pytest.raises(ServiceUnavailableError, match="cannot be written") as refused:
        write_json(in_the_way / below, 1)
    assert str(in_the_way / below) in str(refused.value)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset by peer"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        TimeoutError("timed out"),
        OSError("something of its own"),
    ],
)
def test_an_error_of_the_blocks_own_work_is_not_blamed_on_the_disk(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "file.txt"):
        raise error
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


# Damaged files


def test_what_is_damaged_is_moved_aside_and_keeps_its_content(tmp_path: Path) -> None:
    file, folder, link = tmp_path / "file", tmp_path / "folder", tmp_path / "link"
    file.write_text("damaged")
    folder.mkdir()
    link.symlink_to("nowhere")
    for path in (file, folder, link):
        found = identity(path)
        assert found
        aside = move_aside(path, found)
        assert aside
        assert identity(aside) == found
        assert aside.parent == tmp_path
        assert aside.name.startswith(f".{path.name}.damaged-")
        assert is_left_over(aside.name)
        assert identity(path) is None
    assert next(tmp_path.glob(".file.*")).read_text() == "damaged"


def test_another_file_in_the_place_of_the_damaged_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("damaged")
    damaged = identity(path)
    assert damaged
    path.rename(tmp_path / "aside")
    assert move_aside(path, damaged) is None
    path.write_text("good")
    good = path.stat()
    assert move_aside(path, damaged) is None
    assert path.stat().st_ino == good.st_ino
    assert path.stat().st_ctime_ns == good.st_ctime_ns, "it kept its name all the time"
    assert {found.name for found in tmp_path.iterdir()} == {"file", "aside"}


@pytest.mark.parametrize("third", [False, True])
def test_a_file_that_comes_between_the_look_and_the_rename_gets_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, third: bool
) -> None:
    path = tmp_path / "file"
    path.write_text("damaged")
    damaged = identity(path)
    assert damaged
    really = Path.rename

    def rename_late(self: Path, target: Path) -> Path:
        really(path, tmp_path / "aside")
        path.write_text("good")
        moved = really(self, target)
        if third:
            path.write_text("good too")
        return moved

    monkeypatch.setattr(Path, "rename", rename_late)
    assert move_aside(path, damaged) is None
    assert path.read_text() == ("good too" if third else "good")
    assert {found.name for found in tmp_path.iterdir()} == {"file", "aside"}


def test_what_cannot_be_moved_aside_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("damaged")
    damaged = identity(path)
    assert damaged

    def refuse(*_: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ServiceUnavailableError, match=r"file cannot be written: Read-only file system"):
        move_aside(path, damaged)
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_is_known_by_its_name(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "pictures.parquet") as temporary:
        temporary.write_text("")
        assert is_left_over(temporary.name)
    for name in (
        "pictures.parquet", ".pictures.parquet", ".airflowignore", temporary.name[1:], temporary.name[:-1],
        f"{temporary.name}.txt", temporary.name.upper(), f".{'0' * 32}", ".x.expired-" + "0" * 32,
    ):  # fmt: skip
        assert not is_left_over(name), name
