"""The pages that add a data set, a partition, a strategy, an update step and a protocol, followed
to the letter: their file, their YAML, a run."""

import json
import sys
import types

import numpy as np
import pytest
import yaml
from PIL import Image

from experiments.runner import start
from experiments.settings import composed
from fedpgp.data import DATASETS, SCHEMES, load_dataset, partition
from fedpgp.errors import FedPGPError
from fedpgp.protocols import PROTOCOLS, make_protocol
from fedpgp.updates import UPDATE_STEPS
from fedpgp.updates.configured import configured_steps
from strategies.aggregation.base import STRATEGIES
from strategies.checkpoint import checkpoints, read_checkpoint
from strategies.flower_strategies import make_strategy
from tests.docs.pages import block, blocks
from tests.helpers.small import small_config, small_federation


def execute(name: str, code: str, monkeypatch) -> None:
    """Run a page's code as a module, which registers what it adds."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, f"{name}.py", "exec"), vars(module))


def test_the_data_set_page(tmp_path, monkeypatch):
    """Its loader reads its layout, refuses a stranger, and a run trains on it."""
    monkeypatch.setitem(DATASETS, "shapes", None)
    execute("shapes", block("add_a_dataset.md", "python"), monkeypatch)
    with pytest.raises(FedPGPError, match="shapes is not there"):
        load_dataset("shapes", tmp_path)
    folder = tmp_path / "shapes"
    (folder / "img").mkdir(parents=True)
    names = ["circle", "square", "triangle"]
    for split in ("train", "test"):
        lines = []
        for i in range(12):
            path = f"img/{split}{i}.png"
            Image.new("RGB", (32, 32), (20 * i, 80 * (i % 3), 9)).save(folder / path)
            lines.append(f"{path} {names[i % 3]}")
        (folder / f"{split}.txt").write_text("\n".join(lines))
    options = yaml.safe_load(block("add_a_dataset.md", "yaml"))
    config = composed(
        [
            "runtime=inline",
            "partition=iid",
            "protocol=personal",
            "clients=2",
            "rounds=1",
            "local_epochs=1",
        ]
    )
    config |= {"run_dir": str(tmp_path / "run"), "dataset": {**options, "root": str(tmp_path)}}
    assert start(config)["dataset"] == "shapes"
    (folder / "test.txt").write_text("img/test0.png star")
    with pytest.raises(FedPGPError, match="unknown class star"):
        load_dataset("shapes", tmp_path)


def test_the_partition_page(monkeypatch):
    code, options = (
        block("add_a_partition.md", "python"),
        yaml.safe_load(block("add_a_partition.md", "yaml")),
    )
    monkeypatch.setitem(SCHEMES, "halves", None)
    execute("halves", code, monkeypatch)
    labels = np.repeat(np.arange(5), 200)
    name = options.pop("scheme")
    parts = partition(labels, 4, name, 0, **options)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert [len(part) for part in parts] == [450, 450, 50, 50]
    with pytest.raises(FedPGPError, match="partition.tilt=1.5"):
        partition(labels, 4, name, 0, tilt=1.5)


def test_the_strategy_page(tmp_path, monkeypatch):
    """One round of FedCenter with part 0.25 moves a quarter of the way that FedAvg moves."""
    monkeypatch.setitem(STRATEGIES, "fedcenter", None)
    execute("fedcenter", block("add_a_strategy.md", "python"), monkeypatch)
    with pytest.raises(FedPGPError, match="part=2 cannot work"):
        make_strategy("fedcenter", {"part": 2})

    def last(run_dir, strategy):
        common = ("rounds=1", "participation=1", "evaluate_every=0", "method=promptfl")
        config = {**small_config(run_dir, *common)}
        config["strategy"] = {**config["strategy"], **strategy}
        start(config, federation_of=small_federation)
        return [
            read_checkpoint(path)[0]["shared/p_G"] for path in checkpoints(run_dir / "checkpoint")
        ]

    options = yaml.safe_load(block("add_a_strategy.md", "yaml"))
    first, mean = last(tmp_path / "a", {"name": "fedavg"})
    _, moved = last(tmp_path / "b", {**options, "part": 0.25})
    assert abs(mean - first).max() > 1e-4
    np.testing.assert_allclose(moved, first + 0.25 * (mean - first), rtol=0, atol=1e-12)


def test_the_update_step_page(tmp_path, monkeypatch):
    """With one level every change is none or as large as the largest, also after the mean of one
    client; the YAML's choice does the same as the list's entry."""
    monkeypatch.setitem(UPDATE_STEPS, "coarse", None)
    execute("coarse", block("add_an_update_step.md", "python"), monkeypatch)
    common = ("rounds=1", "clients=1", "participation=1", "evaluate_every=0", "method=promptfl")
    common += ("runtime.min_clients=1",)
    options = yaml.safe_load(block("add_an_update_step.md", "yaml"))
    assert options == {"name": "coarse", "levels": UPDATE_STEPS["coarse"].Settings().levels}

    def last(run_dir, *overrides, **choices):
        config = {**small_config(run_dir, *common, *overrides), **choices}
        start(config, federation_of=small_federation)
        tensors = [read_checkpoint(file)[0] for file in checkpoints(run_dir / "checkpoint")]
        (line,) = (
            json.loads(text)
            for text in (run_dir / "metrics.jsonl").read_text().splitlines()
            if '"train"' in text
        )
        return tensors[1]["shared/p_G"] - tensors[0]["shared/p_G"], line.get("updates")

    (plain, nothing), (listed, said) = (
        last(tmp_path / "plain"),
        last(tmp_path / "listed", "updates=[{name: coarse, levels: 1}]"),
    )
    chosen, _ = last(tmp_path / "chosen", privacy={**options, "levels": 1})
    largest = abs(plain).max()
    expected = np.where(abs(plain) > largest / 2, np.sign(plain) * largest, 0)
    assert nothing is None and said == {"coarse": {"zeros": np.mean(expected == 0)}}
    np.testing.assert_allclose(listed, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(chosen, listed)
    with pytest.raises(FedPGPError, match="levels=0 cannot work"):
        last(tmp_path / "refused", "updates=[{name: coarse, levels: 0}]")


def test_an_update_step_in_a_package_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setitem(UPDATE_STEPS, "coarse", None)
    (tmp_path / "my_steps.py").write_text(block("add_an_update_step.md", "python"))
    monkeypatch.syspath_prepend(tmp_path)
    (step,) = configured_steps({"updates": [{"name": "my_steps.Coarse", "levels": 2}]})
    assert step.settings.levels == 2 and step.name == "my_steps.Coarse"
    for name, said in (
        ("my_steps.Fine", "has no attribute"),
        ("nowhere.Step", "No module named"),
        ("pathlib.Path", "no class that derives from fedpgp.updates.UpdateStep"),
    ):
        with pytest.raises(FedPGPError, match=said):
            configured_steps({"updates": [name]})


def test_the_protocol_page(tmp_path, monkeypatch):
    """Its protocol runs, and so does the one whose classes arrive late."""
    first, late = blocks("add_a_protocol.md", "python")
    options = yaml.safe_load(block("add_a_protocol.md", "yaml"))
    for name, code in (("first_classes", first), ("late_classes", late)):
        monkeypatch.setitem(PROTOCOLS, name, None)
        execute(f"fedpgp.protocols.{name}", code, monkeypatch)
        assert make_protocol({**options, "name": name}) == PROTOCOLS[name]()
    words = ["runtime=inline", "partition=iid", "clients=2", "rounds=2", "local_epochs=1"]
    words += ["shots=2", "method=promptfl"]
    for name, since in (("first_classes", {}), ("late_classes", {"since": 2})):
        config = composed([*words, f"run_dir={tmp_path / name}"])
        config["protocol"] = {**options, "name": name, **since}
        assert start(config)["accuracy"]["personal"]["novel"] is not None
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        novel = [line["global"]["novel"] for line in lines if line["kind"] == "eval"]
        assert [value is None for value in novel] == [bool(since), bool(since), False]
    with pytest.raises(FedPGPError, match="count=46 leaves no class: data set emoji has 46"):
        start({**config, "protocol": {**options, "count": 46}, "run_dir": str(tmp_path / "none")})
