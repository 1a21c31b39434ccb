"""When passes are recorded and when a recording may be used, with recordings that tell whether
their memory was still theirs. What a GPU makes of it is in test_gpu.py."""

import gc

import pytest
import torch

from fedpgp.towers import cuda_graphs
from fedpgp.towers.cuda_graphs import RUNS_FIRST, Graphs
from tests.helpers.recordings import Recording, record_on_the_cpu


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    record_on_the_cpu(monkeypatch)
    return Graphs()


class Owner:
    @staticmethod
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3


def passed(graphs: Graphs, owner: Owner, x: torch.Tensor) -> torch.Tensor:
    """Forward and backward; the gradient."""
    y = graphs(owner, owner.cube, x)
    assert torch.equal(y, x**3)
    return torch.autograd.grad(y.sum(), x)[0]


def context(size: int, value: float = 2.0) -> torch.Tensor:
    return torch.full((size,), float(value), requires_grad=True)


def test_the_third_pass_of_a_shape_is_recorded_and_later_ones_replayed(graphs):
    owner = Owner()
    for i in range(RUNS_FIRST + 4):
        assert torch.equal(passed(graphs, owner, context(3, i)), torch.full((3,), 3.0 * i * i))
        assert len(graphs) == (i >= RUNS_FIRST)
    (recording,) = graphs._kept[owner].values()
    assert recording.replays == 4


def test_without_a_gradient_nothing_is_recorded(graphs):
    owner = Owner()
    for _ in range(RUNS_FIRST + 4):
        graphs(owner, owner.cube, context(3).detach())
        with torch.no_grad():
            graphs(owner, owner.cube, context(3))
    assert not len(graphs)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_pass_between_anothers_forward_and_backward_runs_as_it_is(graphs, order):
    owner = Owner()
    for size in (3, 4):
        for _ in range(RUNS_FIRST + 1):
            passed(graphs, owner, context(size))
    contexts = [context(3, 2), context(4, 3), context(3, 4)]
    results = [graphs(owner, owner.cube, x) for x in contexts]
    for i in order:
        assert torch.equal(
            torch.autograd.grad(results[i].sum(), contexts[i])[0], 3 * contexts[i].detach() ** 2
        )


def test_a_result_that_is_dropped_frees_its_recording(graphs):
    owner = Owner()
    for _ in range(RUNS_FIRST + 1):
        passed(graphs, owner, context(3))
    graphs(owner, owner.cube, context(3))  # nobody asks for its gradient
    before = next(iter(graphs._kept[owner].values())).replays
    passed(graphs, owner, context(3))
    assert next(iter(graphs._kept[owner].values())).replays == before + 1


def test_two_gradients_of_one_pass(graphs):
    owner, x = Owner(), context(3)
    for _ in range(RUNS_FIRST + 1):
        passed(graphs, owner, x)
    y = graphs(owner, owner.cube, x)
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first, torch.full((3,), 12.0))


def test_a_function_of_several_tensors(graphs):
    """One without a gradient, one that is not used; each has the gradient of its own values."""
    owner = Owner()
    for i in range(RUNS_FIRST + 4):
        a, b, unused = context(3, i), context(3, i + 1).detach(), context(2)
        y = graphs(owner, lambda a, b, unused: a * a * b, a, b, unused)
        assert torch.equal(y, a * a * b)
        d_a, d_unused = torch.autograd.grad(
            y.sum(), [a, unused], allow_unused=True, materialize_grads=True
        )
        assert torch.equal(d_a, 2 * a * b) and not d_unused.any()
        del y  # its gradient could still be asked for
    (recording,) = graphs._kept[owner].values()
    assert recording.replays == 4


def test_each_variant_of_a_function_has_a_recording(graphs):
    owner = Owner()
    for i in range(RUNS_FIRST + 2):
        for power in (2, 3):
            x = context(3, i)
            y = graphs(owner, lambda x, power=power: x**power, x, variant=power)
            assert torch.equal(torch.autograd.grad(y.sum(), x)[0], power * x ** (power - 1))
            del y
    assert len(graphs) == 2


def test_what_was_not_tried_on_a_gpu_is_not_recorded_unless_asked_for(graphs, monkeypatch):
    owner = Owner()
    for more, recorded in ((False, 0), (True, 1)):
        monkeypatch.setattr(Graphs, "more", more)
        for _ in range(RUNS_FIRST + 2):
            assert torch.equal(graphs.record_more(owner, owner.cube, context(3)), context(3) ** 3)
        assert len(graphs) == recorded


def test_recordings_go_with_their_owner(graphs):
    for _ in range(3):
        owner = Owner()
        for _ in range(RUNS_FIRST + 1):
            passed(graphs, owner, context(3))
        assert len(graphs) == 1
    del owner
    gc.collect()
    assert not len(graphs) and not len(graphs._seen)


def test_a_larger_recording_takes_the_place_of_all_smaller_ones(graphs, monkeypatch):
    owner, size = Owner(), 0
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: size)

    def cube(x):
        nonlocal size
        size += len(x)
        return x**3

    owner.cube = cube
    for length, recorded in ((4, 1), (3, 2), (4, 2), (5, 1)):
        for _ in range(RUNS_FIRST + 1):
            graphs(owner, owner.cube, context(length))
        assert len(graphs) == recorded
    graphs(owner, owner.cube, context(3))  # it has run as it is before
    assert len(graphs) == 2


def test_a_pass_that_does_not_fit_drops_the_others_only_once(graphs, monkeypatch):
    owner, size, made = Owner(), 0, []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: size)
    monkeypatch.setattr(cuda_graphs, "_free", lambda device: 20)
    monkeypatch.setattr(cuda_graphs, "_Recording", lambda *of: made.append(of) or Recording(*of))

    def cube(x):
        nonlocal size
        size += len(x)
        return x**3

    owner.cube = cube
    for _ in range(8):
        for length in (4, 11):
            graphs(owner, owner.cube, context(length))
    assert len(graphs) == 1 and len(made) == 2


def test_what_does_not_fit_runs_as_it_is(graphs, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_free", lambda device: 150)  # a pass keeps 100
    owner = Owner()
    for _ in range(RUNS_FIRST + 4):
        passed(graphs, owner, context(3))
    assert not len(graphs) and graphs.enabled


def test_a_recording_that_fails_is_done_without(graphs, caplog):
    owner = Owner()
    for size in (3, 13, 3):
        for _ in range(RUNS_FIRST + 2):
            passed(graphs, owner, context(size))
    assert not len(graphs) and not graphs.enabled and Graphs.enabled
    assert (
        caplog.text.count("not used any more: operation not permitted when stream is capturing")
        == 1
    )
