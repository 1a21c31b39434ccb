"""Exceptions in a method's code: said once a round with file and line, never swallowed;
advice only where it helps."""

import json

import pytest

from experiments.run_folder import RunFolder
from experiments.runner import resume, start
from fedpgp.errors import FedPGPError, RepeatingError
from fedpgp.methods import METHODS
from fedpgp.methods.base import cosine_logits
from fedpgp.methods.promptfl import PromptFL
from fedpgp.updates import StopTraining
from strategies.failures import lost_round
from tests.helpers.small import small_config, small_federation


class WorksAlone(PromptFL):
    """A shape bug that only shows with more than one client: a scale (K, 1) without the missing
    axis."""

    name = "works_alone"

    def init_personal(self, rng):
        import torch

        return {"t": torch.zeros(1)}

    def personal_classifier(self, params, classes):
        return {"z": self.global_classifier(params, classes), "t": params["t"]}

    def logits(self, features, images, classes):
        if not isinstance(features, dict):
            return super().logits(features, images, classes)
        logits = cosine_logits(features["z"], images.features, self.task.logit_scale)
        return features["t"].exp() * logits


class SumsItsLoss(PromptFL):
    """``return loss.sum()``: one number for the cohort instead of one for each client."""

    name = "sums_its_loss"

    def loss(self, params, batch, classes, step):
        return super().loss(params, batch, classes, step).sum()


class NoLoss(PromptFL):
    """The logarithm of something negative."""

    name = "no_loss"

    def loss(self, params, batch, classes, step):
        return super().loss(params, batch, classes, step) + (params["p_G"][:, 0, 0] * 0 - 1).log()


class NoGradient(PromptFL):
    """A finite loss whose gradient is not: the root of zero."""

    name = "no_gradient"

    def loss(self, params, batch, classes, step):
        zero = params["p_G"].flatten(1).sum(1) * 0
        return super().loss(params, batch, classes, step) + zero.square().sqrt()


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    for method in (WorksAlone, SumsItsLoss, NoLoss, NoGradient):
        monkeypatch.setitem(METHODS, method.name, method)


def run(run_dir, method, *overrides):
    everybody = ("rounds=2", "participation=1", "evaluate_every=0", "clients=4")
    config = small_config(run_dir, "method=promptfl", *everybody, *overrides)
    config["method"]["name"] = method
    return start(config, federation_of=small_federation)


def test_a_failure_of_the_cohort_is_told_though_each_client_alone_works(tmp_path, capsys):
    """Equal clients, so that they are one cohort; alone each of them works."""
    summary = run(tmp_path / "a", "works_alone", "batch_size=3")
    assert summary["status"] == "finished"
    out = capsys.readouterr().out
    for server_round in (1, 2):
        assert out.count(f"round {server_round}: 4 clients together failed (RuntimeError: ") == 1
    assert "test_failures.py:" in out and "tried one by one" in out
    log = (tmp_path / "a" / "errors.log").read_text()
    assert "Traceback" in log and 'features["t"].exp() * logits' in log


def test_debug_stops_at_the_first_exception_with_its_traceback(tmp_path):
    with pytest.raises(
        FedPGPError, match=r'(?s)test_failures.py:\d+\).*Traceback.*\["t"\].exp\(\) \* logits'
    ):
        run(tmp_path / "a", "works_alone", "batch_size=3", "runtime.debug=true")


def test_debug_advises_what_helps(tmp_path, capsys):
    """The same code fails again; without debug its clients are tried one by one."""
    with pytest.raises(FedPGPError, match="stopped by runtime.debug=true"):
        run(tmp_path / "a", "works_alone", "batch_size=3", "runtime.debug=true")
    out = capsys.readouterr().out
    assert "mend the code first, or add runtime.debug=false" in out
    assert f"then resume with: python -m experiments.run resume={tmp_path / 'a'}" in out
    assert "Traceback" not in out, "the error has it"
    runtime = RunFolder.open(tmp_path / "a")[1]["runtime"] | {"debug": False}
    resumed = resume(tmp_path / "a", {"runtime": runtime}, federation_of=small_federation)
    assert resumed["status"] == "finished"


@pytest.mark.parametrize(
    ("reasons", "advice"),
    [
        (["KeyError: 'a' (m.py:3)", "loss is NaN or Inf at round 3"], "mend the code first, then"),
        (["loss is NaN or Inf at round 3"], "start a new run with a smaller lr"),
        (["loss is NaN or Inf at round 1, step 1"] * 2, "lr has no part in it"),
        (["loss is NaN or Inf at round 1, step 17"], "with a smaller lr"),
        (["update is NaN or Inf at round 1, step 1"], "unless lr is huge, the gradient itself"),
        (["loss is NaN or Inf at round 1, step 1", "update is NaN or Inf"], "with a smaller lr"),
        (["KeyError: 'a' (m.py:3)", "no reply in 5 s"], None),
        (["it trains no more: a node's word, where nobody has a budget"], None),
        ([], None),
    ],
)
def test_what_can_only_fail_again_is_known_by_its_reasons(reasons, advice):
    error = lost_round("round 3", dict(enumerate(reasons)), {"KeyError: 'a' (m.py:3)"})
    assert isinstance(error, RepeatingError) == (advice is not None)
    assert not isinstance(error, StopTraining)
    assert advice is None or advice in error.advice


def test_verbose_prints_the_traceback(tmp_path, capsys):
    run(tmp_path / "a", "works_alone", "batch_size=3", "verbose=true", "rounds=1")
    assert 'features["t"].exp() * logits' in capsys.readouterr().out


def test_a_loss_of_the_wrong_shape_names_the_method_and_its_line(tmp_path, capsys):
    with pytest.raises(
        FedPGPError, match=r"loss has the shape \(\) and must have \(\d,\).*test_failures.py:\d+"
    ):
        run(tmp_path / "a", "sums_its_loss")
    out = capsys.readouterr().out
    assert "mend the code first, then resume with: " in out
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["status"] == "interrupted"


def test_a_run_that_can_only_fail_again_is_not_told_to_resume(tmp_path, capsys):
    with pytest.raises(FedPGPError, match="NaN or Inf"):
        run(tmp_path / "a", "promptfl", "lr=1e300")
    out = capsys.readouterr().out
    assert "start a new run with a smaller lr" in out and "resume=" not in out


@pytest.mark.parametrize(
    ("method", "said"),
    [("no_loss", "lr has no part in it"), ("no_gradient", "the gradient itself")],
)
def test_a_smaller_lr_is_advised_where_it_can_help(tmp_path, method, said, capsys):
    with pytest.raises(FedPGPError, match="is NaN or Inf at round 1, step 1"):
        run(tmp_path / "a", method)
    out = capsys.readouterr().out
    assert said in out and "smaller lr" not in out and "resume=" not in out


def test_a_fault_that_passes_is_told_to_resume(tmp_path, capsys):
    """One client of four answers, two are needed: the others' machines may be back."""
    marker = tmp_path / "mended"
    faults = {"wrong_shape": [0, 1, 2], "until": str(marker)}
    config = small_config(
        tmp_path / "a", "participation=1", "clients=4", "runtime.min_clients=2", faults=faults
    )
    with pytest.raises(FedPGPError, match="1 of 4 clients gave a usable reply"):
        start(config, federation_of=small_federation)
    assert (
        f"resume with: python -m experiments.run resume={tmp_path / 'a'}" in capsys.readouterr().out
    )
    marker.touch()
    assert resume(tmp_path / "a", federation_of=small_federation)["status"] == "finished"
