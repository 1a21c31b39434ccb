"""The update steps that a configuration names, and what they may give."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch

from fedpgp.arrays import Arrays
from fedpgp.config import PrivacySection
from fedpgp.errors import FedPGPError, MethodError, unknown
from fedpgp.registry import imported_class, named_entries
from fedpgp.updates.base import UPDATE_STEPS, Metrics, Range, Update, UpdateStep

GROUPS = {"privacy": PrivacySection}
"""Groups of the configuration whose choice is a step, with its settings beside those of the group;
``none`` is none."""


def configured_steps(config: Mapping) -> list[UpdateStep]:
    """Return the steps that a configuration names, in their order.

    Args:
        config: resolved. ``updates`` holds names, or mappings of a name and settings; a name with
            dots is the import path of a class. A run of an earlier version has no such keys, and no
            steps.

    Raises:
        FedPGPError: an unknown step or setting, a value that cannot work, a step named twice.
    """
    chosen = [
        {key: value for key, value in config[group].items() if key not in section.beside()}
        for group, section in GROUPS.items()
        if group in config and config[group]["name"] != "none"
    ]
    chosen += named_entries("updates", config.get("updates"))
    steps = [_make(options) for options in chosen]
    check_names(steps)
    return steps


def _make(options: dict) -> UpdateStep:
    name = options.pop("name")
    if "." in str(name):
        found = imported_class("updates", name, UpdateStep)
    elif name in UPDATE_STEPS:
        found = UPDATE_STEPS[name]
    else:
        raise FedPGPError(unknown("update step", name, list(UPDATE_STEPS)))
    valid = [field.name for field in fields(found.Settings)]
    for option in options:
        if option not in valid:
            raise FedPGPError(unknown(f"setting of update step {name}", option, valid))
    try:
        step = found(found.Settings(**options))
    except TypeError as error:
        raise FedPGPError(f"update step {name}: {error}") from error
    step.name = name
    return step


def check_names(steps: Sequence[UpdateStep]) -> None:
    """Refuse a step that is named twice, and numbers without a range.

    Raises:
        FedPGPError: the one.
        MethodError: the other.
    """
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise FedPGPError(f"the update step {name} is named twice; name each once")
    for step in steps:
        for metric, (least, most) in step.client_metrics.items():
            if not (math.isfinite(most - least) and least < most):
                raise MethodError(
                    f"update step {step.name}: client_metrics gives {metric} no range: {least:g} "
                    f"to {most:g}"
                )


def metrics_of(steps: Sequence[UpdateStep], *, updates_only: bool = False) -> dict[str, Range]:
    """Return the numbers that clients send with an update: ``<step>.<metric>`` -> the least and the
    greatest of each.

    Args:
        steps: of the run.
        updates_only: clients tell nothing but their updates: what their training says of itself
            stays with them, and numbers that are made of the update itself are sent.
    """
    sent = [
        step
        for step in steps
        if not updates_only or type(step).on_client is not UpdateStep.on_client
    ]
    return {
        f"{step.name}.{metric}": limits
        for step in sent
        for metric, limits in step.client_metrics.items()
    }


def checked(
    step: UpdateStep, before: Update, result: tuple[Update, Metrics]
) -> tuple[Update, Metrics]:
    """Refuse what is no update of the same tensors.

    Raises:
        MethodError: naming the step.
    """
    after, metrics = result
    shapes = {name: tuple(tensor.shape) for name, tensor in before.items()}
    if {name: tuple(torch.as_tensor(t).shape) for name, t in after.items()} != shapes:
        raise MethodError(
            f"update step {step.name} gives other tensors than it was given: names and shapes "
            f"must stay {shapes}"
        )
    return after, metrics


def extra_of(step: UpdateStep, sent: Arrays) -> Update:
    """Return the tensors that a step sends beside the changes, under its own names for them."""
    return {
        name: torch.from_numpy(sent[f"{step.name}.{name}"]).double()
        for name in step.extra_tensors()
    }
