"""Where bfloat16 products are native, as the processor's own list of instructions says."""

import pytest
import torch

from experiments.checkup import machine
from experiments.run_checks import choose_dtype
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
    assert resolve_dtype("auto", "cpu", "tiny") == ("bfloat16" if LISTS[line] else "float32")
    assert resolve_dtype("auto", "cpu", "ViT-B-16-SigLIP") == "float32"  # takes full sequences
    assert resolve_dtype("float64", "cpu", "tiny") == "float64"


def test_without_a_list_torch_is_asked_where_it_knows(tmp_path, monkeypatch):
    there = native_bfloat16(CPU)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "nowhere")
    if hasattr(torch.cpu, "get_capabilities"):
        assert native_bfloat16(CPU) == there
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert native_bfloat16(CPU) is None and resolve_dtype("auto", "cpu", "tiny") == "float32"


NOTES = {
    ("avx512_bf16", "tiny"): "bfloat16: bfloat16 is native on this machine's cpu",
    ("avx512f", "tiny"): "float32: bfloat16 is not native on this machine's cpu",
    ("", "tiny"): "float32: bfloat16 is not known to be native on this machine's cpu",
    ("amx_bf16", "coca_ViT-B-32"): "float32: model coca_ViT-B-32 is not known to share a prefix",
    ("amx_bf16", "ViT-B-16"): "bfloat16: bfloat16 is native",
    ("amx_bf16", "hf-hub:nobody/has"): "float32: model hf-hub:nobody/has is not known to share",
}


@pytest.mark.parametrize(("has", "model"), NOTES)
def test_what_auto_becomes_is_said_with_the_reason(has, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {has}\n")
    chosen = choose_dtype({"dtype": "auto", "device": "cpu", "model": {"name": model}})
    said = capsys.readouterr().out
    assert NOTES[has, model] in said and f"dtype=auto is {chosen['dtype']}:" in said


def test_a_federation_takes_auto(tmp_path, monkeypatch):
    config = composed(["runtime=inline", "dtype=auto", "device=cpu"])
    check_config(config)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags\t\t: amx_bf16\n")
    task = build_federation(config).method.task
    assert (task.dtype, task.compute) == (torch.float32, torch.bfloat16)
