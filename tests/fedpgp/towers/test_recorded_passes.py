"""What may be recorded: passes that read their arguments and what stays, never wait for the device
and get nothing from the host.

That a GPU takes such a recording is not shown here (libraries have states of their own): it is in
test_gpu.py.
"""

import argparse
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from operator import attrgetter

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from experiments.bench.methods import Case
from experiments.bench.step import task_of
from fedpgp.methods import METHODS
from fedpgp.towers.cuda_graphs import RUNS_FIRST, Graphs, eager
from tests.helpers.recordings import record_on_the_cpu

FROM_THE_HOST = {"lift_fresh", "lift_fresh_copy", "_to_copy"}
SHAPES_FROM_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
SHAPES_FROM_VALUES |= {"repeat_interleave", "bincount"}

SLOW = {"maple": {}, "fedit": {"where": "both"}, "fedpgp_lora": {}, "fedalt": {}, "promptfl": {}}
SLOW |= dict.fromkeys(["promptsrc", "fedmgp", "fedmvp", "fedmap", "pilora"], {})
CASES = [pytest.param("vpt", {}, id="vpt")]
CASES += [pytest.param(*case, id=case[0], marks=pytest.mark.slow) for case in SLOW.items()]


def kept(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """All tensors that an object keeps."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from kept(value, seen)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from kept(value, seen)
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from kept(getattr(thing, field.name), seen)
    elif type(thing).__module__.startswith("fedpgp.") and not isinstance(thing, nn.Module):
        yield from kept(vars(thing), seen)


def what_hinders(owner: object, function, *xs: Tensor) -> list[str]:
    """What of a pass and its gradient, as a graph of torch's operations, no recording can have: an
    operation that waits, a tensor that does not stay. A value that is taken out of a tensor ends
    the tracing."""

    def both(grad: Tensor, *xs: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_(asks) for x, asks in zip(xs, asking, strict=True)]
        y = function(*leaves)
        learned = [x for x in leaves if x.requires_grad]
        return [
            y,
            *torch.autograd.grad(y, learned, grad, allow_unused=True, materialize_grads=True),
        ]

    asking = [x.requires_grad for x in xs]
    copies = [x.detach().clone() for x in xs]
    grad = torch.ones_like(function(*xs)).detach()
    try:
        with torch.enable_grad():
            graph = make_fx(both)(grad, *copies)
    except RuntimeError as error:
        return [str(error)]
    stays = {x.untyped_storage().data_ptr() for x in kept(owner, set())}
    found = []
    for node in graph.graph.nodes:
        if node.op == "call_function":
            name = str(node.target).removeprefix("aten.").partition(".")[0]
            masks = name == "index" and any(
                x.meta["val"].dtype == torch.bool for x in node.args[1] if x is not None
            )
            if name in FROM_THE_HOST | SHAPES_FROM_VALUES or masks:
                found.append(name)
        elif node.op == "get_attr":
            constant = attrgetter(node.target)(graph)
            if constant.untyped_storage().data_ptr() not in stays:
                found.append(f"a tensor from elsewhere {tuple(constant.shape)}")
    return found


def case_of(name: str, settings: dict) -> Case:
    task = task_of(4, argparse.Namespace(model="tiny_vit", device="cpu", dtype="float32"))
    kind = METHODS[name]
    return Case.of(kind(replace(kind.settings_of(task.clip.text_blocks), **settings), task), 2)


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
@pytest.mark.parametrize("name, settings", CASES)
def test_passes_that_are_recorded_can_be_and_follow_their_arguments(name, settings, monkeypatch):
    """Each pass is watched once; then gradients of a few steps, replayed, are those of passes that
    run as they are, with other parameters each time (a replay that reads old ones would differ)."""
    case, passes, call = case_of(name, settings), [], Graphs.__call__

    def watched(self, owner, function, *xs, variant=None):
        if any(x.requires_grad for x in xs) and torch.is_grad_enabled():
            passes.append(what_hinders(owner, function, *xs))
        return function(*xs)

    monkeypatch.setattr(Graphs, "more", True)
    monkeypatch.setattr(Graphs, "__call__", watched)
    case.run()
    assert passes and not any(passes)
    monkeypatch.setattr(Graphs, "__call__", call)
    record_on_the_cpu(monkeypatch)
    trained = case.method.trainable(case.params)
    recorded: list[Graphs] = []
    monkeypatch.setattr(
        Graphs, "record_more", lambda self, *a, **k: recorded.append(self) or self(*a, **k)
    )
    for i in range(RUNS_FIRST + 2):  # the last two are replayed
        params = case.params | {n: case.params[n] + 0.1 * i for n in trained}
        arguments = params, case.batch, case.classes, case.step
        loss, grads = case.method.gradients(*arguments)
        with eager():
            true_loss, true_grads = case.method.gradients(*arguments)
        assert_close(loss, true_loss)
        assert_close(grads, true_grads)
    assert name == "promptfl" or any(len(graphs) for graphs in recorded)


def test_what_cannot_be_recorded_is_found():
    class Owner:
        pass

    elsewhere, x = torch.ones(3), torch.ones(3, requires_grad=True)
    owner = Owner()
    assert what_hinders(owner, lambda x: x * 2, x) == []
    (said,) = what_hinders(owner, lambda x: x * x.detach().sum().item(), x)
    assert "get value out of a tracing tensor" in said
    assert what_hinders(owner, lambda x: x * torch.tensor([1.0, 2.0, 3.0]), x)
    assert what_hinders(owner, lambda x: x[x.detach() > 0], x)
    assert "a tensor from elsewhere (3,)" in what_hinders(owner, lambda x: x * elsewhere, x)
