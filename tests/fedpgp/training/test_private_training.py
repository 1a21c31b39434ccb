"""``privacy=image`` in a client: the clipped, noised sum against plain numpy, batches, accounts."""

import dp_accounting as dp
import numpy as np
import pytest
import torch

from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS, StepContext
from fedpgp.methods.batch_gradients import batch_gradients
from fedpgp.protocols import ClientSplit, FederatedSplit
from fedpgp.protocols.splits import Phase
from fedpgp.training import TrainingSettings
from fedpgp.training.private_training import BudgetSpent, OwnersBound, PrivateTraining
from fedpgp.updates.accounting import composed_epsilon
from fedpgp.updates.image_privacy import ImagePrivacySettings
from tests.helpers.gradients import C, K, made_batch, parameters

IMAGES, ROUNDS = 40, 6


def training(images: int = IMAGES, phases=(), **settings) -> PrivateTraining:
    clients = [ClientSplit(np.arange(images), (0, 1), {}, phases=phases) for _ in range(K)]
    split = FederatedSplit(None, (0, 1), (), clients)
    made = TrainingSettings(epochs=2, batch_size=8, rounds=ROUNDS)
    return PrivateTraining(ImagePrivacySettings(**settings), split, made, seed=3)


def at_work(private: PrivateTraining, method):
    return private.at_work(method, [private.work(k, 1, 2, None) for k in range(K)])


def placed(task, name: str = "fedpgp", **options):
    cls = METHODS[name]
    method = cls(cls.Settings(**{**cls.small, **options}), task)
    classes, batch = task.class_set(range(C)), made_batch()
    params, shared = parameters(method, batch, classes)
    step = StepContext(2, 1, range(K), {n: params[n] + 0.1 for n in shared}, 0.1, 0)
    return method, (params, batch, classes, step)


def test_a_step_is_the_clipped_sum_of_images_and_the_terms_of_none(task):
    """Without noise, image by image: each alone in a batch, less the terms without images."""
    method, (params, batch, classes, step) = placed(task, personal_init="normal")
    with at_work(training(noise=0.0, clip=0.6), method):
        loss, grads = method.gradients(params, batch, classes, step)
    assert method.differentiate is batch_gradients
    clipped = 0
    for k in range(K):
        own = {n: t[k : k + 1].clone() for n, t in params.items()}
        leaves = {n: own[n].requires_grad_() for n in method.trainable(own)}
        free = method.free_term({**own, **leaves}, classes, step)
        of_free = torch.autograd.grad(free.sum(), list(leaves.values()))
        total, real = {n: 0.0 for n in leaves}, 0
        for b in range(batch.labels.shape[1]):
            if not batch.weights[k, b]:
                continue
            real += 1
            alone = batch[k : k + 1, b : b + 1]
            alone.weights.fill_(1)
            one = method.image_term({**own, **leaves}, alone, classes, step)
            found = [g.numpy() for g in torch.autograd.grad(one.sum(), list(leaves.values()))]
            length = np.sqrt(sum((g**2).sum() for g in found))
            clipped += length > 0.6
            for n, g in zip(leaves, found, strict=True):
                total[n] = total[n] + g[0] * min(1.0, 0.6 / length)
        for n, g in zip(leaves, of_free, strict=True):
            expected = total[n] / 8 + g[0].numpy()  # 8: the images of a step in the mean
            np.testing.assert_allclose(grads[n][k].numpy(), expected, rtol=1e-9, atol=1e-12)
    assert clipped > 0


def test_the_noise_has_its_deviation_and_is_drawn_anew(task):
    method, about = placed(task, "promptfl")
    still = placed(task, "promptfl")[0]
    with at_work(training(noise=0.0, clip=0.5), still):
        _, without = still.gradients(*about)
    draws = []
    with at_work(training(noise=2.0, clip=0.5), method):
        for _ in range(60):
            _, grads = method.gradients(*about)
            draws.append((grads["p_G"] - without["p_G"]).flatten().numpy() * 8)
    draws = np.array(draws)
    assert draws.std() == pytest.approx(2.0 * 0.5, rel=0.03)
    assert abs(draws.mean()) < 0.03 and abs(np.corrcoef(draws)[0, 1]) < 0.2


def test_an_image_without_a_finite_gradient_adds_zero(task):
    method, (params, batch, classes, step) = placed(task, "promptfl")
    with at_work(training(noise=0.0), method):
        batch.images.features[0, 2] = torch.nan
        loss, grads = method.gradients(params, batch, classes, step)
    assert loss.isfinite().all() and grads["p_G"].isfinite().all()


def test_each_image_is_in_a_batch_by_its_own_draw():
    private = training(noise=1.0)
    work, sizes, seen = private.work(0, 1, 2, None), [], np.zeros(IMAGES)
    assert (work.rate, work.steps, work.expected) == (8 / IMAGES, 10, 8)
    for _ in range(60):
        for chosen in private._batches(work):
            sizes.append(len(chosen))
            seen[chosen] += 1
    assert np.allclose(seen / len(sizes), 0.2, atol=0.08)
    assert np.var(sizes) == pytest.approx(IMAGES * 0.2 * 0.8, rel=0.3)


def test_a_client_with_few_images_takes_all_of_them():
    work = training(5).work(0, 1, 2, None)
    assert work.rate == 1 and work.steps == 2 and work.delta == 1 / 50


