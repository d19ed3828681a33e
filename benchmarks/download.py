"""The download stage against img2dataset, by images a second from one local server, with latency and without,
over TLS, and where the server offers HTTP/2, which img2dataset does not speak.

Both are given the same distinct photos, one process and as many transfers as the other has threads; our
limit of requests a second is set out of the way, since img2dataset has none. It neither decodes nor hashes
the pictures and writes them to one Parquet file; we check addresses, limits and hosts, hash, and write our
pack. Each side's
seconds are those that it states of the fetching itself, its imports and its start left out. The rounds of
the two take turns, and the ratio is the median of the rounds' ratios.

The server runs in a process of its own on the same machine: what it costs is stated.

    python -m benchmarks.download URLS THREADS FOLDER    runs our side once, as the benchmark does
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks.cpu import process_seconds
from benchmarks.figures import Figure
from benchmarks.rivals import python_with
from benchmarks.volume import photo_server
from local_stack.certificates import certificate_for
from tasks.errors import RunFailedError
from tasks.runs import packs
from tasks.runs.run import Plan, Request
from tasks.settings import REPOSITORY, Settings
from tasks.stages import download

PICTURES = 5_000


class Case(NamedTuple):
    """What both sides are compared on."""

    milliseconds: int
    """Before each answer."""
    threads: int
    """At 30 ms 32 of them get 1,067 images a second at most, and 64 get 2,133, whoever uses them; 128 leave
    both sides to what they are able to."""
    tls: bool
    http2: bool
    ratio: float
    """Of our rate to theirs, at least."""


CASES = {
    "no latency": Case(0, 32, tls=False, http2=False, ratio=6.0),
    "30 ms latency": Case(30, 128, tls=False, http2=False, ratio=2.2),
    "TLS, no latency": Case(0, 32, tls=True, http2=False, ratio=6.0),
    "TLS, 30 ms latency": Case(30, 128, tls=True, http2=False, ratio=2.2),
    "HTTP/2, no latency": Case(0, 32, tls=True, http2=True, ratio=6.0),
    "HTTP/2, 30 ms latency": Case(30, 128, tls=True, http2=True, ratio=2.2),
}

_WARM_UP = 50
"""Pictures fetched before the clock runs, and those that tell what a start costs."""

Client = Callable[[Path, int, Path], dict[str, Any]]
"""Fetches the URLs of a file with so many threads into a folder; returns pictures, seconds, cpu_seconds."""


def measure(photos: Path, rounds: int) -> list[Figure]:
    """Both clients at each latency, `rounds` times.

    Raises:
        ServiceUnavailableError: img2dataset cannot be installed, or the photo server did not come up.
        RunFailedError: a client failed, or did not fetch every picture.
    """
    figures = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary)
        certificate = certificate_for(folder / "certificate.pem", "127.0.0.1", timedelta(days=1))
        for name, case in CASES.items():
            tls = certificate if case.tls else None
            latency = case.milliseconds / 1000
            with photo_server(photos, folder, latency, tls, http2=case.http2) as (server, port):
                pid = server.process.pid
                origin = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
                clients = {
                    "ours": _client([sys.executable, "-m", "benchmarks.download"], tls),
                    "img2dataset": _client(
                        [python_with("img2dataset"), REPOSITORY / "benchmarks" / "img2dataset_client.py"], tls
                    ),
                }
                figures += _compare(name, case, clients, origin, pid, rounds, folder)
    return figures


def _urls(origin: str, count: int, path: Path) -> Path:
    """Write so many pictures' URLs to a file, one a line."""
    path.write_text("".join(f"{origin}/photo/{number}\n" for number in range(count)))
    return path


