"""Where bfloat16 products are native, as the processor's own list of instructions says."""

import pytest
import torch

from experiments.checkup import machine
from experiments.settings import composed
from fedpgp import precision
from fedpgp.build import build_federation, check_config
from fedpgp.precision import native_bfloat16, resolve_dtype

CPU = torch.device("cpu")
LISTS = {
    "flags\t\t: fpu avx512f avx512_bf16 fsrm": True,
    "flags\t\t: fpu avx512f amx_bf16 amx_tile": True,
    "Features\t: fp asimd bf16 i8mm": True,
    "flags\t\t: fpu avx2 avx512f avx512_vnni": False,
    "Features\t: fp asimd": False,
}


@pytest.mark.parametrize("line", LISTS)
def test_the_processors_list_is_read(line, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: bf16 of somebody\n{line}\n")
    assert native_bfloat16(CPU) is LISTS[line]
    assert machine.processor()["bfloat16"] is LISTS[line]
    assert resolve_dtype("auto", "cpu") == ("bfloat16" if LISTS[line] else "float32")
    assert resolve_dtype("float64", "cpu") == "float64"


def test_without_a_list_torch_is_asked_where_it_knows(tmp_path, monkeypatch):
    there = native_bfloat16(CPU)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "nowhere")
    if hasattr(torch.cpu, "get_capabilities"):
        assert native_bfloat16(CPU) == there
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert native_bfloat16(CPU) is None and resolve_dtype("auto", "cpu") == "float32"


def test_a_federation_takes_auto(tmp_path, monkeypatch):
    config = composed(["runtime=inline", "dtype=auto", "device=cpu"])
    check_config(config)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags\t\t: amx_bf16\n")
    task = build_federation(config).method.task
    assert (task.dtype, task.compute) == (torch.float32, torch.bfloat16)
