"""Each method's loss and gradients against its equations written out for one client, one class, one
image at a time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.methods import METHODS, Batch, Images, StepContext
from fedpgp.methods.base import PHASE
from fedpgp.seeding import generator
from fedpgp.task import Task

K, B, C = 3, 5, 5


def made_batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(K, B, 16, generator=rng, dtype=torch.float64), dim=-1)
    labels = torch.randint(0, C, (K, B), generator=rng)
    patches = F.normalize(torch.randn(K, B, 4, 16, generator=rng, dtype=torch.float64), dim=-1)
    pixels = torch.randn(K, B, 3, 16, 16, generator=rng, dtype=torch.float64)
    weights = torch.full((K, B), 1 / B, dtype=torch.float64)
    weights[2] = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0], dtype=torch.float64)  # a shorter batch
    raw = images * (1 + torch.rand(K, B, 1, generator=rng, dtype=torch.float64))
    return Batch(Images(images, patches, pixels, images.roll(1, 1), raw), labels, weights)


def parameters(method, batch, classes, phase=0, state_of=None):
    """Every tensor of K clients in a phase, moved away from its start, with what the server sends
    and the method precomputes. ``state_of``: method -> the server's state, in the place of noise
    in the shape of its start."""
    noise = torch.Generator().manual_seed(7)
    shared = method.init_shared(generator(0, "shared"))
    states = [method.init_personal(generator(0, "personal", k)) for k in range(K)]
    server_state = {
        n: torch.ones_like(t).double()
        if n == "known"
        else 0.1 * torch.randn(t.shape, generator=noise).double()
        for n, t in method.init_server_state(K).items()
    }
    params = {n: t.double().repeat(K, *[1] * t.dim()) for n, t in shared.items()}
    params |= {n: torch.stack([s[n] for s in states]).double() for n in states[0]}
    if "switched" in params:
        params["switched"][1] = 1
    for n in method.trainable(params):
        params[n] = params[n] + 0.01 * torch.randn(params[n].shape, generator=noise)
    if state_of is not None:
        server_state = state_of(method)
    client_only = [method.download_for(k, server_state) for k in range(K)]
    params |= {n: torch.stack([o[n] for o in client_only]) for n in client_only[0]}
    if PHASE in method.buffers:
        params[PHASE] = torch.full((K,), phase)
    return params | method.precompute(params, lambda images=True: batch, classes), set(shared)


def check_gradients(
    name: str,
    options: dict,
    equations: Callable,
    task: Task,
    batch: Batch,
    phase: int = 0,
    state_of: Callable | None = None,
) -> None:
    """A method's loss and gradients against its equations, client by client."""
    method, classes = (
        METHODS[name](METHODS[name].Settings(**options), task),
        task.class_set(range(C)),
    )
    params, shared = parameters(method, batch, classes, phase, state_of)
    global_params = {n: params[n] + 0.1 for n in shared}
    before = {n: t.clone() for n, t in params.items()}
    step = StepContext(
        server_round=2, step=1, clients=range(K), global_params=global_params, lr=0.1, seed=0
    )
    loss, grads = method.gradients(params, batch, classes, step)
    assert loss.shape == (K,) and set(grads) == set(method.trainable(params))
    reached: set[str] = set()
    for k in range(K):
        leaves = {n: t[k].clone().requires_grad_(n in grads) for n, t in before.items()}
        answer = equations(
            task, method.settings, batch, k, leaves, {n: t[k] for n, t in global_params.items()}
        )
        expected, gradients = answer if isinstance(answer, tuple) else (answer, {})
        assert_close(loss[k], expected.detach(), rtol=1e-9, atol=1e-11)
        if not gradients and grads:
            wanted = torch.autograd.grad(expected, [leaves[n] for n in grads], allow_unused=True)
            gradients = {
                n: torch.zeros_like(leaves[n]) if g is None else g
                for n, g in zip(grads, wanted, strict=True)
            }
        for n, grad in grads.items():
            if grad[k].abs().max() > 0:
                reached.add(n)
            assert_close(
                grad[k], gradients[n], rtol=1e-8, atol=1e-10, msg=lambda m, n=n: f"{name} {n}: {m}"
            )
    assert reached == set(grads), "a tensor that no client's loss depends on"
