"""A step of one client with ``privacy=image`` against the same step without, and a loop over images
(each by itself: forward, backward, clipping) against it too."""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch

from experiments.bench.measure import gflop, in_turn, peak_memory, relative
from experiments.bench.methods import Case, method_of
from experiments.bench.step import task_of
from fedpgp.methods import Params
from fedpgp.training.image_gradients import why_not
from fedpgp.training.private_training import PrivateGradients, PrivateWork
from fedpgp.updates.clipping import clipped
from fedpgp.updates.image_privacy import ImagePrivacySettings

METHODS = ("promptfl", "fedpgp")
"""Measured by default."""


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each method and number of classes."""
    for count in arguments.classes:
        task = task_of(count, arguments)
        for name in arguments.methods or METHODS:
            method = method_of(name, task)
            if why_not(method) is not None:
                continue
            yield row(Case.of(method), arguments.repeats)


def row(case: Case, repeats: int) -> dict:
    """The row of a method's step."""
    settings = ImagePrivacySettings(noise=0.0)
    images = case.images
    work = PrivateWork(0, 1, 1, 10 * images, 0.1, 10, 0.0, 1e-3, [(0.0, 0.1, 10)], settings)
    engine = PrivateGradients({0: work})

    def private() -> Params:
        case.method.differentiate = engine
        try:
            return case.run()[1]
        finally:
            del case.method.differentiate

    def loop() -> Params:
        return _loop(case, settings.clip)

    ours, theirs = private(), loop()
    plain, batched = in_turn(case.run, private, repeats)
    again, looped = in_turn(case.run, loop, max(1, repeats // 2))
    return {
        "bench": "image_privacy",
        "method": case.method.name,
        "classes": len(case.classes.names),
        "images": images,
        "plain_ms": 1e3 * statistics.median(plain),
        "ms": 1e3 * statistics.median(batched),
        "loop_ms": 1e3 * statistics.median(looped),
        "ratio": statistics.median(batched) / statistics.median(plain),
        "products_ratio": gflop(private) / gflop(case.run),
        "loop_ratio": statistics.median(looped) / statistics.median(again),
        "peak_mb": peak_memory(private),
        "largest_difference": max(relative(ours[name], theirs[name]) for name in ours),
    }


def _loop(case: Case, clip: float) -> Params:
    """The clipped sum over images, each by itself, and the terms without images; without noise."""
    method, step = case.method, case.step
    total: dict[str, torch.Tensor] = {}
    for b in range(case.images):
        alone = case.batch[:, b : b + 1]
        alone = replace(alone, weights=torch.ones_like(alone.weights))
        leaves = {n: case.params[n].clone().requires_grad_() for n in method.trainable(case.params)}
        loss = method.image_term({**case.params, **leaves}, alone, case.classes, step)
        found = _grad(loss, leaves)
        bounded, _ = clipped(dict(zip(leaves, found, strict=True)), clip)
        total = {n: total.get(n, 0) + g / case.images for n, g in bounded.items()}
    leaves = {n: case.params[n].clone().requires_grad_() for n in total}
    free = method.free_term({**case.params, **leaves}, case.classes, step)
    if free is not None:
        found = _grad(free, leaves)
        total = {n: total[n] + g for n, g in zip(leaves, found, strict=True)}
    return total


def _grad(loss: torch.Tensor, leaves: Params) -> tuple[torch.Tensor, ...]:
    inputs = list(leaves.values())
    return torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
