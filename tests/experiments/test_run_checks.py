"""What cannot work is said before a run's folder is there, for a simulation and a deployment."""

import pytest

from experiments.deploy import main as deploy
from experiments.run import main as run

WRONG = {
    "updates=[nope]": "unknown update step 'nope'",
    "strategy.wrap=[nope]": "unknown wrapper in strategy.wrap 'nope'",
    "strategy=fedadam strategy.eta=fast": "strategy.eta=fast cannot work; it is a number",
    "strategy=krum strategy.num_malicious_nodes=1.5": "strategy.num_malicious_nodes=1.5 cannot",
    "strategy.wrap=[{name:server_side_fixed_clipping,noise_multiplier:much,clipping_norm:1}]": (
        "strategy.wrap=server_side_fixed_clipping.noise_multiplier=much cannot work"
    ),
    "privacy=client privacy.clip=-1": "privacy.clip",
    "partition.beta=-1": "partition.beta=-1 cannot work; it is a number above 0",
    "partition.balance=maybe": "partition.balance=maybe cannot work; it is true or false",
    "partition=shards partition.shards_per_client=1.5": "partition.shards_per_client=1.5 cannot",
    "partition=pathological partition.dealing=odd": "unknown value of partition.dealing 'odd'",
    "+partition.bets=1": "unknown option of partition",
    "partition=null": "partition=null: leave it out, or name one",
    "device=cuda:1": "CUDA_VISIBLE_DEVICES",
    "method.component=fedpgp.methods.fedprox.FedProx": "needs method=component beside it",
    "method=component method.component=fedpgp.methods.fedprox.FedProx method.mu=1": (
        "unknown setting 'method.mu'; the component's own are +method.settings.mu=..."
    ),
    "method.rank=0": "method.rank=0 cannot work",
}


@pytest.mark.parametrize("words", WRONG)
@pytest.mark.parametrize("command", [run, deploy], ids=["run", "deploy"])
def test_nothing_is_started_or_written(words, command, tmp_path, capsys):
    folder = tmp_path / "run"
    given = [*words.split(), f"run_dir={folder}"]
    start = ["local", "--clients", "2", *given] if command is deploy else ["runtime=inline", *given]
    assert command(start) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and WRONG[words] in said and "\n" not in said
    assert not folder.exists()