def _compare(
    name: str, case: Case, clients: dict[str, Client], origin: str, pid: int, rounds: int, folder: Path
) -> list[Figure]:
    threads = case.threads
    few = _urls(origin, _WARM_UP, folder / "few.txt")
    urls = _urls(origin, PICTURES, folder / "urls.txt")
    # What a start costs in CPU is taken off. Ours states none of it.
    start = {way: _fetched(client, few, threads, folder)["cpu_seconds"] for way, client in clients.items()}
    start["ours"] = 0.0
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in clients}
    for number in range(rounds):
        # Neither way is always first.
        for way in list(clients)[:: -1 if number % 2 else 1]:
            print(f"{name}, round {number + 1} of {rounds}, {way} ...", end=" ", file=sys.stderr, flush=True)
            before = process_seconds(pid)
            run = _fetched(clients[way], urls, threads, folder)
            run["server_cpu_seconds"] = process_seconds(pid) - before
            print(f"{run['pictures'] / run['seconds']:.0f} images/s", file=sys.stderr, flush=True)
            runs[way].append(run)
    pairs = zip(runs["ours"], runs["img2dataset"], strict=True)
    ratio = median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
    figures = [Figure(f"{name}: ours / img2dataset, {threads} threads each", ratio, at_least=case.ratio)]
    for way, of_way in runs.items():
        figures += [
            Figure(f"{name}: {way}, images/s", median(PICTURES / run["seconds"] for run in of_way)),
            Figure(
                f"{name}: {way}, CPU, ms an image",
                (median(run["cpu_seconds"] for run in of_way) - start[way]) * 1_000 / PICTURES,
            ),
            Figure(
                f"{name}: {way}, the server's CPU, ms an image",
                median(run["server_cpu_seconds"] for run in of_way) * 1_000 / PICTURES,
            ),
        ]
    return figures


def _fetched(client: Client, urls: Path, threads: int, folder: Path) -> dict[str, Any]:
    output = folder / "output"
    run = client(urls, threads, output)
    shutil.rmtree(output)
    expected = len(urls.read_text().splitlines())
    if run["pictures"] != expected:
        raise RunFailedError(
            f"{run['pictures']} pictures of {expected} were fetched: the times cannot be compared."
        )
    return run


def _client(command: list[str | Path], certificate: Path | None) -> Client:
    # Imported by img2dataset, it would look for a newer version of itself.
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    if certificate is not None:
        environment |= {"SSL_CERT_FILE": str(certificate), "FEATURES_CA_FILE": str(certificate)}

    def run(urls: Path, threads: int, output: Path) -> dict[str, Any]:
        done = subprocess.run(
            [*command, urls, str(threads), output],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )
        if done.returncode != 0:
            raise RunFailedError(f"{command[-1]} failed.\n{done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


def main() -> None:
    """Fetch the URLs of a file, all of one host, once; the last line is JSON."""
    urls, threads, folder = Path(sys.argv[1]).read_text().split(), int(sys.argv[2]), Path(sys.argv[3])
    settings = Settings(
        image_hosts=(urlsplit(urls[0]).netloc,),
        downloads=threads,
        downloads_per_host=threads,
        requests_per_second_per_host=1e6,
    )
    # Arrow imports pandas with the first rows that it takes.
    download.run(_plan(urls[:_WARM_UP], folder / "warm_up").chunks[0], settings)
    chunk = _plan(urls, folder / "measured").chunks[0]
    before = resource.getrusage(resource.RUSAGE_SELF)
    statistics = download.run(chunk, settings)
    used = resource.getrusage(resource.RUSAGE_SELF)
    pictures = sum(
        batch.num_rows - batch.column(0).null_count
        for batch in packs.batches(chunk.pictures, columns=["sha256"])
    )
    print(
        json.dumps(
            {
                "pictures": pictures,
                "seconds": statistics["seconds"],
                "cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
            }
        )
    )


def _plan(urls: list[str], folder: Path) -> Plan:
    """A plan of one chunk."""
    plan = Plan(
        folder=folder,
        request=Request("benchmark", "download"),
        feature_version="none",
        planned=len(urls),
        current=0,
        created_at=datetime.now(UTC),
        bounds=(0, len(urls)),
        labels=("all",),
    )
    with packs.writing(plan.items, packs.ITEMS) as pack:
        for number, url in enumerate(urls):
            pack.add({"item_id": str(number), "img_url": url})
    plan.save()
    return plan


if __name__ == "__main__":
    main()
