"""What importing the package sets for the whole process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
import {package}
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
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))}

    def faults(package: str, **environment: str) -> int:
        command = [sys.executable, "-c", script.format(package=package)]
        environment |= plain | {"PYTHONPATH": str(ROOT)}
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    kept, usual = faults("fedpgp"), faults("math")
    assert 20 * kept < usual
    assert faults("fedpgp", GLIBC_TUNABLES="glibc.malloc.perturb=0") > usual / 2, "a user's own settings win"
