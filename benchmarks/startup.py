"""How long the command line takes to answer, beside what importing lightning alone takes."""

import statistics
import subprocess
import sys
import time

from benchmarks.measure import Measurement, device_name, seconds

ALLOWED = 3.0  # seconds on top of lightning


def startup(repeats: int = 3) -> Measurement:
    """Seconds of `python -m sphere_pl fit --help`; the ratio is that of the time allowed to the time taken."""
    alone, ours = [], []
    for _ in range(repeats + 1):  # the first pair fills the disk's cache
        alone.append(seconds(lambda: _run("-c", "import lightning"), time.perf_counter))
        ours.append(seconds(lambda: _run("-m", "sphere_pl", "fit", "--help"), time.perf_counter))
    lightning, helped = statistics.median(alone[1:]), statistics.median(ours[1:])
    name = f"start-up: {ALLOWED:g} s beside `import lightning` allowed, by time taken"
    return Measurement(name, (lightning + ALLOWED) / helped, 1, None, helped, device_name())


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
