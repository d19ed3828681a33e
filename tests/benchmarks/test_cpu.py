"""CPU seconds are counted whoever burns them."""

import subprocess
import sys
import time

from benchmarks.cpu import cpu_seconds

BURN = "import time\nwhile time.process_time() < 0.3: pass"


def test_ours_and_those_of_processes_that_ended():
    before = cpu_seconds()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    between = cpu_seconds()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    assert between - before >= 0.3
    assert cpu_seconds() - between >= 0.19
