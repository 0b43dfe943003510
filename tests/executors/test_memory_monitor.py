"""Ray's own memory monitor, which kills a worker before the kernel would; a Ray of its own, in another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# It watches the memory of the whole machine: this test wants that for itself.
pytestmark = pytest.mark.thorough

GROWTH_BYTES = 3 * 2**30
"""How much more than now may be in use before the monitor steps in."""

DRIVER = """
import os, ray
from ray._private.utils import get_system_memory, get_used_memory

threshold = (get_used_memory() + {growth}) / get_system_memory()
os.environ |= {{"RAY_memory_usage_threshold": f"{{threshold:.4f}}", "RAY_memory_monitor_refresh_ms": "100"}}

from autopeft.executors.ray import RayExecutor
from autopeft.executors.ray_cluster import RayCluster
from autopeft.spec.design import Design
from autopeft.spec.study import RayOptions
from autopeft.spec.trial import Segment
from tests.executors.remote_workers import make_troubled

executor = RayExecutor(RayCluster(RayOptions(cpus_per_worker=1), n_workers=1), make_troubled, None, lambda: False)
for seed in (0, 7, 0):
    executor.submit(Segment(trial=seed, design=Design(), learning_rates={{}}, seed=seed, start=0, stop=20, full=50))
    (result,) = executor.wait()
    print("result:", result.status.value, (result.error.splitlines() or [""])[-1])
executor.close()
"""


def test_a_worker_that_fills_its_machine_is_out_of_memory_and_replaced() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.format(growth=GROWTH_BYTES)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, killed, after = [line for line in done.stdout.splitlines() if line.startswith("result:")]
    assert before == after == "result: done "
    assert killed.startswith("result: out_of_memory the worker's node ran out of memory (process "), killed
