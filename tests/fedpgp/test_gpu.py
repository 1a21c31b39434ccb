"""What a GPU must not change: features, gradients, a cohort's training; and that
bfloat16 products stay near.

make test ARGS="-m gpu"
"""

import argparse
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from experiments.bench.methods import Case, method_of
from experiments.bench.step import task_of
from fedpgp.clip import FrozenCLIP
from fedpgp.methods import METHODS, Images
from fedpgp.task import Task
from fedpgp.text import PromptedTextEncoder
from fedpgp.towers.cuda_graphs import RUNS_FIRST, Graphs, eager
from fedpgp.towers.text import TextTower
from fedpgp.training import TrainingSettings, train_cohort
from tests.fedpgp.training.test_cohort import SIZES, start, world
from tests.helpers.golden import golden_clip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
NAMES = ["cat", "golden retriever", "airplane", "clover", "swimming pool"]


def on(device: str) -> FrozenCLIP:
    return FrozenCLIP(copy.deepcopy(golden_clip().model).to(device))


def grown(clip: FrozenCLIP, device: str, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and the gradient of a sum of them, on the CPU."""
    encoder = PromptedTextEncoder(clip, NAMES, 4, **options)
    return grown_by(encoder, device, options.get("dtype", torch.float64))


def grown_by(
    encoder: PromptedTextEncoder, device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, 32, generator=generator, dtype=torch.float64).to(dtype)
    context = start.to(device).requires_grad_()
    features = encoder(context)
    weights = torch.linspace(-1, 1, features.numel()).view(features.shape).to(features)
    (grad,) = torch.autograd.grad((features * weights).sum(), context)
    return features.detach().cpu(), grad.cpu()


def test_features_and_gradients_are_the_cpus():
    for ours, theirs in zip(grown(on("cuda"), "cuda"), grown(on("cpu"), "cpu"), strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_bfloat16_products_are_near():
    exact = grown(on("cpu"), "cpu", dtype=torch.float32)
    near = grown(on("cuda"), "cuda", dtype=torch.float32, compute=torch.bfloat16)
    assert near[0].dtype == near[1].dtype == torch.float32
    for ours, theirs in zip(near, exact, strict=True):
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.99


def test_tritons_attention_in_recorded_passes_gives_the_cpus_features(monkeypatch):
    pytest.importorskip("triton")
    exact = grown(on("cpu"), "cpu", dtype=torch.float32)
    monkeypatch.setattr(TextTower, "attention", "triton")
    encoder = PromptedTextEncoder(on("cuda"), NAMES, 4, dtype=torch.float32)
    for _ in range(RUNS_FIRST + 2):
        found = grown_by(encoder, "cuda", torch.float32)
        for ours, theirs in zip(found, exact, strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert len(encoder.tower.graphs) == 1, "nothing was recorded"


def asked(encoder: PromptedTextEncoder, seed: int, clients: int = 2):
    """A context, its features, and a function that gives the context's gradient."""
    generator = torch.Generator().manual_seed(seed)
    context = (
        torch.randn(clients, 4, 32, generator=generator, dtype=torch.float64)
        .cuda()
        .requires_grad_()
    )
    features = encoder(context)
    weights = torch.linspace(-1, seed, features.numel()).view(features.shape).to(features)
    return features.detach(), lambda: torch.autograd.grad((features * weights).sum(), context)[0]


def answered(features: torch.Tensor, gradient: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    return features, gradient()


def test_replayed_graphs_give_what_running_gives(monkeypatch):
    encoder = PromptedTextEncoder(on("cuda"), NAMES, 4)
    calls = [(seed, 2 + seed % 2) for seed in range(12)]
    replayed = [answered(*asked(encoder, *call)) for call in calls]
    assert len(encoder.tower.graphs) == 2, "nothing was recorded"
    monkeypatch.setattr(Graphs, "enabled", False)
    for call, ours in zip(calls, replayed, strict=True):
        assert_close(ours, answered(*asked(encoder, *call)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_recording_is_not_used_again_before_its_gradient_is_there(backwards, monkeypatch):
    encoder = PromptedTextEncoder(on("cuda"), NAMES, 4)
    for seed in range(RUNS_FIRST + 1):
        asked(encoder, seed)[1]()
    assert len(encoder.tower.graphs) == 1
    pending = [asked(encoder, seed) for seed in range(4)]
    order = [3, 2, 1, 0] if backwards else [0, 1, 2, 3]
    gradients = {seed: pending[seed][1]() for seed in order}
    monkeypatch.setattr(Graphs, "enabled", False)
    for seed, gradient in gradients.items():
        plain, plain_gradient = asked(encoder, seed)
        assert_close(pending[seed][0], plain, rtol=0, atol=1e-12)
        assert_close(gradient, plain_gradient(), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
@pytest.mark.parametrize("name", ["maple", "promptsrc", "vpt", "fedmvp", "fedit", "fedalt"])
def test_more_is_recorded_and_gives_what_running_gives(name, monkeypatch):
    """Deep prompts, adapters and the image tower."""
    arguments = argparse.Namespace(model="tiny_vit", device="cuda", dtype="float32")
    case = Case.of(method_of(name, task_of(4, arguments)), 2)
    with eager():
        true_loss, true_grads = case.run()
    monkeypatch.setattr(Graphs, "more", True)
    used: list[Graphs] = []
    monkeypatch.setattr(
        Graphs, "record_more", lambda self, *a, **k: used.append(self) or self(*a, **k)
    )
    for _ in range(RUNS_FIRST + 2):
        loss, grads = case.run()
        assert_close(loss, true_loss, rtol=1e-5, atol=1e-6)
        for tensor, grad in grads.items():
            assert (grad - true_grads[tensor]).norm() <= 1e-4 * true_grads[tensor].norm(), tensor
    assert used and all(len(graphs) for graphs in used), "nothing was recorded"


def test_two_gradients_of_one_replay(monkeypatch):
    """As with retain_graph=True (ProGrad)."""
    encoder = PromptedTextEncoder(on("cuda"), NAMES, 4)

    def two(seed: int) -> list[torch.Tensor]:
        context = torch.full(
            (2, 4, 32), 0.1 * seed, dtype=torch.float64, device="cuda", requires_grad=True
        )
        features = encoder(context)
        return [
            torch.autograd.grad(features[..., i].sum(), context, retain_graph=True)[0]
            for i in range(3)
        ]

    replayed = [two(seed) for seed in range(RUNS_FIRST + 2)]
    assert len(encoder.tower.graphs) == 1
    monkeypatch.setattr(Graphs, "enabled", False)
    for seed, ours in enumerate(replayed):
        assert_close(ours, two(seed), rtol=0, atol=1e-12)


FAILS = """
import torch
from fedpgp.towers.cuda_graphs import RUNS_FIRST, Graphs

def waits_for_the_gpu(x):
    return x * x.detach().sum().item()

graphs, owner = Graphs(), torch.nn.Identity()
x = torch.ones(3, device="cuda", requires_grad=True)
before = torch.cuda.current_stream()
for _ in range(RUNS_FIRST + 3):
    (gradient,) = torch.autograd.grad(graphs(owner, waits_for_the_gpu, x).sum(), x)
    assert gradient.tolist() == [3, 3, 3]
assert not graphs.enabled and Graphs.enabled and torch.cuda.current_stream() == before
"""


def test_a_recording_that_fails_is_done_without():
    """In a process of its own: some versions of torch remember the failure."""
    done = subprocess.run(
        [sys.executable, "-c", FAILS], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert not done.returncode, done.stderr
    assert done.stderr.count("CUDA graphs are not used any more") == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_cohort_trains_as_on_the_cpu(optimizer):
    settings = TrainingSettings(epochs=6, batch_size=5, lr=0.05, optimizer=optimizer)
    results = []
    for device in ("cpu", "cuda"):
        task = Task(on(device), NAMES, n_ctx=3, dtype=torch.float64)
        method = METHODS["fedpgp"](METHODS["fedpgp"].Settings(rank=2), task)
        features, labels, rows, classes = world(task)
        params = {
            name: tensor.to(device) for name, tensor in start(method, range(len(SIZES))).items()
        }
        options = {"seed": 5, "clients": list(range(len(SIZES))), "server_round": 2}
        images, labels = Images(features.to(device)), labels.to(device)
        results.append(
            train_cohort(method, params, images, labels, rows, classes, settings, **options)
        )
        assert device == "cpu" or len(classes.encoder(task.n_ctx).tower.graphs) > 1, (
            "nothing was recorded"
        )
    for name, tensor in results[0].params.items():
        assert_close(results[1].params[name].cpu(), tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "runtime", [["runtime=inline"], ["runtime.workers=2", "runtime.gpus_per_worker=0.5"]]
)
def test_a_run_on_the_gpu_scores_as_on_the_cpu(runtime, tmp_path):
    """The embedded federation, two rounds, in one process and by two workers that share a GPU."""
    from experiments.runner import start as start_run
    from experiments.settings import composed

    accuracy = []
    for device in ("cpu", "cuda"):
        run = tmp_path / device
        words = runtime if device == "cuda" else ["runtime=inline"]
        words = [
            *words,
            "rounds=2",
            "clients=6",
            f"device={device}",
            f"run_dir={run}",
            "evaluate_every=0",
        ]
        summary = start_run(composed(words))
        accuracy.append(summary["accuracy"]["personal"]["local"])
        assert device == "cpu" or summary["peak_gpu_mb"] > 0
    assert abs(accuracy[0] - accuracy[1]) < 1.0
