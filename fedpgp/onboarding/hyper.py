"""``hyper``: the term that the server's network writes for the newcomer (``method=pfedhn``,
Shamsian et al., ICML 2021).

    theta = (U_0, V_0) + h(v; phi)

v is the newcomer's description, as ``method.description`` describes trained clients; it is sent to
the server, which answers with the term. With ``method.description=learned`` the newcomer is sent h
instead and fits v to its own images, phi frozen:

    v <- v - lr (d theta / d v)^T dL/d theta        from the mean of the trained clients' v on

The newcomer's own steps change the term, or v where it is learned.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedpgp.arrays import to_tensors
from fedpgp.errors import FedPGPError
from fedpgp.methods import Method, StepContext
from fedpgp.methods.base import Params
from fedpgp.methods.hyperfield import HyperField
from fedpgp.methods.pfedhn import PFedHN, network
from fedpgp.onboarding.base import Onboarding, register
from fedpgp.onboarding.descriptions import describe
from fedpgp.onboarding.fine_tune import newcomers_models, plan
from fedpgp.onboarding.newcomers import Newcomer, Onboarded, state_bytes
from fedpgp.protocols.onboarding_options import OnboardingOptions
from fedpgp.training.batches import gather
from fedpgp.training.optimizers import fresh_state, train_step


class Written(Onboarding):
    """A term that a network on the server writes from the newcomer's description."""

    @classmethod
    def why_not_method(cls, options: OnboardingOptions, method: Method) -> str | None:
        kind = method.settings.description
        if kind == "features" and 0 in options.budgets:
            return (
                "method.description=features is made of images, and protocol.budget=0 has none: "
                "take method.description=histogram or names, or another budget"
            )
        return None

    def described(self, newcomer: Newcomer) -> Tensor:
        """Return the newcomer's v, (1, n). A histogram without images is even over the classes that
        it knows to have."""
        method, kind = self.federation.method, self.federation.method.settings.description
        if kind == "histogram" and not len(newcomer.rows):
            v = np.zeros(len(method.task.class_names))
            v[list(newcomer.labels)] = 1 / len(newcomer.labels)
        else:
            v = describe(kind, self.federation, newcomer.rows, newcomer.labels)
        return torch.from_numpy(v).to(method.task.dtype)[None]

    @cached_property
    def server_state(self) -> Params:
        """What the server keeps, as tensors."""
        return to_tensors(self.trained.server_state)

    def term(self, numbers: Tensor) -> Params:
        """Return the term (1, ...) of what the network adds to where terms begin, (1, n)."""
        start = to_tensors({name: self.trained.shared[name] for name in ("U_0", "V_0")})
        u, v = self.federation.method.factors(numbers)
        return {"U": start["U_0"] + u, "V": start["V_0"] + v}

    def answered(self, v: Tensor, numbers: Tensor) -> Onboarded:
        """Return the model of a newcomer that sent v and was sent its term."""
        state = {name: tensor[0] for name, tensor in self.term(numbers).items()}
        return Onboarded(state, None, v.numel() * v.element_size(), state_bytes(state))


@register("hyper")
class Hyper(Written):
    """The newcomer reveals its description; or nothing, where v is learned. Trained clients share
    no more than method=pfedhn sends."""

    @classmethod
    def why_not_method(cls, options: OnboardingOptions, method: Method) -> str | None:
        if not isinstance(method, PFedHN) or isinstance(method, HyperField):
            return f"method={method.name} has no network that writes terms: take method=pfedhn"
        if method.settings.description == "learned" and 0 in options.budgets:
            return (
                "with method.description=learned it is fitted to the newcomer's images, and "
                "protocol.budget=0 has none, nor any description: take another budget, or "
                "method.description=histogram"
            )
        return super().why_not_method(options, method)

    @property
    def learned(self) -> bool:
        """Whether v is learned."""
        return self.federation.method.settings.description == "learned"

    def onboard(self, newcomers: Sequence[Newcomer]) -> list[Onboarded]:
        if self.learned:
            return [self.start(newcomer) for newcomer in newcomers]
        return super().onboard(newcomers)

    @torch.no_grad()
    def start(self, newcomer: Newcomer) -> Onboarded:
        method, state = self.federation.method, self.server_state
        if not self.learned:
            v = self.described(newcomer)
            return self.answered(v, method.written(state, v))
        fitted = self.term(method.written(state, self.fitted(newcomer)))
        model = {name: tensor[0] for name, tensor in fitted.items()}
        return Onboarded(model, bytes_down=state_bytes({**network(state), "v": state["v"][:1]}))

    def fitted(self, newcomer: Newcomer) -> Tensor:
        """Return v (1, n) after the newcomer's steps on its own images, by the run's optimizer."""
        if not len(newcomer.rows):
            raise FedPGPError(
                "protocol.onboard=hyper with method.description=learned fits it to the newcomer's "
                "images, and it has none: give some, or take another way"
            )
        federation, options, state = self.federation, self.options, self.server_state
        method, training, client = federation.method, federation.training, newcomer.client
        rate = training.lr if options.onboard_lr is None else options.onboard_lr
        v = state["known"] @ state["v"] / state["known"].sum().clamp(min=1)
        v = v.unsqueeze(0)
        optimizer = training.make_optimizer()
        slots = fresh_state(optimizer, {"v": v})
        count, moving = slots["step/v"], {s: slots[f"{s}/v"] for s in optimizer.slots}
        models, sent = newcomers_models(federation, [newcomer]), self.trained.shared
        own = {client: federation.server.download_for(client, self.trained.server_state)}
        about = (sent, [client], [models.initial_state(client)], own)
        params = models.params(*about, server_round=training.rounds)
        images = federation.inputs.training_images()
        classes = method.task.class_set(newcomer.classes)
        labels = federation.inputs.labels("train", newcomer.classes)
        start = {name: params[name] for name in sent}
        for step, places in enumerate(plan(newcomer, training.batch_size, federation.seed)):
            with torch.enable_grad():
                leaf = v.clone().requires_grad_()
                term = self.term(method.written(state, leaf))
            now = {**params, **{n: tensor.detach().to(params[n]) for n, tensor in term.items()}}
            batch = gather(images, labels, [newcomer.rows[places]], method.task.dtype)
            where = StepContext(training.rounds, step, [client], start, rate, federation.seed)
            loss, grads = method.gradients(now, batch, classes, where)
            if not loss.isfinite().all():
                raise FedPGPError(
                    f"newcomer {client}: the loss is not finite at step {step + 1} of its own "
                    f"training; lower protocol.onboard_lr ({rate:g} now)"
                )
            slopes = [grads[name].to(tensor) for name, tensor in term.items()]
            (slope,) = torch.autograd.grad(list(term.values()), leaf, slopes)
            train_step(optimizer, v, slope, moving, count, rate)
        return v
