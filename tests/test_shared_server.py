"""A server that several processes of tests share."""

import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.shared_server import shared


def test_the_first_starts_it_and_ends_it_after_the_last(tmp_path: Path):
    happened = []

    @contextmanager
    def server(folder: Path):
        happened.append("starts")
        yield f"http://{folder.name}"
        happened.append("ends")

    def leaves(who: ExitStack):
        who.close()
        happened.append("the first has left")

    first, second, third = ExitStack(), ExitStack(), ExitStack()
    urls = [who.enter_context(shared(tmp_path / "of.tests", server)) for who in (first, second)]
    assert urls == ["http://of.tests"] * 2
    assert happened == ["starts"]
    leaving = threading.Thread(target=leaves, args=(first,))
    leaving.start()
    leaving.join(0.2)
    assert happened == ["starts"]
    second.close()
    leaving.join(10)
    assert happened == ["starts", "ends", "the first has left"]

    assert third.enter_context(shared(tmp_path / "of.tests", server)) == "http://of.tests"
    third.close()
    assert happened[3:] == ["starts", "ends"]
