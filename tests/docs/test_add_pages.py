"""The pages that add a data set, a partition and a strategy, followed to the letter: their
file, their YAML, a run."""

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
from strategies.aggregation.base import STRATEGIES
from strategies.flower_strategies import make_strategy
from tests.docs.pages import block
from tests.small import small_config, small_federation


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
    from strategies.checkpoint import checkpoints, read_checkpoint

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