def test_an_account_is_dp_accountings_own_composition():
    private, account = training(noise=1.1, delta=1e-3), None
    accountant = dp.rdp.RdpAccountant()
    for server_round in range(1, 4):
        work = private.work(1, server_round, 2, account)
        account = work.account
        event = dp.PoissonSampledDpEvent(8 / IMAGES, dp.GaussianDpEvent(1.1))
        accountant.compose(dp.SelfComposedDpEvent(event, 10))
        expected = accountant.get_epsilon(1e-3)
        assert work.figures()["image.epsilon"] == pytest.approx(expected, rel=1e-9)
    assert account.tolist() == [[1.1, 8 / IMAGES, 30]]


def test_images_that_arrive_change_the_rate_and_both_are_accounted():
    private = training(noise=1.1, phases=(Phase(2, np.arange(80), (0, 1)),))
    first = private.work(0, 1, 1, None)
    second = private.work(0, 2, 1, first.account)
    assert second.account.tolist() == [[1.1, 0.1, 10], [1.1, 0.2, 5]]


@pytest.mark.parametrize("phases", [(), (Phase(3, np.arange(80), (0, 1)),)])
def test_noise_for_an_epsilon_is_enough_for_all_rounds(phases):
    private, account = training(epsilon=3.0, phases=phases), None
    for server_round in range(1, ROUNDS + 1):
        work = private.work(0, server_round, 2, account)
        account = work.account
    assert 2.95 < work.figures()["image.epsilon"] <= 3.0
    assert work.figures()["image.last"] == 1
    with pytest.raises(BudgetSpent, match="trains no more"):
        private.work(0, ROUNDS, 2, account)


def test_an_owner_s_bound_holds_at_the_owner_s_delta():
    """The server may choose a delta ten times the usual one, at which epsilon is smaller."""
    spent, usual = training(noise=2.0).work(0, 1, 2, None).spent, 1 / (10 * IMAGES)
    most = composed_epsilon(spent, usual, "rdp")
    for delta in (None, 0.9 / IMAGES):
        private = training(noise=2.0, delta=delta)
        private.owner = OwnersBound(1.001 * most)
        assert private.work(0, 1, 2, None).spent == spent
        private.owner = OwnersBound(0.999 * most)
        with pytest.raises(BudgetSpent, match="max-epsilon"):
            private.work(0, 1, 2, None)
    private = training(noise=2.0, delta=usual / 10)  # a smaller one holds too
    private.owner = OwnersBound(1.001 * most)
    with pytest.raises(BudgetSpent, match="max-epsilon"):
        private.work(0, 1, 2, None)


def test_a_delta_that_guarantees_nothing_is_refused():
    with pytest.raises(FedPGPError, match="guarantees nothing to 40 images"):
        training(delta=0.03).work(0, 1, 2, None)


@pytest.mark.parametrize("settings", [{"clip": 0}, {"noise": -1}, {"epsilon": 0}, {"delta": 1}])
def test_a_setting_that_cannot_work_is_named(settings):
    with pytest.raises(FedPGPError, match=f"privacy.{next(iter(settings))}"):
        ImagePrivacySettings(**settings)


def test_noise_beside_an_epsilon_is_refused():
    with pytest.raises(FedPGPError, match="give one of them"):
        ImagePrivacySettings(noise=2.0, epsilon=4.0)


def test_both_gradients_of_prograd_are_clipped_as_one_and_projected_behind_the_noise(task):
    """Image by image, in plain torch; so little is clipped that the projection is the plain one."""
    method, (params, batch, classes, step) = placed(task, "prograd", strength=0.7)
    batch.weights[:] = 1 / batch.labels.shape[1]
    whole_loss, plain = method.gradients(params, batch, classes, step)
    for clip in (1e6, 0.5):
        with at_work(training(noise=0.0, clip=clip), method):
            loss, grads = method.gradients(params, batch, classes, step)
        torch.testing.assert_close(loss, whole_loss)
        for k in range(K):
            a, b, count = 0.0, 0.0, batch.labels.shape[1]
            p_G = params["p_G"][k : k + 1].clone().requires_grad_()
            for i in range(count):
                image = batch.images.features[k, i]
                text = method.global_classifier({"p_G": p_G}, classes)[0]
                y = task.logit_scale * (image @ text.T)
                known = (task.logit_scale * (image @ classes.template_features.T)).softmax(-1)
                terms = (-y.log_softmax(-1)[batch.labels[k, i]], -(known * y.log_softmax(-1)).sum())
                one, two = (
                    torch.autograd.grad(t, p_G, retain_graph=True)[0][0].numpy() for t in terms
                )
                bound = min(1.0, clip / np.sqrt((one**2).sum() + (two**2).sum()))
                a, b = a + bound * one / 8, b + bound * two / 8  # 8: images of a step in the mean
            along = (a * b).sum()
            expected = a - 0.7 * min(0.0, along) / (b**2).sum() * b
            np.testing.assert_allclose(grads["p_G"][k].numpy(), expected, rtol=1e-8, atol=1e-12)
            if clip == 1e6:
                whole = plain["p_G"][k].numpy() * count / 8
                np.testing.assert_allclose(expected, whole, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_there_is_no_noise_beyond_a_clients_rank(task, noise):
    ranks = (4, 1, 2)
    method, about = placed(task, "flexlora", rank=4, ranks=ranks)
    with at_work(training(noise=noise), method):
        _, grads = method.gradients(*about)
    for k, rank in enumerate(ranks):
        A, B = grads["text.q.A"][k], grads["text.q.B"][k].mT
        for rows in (A, B):
            assert (rows[:, :rank] != 0).all(-1).all() and (rows[:, rank:] == 0).all()
