"""What a GPU must not change: features, gradients, a cohort's training; and that bfloat16 products stay near.

make test ARGS="-m gpu"
"""

import copy

import pytest
import torch
from golden import golden_clip
from test_training import SIZES, start, world
from torch.testing import assert_close

from fedpgp.clip import FrozenCLIP
from fedpgp.methods import METHODS, Images
from fedpgp.task import Task
from fedpgp.text import PromptedTextEncoder
from fedpgp.training import TrainingSettings, train_cohort

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
NAMES = ["cat", "golden retriever", "airplane", "clover", "swimming pool"]


def on(device: str) -> FrozenCLIP:
    return FrozenCLIP(copy.deepcopy(golden_clip().model).to(device))


def grown(clip: FrozenCLIP, device: str, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and the gradient of a sum of them, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, 32, generator=generator, dtype=torch.float64).to(options.get("dtype", torch.float64))
    context = start.to(device).requires_grad_()
    features = PromptedTextEncoder(clip, NAMES, 4, **options)(context)
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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_cohort_trains_as_on_the_cpu(optimizer):
    settings = TrainingSettings(epochs=2, batch_size=5, lr=0.05, optimizer=optimizer)
    results = []
    for device in ("cpu", "cuda"):
        task = Task(on(device), NAMES, n_ctx=3, dtype=torch.float64)
        method = METHODS["fedpgp"](METHODS["fedpgp"].Settings(rank=2), task)
        features, labels, rows, classes = world(task)
        params = {name: tensor.to(device) for name, tensor in start(method, range(len(SIZES))).items()}
        options = {"seed": 5, "clients": list(range(len(SIZES))), "round": 2}
        images, labels = Images(features.to(device)), labels.to(device)
        results.append(train_cohort(method, params, images, labels, rows, classes, settings, **options))
    for name, tensor in results[0].params.items():
        assert_close(results[1].params[name].cpu(), tensor, rtol=1e-9, atol=1e-11)


def test_a_run_on_the_gpu_scores_as_on_the_cpu(tmp_path):
    """The embedded federation, two rounds: at most one test image a client apart."""
    from experiments.runner import start as start_run
    from experiments.settings import composed

    accuracy = []
    for device in ("cpu", "cuda"):
        run = tmp_path / device
        words = ["runtime=inline", "rounds=2", "clients=6", f"device={device}", f"run_dir={run}", "evaluate_every=0"]
        summary = start_run(composed(words))
        accuracy.append(summary["accuracy"]["personal"]["local"])
        assert (summary["peak_gpu_mb"] is not None) == (device == "cuda")
    assert abs(accuracy[0] - accuracy[1]) < 1.0
