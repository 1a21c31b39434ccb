"""One training step (loss and gradients) of every method that learns, against what its own FLOPs
say.

A method's own FLOPs are those of the linear layers that its equations cannot do without. They are
computed from the method's definition (:meth:`fedpgp.methods.Method.step_work`), not counted in
what its code executes. So whatever a step computes too often shows, and so does all that is no such
product: attention, norms, activations, transport, small operations.

``ratio`` is the time of a step divided by the time that these FLOPs take at this machine's GEMM
speed at their shapes: the median over pairs of a step and such products, in turn. It is 1 /
``share_of_gemm`` of ``bench step``.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from experiments.bench.measure import block_products, in_turn, peak_memory
from experiments.bench.step import IMAGES, random_batch, start, task_of
from fedpgp.methods import METHODS, Batch, Method, Params, StepContext
from fedpgp.methods.base import PHASE
from fedpgp.seeding import generator
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet, Task

CLIENTS = 10
"""In the federation of a method whose server keeps a state for each of them; one is trained."""
IN_TOWER = 4
"""Images in a step of a method that works inside the image tower: what it costs is
proportional to them."""


@dataclass(frozen=True)
class Case:
    """A method's step of one client (``run``), and what the parts of such a step need."""

    method: Method
    params: Params
    batch: Batch
    classes: ClassSet
    step: StepContext

    @classmethod
    def of(cls, method: Method, images: int | None = None) -> "Case":
        """Return a client in its second round, with what the server sends it and the method
        precomputes.

        Args:
            method: what it trains.
            images: of its batch; None takes the benchmark's number.
        """
        task, shared = method.task, method.init_shared(generator(0, "shared"))
        if images is None:
            images = IN_TOWER if "pixels" in method.inputs else IMAGES
        batch = random_batch(method, 1, images)
        classes = task.class_set(range(len(task.class_names)))
        server_state = {
            name: torch.ones_like(tensor) if name == "known" else torch.randn_like(tensor)
            for name, tensor in method.init_server_state(CLIENTS).items()
        }
        params = start(method, 1)
        for name, tensor in method.download_for(0, server_state).items():
            params[name] = tensor.to(task.device, task.dtype).unsqueeze(0)
        if PHASE in method.buffers:
            params[PHASE] = torch.zeros(1, dtype=torch.int64, device=task.device)
        with torch.no_grad():
            params |= method.precompute(params, lambda images=True: batch, classes)
        global_params = {name: params[name] for name in shared}
        return cls(method, params, batch, classes, StepContext(2, 1, (0,), global_params, 0.1, 0))

    def run(self) -> tuple[torch.Tensor, Params]:
        return self.method.gradients(self.params, self.batch, self.classes, self.step)

    @property
    def images(self) -> int:
        return self.batch.labels.shape[1]

    @property
    def work(self) -> Work:
        """What the method's equations need in the step."""
        patches = self.batch.images.patches
        count = 0 if patches is None else patches.shape[2]
        tower = getattr(self.method, "tower", None)
        return self.method.step_work(StepSize(self.images, self.classes, count, tower))


def learning() -> list[str]:
    """Return the names of the methods that learn."""
    return [name for name, method in METHODS.items() if method.learns]


def method_of(name: str, task: Task) -> Method:
    """Return a method with its default settings, as far as they fit the model."""
    return METHODS[name](METHODS[name].settings_of(task.clip.text_blocks), task)


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each method and number of classes."""
    for count in arguments.classes:
        task = task_of(count, arguments)
        for name in arguments.methods or learning():
            case = Case.of(method_of(name, task))
            work = case.work
            products, gflop = block_products(
                work.rows, work.width, task.device, task.compute or task.dtype
            )
            repeats = max(1, round(work.gflop / 2 / gflop))  # so long that a busy moment hits both

            def reference(products=products, repeats=repeats):
                for _ in range(repeats):
                    products()

            ours, theirs = in_turn(case.run, reference, arguments.repeats)
            speeds = [repeats * gflop / seconds for seconds in theirs]
            yield {
                "bench": "methods",
                "method": name,
                "classes": count,
                "images": case.images,
                "ms": 1e3 * statistics.median(ours),
                "own_gflop": work.gflop,
                "gflops": work.gflop / statistics.median(ours),
                "gemm_gflops": statistics.median(speeds),
                "ratio": statistics.median(
                    t * s / work.gflop for t, s in zip(ours, speeds, strict=True)
                ),
                "peak_mb": peak_memory(case.run),
            }
