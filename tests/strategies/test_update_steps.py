"""A step that no file of the project knows, from client through server to checkpoint."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from experiments.runner import resume, start
from fedpgp.errors import FedPGPError, check_number
from fedpgp.methods import METHODS
from fedpgp.methods.promptfl import PromptFL
from fedpgp.updates import UPDATE_STEPS, StopTraining, UpdateStep
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.small import small_config, small_federation

PLAIN = ("method=promptfl", "rounds=2", "evaluate_every=0")


@dataclass(frozen=True)
class ShrinkSettings:
    factor: float = 0.5
    rounds: int = 99  # after which it lets no other begin

    def __post_init__(self):
        check_number("factor", self.factor, above=0)


class Shrink(UpdateStep):
    """The client's change times a factor; the server counts the clients it has seen, sums what
    they say of themselves, and keeps the last aggregate."""

    Settings = ShrinkSettings
    client_metrics = {"norm": (0.0, 1e3)}

    def check(self, config, method):
        if method.needs_each_update:
            raise FedPGPError(f"shrink cannot work with method={method.name}")

    def init_state(self):
        return {"seen": 0, "last": np.zeros(3)}

    def broadcast(self, state):
        return {"seen": state["seen"]}

    def before_round(self, context):
        if context.server_round > self.settings.rounds:
            raise StopTraining("enough is enough")

    def on_client(self, update, context):
        # Who takes part is 4 of 6, so that in round r the server has seen 4 (r - 1).
        assert context.broadcast["seen"] == 4 * (context.server_round - 1)
        assert context.num_clients == 6 and context.num_examples == 3 + context.client % 4
        norm = sum(change.square().sum() for change in update.values()).sqrt()
        return {n: self.settings.factor * change for n, change in update.items()}, {"norm": norm}

    def on_server(self, aggregate, context):
        context.state["seen"] += len(context.clients)
        context.state["last"] = aggregate["p_G"].numpy().copy()
        assert sum(context.weights.values()) == pytest.approx(1)
        norms = [said["norm"] for said in context.metrics.values()]
        return aggregate, {"seen": context.state["seen"], "norms": sum(norms)}


@pytest.fixture(autouse=True)
def registered():
    UPDATE_STEPS.register("shrink")(Shrink)
    yield
    del UPDATE_STEPS["shrink"]


def run(path, *overrides, **options):
    return start(small_config(path, *overrides, **options), federation_of=small_federation)


def states(path) -> list[dict]:
    """The tensors of the checkpoints, oldest first."""
    return [read_checkpoint(file)[0] for file in checkpoints(path / "checkpoint")]


def lines(path, kind: str) -> list[dict]:
    records = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def test_halved_updates_move_the_prompt_half_as_far(tmp_path):
    """The first round of plain FedAvg from the same prompt, every change halved; and what clients
    and server say of it."""
    run(tmp_path / "plain", *PLAIN, "rounds=1")
    run(tmp_path / "half", *PLAIN, "rounds=1", "updates=[shrink]")
    (before, plain), (same, half) = states(tmp_path / "plain"), states(tmp_path / "half")
    before, plain = before["shared/p_G"], plain["shared/p_G"]
    np.testing.assert_array_equal(before, same["shared/p_G"])
    assert abs(plain - before).max() > 1e-4
    np.testing.assert_allclose(half["shared/p_G"], (before + plain) / 2, rtol=0, atol=1e-15)
    np.testing.assert_allclose(half["updates/shrink/last"], (plain - before) / 2, atol=1e-15)
    (line,) = lines(tmp_path / "half", "train")
    assert line["updates"]["shrink"]["seen"] == 4 and line["updates"]["shrink"]["norms"] > 0
    assert "updates" not in lines(tmp_path / "plain", "train")[0]


def test_a_step_that_changes_nothing_changes_nothing_beyond_rounding(tmp_path):
    run(tmp_path / "plain", *PLAIN)
    run(tmp_path / "one", *PLAIN, "updates=[{name: shrink, factor: 1.0}]")
    for plain, one in zip(states(tmp_path / "plain"), states(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(one["shared/p_G"], plain["shared/p_G"], rtol=0, atol=1e-14)


def test_differences_are_shrunk_as_they_are(tmp_path, monkeypatch):
    """SCAFFOLD's variate is sent as a difference: half of it arrives, and half of the prompt's
    change."""
    monkeypatch.setattr(Shrink, "check", UpdateStep.check)
    monkeypatch.setattr(Shrink, "on_server", UpdateStep.on_server)
    monkeypatch.setattr(Shrink, "broadcast", lambda self, state: {"seen": 0})
    common = ("method=scaffold", "rounds=1", "evaluate_every=0")
    run(tmp_path / "plain", *common)
    run(tmp_path / "half", *common, "updates=[shrink]")
    (before, plain), (_, half) = states(tmp_path / "plain"), states(tmp_path / "half")
    for name in ("shared/p_G", "shared/c"):
        assert abs(plain[name] - before[name]).max() > 1e-5
        expected = (before[name] + plain[name]) / 2
        np.testing.assert_allclose(half[name], expected, rtol=0, atol=1e-15)


def test_a_killed_run_resumes_with_the_step_s_state(tmp_path):
    steps = (*PLAIN, "rounds=3", "updates=[shrink]")
    run(tmp_path / "whole", *steps)
    run(tmp_path / "killed", *steps)
    checkpoints(tmp_path / "killed" / "checkpoint")[-1].unlink()
    (tmp_path / "killed" / "summary.json").unlink()  # as if it had been killed in its last round
    resume(tmp_path / "killed", federation_of=small_federation)
    whole, resumed = states(tmp_path / "whole")[-1], states(tmp_path / "killed")[-1]
    assert sorted(whole) == sorted(resumed)
    for name, tensor in whole.items():
        np.testing.assert_array_equal(resumed[name], tensor, err_msg=name)
    seen = [line["updates"]["shrink"]["seen"] for line in lines(tmp_path / "killed", "train")]
    assert seen == [4, 8, 12]
    info = read_checkpoint(checkpoints(tmp_path / "killed" / "checkpoint")[-1])[1]
    assert info["updates"] == {"shrink": {"seen": 12}}


@pytest.mark.parametrize("every", [0, 1])
def test_a_step_can_end_the_training(tmp_path, capsys, every):
    """Before a round: all is saved and the last model is evaluated, once, also on a resume."""
    step = "updates=[{name: shrink, rounds: 2}]"
    summary = run(tmp_path, *PLAIN, "rounds=5", f"evaluate_every={every}", step)
    assert summary["status"] == "finished" and summary["stopped"] == "enough is enough"
    assert summary["accuracy"]["personal"]["local"] is not None
    said = " ".join(capsys.readouterr().out.split())
    assert "the training ends after round 2 of 5: enough is enough" in said
    evaluated = [line["round"] for line in lines(tmp_path, "eval")]
    assert evaluated == ([0, 1, 2] if every else [0, 2])
    assert len(lines(tmp_path, "train")) == 2
    (tmp_path / "summary.json").unlink()  # as if it had been killed while it wrote that
    again = resume(tmp_path, federation_of=small_federation)
    assert again["stopped"] == "enough is enough" and again["accuracy"] == summary["accuracy"]
    assert [line["round"] for line in lines(tmp_path, "eval")] == evaluated


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["updates=[shrin]"], "unknown update step 'shrin'; did you mean shrink"),
        (["updates=[{name: shrink, facto: 1}]"], "setting of update step shrink.*mean factor"),
        (["updates=[{name: shrink, factor: 0}]"], "factor=0 cannot work"),
        (["updates=[shrink,shrink]"], "named twice"),
        (["updates=[{factor: 1}]"], "it is a list of names"),
        (["updates=shrink"], r"updates='shrink' cannot work; it is a list"),
        (["updates=[shrink]", "method=scaffold"], "shrink cannot work with method=scaffold"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(tmp_path, overrides, said):
    with pytest.raises(FedPGPError, match=said):
        run(tmp_path / "run", *PLAIN, *overrides)
    assert not (tmp_path / "run").exists()


def test_a_number_out_of_its_range_is_the_step_s_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(Shrink, "client_metrics", {"norm": (0.0, 1e-9)})
    said = "on_client gives .* as norm; client_metrics says that it is a number from 0 to 1e-09"
    with pytest.raises(FedPGPError, match=said):
        run(tmp_path / "run", *PLAIN, "updates=[shrink]")
    monkeypatch.setattr(Shrink, "client_metrics", {"norm": (0.0, np.inf)})
    with pytest.raises(FedPGPError, match="client_metrics gives norm no range: 0 to inf"):
        run(tmp_path / "run", *PLAIN, "updates=[shrink]")


def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    """Its config.yaml and checkpoints know nothing of steps."""
    config = small_config(tmp_path, *PLAIN)
    del config["updates"], config["privacy"]
    start(config, federation_of=small_federation)
    (tmp_path / "summary.json").unlink()
    checkpoints(tmp_path / "checkpoint")[-1].unlink()
    assert resume(tmp_path, federation_of=small_federation)["status"] == "finished"


def test_a_method_reads_single_updates_only_when_it_says_so(tmp_path, monkeypatch):
    class Nosy(PromptFL):
        def update_server(self, averaged, context):
            return {"p_G": context.updates["p_G"].mean(0)}, {}

    monkeypatch.setitem(METHODS, "nosy", Nosy)
    config = small_config(tmp_path / "run", *PLAIN, "rounds=1")
    config["method"] = {"name": "nosy"}
    with pytest.raises(FedPGPError, match="reads context.updates.*needs_each_update = True"):
        start(config, federation_of=small_federation)
    monkeypatch.setattr(Nosy, "needs_each_update", True)
    config["run_dir"] = str(tmp_path / "other")
    assert start(config, federation_of=small_federation)["status"] == "finished"
