"""A step with bfloat16 products against the same step in float32."""

import argparse
import statistics
from collections.abc import Iterator

from experiments.bench.measure import gemm_gflops, in_turn, peak_memory, relative
from experiments.bench.step import STEP, setting, speed
from fedpgp.precision import native_bfloat16


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """For each number of classes."""
    for count in arguments.classes:
        steps = {}
        for dtype in ("bfloat16", "float32"):
            options = argparse.Namespace(**vars(arguments) | {"dtype": dtype})
            method, params, batch, classes = setting(count, 1, options)

            def step(method=method, params=params, batch=batch, classes=classes):
                return method.gradients(params, batch, classes, STEP)

            steps[dtype] = step, classes
        (near, classes), (exact, in_float32) = steps["bfloat16"], steps["float32"]
        (loss, grads), (true_loss, true_grads) = near(), exact()
        fast, slow = in_turn(near, exact, arguments.repeats)
        about = speed(classes, 1, statistics.median(fast))
        encoder = in_float32.encoder(in_float32.task.n_ctx)
        tower = encoder.tower
        gemm = gemm_gflops(2 * encoder.tokens, tower.width, tower.device, tower.compute)
        yield {
            "bench": "precision",
            "classes": count,
            "native": native_bfloat16(tower.device),
            "ms": 1e3 * statistics.median(fast),
            "reference_ms": 1e3 * statistics.median(slow),
            "ratio": statistics.median(slow) / statistics.median(fast),
            "gemm_ratio": about["gemm_gflops"] / gemm,
            **about,
            "peak_mb": peak_memory(near),
            "reference_peak_mb": peak_memory(exact),
            "loss_difference": relative(loss, true_loss),
            "gradient_difference": max(relative(grads[name], true_grads[name]) for name in grads),
        }
