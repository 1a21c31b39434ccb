"""Flower's wrappers around any strategy: from the configuration to the checkpoint."""

import numpy as np
import pytest

from experiments.runner import resume, start
from experiments.settings import composed
from fedpgp.config import Config
from fedpgp.errors import FedPGPError
from strategies.checkpoint import checkpoints, read_checkpoint
from strategies.flower_strategies import clients_needed
from strategies.wrappers import WRAPPERS, configured_strategy
from tests.helpers.small import small_config, small_federation

FIXED = "{name: server_side_fixed_clipping, noise_multiplier: %s, clipping_norm: %s}"
ADAPTIVE = "{name: server_side_adaptive_clipping, noise_multiplier: 0.3}"
ENTRIES = {
    "server_side_fixed_clipping": FIXED % (0.3, 0.05),
    "server_side_adaptive_clipping": ADAPTIVE,
}
COMMON = ("method=promptfl", "rounds=2", "evaluate_every=0", "participation=1")


def run(path, *overrides) -> list[dict]:
    """The tensors of the run's checkpoints, oldest first."""
    start(small_config(path, *COMMON, *overrides), federation_of=small_federation)
    return [read_checkpoint(file)[0] for file in checkpoints(path / "checkpoint")]


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_runs_and_resumes(tmp_path, name, strategy):
    """Two rounds; the last one again after a kill, to the same bits: norms, noise and the inner
    strategy's momentum are where they were."""
    wrap = (f"strategy.wrap=[{ENTRIES[name]}]", f"strategy={strategy}")
    _, last = run(tmp_path, *wrap)
    checkpoints(tmp_path / "checkpoint")[-1].unlink()
    (tmp_path / "summary.json").unlink()
    resume(tmp_path, federation_of=small_federation)
    again = read_checkpoint(checkpoints(tmp_path / "checkpoint")[-1])[0]
    assert sorted(again) == sorted(last)
    for key, tensor in last.items():
        np.testing.assert_array_equal(again[key], tensor, err_msg=key)
    assert any(key.startswith("rule/strategy.") for key in last) == (strategy == "fedavgm")


def test_without_noise_fixed_clipping_bounds_the_step_and_else_changes_nothing(tmp_path, capsys):
    plain = run(tmp_path / "plain")
    wide = run(tmp_path / "wide", f"strategy.wrap=[{FIXED % (0, 1000)}]")
    assert "the noise of Flower's wrappers comes from the run's seed" in " ".join(
        capsys.readouterr().out.split()
    )
    np.testing.assert_allclose(wide[-1]["shared/p_G"], plain[-1]["shared/p_G"], rtol=0, atol=1e-12)
    first, second = run(tmp_path / "tight", f"strategy.wrap=[{FIXED % (0, 1e-3)}]")
    moved = np.linalg.norm(second["shared/p_G"] - first["shared/p_G"])
    assert 1e-4 < moved <= 1e-3 * (1 + 1e-9)
    assert np.linalg.norm(plain[-1]["shared/p_G"] - plain[-2]["shared/p_G"]) > 2e-3


def test_the_first_is_innermost_and_the_strategy_counts():
    both = f"strategy.wrap=[{ENTRIES['server_side_fixed_clipping']}, {ADAPTIVE}]"
    strategy = configured_strategy(Config.of(composed([both, "strategy=krum", "clients=10"])))
    assert isinstance(strategy, WRAPPERS["server_side_adaptive_clipping"])
    assert isinstance(strategy.strategy, WRAPPERS["server_side_fixed_clipping"])
    assert strategy.num_sampled_clients == 10 and clients_needed(strategy) == 4


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("server_side_fixed_cliping", "did you mean server_side_fixed_clipping"),
        (
            "server_side_fixed_clipping",
            r"needs settings: \[{name: server_side_fixed_clipping, noise",
        ),
        (
            "{name: server_side_adaptive_clipping, noise_multiplie: 1}",
            "did you mean noise_multiplier",
        ),
        (FIXED % (-1, 1), "strategy.wrap=server_side_fixed_clipping: .*non-negative"),
        ("client_side_fixed_clipping", "fixedclipping_mod.*server_side_fixed_clipping"),
        ("client_side_adaptive_clipping", "adaptiveclipping_mod.*server_side_adaptive_clipping"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(entry, said):
    with pytest.raises(FedPGPError, match=said):
        configured_strategy(Config.of(composed([f"strategy.wrap=[{entry}]"])))


def test_a_method_that_sends_differences_is_refused():
    with pytest.raises(FedPGPError, match="method=scaffold sends a difference"):
        configured_strategy(
            Config.of(composed([f"strategy.wrap=[{FIXED % (1, 1)}]", "method=scaffold"]))
        )
    with pytest.raises(FedPGPError, match="strategy.wrap='x' cannot work; it is a list"):
        configured_strategy(Config.of(composed(["strategy.wrap=x"])))


@pytest.mark.parametrize("method", ["flexlora", "fedex_lora", "hilora", "fedalt", "hetlora"])
def test_a_strategy_that_would_do_nothing_is_refused(method):
    given = {"strategy=krum": "strategy=krum", "strategy=fedadam": "strategy=fedadam"}
    given[f"strategy.wrap=[{FIXED % (1, 1)}]"] = "strategy.wrap"
    for words, named in given.items():
        with pytest.raises(FedPGPError, match=f"{named} would do nothing with method={method}: "):
            configured_strategy(Config.of(composed([f"method={method}", words])))
    configured_strategy(Config.of(composed([f"method={method}"])))
