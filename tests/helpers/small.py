"""A real federation that is small: a random text tower, made-up image features, and clients
that can be told to fail.

Ray workers build it too, from the configuration alone; ``dataset.faults`` in it says
who fails, when and how.
"""

import json
import os
import signal
import time
from copy import deepcopy
from functools import cache, reduce
from pathlib import Path

import numpy as np
import torch

from experiments.settings import composed, flatten, parse
from fedpgp.attacks import poisoned
from fedpgp.build import method_settings
from fedpgp.clip import FrozenCLIP
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.data import ArraySplit, Dataset
from fedpgp.data.joint import Concat
from fedpgp.federation import Federation
from fedpgp.methods import METHODS
from fedpgp.precision import DTYPES
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit
from fedpgp.task import Task
from fedpgp.training import TrainingSettings
from fedpgp.training.private_training import private_training

CLASSES = ["cat", "golden retriever", "airplane", "clover", "swimming pool", "tea cup"]
EMBED = 16


def small_config(run_dir: Path | str, *overrides: str, faults: dict | None = None) -> dict:
    """A configuration of the small federation: inline, 6 clients, 3 rounds, float64, two of
    three clients a round."""
    chosen, plain = [], {}
    for text in overrides:
        value = _plain_value(text)
        if value is _HYDRAS:
            chosen.append(text)
        else:
            plain[text.partition("=")[0]] = value
    if not plain.keys() <= flatten(_composed(*chosen)).keys():
        chosen, plain = list(overrides), {}
    config = deepcopy(_composed(*chosen)) | {"run_dir": str(run_dir)}
    for key, value in plain.items():
        *path, name = key.split(".")
        reduce(dict.get, path, config)[name] = value
    config["method"] |= METHODS[config["method"]["name"]].small
    config["dataset"]["faults"] = faults or {}
    return config


_HYDRAS = object()


def _plain_value(text: str) -> object:
    """The value that an override gives to one setting. It takes Hydra, which needs a tenth of a
    second, where others follow from it (a group's choice, ``shots``), or where it cannot work."""
    key, equals, value = text.partition("=")
    known = flatten(_composed())
    if not equals or key not in known or key in ("shots", "method.component") or "${" in value:
        return _HYDRAS
    (override,) = parse([text])
    found = _HYDRAS if override.is_sweep_override() else override.value()
    return _HYDRAS if isinstance(found, dict) else found


@cache
def _composed(*overrides: str) -> dict:
    return composed(
        [
            "runtime=inline",
            "protocol=personal",
            "partition=iid",
            "clients=6",
            "rounds=3",
            "participation=0.67",
            "local_epochs=1",
            "batch_size=4",
            "device=cpu",
            "dtype=float64",
            *overrides,
        ]
    )


def small_federation(text: str) -> Federation:
    """Configuration (JSON text) -> the small federation."""
    config = json.loads(text)
    rng = np.random.default_rng(1)
    clients, per_client = config["clients"], 6
    centres = rng.normal(size=(len(CLASSES), EMBED))
    splits, features, raws, mirrored, patches = {}, {}, {}, {}, {}
    for split in ("train", "test"):
        labels = rng.integers(len(CLASSES), size=clients * per_client)
        pixels = 20 * labels[:, None, None, None] + np.random.default_rng(2).integers(
            128, size=(len(labels), 8, 8, 3)
        )
        splits[split] = ArraySplit(pixels.astype(np.uint8), labels)
        raw = centres[labels] + rng.normal(size=(len(labels), EMBED))
        raws[split] = raw
        features[split] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        mirrored[split] = features[split][:, ::-1]
        patches[split] = _patches(raw)
    for client in config["dataset"].get("faults", {}).get("nan", ()):
        features["train"][client * per_client] = np.nan
    dataset = Dataset("small", CLASSES, "a photo of a {}.", splits["train"], None, splits["test"])
    classes = tuple(range(len(CLASSES)))
    client_splits = []
    for client in range(clients):
        rows = np.arange(client * per_client, (client + 1) * per_client)
        train = rows[: 3 + client % 4]  # clients of different sizes
        client_splits.append(ClientSplit(train, classes, {"local": EvalSet(rows, classes)}))
    federated_split = poisoned(config, FederatedSplit(dataset, classes, (), client_splits))
    dataset = federated_split.dataset
    for split in ("train", "test"):
        if isinstance(part := getattr(dataset, split), Concat):  # patched images behind the others
            for arrays in (features, raws, mirrored, patches):
                arrays[split] = _with_patched(arrays[split], part.parts[1].split.rows)
    task = Task(
        _clip(), CLASSES, n_ctx=4, context_init="a photo of a", dtype=DTYPES[config["dtype"]][0]
    )
    method_class = METHODS[config["method"]["name"]]
    training = TrainingSettings(
        epochs=config["local_epochs"],
        batch_size=config["batch_size"],
        lr=config["lr"],
        rounds=config["rounds"],
    )
    return Faulty(
        config["dataset"].get("faults", {}),
        method_class(method_class.Settings(**method_settings(config)), task),
        dataset,
        federated_split,
        features.__getitem__,
        training,
        patches=patches.__getitem__,
        mirrored=mirrored.__getitem__,
        features_raw=raws.__getitem__,
        seed=config["seed"],
        keep_optimizer=config["method"].get("optimizer_state") == "keep",
        personal_start=config["method"].get("personal_start", "shared"),
        weighting=config["method"].get("weighting"),
        slow_clients=config["runtime"].get("slow_clients", 0.0),
        private=private_training(config, federated_split, training),
    )


