"""What runs when a GPU is lent, on the CPU and small: no line runs there for the first time."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from experiments.bench.gpu import parts
from experiments.bench.gpu.__main__ import main
from experiments.bench.gpu.record import compared
from fedpgp.towers.text import TextTower
from fedpgp.towers.triton_attention import why_not

SMALL = ["--device", "cpu", "--model", "tiny", "--classes", "3", "--clients", "1"]
SMALL += ["--repeats", "1", "--methods", "promptfl", "--dtypes", "float32"]


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
@pytest.mark.slow
def test_each_part_has_its_rows_and_a_case_that_fails_stops_no_other(tmp_path):
    chosen = ["peak", "attention", "step", "tiles", "methods"]
    assert main([*SMALL, "--out", str(tmp_path), "--parts", *chosen]) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == chosen
    assert TextTower.attention is None
    for row in rows:
        by_triton = row["part"] == "tiles" or row.get("attention") == "triton"
        if by_triton and why_not(torch.device("cpu")):
            assert row["error"].startswith("FedPGPError: attention=triton: ")
        else:
            assert "error" not in row
            assert row.get("difference", 0) < 1e-6 and row.get("gradient_difference", 0) < 1e-4
        assert row["part"] != "step" or "error" in row or row["share_of_peak"] > 0 < row["ratio"]
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("\n## ") >= len(chosen) and "| packed | float32 | 3 | 1 |" in page


def test_after_its_time_nothing_begins(tmp_path):
    words = ["--seconds", "0", "--parts", "tests", "step"]
    assert main([*SMALL, "--out", str(tmp_path), *words]) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(rows) == 4 and all(row["left_out"] == "0 s were over" for row in rows)


def test_a_device_that_is_not_there_is_refused(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["--out", str(tmp_path)]) == 2
    assert "cuda" in capsys.readouterr().err


def test_the_part_of_a_call_in_which_no_kernel_runs():
    events = [
        SimpleNamespace(key=key, device_type=device, self_device_time_total=microseconds)
        for key, device, microseconds in [
            ("product", DeviceType.CUDA, 6000.0),
            ("norm", DeviceType.CUDA, 3000.0),
            ("cudaGraphLaunch", DeviceType.CPU, 9000.0),
        ]
    ]
    found = parts.busy(events, calls=3, seconds=4e-3)
    assert found["outside_kernels"] == pytest.approx(0.25)
    assert found["kernels"] == {"product": 2.0, "norm": 1.0}
    assert parts.busy(events[2:], calls=3, seconds=4e-3) == {}


def test_triton_is_compared_with_padded_at_the_same_size():
    def row(attention: str, classes: int, ms: float) -> dict:
        size = {"dtype": "float32", "classes": classes, "clients": 1}
        return {"part": "step", "attention": attention, "ms_per_client": ms} | size

    rows = [row("padded", 50, 3.0), row("triton", 50, 2.0), row("padded", 100, 1.0)]
    assert compared(rows)[2:] == ["- float32, 50 classes, 1 clients: 1.50"]
    assert compared(rows[:1]) == []
