"""Every strategy of conf/strategy, end to end through the server, against its formula in plain
numpy.

Two rounds of seven clients (Bulyan needs so many) with the methods whose server reads each update:
SCAFFOLD, whose shared tensors are two, with all; the others with the strategies that take the
arrays out of the replies.
"""

import gc
import json
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from clients.client_app import client_app
from clients.messages import full
from experiments.runner import start
from experiments.settings import choices
from strategies import node_registry
from strategies.aggregation.bulyan import Bulyan
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_config, small_federation

CLIENTS = 7
CASES = [
    (method, name)
    for method in ("fedamp", "pfedmoap")
    for name in ("fedavg", "fedmedian", "fedtrimmedavg", "bulyan")
]

# The formulas. x: the sent tensors, one long vector; u: (clients, length), what came back; w:
# weights, sum to one; s: the server's state from round to round.


def fedavg(x, u, w, s, t):
    """McMahan et al., AISTATS 2017: x = sum_k n_k / n u_k."""
    return w @ u


def fedavgm(x, u, w, s, t):
    """Hsu et al., arXiv 1909.06335, algorithm 1: v = beta v + sum_k n_k / n (x - u_k); x = x -
    v."""
    s["v"] = 0.9 * s.get("v", 0.0) + (x - w @ u)
    return x - s["v"]


def _adaptive(x, u, w, s, t, second, beta_1=0.9, corrected=False):
    """Reddi et al., ICLR 2021, algorithm 2: m = b1 m + (1 - b1) D;
    x = x + eta m / (sqrt(v) + tau), here from v = 0.
    FedAdam with the bias corrected as in Kingma & Ba, ICLR 2015, section 2, for a t one more."""
    delta = w @ u - x
    s["m"] = beta_1 * s.get("m", 0.0) + (1 - beta_1) * delta
    s["v"] = second(s.get("v", np.zeros_like(x)), delta**2)
    eta = 0.01 * np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1)) if corrected else 0.01
    return x + eta * s["m"] / (np.sqrt(s["v"]) + 0.001)


def fedadam(x, u, w, s, t):
    return _adaptive(x, u, w, s, t, lambda v, d2: 0.99 * v + 0.01 * d2, corrected=True)


def fedyogi(x, u, w, s, t):
    return _adaptive(x, u, w, s, t, lambda v, d2: v - 0.01 * d2 * np.sign(v - d2))


def fedadagrad(x, u, w, s, t):
    return _adaptive(x, u, w, s, t, lambda v, d2: v + d2, beta_1=0.0)


def fedmedian(x, u, w, s, t):
    """Yin et al., ICML 2018, definition 1: the median of each coordinate."""
    return np.median(u, axis=0)


def fedtrimmedavg(x, u, w, s, t):
    """Yin et al., ICML 2018, definition 2: each coordinate's mean without the largest and
    smallest fraction beta."""
    cut = int(0.2 * len(u))
    return np.sort(u, axis=0)[cut : len(u) - cut].mean(0)


def scores(u, f):
    """Blanchard et al., NeurIPS 2017, section 4: the sum of squared distances to the n -
    f - 2 nearest others."""
    found = []
    for i, mine in enumerate(u):
        others = sorted(float(((mine - other) ** 2).sum()) for j, other in enumerate(u) if j != i)
        found.append(sum(others[: len(u) - f - 2]))
    return np.array(found)


def krum(x, u, w, s, t):
    return u[scores(u, 1).argmin()]


def multikrum(x, u, w, s, t):
    """The mean of the three with the lowest scores, here weighted by their images."""
    best = np.argsort(scores(u, 1))[:3]
    return w[best] @ u[best] / w[best].sum()


def bulyan(x, u, w, s, t):
    """El Mhamdi et al., ICML 2018, section 4: of n - 2f selected by (Multi-)Krum, in each
    coordinate the mean of the n - 4f nearest to their median."""
    n, f = len(u), 1
    chosen = u[np.argsort(scores(u, f))[: n - 2 * f]]
    columns = []
    for column in chosen.T:
        nearest = sorted(column, key=lambda value: abs(value - np.median(column)))[: n - 4 * f]
        columns.append(np.mean(nearest))
    return np.array(columns)


