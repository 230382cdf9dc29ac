"""What a user of the server waits for: upload, first click, next click, propagated slice; and the server's memory.

Run: python benchmarks/deploy_latency.py sam2.1_nano sam2.1_tiny [--slices 300] [--size 512] [--propagate 40]
Needs Linux (/proc). Each model gets its own server process; `NAME@random` measures a model whose weights are not here.
Expected: a table in Markdown on standard output.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "medsam2_ft/deploy/slicer/MedSAM2FT"))

from MedSAM2FTLib.client import Client  # noqa: E402
from MedSAM2FTLib.local_server import LocalServer  # noqa: E402
from MedSAM2FTLib.prompts import ObjectPrompt  # noqa: E402
from MedSAM2FTLib.workflow import Workflow  # noqa: E402

WINDOW = (40.0, 400.0)


def phantom(num_slices: int, size: int) -> np.ndarray:
    """An int16 volume in HU with noise and one bright column, (T, H, W)."""
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 20, (num_slices, size, size)).astype(np.int16)
    rows, columns = np.indices((size, size))
    volume[:, (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 8) ** 2] += 150
    return volume


def timed(action: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def memory_mib(pid: int, key: str) -> float:
    """A line of /proc/PID/status in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure(model: str, volume: np.ndarray, *, num_propagated: int, port: int) -> list[str]:
    """One row of the table."""
    server = LocalServer()
    url = server.start(
        sys.executable, port=port, checkpoints=[model], environment={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    pid = server._process.pid
    idle = memory_mib(pid, "VmRSS")
    workflow = Workflow(Client(url, timeout_s=600))
    num_slices, size = volume.shape[0], volume.shape[1]
    box = [size * 0.35, size * 0.35, size * 0.65, size * 0.65]
    workflow.choose_volume(volume)
    try:
        upload = timed(lambda: workflow.look_at(0, axis=0, window=WINDOW))
        places = [num_slices // 2 + offset for offset in range(5)]

        def click(index: int) -> object:
            return workflow.segment_slice([ObjectPrompt(1, index, box=box)], axis=0, window=WINDOW)

        first = statistics.median(timed(lambda index=index: click(index)) for index in places)
        following = statistics.median(timed(lambda: click(places[-1])) for _ in range(20))
        low = num_slices // 2 - num_propagated // 2
        sweep = timed(
            lambda: workflow.propagate(
                [ObjectPrompt(1, num_slices // 2, box=box)],
                axis=0,
                window=WINDOW,
                first=low,
                last=low + num_propagated - 1,
            )
        )
        peak = memory_mib(pid, "VmHWM")
    finally:
        workflow.close()
        server.stop()
    return [
        model,
        f"{upload:.2f}",
        f"{first:.3f}",
        f"{following * 1000:.0f}",
        f"{sweep / num_propagated:.3f}",
        f"{idle:.0f}",
        f"{peak:.0f}",
    ]


def main() -> None:
    """Measure each model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--propagate", type=int, default=40, help="slices to carry a mask through")
    parser.add_argument("--port", type=int, default=8699)
    options = parser.parse_args()
    volume = phantom(options.slices, options.size)
    heads = ("model", "upload + first slice, s", "first click, s", "next click, ms", "propagated slice, s")
    print(f"{volume.shape} int16, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before the start\n")
    print("| " + " | ".join((*heads, "memory idle, MiB", "memory peak, MiB")) + " |")
    print("|---" * (len(heads) + 2) + "|")
    for model in options.models:
        row = measure(model, volume, num_propagated=options.propagate, port=options.port)
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
