"""The gradient of a batch's loss: one backward pass, or one for each few images."""

import torch
from torch import Tensor

from fedpgp.errors import MethodError

Params = dict[str, Tensor]


def batch_gradients(method, params: Params, batch, classes, step) -> tuple[Tensor, Params]:
    """Return the loss (K,) and the gradient of every trainable tensor, each client's from its own
    loss alone: the default of :attr:`fedpgp.methods.Method.differentiate`.

    Clients share nothing inside a step, so the gradient of the sum over clients is each client's
    own. A batch's loss is a sum over its images where a method says ``images_a_pass``, and so are
    its gradients.

    Args:
        method, params, batch, classes, step: as :meth:`fedpgp.methods.Method.gradients` has them.

    Raises:
        MethodError: the loss is not one number for each client.
    """
    size, images = method.images_a_pass, batch.labels.shape[1]
    if size is None:
        return _of_one_pass(method, params, batch, classes, step)
    parts = [
        _of_one_pass(method, params, batch[:, start : start + size], classes, step)
        for start in range(0, images, size)
    ]
    losses, grads = zip(*parts, strict=True)
    return sum(losses), {name: sum(grad[name] for grad in grads) for name in grads[0]}


def _of_one_pass(method, params: Params, batch, classes, step) -> tuple[Tensor, Params]:
    leaves = {name: params[name].detach().requires_grad_() for name in method.trainable(params)}
    with torch.enable_grad():
        loss = method.loss({**params, **leaves}, batch, classes, step)
        if loss.shape != batch.labels.shape[:1]:
            code = type(method).loss.__code__
            raise MethodError(
                f"method {method.name}: its loss has the shape {tuple(loss.shape)} and must "
                f"have {tuple(batch.labels.shape[:1])}, one number for each client of the "
                "cohort: sum or average over every axis but the first "
                f"({code.co_filename}:{code.co_firstlineno})"
            )
        grads = torch.autograd.grad(
            loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    return loss.detach(), dict(zip(leaves, grads, strict=True))
