"""How long a run takes here, and whether it fits: a measured step and a measured image, times how
many the run has."""

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from experiments.bench.measure import median_seconds, peak_memory
from experiments.bench.methods import Case
from experiments.bench.step import task_of
from experiments.checkup.holdings import data_of
from experiments.checkup.public_data import FACTS, Facts
from fedpgp.build import configured_method
from fedpgp.clip import resolve_device
from fedpgp.config import Config
from fedpgp.precision import resolve_dtype
from fedpgp.training.cohort_size import MEMORY_FRACTION

HALVES = ("base2novel", "cross_class")
"""Protocols that train one half of the classes."""
MOST_CLASSES = 500
"""Of a measured step; with more it takes proportionally longer."""
IMAGES = 16
"""In a measured pass of the image tower."""
PROCESS = 0.8e9
"""Bytes that a worker takes before its model: Python, torch, Ray."""


@dataclass(frozen=True)
class Amount:
    """What a run has to compute.

    Attributes:
        classes: in a step.
        steps: of one client, in all rounds and evaluations.
        images: through the image tower.
    """

    classes: int
    steps: int
    images: int

    @classmethod
    def of(cls, config: Config, data: Sequence[Facts], train: Facts) -> "Amount":
        """Count what a configuration's run has.

        Args:
            config: of the run.
            data: all data sets that it reads.
            train: the one that it trains on.
        """
        name = config.protocol["name"]
        halves = name in HALVES
        trained = data if name == "cross_class" else [train]
        classes = [math.ceil(one.classes / 2) if halves else one.classes for one in trained]
        per_class = [one.train / max(1, one.classes) for one in trained]
        if config.shots is not None:
            per_class = [min(config.shots, there) for there in per_class]
        images = sum(n * c for n, c in zip(classes, per_class, strict=True))
        asked = max(1, round(config.participation * config.clients))
        mine, batch = images / config.clients, config.batch_size
        whole = math.floor if config.training.drop_last else math.ceil
        epochs = config.rounds * asked * config.local_epochs
        evaluations = 2 + (config.rounds // config.evaluate_every if config.evaluate_every else 0)
        live = config.dataset.views == "live"
        tested = sum(one.test for one in data)
        return cls(
            max(classes),
            epochs * max(1, whole(mine / batch)) + evaluations * config.clients,
            round(epochs * mine if live else images * int(config.dataset.views)) + tested,
        )


def estimate(config: Mapping, cells: int, memory: Mapping, accelerators: Sequence[Mapping]) -> dict:
    """Return how long a run takes, and its table, and whether they fit into memory.

    The step and the image are measured with random weights, in this process, with all its threads.

    Args:
        config: resolved, of one cell.
        cells: of the table.
        memory: of :func:`experiments.checkup.machine.memory`.
        accelerators: of :func:`experiments.checkup.machine.devices`.
    """
    typed = Config.of(config)
    facts = [FACTS[name] for name in data_of(config)]
    amount = Amount.of(typed, facts, facts[0])
    device = resolve_device(typed.device)
    dtype = resolve_dtype(typed.dtype, typed.device, typed.model.name)
    measured = min(amount.classes, MOST_CLASSES)
    arguments = argparse.Namespace(model=typed.model.name, device=device.type, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = task_of(measured, arguments, typed.n_ctx or 4)
        chosen, settings = configured_method(typed.method)
        case = Case.of(chosen(settings, task), typed.batch_size)
        pixels = torch.randn(
            IMAGES, 3, task.clip.image_size, task.clip.image_size, device=task.device
        )
        step = median_seconds(case.run, 3) * amount.classes / measured
        image = median_seconds(lambda: task.clip.encode_images(pixels), 2) / IMAGES
        peak = (peak_memory(case.run) or 0) * 2**20
    seconds = amount.steps * step + amount.images * image
    weights = sum(parameter.nbytes for parameter in task.clip.model.parameters())
    room = accelerators[0] if device.type == "cuda" else memory
    workers = 1 if device.type == "cuda" else min(8, torch.get_num_threads())
    together = max(peak, min(peak * typed.clients / workers, MEMORY_FRACTION * room["total"]))
    needed = workers * (weights + together + (0 if device.type == "cuda" else PROCESS))
    return {
        "device": str(device),
        "method": typed.method.name,
        "dataset": typed.dataset.name,
        "classes": amount.classes,
        "steps": amount.steps,
        "step_seconds": step,
        "images": amount.images,
        "image_seconds": image,
        "seconds": seconds,
        "cells": cells,
        "table_seconds": cells * seconds,
        "needed": round(needed),
        "fits": needed <= room["total"],
    }


def can_be_estimated(config: Mapping) -> bool:
    """Return whether a run's data are public ones, and its method learns by steps."""
    known = all(name in FACTS for name in data_of(config)) and bool(data_of(config))
    method, _ = configured_method(Config.of(config).method)
    return known and method.learns
