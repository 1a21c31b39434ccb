"""Waiting OpenMP threads give up their cores, whichever of torch and fedpgp is imported first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORK = """
import time
import torch
ones = torch.ones(2**20)
for _ in range(5):
    ones.add_(1)
before = time.process_time()
for _ in range(60):
    ones.mul_(1)
    time.sleep(0.004)  # nothing to do: a thread that spins takes a core meanwhile
print(time.process_time() - before)
"""


def processor_seconds(first: str, **environment: str) -> float:
    """Seconds of processor time that a process takes for next to nothing, with two OpenMP threads."""
    clean = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment = {**clean, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", first + WORK], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: OpenMP never spins for long")
def test_the_order_of_imports_does_not_matter():
    spinning = processor_seconds("import torch")
    fedpgp_first, torch_first = processor_seconds("import fedpgp"), processor_seconds("import torch, fedpgp")
    assert max(fedpgp_first, torch_first) < spinning / 2
    own = processor_seconds("import torch, fedpgp", OMP_WAIT_POLICY="ACTIVE")
    assert own > 2 * torch_first


def test_a_process_of_one_thread_is_left_alone():
    code = "import torch, threading, fedpgp; assert threading.active_count() == 1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_WAIT_POLICY", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
