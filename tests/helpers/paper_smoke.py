"""The first cell of every published table, for two rounds: recipes, readers, protocols and reports,
before anybody has CLIP's weights and the public data.

    python -m tests.helpers.paper_smoke                     # make paper-smoke
    python -m tests.helpers.paper_smoke paper_beta flip_dual --all-methods

The data are :mod:`tests.helpers.public_layouts`; the models have random weights and the layout of
ViT-B/16 and RN50, made small, since the true ones take hours for all tables on two cores. One cell,
of the paper's main table, is run with the true ViT-B/16, from an archive in OpenAI's layout.
A cell is the first value of every list of the table's sweep; of methods FedPGP, or the first that
learns.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from experiments import parts
from experiments.settings import CONF, choices, composed
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.methods import METHODS
from tests.helpers.public_layouts import public_data
from tests.helpers.weights import save_archive, save_folder

MAIN = "paper_base2novel"
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
SMALL = {
    "vit_b16": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8},
    "rn50": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
}
"""Towers of images that stand for those of the tables."""
FULL = "ViT-B-16-quickgelu"
ROUNDS = 2

FEWER = {
    "fedtpg_cross_dataset": ["clients=8", "participation=0.25"],
    "fedtpg_cross_domain": ["clients=8", "participation=0.25"],
    "paper_cifar10": ["clients=10", "local_epochs=1"],
    "paper_cifar100": ["clients=10"],
    "unseen_clients": ["clients=10"],
    "lifelong_cifar100": ["clients=6", "local_epochs=1", "protocol.tasks=2"],
    "lifelong_domainnet": ["clients=6", "rounds=6"],
}
"""What a table of many clients, epochs or tasks has here."""


def published() -> list[str]:
    """Return the names of the tables on public data."""
    return [name for name in choices()["experiment"] if _dataset(name) != "emoji"]


def _dataset(name: str) -> str:
    first = [f"{key}={values[0]}" for key, values in _sweep(name).items()]
    return composed([f"experiment={name}", *first])["dataset"]["name"]


def _sweep(name: str) -> dict[str, list[str]]:
    config = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    params = config.get("hydra", {}).get("sweeper", {}).get("params", {})
    return {key: str(values).split(",") for key, values in params.items()}


def cells(name: str, all_methods: bool) -> list[list[str]]:
    """Return the overrides of a table's cells that are run."""
    sweep = _sweep(name)
    learning = [method for method in sweep.get("method", ()) if METHODS[method].learns]
    methods = sweep.get("method", []) if all_methods else sorted(learning, key="fedpgp".__ne__)[:1]
    chosen = [f"{key}={values[0]}" for key, values in sweep.items() if key != "method"]
    return [[*chosen, f"method={method}"] for method in methods] or [chosen]


def make_models(folder: Path) -> dict[str, str]:
    """Write the small models; return the name of each for ``model.name``."""
    CLIP, found = import_open_clip().model.CLIP, {}
    for name, vision in SMALL.items():
        config = {"embed_dim": 64, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT}
        torch.manual_seed(0)
        save_folder(CLIP(**config), config, folder / name)
        found[name] = f"local-dir:{folder / name}"
    return found


def run(name: str, cell: Sequence[str], model: Sequence[str], data: Path, folder: Path) -> str:
    """Run a cell and return its figures in words; of one of several parts (a domain that is held
    out), those of the first.

    Args:
        name: of the table.
        cell: its overrides.
        model: overrides of the model.
        data: the data sets' folder.
        folder: of the run, and of the features beside it.

    Raises:
        ValueError: it did not end, or has no figures.
    """
    words = [f"experiment={name}", f"rounds={ROUNDS}", "runtime=inline", *cell, *model]
    words += ["dataset.download=false", f"dataset.root={data}", f"run_dir={folder}"]
    words += [f"runtime.cache_dir={folder.parent / 'features'}", *FEWER.get(name, ())]
    if "lifelong" in name:
        words.append("protocol.rounds_per_task=1")
    parts.start(composed(words), f"paper_smoke {name}")
    summaries = [json.loads(path.read_text()) for path in sorted(folder.rglob("summary.json"))]
    return [_in_words(summary) for summary in summaries][0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells; print a line each, and return 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help="of conf/experiment; none: every published one")
    parser.add_argument("--all-methods", action="store_true", help="not FedPGP alone")
    parser.add_argument("--small", action="store_true", help="leave the true ViT-B/16 out")
    options = parser.parse_args(arguments)
    failed, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, models = public_data(folder / "data"), make_models(folder)
        asked = []
        for name in options.tables or published():
            for cell in cells(name, options.all_methods):
                kind = "rn50" if _model(name, cell).startswith("RN50") else "vit_b16"
                asked.append((name, cell, [f"model.name={models[kind]}", "model.pretrained=null"]))
        if not options.small and (not options.tables or MAIN in options.tables):
            made = import_open_clip().create_model(FULL, pretrained=None)
            archive = save_archive(made, folder / "ViT-B-16.pt")
            few = ["shots=1", "local_epochs=1", f"model.pretrained={archive}"]
            asked.append((MAIN, cells(MAIN, False)[0], few))
        for number, (name, cell, model) in enumerate(asked):
            started, log = time.monotonic(), folder / f"{number}.log"
            with log.open("w") as out, contextlib.redirect_stdout(out):
                try:
                    said = run(name, cell, model, data, folder / f"run_{number}")
                except Exception as error:
                    failed += 1
                    traceback.print_exc()
                    said = f"FAILED: {type(error).__name__}: {error}"
            took = time.monotonic() - started
            kind = FULL if model[-1].endswith(".pt") else "small"
            print(f"{took:6.1f} s  {name} {' '.join(cell)} ({kind}): {said}", flush=True)
    print(f"{len(asked)} cells, {failed} failed, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


def _in_words(summary: dict) -> str:
    figures = summary["accuracy"]["personal"] or summary["accuracy"]["global"]
    told = {key: value for key, value in figures.items() if isinstance(value, float)}
    if summary["status"] != "finished" or not told:
        raise ValueError(f"status {summary['status']}, figures {told}")
    return ", ".join(f"{key} {value:.1f}" for key, value in list(told.items())[:4])


def _model(name: str, cell: Sequence[str]) -> str:
    return composed([f"experiment={name}", *cell])["model"]["name"]


if __name__ == "__main__":
    sys.exit(main())