def _patches(raw: np.ndarray, count: int = 4) -> np.ndarray:
    """Made-up patch features around an image's own, (N, count, embed)."""
    noisy = raw[:, None] + np.random.default_rng(3).normal(size=(len(raw), count, EMBED))
    return noisy / np.linalg.norm(noisy, axis=-1, keepdims=True)


def _with_patched(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Features with those of patched images behind them: all shifted alike."""
    moved = array[rows] + np.random.default_rng(4).normal(size=array.shape[-1])
    length = np.linalg.norm(array[rows], axis=-1, keepdims=True)
    moved = moved / np.linalg.norm(moved, axis=-1, keepdims=True) * length
    return np.concatenate([array, moved])


class Faulty(Federation):
    """Clients that fail as told: ``nan``, ``raise``, ``die``, ``hang`` … name clients, ``round``
    when (else always), ``until`` a file that ends it; ``slow`` is seconds a training message,
    ``kill_server_at`` a round."""

    def __init__(self, faults: dict, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.faults = faults

    def train(self, shared, clients, server_round, load_state, client_only=None):
        faults = self.faults
        time.sleep(faults.get("slow", 0))
        if server_round == faults.get("kill_server_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        for result in super().train(shared, clients, server_round, load_state, client_only):
            if (
                server_round == faults.get("round", server_round)
                and not Path(faults.get("until", "/nowhere")).exists()
            ):
                if result.client in faults.get("raise", ()):
                    raise RuntimeError(f"client {result.client} fell over")
                if result.client in faults.get("die", ()):
                    os.kill(os.getpid(), signal.SIGKILL)
                if result.client in faults.get("hang", ()):
                    time.sleep(3600)
                if result.client in faults.get("inf_update", ()):
                    result.update = {
                        name: tensor * np.inf for name, tensor in result.update.items()
                    }
                if result.client in faults.get("wrong_shape", ()):
                    result.update = {name: tensor[:-1] for name, tensor in result.update.items()}
                if result.client in faults.get("wrong_count", ()):
                    result.num_examples = 10**6
                if result.client in faults.get("extra_metric", ()):
                    result.metrics["mood"] = 1.0
                if result.client in faults.get("no_steps", ()):
                    del result.metrics["steps"]
            yield result


@cache
def _clip() -> FrozenCLIP:
    CLIP = import_open_clip().model.CLIP

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(
            embed_dim=EMBED,
            vision_cfg={"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
            text_cfg={
                "context_length": 77,
                "vocab_size": 49408,
                "width": 32,
                "heads": 2,
                "layers": 2,
            },
            quick_gelu=True,
        )
    return FrozenCLIP(model.double())


def main(arguments: list[str]) -> int:
    """``start|resume RUN_DIR FAULTS [overrides]``: a run in a process of its own, to be killed;
    returns its exit status.
    """
    from experiments.runner import resume, start
    from experiments.stopping import Stopped

    verb, run_dir, faults, *overrides = arguments
    try:
        if verb == "start":
            start(
                small_config(run_dir, *overrides, faults=json.loads(faults)),
                federation_of=small_federation,
            )
        else:
            resume(Path(run_dir), federation_of=small_federation)
    except Stopped as stopped:
        return stopped.code
    return 0
