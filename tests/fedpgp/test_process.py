"""What commands, models and federations set for the whole process: memory is kept, and waiting
OpenMP threads give up their cores, whichever of torch and fedpgp is imported first."""

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from clients.client_app import federation_of
from experiments import report
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.clip import load_clip
from fedpgp.errors import FedPGPError
from fedpgp.process import THREADS_CHOSEN, set_up_process

ROOT = Path(__file__).parents[2]
SET_UP = "from fedpgp.process import set_up_process; set_up_process()"
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


def unset() -> dict[str, str]:
    """The environment without what says how threads wait: a test sets up this process too."""
    return {name: value for name, value in os.environ.items() if name not in THREADS_CHOSEN}


def processor_seconds(first: str, **environment: str) -> float:
    """Seconds of processor time that a process takes for next to nothing, with two OpenMP
    threads."""
    environment = {**unset(), "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", first + WORK],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.slow  # it compares processor times
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: OpenMP never spins for long")
def test_the_order_of_imports_does_not_matter():
    spinning = processor_seconds("import torch, fedpgp")
    set_up_first, torch_first = (
        processor_seconds(SET_UP),
        processor_seconds(f"import torch\n{SET_UP}"),
    )
    assert max(set_up_first, torch_first) < spinning / 2
    own = processor_seconds(f"import torch\n{SET_UP}", OMP_WAIT_POLICY="ACTIVE")
    assert own > 2 * torch_first


def node() -> None:
    with contextlib.suppress(FedPGPError):
        federation_of("{}")


@pytest.mark.parametrize(
    "use",
    [
        lambda: load_clip("tiny"),
        lambda: build_federation(composed(["runtime=inline"])),
        node,
        lambda: report.main(["nowhere"]),
    ],
    ids=["model", "federation", "node", "command"],
)
def test_every_use_sets_up_the_process(use, monkeypatch):
    for name in THREADS_CHOSEN:
        monkeypatch.delenv(name, raising=False)
    set_up_process.cache_clear()
    use()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_process_of_one_thread_is_left_alone():
    code = f"import torch, threading\n{SET_UP}\nassert threading.active_count() == 1"
    environment = {**unset(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def huge_pages() -> str | None:
    """Whether Linux gives large pages unasked: always, madvise or never."""
    try:
        said = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return said.split("[")[1].split("]")[0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
@pytest.mark.skipif(huge_pages() == "always", reason="a page is 2 MiB")
def test_freed_memory_is_kept_for_the_next_step():
    script = """
import ctypes, resource
{first}
libc, size = ctypes.CDLL(None), ctypes.c_size_t(20_000_000)
libc.malloc.restype = ctypes.c_void_p
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(libc.malloc(size)) for _ in range(10)]
    for block in blocks:
        ctypes.memset(block, 1, size.value)
    while blocks:
        libc.free(blocks.pop())
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))
    }

    def faults(first: str, **environment: str) -> int:
        command = [sys.executable, "-c", script.format(first=first)]
        environment |= plain | {"PYTHONPATH": str(ROOT)}
        return int(
            subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            ).stdout
        )

    kept, usual = faults(SET_UP), faults("import fedpgp")
    assert 20 * kept < usual
    assert faults(SET_UP, GLIBC_TUNABLES="glibc.malloc.perturb=0") > usual / 2, (
        "a user's own settings win"
    )
