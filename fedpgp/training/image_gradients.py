"""The gradient that each image of a client's batch has by itself, exactly and in batches.

A loss that is the sum of a term of each image and of terms of no image,

    L = sum_b w_b l_b(params) + r(params)

with l_b of image b alone and w_b its weight in the batch, has dL/dw_b = l_b: one derivative by the
weights gives the losses of all images, of whatever method. A method says that its loss is such
(``Method.per_image``), and how l_b meets the towers:

* ``"shared"``: images meet what is learned in the classifier alone. One forward pass through the
  text tower serves all images of a client; each has a backward pass of its own, many in one.
* ``"copies"``: every image goes through a tower by itself (image prompts, a context made of the
  image). Each image gets a copy of the tensors on the client axis; one backward pass is each
  copy's own.

A method declares it for its own class: a subclass, whose loss may be another, says it again.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fedpgp.methods.base import Batch, Images, Method, Params, StepContext
from fedpgp.task import ClassSet
from fedpgp.towers.cuda_graphs import eager
from fedpgp.towers.folded import HIDDEN_BYTES

COPIES = 8
"""Images in one pass of copies: as many texts may go through the text tower with gradients."""
DEVICE_BYTES = 2**30
"""What the hidden layer of a pass may take on a device that is not a CPU."""


def why_not(method: Method) -> str | None:
    """Return why a method has no gradient of one image; None: it has."""
    if (reason := method.why_not_per_image()) is not None:
        return reason
    if type(method).__dict__.get("per_image") is None:
        return (
            f"method={method.name}: its class does not say that its loss is a sum over images "
            "(per_image, docs/add_a_method.md)"
        )
    return None


def image_gradients(
    method: Method, params: Params, batch: Batch, classes: ClassSet, step: StepContext
) -> Iterator[tuple[Tensor, Params]]:
    """Yield losses l_b (n,) and their gradients (n, ...) by every trainable tensor, a few images
    at a time.

    Args:
        method: declares how.
        params: of one client, (1, ...).
        batch: its images, (1, B); the weights are not read.
        classes: to choose among.
        step: of this client.
    """
    if not batch.labels.shape[1]:
        return
    found = _shared if method.per_image == "shared" else _copies
    with eager():
        yield from found(method, params, batch, classes, step)


def _shared(
    method: Method, params: Params, batch: Batch, classes: ClassSet, step: StepContext
) -> Iterator[tuple[Tensor, Params]]:
    leaves = {name: params[name].detach().requires_grad_() for name in method.trainable(params)}
    weights = torch.ones_like(batch.weights).requires_grad_()
    with torch.enable_grad():
        term = method.image_term(
            {**params, **leaves}, replace(batch, weights=weights), classes, step
        )
        (losses,) = torch.autograd.grad(term.sum(), weights, create_graph=True)

    def backward(cotangent: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            losses,
            list(leaves.values()),
            cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    size = _images_a_pass(method, classes)
    one_hot = torch.eye(losses.shape[1], dtype=losses.dtype, device=losses.device).unsqueeze(1)
    for start, chunk in enumerate(one_hot.split(size)):
        if method.task.checkpointing:  # what is computed again cannot be batched
            grads = [torch.stack(each) for each in zip(*map(backward, chunk), strict=True)]
        else:
            grads = torch.func.vmap(backward)(chunk)
        where = slice(start * size, start * size + len(chunk))
        yield (
            losses.detach()[0, where],
            {name: grad.squeeze(1) for name, grad in zip(leaves, grads, strict=True)},
        )


def _copies(
    method: Method, params: Params, batch: Batch, classes: ClassSet, step: StepContext
) -> Iterator[tuple[Tensor, Params]]:
    images = batch.labels.shape[1]
    for start in range(0, images, COPIES):
        count = min(COPIES, images - start)
        part = batch[:, start : start + count]
        read = {what: t for what, t in vars(part.images).items() if t is not None}
        each = Batch(
            Images(**{what: tensor[0].unsqueeze(1) for what, tensor in read.items()}),
            part.labels[0].unsqueeze(1),
            torch.ones_like(part.weights[0]).unsqueeze(1),
        )
        of_each = {name: _repeated(tensor, count) for name, tensor in params.items()}
        about = replace(
            step,
            clients=[step.clients[0]] * count,
            global_params={n: _repeated(t, count) for n, t in step.global_params.items()},
        )
        leaves = {n: of_each[n].detach().requires_grad_() for n in method.trainable(params)}
        with torch.enable_grad():
            losses = method.image_term({**of_each, **leaves}, each, classes, about)
            grads = torch.autograd.grad(
                losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        yield losses.detach(), dict(zip(leaves, grads, strict=True))


def _repeated(tensor: Tensor, count: int) -> Tensor:
    return tensor.expand(count, *tensor.shape[1:]).contiguous()


def _images_a_pass(method: Method, classes: ClassSet) -> int:
    """Backward passes in one: as many as keep the hidden layer of the text tower in bounds."""
    task = method.task
    tokens = classes.encoder(task.n_ctx).tokens * method.contexts(training=True)
    hidden = tokens * 4 * task.clip.width * torch.finfo(task.dtype).bits // 8
    return max(1, (HIDDEN_BYTES if task.device.type == "cpu" else DEVICE_BYTES) // hidden)
