"""Two federated rounds of the published algorithm (tests/golden), through the real server,
strategy and client app."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch.testing import assert_close

from clients.private_state import PrivateStore, owner
from experiments.runner import start
from experiments.settings import composed
from fedpgp.build import method_settings
from fedpgp.data import ArraySplit, Dataset
from fedpgp.federation import Federation
from fedpgp.methods import METHODS, Batch, Images
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit
from fedpgp.task import Task
from fedpgp.training import TrainingSettings
from tests.helpers.golden import STEP, golden, golden_class_names, golden_clip

GUIDANCE = {"x": "context", "photo": "photo"}
CLIENTS, ROUNDS, RANK, MU, LR, BATCH, EPOCHS = 3, 2, 4, 0.5, 0.02, 5, 2
TIGHT = {"rtol": 0, "atol": 1e-9}


def client_data(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    rounds = golden("fed_rounds")
    return F.normalize(rounds[f"client{client}/image_features_raw"].double(), dim=-1), rounds[
        f"client{client}/labels"
    ]


def golden_federation(text: str) -> Federation:
    config = json.loads(text)
    features, labels = (
        torch.cat(parts) for parts in zip(*map(client_data, range(CLIENTS)), strict=True)
    )
    ends = np.cumsum([len(client_data(c)[1]) for c in range(CLIENTS)])
    rows = [np.arange(end - len(client_data(c)[1]), end) for c, end in enumerate(ends)]
    split = ArraySplit(np.zeros((len(labels), 4, 4, 3), dtype=np.uint8), labels.numpy())
    names = golden_class_names()
    method = METHODS["fedpgp"]
    dataset, classes = (
        Dataset("golden", names, "a photo of a {}.", split, None, split),
        tuple(range(5)),
    )
    federation = Federation(
        method(
            method.Settings(**method_settings(config)),
            Task(golden_clip(), names, n_ctx=16, dtype=torch.float64),
        ),
        dataset,
        FederatedSplit(
            dataset,
            classes,
            (),
            [ClientSplit(r, classes, {"local": EvalSet(r, classes)}) for r in rows],
        ),
        lambda split: features.numpy(),
        TrainingSettings(
            epochs=config["local_epochs"],
            batch_size=config["batch_size"],
            lr=config["lr"],
            **config["training"],
        ),
        seed=config["seed"],
    )
    # Every client starts from the stored tensors.
    federation.models.initial_shared = lambda: {"p_G": golden("inputs")["n16/p_G"].double().numpy()}
    federation.models.initial_state = lambda client: {
        name: golden("inputs")[f"n16_r{RANK}/{name}"].double() for name in ("U", "V")
    }
    return federation


def golden_config(run_dir, mode: str) -> dict:
    return composed(
        [
            "runtime=inline",
            "protocol=personal",
            "partition=iid",
            f"clients={CLIENTS}",
            f"rounds={ROUNDS}",
            f"local_epochs={EPOCHS}",
            f"batch_size={BATCH}",
            f"lr={LR}",
            "n_ctx=16",
            "context_init=normal",
            f"method.rank={RANK}",
            f"method.mu={MU}",
            f"method.guidance={GUIDANCE[mode]}",
            "training.shuffle=false",
            "device=cpu",
            "dtype=float64",
            f"run_dir={run_dir}",
        ]
    )


@pytest.mark.parametrize("mode", ["x", "photo"])
def test_rounds_with_a_fresh_optimizer(tmp_path, mode):
    expected, run_dir = golden("fed_rounds"), tmp_path / "run"
    assert expected["settings"].tolist() == [
        16,
        RANK,
        MU,
        0.5,
        LR,
        0.9,
        5e-4,
        BATCH,
        EPOCHS,
        ROUNDS,
    ]
    summary = start(golden_config(run_dir, mode), federation_of=golden_federation)
    run, attempt = owner(run_dir / "private")
    store = PrivateStore(run_dir / "private", run, attempt)
    for server_round in range(ROUNDS):
        key = f"{mode}/reset/round{server_round}"
        (checkpoint,) = (run_dir / "checkpoint").glob(f"round_*{server_round + 1}.safetensors")
        shared = [tensor for name, tensor in load_file(checkpoint).items() if name.endswith("p_G")]
        assert_close(torch.from_numpy(shared[0]), expected[f"{key}/global_p_G"], **TIGHT)
        for client in range(CLIENTS):
            state = store.load(client, server_round + 1)
            for name in ("U", "V"):
                assert_close(state[name], expected[f"{key}/{name}"][client], **TIGHT)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    accuracy = [
        line["personal"]["local"] for line in lines if line["kind"] == "eval" and line["round"] > 0
    ]
    assert_close(
        torch.tensor(accuracy).double(),
        expected[f"{mode}/reset/mean_client_accuracy"],
        rtol=0,
        atol=1e-4,
    )
    assert summary["accuracy"]["personal"]["local"] == accuracy[-1]


@pytest.mark.parametrize("mode", ["x", "photo"])
def test_the_public_codes_leaking_momentum_is_reproduced_by_a_loop_only(mode):
    """One optimizer serves all clients, so momentum leaks from client to client and round to round.
    The product has no such mode."""
    expected = golden("fed_rounds")
    method = METHODS["fedpgp"]
    task = Task(golden_clip(), golden_class_names(), n_ctx=16, dtype=torch.float64)
    method = method(method.Settings(rank=RANK, mu=MU, guidance=GUIDANCE[mode]), task)
    classes = task.class_set(range(5))
    inputs = golden("inputs")
    p_G = inputs["n16/p_G"].double()
    own = [
        {name: inputs[f"n16_r{RANK}/{name}"].double() for name in ("U", "V")}
        for _ in range(CLIENTS)
    ]
    momentum: dict[str, torch.Tensor] = {}
    for server_round in range(ROUNDS):
        key = f"{mode}/carry/round{server_round}"
        copies = {}
        for client in expected[f"{key}/client_order"].tolist():
            features, labels = client_data(client)
            params = {
                "p_G": p_G.clone(),
                **{name: tensor.clone() for name, tensor in own[client].items()},
            }
            for first in list(range(0, len(labels), BATCH)) * EPOCHS:
                rows = slice(first, first + BATCH)
                count = len(labels[rows])
                batch = Batch(
                    Images(features[rows][None]),
                    labels[rows][None],
                    torch.full((1, count), 1 / count, dtype=torch.float64),
                )
                _, grads = method.gradients(
                    {name: tensor[None] for name, tensor in params.items()}, batch, classes, STEP
                )
                for name, tensor in params.items():
                    step = grads[name][0] + 5e-4 * tensor
                    momentum[name] = 0.9 * momentum[name] + step if name in momentum else step
                    params[name] = tensor - LR * momentum[name]
            copies[client] = params.pop("p_G")
            own[client] = params
        sizes = expected["sizes"].double()
        p_G = sum(sizes[c] / sizes.sum() * copies[c] for c in range(CLIENTS))
        assert_close(p_G, expected[f"{key}/global_p_G"], **TIGHT)
        assert_close(
            torch.stack([own[c]["U"] for c in range(CLIENTS)]), expected[f"{key}/U"], **TIGHT
        )


def test_aggregation_is_weighted_by_images():
    """Flower's average of the stored copies, over all, some and one of the clients."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    from experiments.runtimes.inline import InlineGrid
    from strategies.flower_strategies import make_strategy

    stored = golden("aggregate")
    for case in ("all", "subset", "single"):
        replies = []
        InlineGrid(None)  # making a Message needs the identity it sets
        for client in stored[f"{case}/clients"].tolist():
            arrays = ArrayRecord({"p_G": Array(stored["client_prompts"][client].numpy())})
            metrics = MetricRecord({"num-examples": int(stored["sizes"][client])})
            replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), 1, "train"))
        averaged, _ = make_strategy("fedavg", {}).aggregate_train(1, replies)
        assert_close(torch.from_numpy(averaged["p_G"].numpy()), stored[f"{case}/average"], **TIGHT)
    assert (stored["all/average"] - stored["all/unweighted_mean_for_contrast"]).abs().max() > 1e-3
