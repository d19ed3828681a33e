import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from tasks.errors import ServiceUnavailableError
from tasks.pictures import decoders
from tasks.pictures.decoders import Decoders
from tasks.pictures.picture import BadPictureError, decode, to_tensor
from tasks.settings import REPOSITORY, Settings
from tasks.statuses import Status
from tests.picture_corpus import everything
from tests.picture_files import resized_with_pad

pytestmark = pytest.mark.xdist_group("model")  # TensorFlow takes seconds to import

Tensor = NDArray[np.float32]
Results = dict[str, Tensor | BadPictureError]
Children = Callable[[], list[psutil.Process]]

# A decoder that goes wrong where a picture says so. What really happens then is up to the bytes of
# pictures nobody has met yet, so no picture would do.
MISBEHAVING = """
import ctypes, mmap, os, runpy, signal, socket, subprocess, sys, threading
from PIL import Image
from tasks.pictures import containers

with open(sys.argv.pop(1), "r+b") as file:
    happened = mmap.mmap(file.fileno(), 0)
essence = containers.essence

def first_time(place):
    before, happened[place] = happened[place], 1
    return not before

def hang():
    threading.Event().wait(1_000)

def everywhere(answer):
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, answer)
        except OSError:
            pass

def misbehave(fault):
    if fault == "crash":
        ctypes.string_at(0)
    elif fault == "abort":
        os.abort()
    elif fault == "open":
        open("/etc/passwd")
    elif fault == "connect":
        socket.socket()
    elif fault == "fork":
        os.fork()
    elif fault == "execute":
        os.execv("/bin/true", ["true"])
    elif fault == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
    elif fault == "signal a thread of the parent's":
        ctypes.CDLL(None).tgkill(os.getppid(), os.getppid(), 9)
    elif fault == "new code":
        mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    elif fault == "code of data":
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(id(fault) & ~4095), 4096, 7)
    elif fault == "exit":
        os._exit(3)
    elif fault == "sleep":
        hang()
    elif fault == "spin":
        while True:
            pass
    elif fault == "memory":
        bytearray(900_000_000)
    elif fault == "pixels":
        Image.new("RGB", (40_000, 40_000))
    elif fault == "gibberish":
        everywhere(b"cos\\nsystem\\n".ljust(256, b"."))
    elif fault == "stammer":
        everywhere(b"done")
        hang()
    elif fault == "silence":
        for descriptor in range(1, 20):
            try:
                os.close(descriptor)
            except OSError:
                pass
        hang()
    elif fault == "chatter":
        print("done", flush=True)
        os.write(1, b"done".ljust(256, b"\\0"))
    elif fault == "recursion":
        misbehave(fault)
    elif fault == "crash once" and first_time(0):
        ctypes.string_at(0)
    elif fault == "sleep once" and first_time(1):
        hang()

def misbehaving(content):
    misbehave(content.rpartition(b"|")[2].decode("latin1"))
    return essence(content)

containers.essence = misbehaving
runpy.run_module("tasks.pictures.decoder_process", run_name="__main__")
"""


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a byte for each fault that happens once: zero until it has happened."""
    script, happened = tmp_path / "misbehaving.py", tmp_path / "happened"
    script.write_text(MISBEHAVING)
    happened.write_bytes(bytes(2))
    monkeypatch.setattr(decoders, "COMMAND", (sys.executable, str(script), str(happened)))
    return happened


def picture(number: int, fault: str = "", side: int = 40) -> bytes:
    """A picture unlike any other number's; the fault stands behind its end, where no decoder looks."""
    colours = np.random.default_rng(number).integers(0, 256, (side, 2 * side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "BMP" if side > 1_000 else "PNG")
    return file.getvalue() + b"|" + fault.encode()


def tensor_of(content: bytes) -> Tensor:
    return to_tensor(decode(content, 10**8))


def results_of(pool: Decoders, pictures: dict[str, bytes]) -> Results:
    """Each picture's own result, copied before the next one comes."""
    results: Results = {}
    for key, result in pool.decode(iter(pictures.items())):
        assert key not in results, "one result each"
        results[key] = result if isinstance(result, BadPictureError) else result.copy()
    assert results.keys() == pictures.keys()
    return results


def check_good(results: Results, pictures: dict[str, bytes]) -> None:
    for key, content in pictures.items():
        result = results[key]
        assert not isinstance(result, BadPictureError), f"{key}: {result}"
        np.testing.assert_array_equal(result, tensor_of(content))


@pytest.fixture(autouse=True)
def children() -> Children:
    """The processes that the test has started and that are still there."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_every_picture_comes_back_once_with_its_own_tensor(children: Children) -> None:
    good = {f"good {number}": picture(number) for number in range(30)}
    bad = {
        "empty": (b"", Status.NOT_A_PICTURE),
        "text": (b"Not found", Status.NOT_A_PICTURE),
        "cut": (picture(1)[:2_000], Status.CORRUPT),
        "vector drawing": (b"<svg/>", Status.UNSUPPORTED_FORMAT),
        "large": (picture(2, side=1_100), Status.TOO_MANY_PIXELS),
    }
    # Longer than any pipe: it goes in pieces.
    long = {"long": picture(3, side=1_001)}
    assert len(long["long"]) > 5_000_000
    contents = good | long | {key: content for key, (content, _) in bad.items()}
    order = np.random.default_rng(1).permutation(list(contents)).tolist()

    with Decoders(Settings(max_image_pixels=2_100_000), processes=2) as pool:
        results = results_of(pool, {key: contents[key] for key in order})
        again = results_of(pool, good)

    check_good(results, good | long)
    check_good(again, good)
    for key, (_, status) in bad.items():
        refused = results[key]
        assert isinstance(refused, BadPictureError)
        assert refused.status == status
        assert refused.reason
    assert not children()


def test_photos_of_a_real_shop_get_the_tensors_that_tensorflow_gives(shop_photos: Path) -> None:
    paths = sorted((shop_photos / "images").iterdir())[::16]
    assert len(paths) > 50
    with Decoders(Settings(), processes=2) as pool:
        results = results_of(pool, {path.name: path.read_bytes() for path in paths})
    for path in paths:
        with Image.open(path) as image:
            assert image.getexif().get(0x0112, 1) == 1
            expected = resized_with_pad(np.asarray(image.convert("RGB")))
        np.testing.assert_allclose(results[path.name], expected, rtol=0, atol=1e-6)


def test_nothing_to_decode_is_no_result() -> None:
    with Decoders(Settings(), processes=1) as pool:
        assert list(pool.decode([])) == []


FORBIDDEN = "the decoder was ended by SIGSYS"
FAULTS = {
    "crash": "the decoder was ended by SIGSEGV",
    "abort": "the decoder was ended by SIGABRT",
    "exit": "the decoder ended with exit status 3",
    "sleep": "the decoder took longer than 2 s",
    "spin": "the decoder took longer than 2 s",
    "memory": "decoding it needs more than 995 MB",
    "pixels": "decoding it needs more than 995 MB",
    "gibberish": "the decoder gave an answer that means nothing",
    "stammer": "the decoder gave an answer that means nothing",
    "silence": FORBIDDEN,
    "open": FORBIDDEN,
    "connect": FORBIDDEN,
    "fork": FORBIDDEN,
    "execute": FORBIDDEN,
    "kill": FORBIDDEN,
    "signal a thread of the parent's": FORBIDDEN,
    "new code": FORBIDDEN,
    "code of data": FORBIDDEN,
    "recursion": "the header cannot be read",
}


@pytest.mark.usefixtures("misbehaving")
def test_a_decoder_that_goes_wrong_costs_the_picture_it_was_at(children: Children) -> None:
    contents: dict[str, bytes] = {}
    for number, fault in enumerate(FAULTS):
        contents |= {f"before {fault}": picture(2 * number), fault: picture(100 + number, fault)}
        contents |= {f"after {fault}": picture(2 * number + 1)}
    harmless = {"chatter": picture(200, "chatter"), "crash once": picture(201, "crash once")}
    contents |= harmless | {"last": picture(202)}

    with Decoders(Settings(decode_timeout=2, max_image_pixels=10_000_000), processes=2) as pool:
        results = results_of(pool, contents)

    check_good(results, {key: content for key, content in contents.items() if key not in FAULTS})
    for fault, reason in FAULTS.items():
        refused = results[fault]
        assert isinstance(refused, BadPictureError), fault
        assert (refused.status, refused.reason) == (Status.CORRUPT, reason)
    assert not children()


def test_a_decoder_killed_from_outside_costs_nothing(misbehaving: Path, children: Children) -> None:
    contents = {str(number): picture(number) for number in range(9)} | {"slow": picture(9, "sleep once")}
    killed = []

    def fed() -> Iterator[tuple[str, bytes]]:
        yield from contents.items()
        # By now the picture is with the only decoder.
        until(lambda: misbehaving.read_bytes()[1] == 1)
        (decoder,) = children()
        decoder.kill()
        killed.append(decoder.pid)

    results: Results = {}
    with Decoders(Settings(), processes=1) as pool:
        results |= {key: result.copy() for key, result in pool.decode(fed())}
        assert children()[0].pid not in killed

    assert len(killed) == 1
    check_good(results, contents)


@pytest.mark.usefixtures("misbehaving")
def test_a_pool_that_is_left_leaves_no_process(children: Children) -> None:
    contents = {str(number): picture(number) for number in range(20)} | {"slow": picture(20, "sleep")}
    order = ["slow", *(key for key in contents if key != "slow")]

    with Decoders(Settings(), processes=2) as pool:
        for _ in pool.decode((key, contents[key]) for key in order):
            break
        assert not children(), "nobody waits for what they were at"
        check_good(results_of(pool, {"1": contents["1"]}), {"1": contents["1"]})
    assert not children()

    def failing() -> Iterator[tuple[str, bytes]]:
        yield "slow", contents["slow"]
        yield "0", contents["0"]
        raise KeyError("the pack is damaged")

    with pytest.raises(KeyError), Decoders(Settings(), processes=2) as pool:
        list(pool.decode(failing()))
    assert not children()


def test_only_a_few_pictures_are_taken_ahead() -> None:
    content = picture(1)
    taken = 0

    def fed() -> Iterator[tuple[str, bytes]]:
        nonlocal taken
        for taken in range(1, 201):
            yield str(taken), content

    with Decoders(Settings(), processes=2) as pool:
        for done, _ in enumerate(pool.decode(fed()), start=1):
            assert taken - done <= 8
    assert done == 200


def test_a_picture_is_not_late_because_nobody_looked() -> None:
    """As when its caller waits for the device: the second picture does not fit into the pipe meanwhile."""
    contents = {str(number): picture(number, side=1_001) for number in range(6)}
    results: Results = {}
    with Decoders(Settings(decode_timeout=1), processes=1) as pool:
        for key, result in pool.decode(contents.items()):
            results[key] = result if isinstance(result, BadPictureError) else result.copy()
            if len(results) == 1:
                time.sleep(1.5)
    check_good(results, contents)


PARENT = """
import sys
from pathlib import Path
from typing import Any
from tasks.pictures import decoders
from tasks.settings import Settings
decoders.COMMAND = tuple(sys.argv[2:])
content = Path(sys.argv[1]).read_bytes()
with decoders.Decoders(Settings(decode_timeout=1.5), processes=2) as pool:
    list(pool.decode((str(number), content) for number in range(9)))
"""


def test_nothing_outlives_a_parent_that_is_killed(misbehaving: Path, tmp_path: Path) -> None:
    """One decoder hangs over its picture, so it does not see that its requests have ended."""
    (tmp_path / "picture").write_bytes(picture(1, "sleep once"))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "picture"), *decoders.COMMAND],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: misbehaving.read_bytes()[1] == 1)
        started = psutil.Process(parent.pid).children()
        assert len(started) == 2
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive


def test_decoders_inherit_no_secret_and_are_limited(
    monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_SEARCH", "http://elastic:hunter2@localhost:9200")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@localhost:3128")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    content = picture(1)
    with Decoders(Settings(max_image_pixels=1_000_000), processes=2) as pool:
        results_of(pool, {str(number): content for number in range(9)})
        for child in children():
            environment = child.environ()
            assert "hunter2" not in str(environment)
            assert environment.pop("PYTHONPATH") == os.pathsep.join([str(REPOSITORY), *sys.path])
            assert environment.pop("LD_LIBRARY_PATH") == "/opt/lib"
            assert environment.pop("OPENBLAS_NUM_THREADS") == "1"
            assert all(name.startswith("MALLOC_") for name in environment)
            assert child.num_threads() == 1
            assert child.rlimit(psutil.RLIMIT_AS) == (707_000_000, 707_000_000)
            assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
            assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
            opened = {file.path for file in child.open_files()}
            assert not opened, "nothing of ours is open there"
            status = Path(f"/proc/{child.pid}/status").read_text()
            assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE), "the kernel filters its calls"
            assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)


def test_no_kind_of_picture_needs_more_than_is_left_to_decoders() -> None:
    corpus = everything()
    with Decoders(Settings(), processes=2) as pool:
        outcomes = {key: str(result) for key, result in pool.decode(iter(corpus.items()))}
    assert outcomes.keys() == corpus.keys()
    assert [key for key, outcome in outcomes.items() if outcome.startswith("the decoder")] == []


def test_ctrl_c_is_left_to_the_parent(children: Children) -> None:
    contents = {str(number): picture(number) for number in range(9)}
    with Decoders(Settings(), processes=1) as pool:
        results_of(pool, {"0": contents["0"]})
        (child,) = children()
        child.send_signal(signal.SIGINT)
        check_good(results_of(pool, contents), contents)
        assert children() == [child]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ((sys.executable, "-c", "raise SystemExit(7)"), "ended with exit status 7"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), "was ended by SIGKILL"),
        ((sys.executable, "-c", "print('Hello')"), "gave an answer that means nothing"),
        ((sys.executable, "-c", "import time; time.sleep(1000)"), "took longer than 0.5 s"),
        (("/no/such/python",), "No such file"),
    ],
    ids=["exits", "is killed", "says something else", "hangs", "is not there"],
)
def test_decoders_that_cannot_start_are_no_pictures_fault(
    command: tuple[str, ...], reason: str, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    monkeypatch.setattr(decoders, "COMMAND", command)
    monkeypatch.setattr(decoders, "_START_SECONDS", 0.5)
    with pytest.raises(ServiceUnavailableError, match=reason), Decoders(Settings(), processes=2) as pool:
        list(pool.decode((str(number), picture(number)) for number in range(9)))
    assert not children()


def test_a_pool_that_cannot_start_whole_does_not_start(
    monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    """The machine gives one process and has no room for a second one."""
    popen = subprocess.Popen
    started = []

    def scarce(*arguments: Any, **options: Any) -> Any:
        if started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(*arguments, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", scarce)
    with pytest.raises(ServiceUnavailableError, match="temporarily unavailable"), Decoders(Settings(), 2):
        pass
    assert len(started) == 1
    assert not children()


def test_a_start_that_fails_now_and_then_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second process ends before it is ready, and each is lost after a few pictures."""
    script = tmp_path / "sickly.py"
    script.write_text(
        f"""
import os, runpy, sys
from PIL import Image
count = len(os.listdir({str(tmp_path / "starts")!r}))
os.mkdir(os.path.join({str(tmp_path / "starts")!r}, str(os.getpid())))
if count % 2:
    raise SystemExit(1)
left = 3
open_image = Image.open
def tiring(file, formats):
    global left
    left -= 1
    if left < 0:
        os._exit(1)
    return open_image(file, formats=formats)
Image.open = tiring
runpy.run_module("tasks.pictures.decoder_process", run_name="__main__")
"""
    )
    (tmp_path / "starts").mkdir()
    monkeypatch.setattr(decoders, "COMMAND", (sys.executable, str(script)))
    contents = {str(number): picture(number) for number in range(12)}
    with Decoders(Settings(), processes=1) as pool:
        check_good(results_of(pool, contents), contents)
    assert len(list((tmp_path / "starts").iterdir())) >= 4
