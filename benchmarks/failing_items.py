"""What failing items cost a night: 10,000 items of which 30 % fail in mixed ways, against the healthy alone.

Of the 3,000 that fail, 1,000 are at a host that takes no connection and never refuses one, 600 at one that
always answers 429; the others are gone, cut short, blocked, no URL, or at a closed port.
"""

import random
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.volume import VolumeShop, volume_shop
from local_stack.process import free_port
from tasks.errors import RunFailedError
from tasks.inference.model import feature_version
from tasks.settings import Settings

ITEMS = 10_000

_SHARES = {
    "dead": 0.10,
    "busy": 0.06,
    "gone": 0.05,
    "cut": 0.04,
    "closed": 0.02,
    "blocked": 0.02,
    "no_url": 0.01,
}


def measure(photos: Path) -> list[Figure]:
    """One run of the healthy items, one of all.

    Raises:
        FeatureIndexError: a run failed, or an item did not end as it should.
    """
    closed = f"127.0.0.1:{free_port()}"
    with _black_hole() as dead, volume_shop(photos, image_hosts=[dead, closed]) as shop:
        # The first run with a model has to learn its digest.
        feature_version(Settings.load())
        counts = {kind: round(share * ITEMS) for kind, share in _SHARES.items()}
        healthy = ITEMS - sum(counts.values())
        urls = [shop.url(number) for number in range(healthy)]
        alone, report = _timed(shop, "healthy", urls)
        _expect(report["counts"], {"indexed": healthy})

        failing = [
            _url(shop, kind, number, dead, closed) for kind in counts for number in range(counts[kind])
        ]
        urls += failing
        random.Random(4).shuffle(urls)
        together, report = _timed(shop, "with failing ones", urls)
        _expect(
            report["counts"],
            {
                "indexed": healthy,
                "unreachable or timed out": counts["dead"] + counts["closed"],
                "rate_limited": counts["busy"],
                "gone": counts["gone"],
                "corrupt": counts["cut"],
                "blocked_address": counts["blocked"],
                "invalid_url": counts["no_url"],
            },
        )
    return [
        Figure("healthy items", healthy),
        Figure("failing items beside them", sum(counts.values())),
        Figure("healthy alone", alone, "s"),
        Figure("with the failing ones", together, "s"),
        Figure("with the failing ones / healthy alone", together / alone, at_most=1.3),
    ]


def _timed(shop: VolumeShop, name: str, urls: list[str]) -> tuple[float, dict]:
    print(f"{len(urls)} items, {name} ...", end=" ", file=sys.stderr, flush=True)
    shop.stock(urls)
    seconds, report = shop.run(name.replace(" ", "-"), FEATURES_FAILURE_BUDGET="1")
    print(f"{seconds:.1f} s", file=sys.stderr, flush=True)
    return seconds, report


def _url(shop: VolumeShop, kind: str, number: int, dead: str, closed: str) -> str:
    return {
        "dead": f"http://{dead}/{number}.jpg",
        "busy": f"http://{shop.other_host}/busy/{number}",
        "gone": shop.url(number, "no-such-picture"),
        "cut": shop.url(number, "cut"),
        "closed": f"http://{closed}/{number}.jpg",
        "blocked": f"http://169.254.169.254/latest/{number}",
        "no_url": f"/pictures/{number}.jpg",
    }[kind]


def _expect(counts: dict[str, int], expected: dict[str, int]) -> None:
    """A dead and a busy host's statuses are one here: which it is depends on when it was given up."""
    lost = ("unreachable", "timed_out", "rate_limited", "circuit_open")
    found, wanted = Counter(counts), Counter(expected)
    for of_all in (found, wanted):
        of_all["not had"] = sum(of_all.pop(status, 0) for status in (*lost, "unreachable or timed out"))
    if found != wanted:
        raise RunFailedError(f"The items ended as {dict(found)}, and should have as {dict(wanted)}.")


@contextmanager
def _black_hole() -> Iterator[str]:
    """A host that neither takes nor refuses connections: its queue of them is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(8)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for one in waiting:
                one.close()