def norm_clipping(x, u, w, s, t):
    """Sun et al., arXiv 1911.07963, section 4: each change over max(1, its norm / M), then the
    mean; M the lower median of the norms, of the prompts and of the variates, which are changes."""
    origin, moved = x.copy(), np.zeros_like(x)
    origin[: len(x) // 2] = 0.0  # c is sent as a difference
    for half in (slice(0, len(x) // 2), slice(len(x) // 2, None)):
        changes = [update[half] - origin[half] for update in u]
        norms = [np.sqrt(np.sum(change**2)) for change in changes]
        bound = sorted(norms)[(len(norms) - 1) // 2]
        for weight, change, norm in zip(w, changes, norms, strict=True):
            moved[half] += weight * change / max(1.0, norm / bound)
    return origin + moved


def text_filter(x, u, w, s, t):
    """The rule of strategies/aggregation/text_filter.py, client by client."""
    federation = small_federation(json.dumps(small_config("nowhere", "method=promptfl")))
    shape = federation.models.initial_shared()["p_G"].shape

    def texts(vector):
        prompt = vector[len(vector) // 2 :].reshape(shape)
        return federation.models.global_classifier({"p_G": prompt}, federation.base)[0].numpy()

    z, start = [texts(update) for update in u], texts(x)
    kept = set(range(len(u)))
    for vectors in (z, [(one - start).reshape(1, -1) for one in z]):
        middle = np.median(vectors, axis=0)
        values = []
        for one in vectors:
            cosines = [
                a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for a, b in zip(one, middle, strict=True)
            ]
            values.append(1 - np.mean(cosines))
        spread = np.median([abs(value - np.median(values)) for value in values])
        kept -= {k for k, value in enumerate(values) if value > np.median(values) + 3 * spread}
    s["left out"] = s.get("left out", []) + [len(u) - len(kept)]
    kept = sorted(kept)
    return w[kept] @ u[kept] / w[kept].sum()


FORMULAS = {
    strategy.__name__: strategy
    for strategy in (
        fedavg,
        fedavgm,
        fedadam,
        fedyogi,
        fedadagrad,
        fedmedian,
        fedtrimmedavg,
        krum,
        multikrum,
        bulyan,
        norm_clipping,
        text_filter,
    )
}


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def uploads_of(nodes: Nodes) -> list[dict[int, tuple[dict, float]]]:
    """For each round: client -> (tensors, images), as the nodes sent them."""
    rounds = []
    for content in nodes.replies:
        for name in [name for name in content if name.endswith("/arrays")]:
            client = int(name.partition("/")[0])
            if not rounds or client in rounds[-1]:
                rounds.append({})
            arrays = {key: array.numpy() for key, array in full(content[name]).items()}
            rounds[-1][client] = arrays, content[f"{client}/metrics"]["num-examples"]
    return rounds


def test_there_is_a_formula_for_each():
    assert set(FORMULAS) == set(choices()["strategy"])


@pytest.mark.parametrize(("method", "name"), [*(("scaffold", name) for name in FORMULAS), *CASES])
def test_the_strategy_is_the_paper_s(tmp_path, monkeypatch, name, method):
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)
    overrides = (
        f"strategy={name}",
        f"method={method}",
        "runtime=flower",
        f"clients={CLIENTS}",
        "participation=1",
    )
    config = small_config(tmp_path / "run", *overrides, "rounds=2", "evaluate_every=0")
    nodes = Nodes(
        client_app(small_federation),
        [{"client-id": c, "state-dir": str(tmp_path / f"client_{c}")} for c in range(CLIENTS)],
    )
    start(config, federation_of=small_federation, grid=nodes)

    sent, state, known = small_federation(json.dumps(config)).models.initial_shared(), {}, {}
    rounds = uploads_of(nodes)
    assert [len(updates) for updates in rounds] == [CLIENTS, CLIENTS]
    for t, (path, updates) in enumerate(
        zip(checkpoints(tmp_path / "run" / "checkpoint"), rounds, strict=True), 1
    ):
        saved, _ = read_checkpoint(path)
        shared = {
            key.removeprefix("shared/"): saved[key] for key in saved if key.startswith("shared/")
        }
        u = np.stack([flat(updates[client][0]) for client in range(CLIENTS)])
        images = np.array([updates[client][1] for client in range(CLIENTS)], dtype=float)
        w = np.full(CLIENTS, 1 / CLIENTS) if method == "scaffold" else images / images.sum()
        expected = FORMULAS[name](flat(sent), u, w, state, t)
        start_of, wanted = 0, {}
        for key in sorted(sent):
            wanted[key] = expected[start_of : start_of + sent[key].size].reshape(sent[key].shape)
            start_of += sent[key].size
        if (
            method == "scaffold"
        ):  # Karimireddy et al., ICML 2020, eq. 5: all clients take part, so |S|/N = 1
            wanted["c"] = sent["c"] + np.mean(
                [updates[client][0]["c"] for client in range(CLIENTS)], axis=0
            )
        else:
            known = {client: updates[client][0]["p_G"] for client in range(CLIENTS)}
            pool = saved["memory/models" if method == "fedamp" else "memory/pool"]
            np.testing.assert_array_equal(
                pool, np.stack([known[client] for client in range(CLIENTS)])
            )
        for key, tensor in wanted.items():
            np.testing.assert_allclose(
                shared[key], tensor, rtol=1e-9, atol=1e-12, err_msg=f"{key} after round {t}"
            )
        sent = shared


def test_bulyan_is_flower_s_and_collects_no_garbage(monkeypatch):
    """The same result to the bit; Flower's own collects once a client."""
    rng = np.random.default_rng(0)
    tensors = [{"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)} for _ in range(9)]
    results, collections = [], []
    monkeypatch.setattr(gc, "collect", lambda *generation: collections.append(time.monotonic()))
    for kind in (flower.Bulyan, Bulyan):
        replies = []
        for client, own in enumerate(tensors):
            arrays = ArrayRecord({name: Array(tensor) for name, tensor in own.items()})
            message = Message(RecordDict(), dst_node_id=client, message_type="train")
            metrics = MetricRecord({"num-examples": client + 1})
            replies.append(
                Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
            )
        collections.clear()
        aggregated, _ = kind(num_malicious_nodes=1).aggregate_train(1, replies)
        results.append(
            ({name: array.numpy() for name, array in aggregated.items()}, len(collections))
        )
    (flowers, theirs), (ours, mine) = results
    assert theirs == 7 and mine == 0
    for name, tensor in flowers.items():
        np.testing.assert_array_equal(ours[name], tensor)
    assert all(
        set(reply.content["arrays"]) == {"a", "b"} for reply in replies
    )  # nothing is taken out of them
