"""Whether memory is flat: the largest process of each stage, ten times the items against once.

The model is one that costs nothing, since the number of items is what counts. Each stage is a process of its
own with those it starts; the kernel keeps each one's peak, which is looked at while it lives.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks import free_model
from benchmarks.figures import Figure
from benchmarks.shop import variables_set
from benchmarks.volume import VolumeShop, volume_shop
from tasks.errors import RunFailedError
from tasks.settings import REPOSITORY

FEW = 5_000
MANY = 50_000
STAGES = ("plan", "download", "extract", "index", "summarise")

_LOOK_SECONDS = 0.2


def measure(photos: Path) -> list[Figure]:
    """Run the stages on few items, then on many.

    Raises:
        FeatureIndexError: a stage failed, or did not index every item.
    """
    with volume_shop(photos) as shop:
        free_model.save(shop.folder / "free_model")
        with variables_set({"FEATURES_MODEL_DIR": str(shop.folder / "free_model")}):
            _peaks(shop, 100)  # the model's graph is made
            few, many = _peaks(shop, FEW), _peaks(shop, MANY)
    figures = []
    for stage in STAGES:
        figures += [
            Figure(f"{stage}: {FEW:,} items, MB", few[stage] / 1e6),
            Figure(f"{stage}: {MANY:,} items, MB", many[stage] / 1e6),
            Figure(f"{stage}: {MANY:,} / {FEW:,} items", many[stage] / few[stage], at_most=1.1),
        ]
    return figures


def _peaks(shop: VolumeShop, items: int) -> dict[str, int]:
    """Bytes of each stage's largest process."""
    shop.stock([shop.url(item) for item in range(items)])
    peaks: dict[str, int] = {}
    plan = f"items-{items}"
    for stage in STAGES:
        print(f"{items} items, {stage} ...", end=" ", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.one_stage", stage, plan]
        peaks[stage], said = peak_of(command, shop.folder / "said")
        print(f"{peaks[stage] / 1e6:.0f} MB", file=sys.stderr, flush=True)
        if stage == "plan":
            plan = said
    if said != str(items):
        raise RunFailedError(f"{items} items were to be indexed, and {said} were.")
    shutil.rmtree(plan)
    return peaks


def peak_of(command: Sequence[str], output: Path) -> tuple[int, str]:
    """The peak in bytes of the largest process of a program, and what it printed.

    Raises:
        RunFailedError: it failed.
    """
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, cwd=REPOSITORY)
        peak = 0
        while True:
            with suppress(psutil.Error):
                own = psutil.Process(process.pid)
                peak = max(peak, *map(_high_water, (own, *own.children(recursive=True))))
            try:
                code = process.wait(_LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                pass
    if code != 0:
        raise RunFailedError(f"{' '.join(command[1:])} failed; what it wrote stands above.")
    return peak, output.read_text().strip()


def _high_water(process: psutil.Process) -> int:
    """Bytes it has had in memory at most; 0 for one that is ending."""
    with suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
            return int(found[1]) * 1024
    return 0
