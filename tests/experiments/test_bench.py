"""The benchmarks compare two computations of the same thing; timing is not tested, the sameness is."""

import json
import subprocess
import sys

import pytest
import torch

from experiments import bench


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
def test_the_reference_step_computes_the_same():
    method, params, batch, classes = bench.setting(7, 2, "tiny", "cpu")
    loss, grads = method.gradients(params, batch, classes, bench.STEP)
    plain_loss, plain_grads = bench.plain_step(method, params, batch, classes)
    assert bench.relative(loss, plain_loss) < 1e-5
    assert all(bench.relative(grads[name], plain_grads[name]) < 1e-4 for name in params)


def test_peak_memory_sees_an_allocation():
    def allocate() -> torch.Tensor:
        return torch.ones(64 * 2**20 // 4).add_(1)

    assert bench.peak_memory(lambda: [allocate() for _ in range(3)]) > 100


@pytest.mark.parametrize("what", ["step", "cohort"])
def test_the_command_writes_its_rows(tmp_path, what):
    target = tmp_path / "bench.json"
    command = [sys.executable, "-m", "experiments.bench", what, "--model", "tiny", "--classes", "5", "--clients", "2"]
    run = subprocess.run([*command, "--repeats", "1", "--json", str(target)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (row,) = json.loads(target.read_text())["rows"]
    assert row["classes"] == 5 and row["gflops"] > 0 and f"wrote {target}" in run.stdout
