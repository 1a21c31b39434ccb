"""Epsilon over the rounds of a run, and accuracy against epsilon over a sweep."""

import json
import re

from experiments import report
from experiments.reporting import read_run, write_report
from experiments.reporting.headlines import headline, lead
from tests.helpers.written import page, write_run

NOISE = {"name": "client", "clip": 0.3, "seeded_noise": False, "max_epsilon": None}


def private_run(path, reached: float, method: str = "fedpgp", seed: int = 1, **settings) -> None:
    """A run with ``privacy=client`` that ends at this epsilon."""
    write_run(path, method, seed, privacy=NOISE | {"epsilon": reached} | settings)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            said = {"epsilon": reached * line["round"] / 6, "clip": 0.1 + line["round"] / 100}
            line["updates"] = {"client": said}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((path / "summary.json").read_text())
    summary["privacy"] = {
        "unit": "client", "epsilon": reached, "delta": 0.01, "noise_multiplier": 1.0, "clip": 0.3,
        "sampling": "poisson", "rate": 0.5, "rounds": 6, "accountant": "rdp", "seeded": False,
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))


def chart(text: str, title: str) -> str:
    (found,) = re.findall(rf'<svg[^>]*aria-label="{title}">.*?</svg>', text, re.S)
    return found


def test_epsilon_is_drawn_over_the_rounds_up_to_its_bound(tmp_path):
    private_run(tmp_path / "run", 3.0, epsilon=None, max_epsilon=4.0)
    text = write_report(tmp_path / "run").read_text()
    drawn = chart(text, "Epsilon")
    assert all(f"epsilon: {x / 2:.2f}, round {x}" in drawn for x in range(7))
    assert "privacy.max_epsilon: 4.00, round 6" in drawn
    assert "clip: 0.160, round 6" in chart(text, "Clipping norm")
    assert "of the rounds so far" in page(tmp_path / "run" / "report.html").text
    private_run(tmp_path / "seeded", 3.0, seeded_noise=True)
    assert "noise of the seed: nothing is private" in write_report(tmp_path / "seeded").read_text()
    write_run(tmp_path / "plain")
    assert 'aria-label="Epsilon"' not in write_report(tmp_path / "plain").read_text()


def test_accuracy_against_epsilon_over_a_sweep(tmp_path):
    """A line a method through its epsilons, and one without privacy at its level."""
    for method in ("fedpgp", "promptfl"):
        for seed in (1, 2):
            write_run(tmp_path / f"{method}_none_{seed}", method, seed, privacy={"name": "none"})
            for epsilon in (1.0, 8.0):
                folder = tmp_path / f"{method}_{epsilon}_{seed}"
                private_run(folder, epsilon, method, seed)
    target = tmp_path / "page.html"
    assert report.main([str(tmp_path), "--format", "html", "--out", str(target)]) == 0
    text = target.read_text()
    assert "Accuracy against epsilon" in page(target).text
    drawn = chart(text, "Local accuracy against epsilon")
    local = {
        run: read_run(tmp_path / run).figure("personal", "local")
        for run in ("fedpgp_1.0_1", "fedpgp_1.0_2", "fedpgp_none_1", "fedpgp_none_2")
    }
    for kind, name in (("1.0", "FedPGP"), ("none", "FedPGP, without privacy")):
        mean = (local[f"fedpgp_{kind}_1"] + local[f"fedpgp_{kind}_2"]) / 2
        assert f"{name}: {mean:.1f}" in drawn
    assert "epsilon of one client" in drawn and "epsilon of one client 8" in drawn
    assert drawn.count("<polyline") == 4 and drawn.count("dashed") >= 2


def test_one_epsilon_is_no_line(tmp_path):
    private_run(tmp_path / "a", 2.0)
    private_run(tmp_path / "b", 2.0, "promptfl")
    target = tmp_path / "page.html"
    assert report.main([str(tmp_path), "--format", "html", "--out", str(target)]) == 0
    assert "against epsilon" not in target.read_text()


def test_a_run_whose_clients_keep_their_figures_says_so(tmp_path):
    write_run(tmp_path / "run", privacy=NOISE, runtime={"name": "flower"})
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    summary |= {
        "no_figures": "the clients keep all",
        "accuracy": dict.fromkeys(summary["accuracy"]),
    }
    path.write_text(json.dumps(summary))
    run = read_run(tmp_path / "run")
    assert headline(run) == "FedPGP on emoji: the clients keep their figures."
    assert lead(run).startswith("The clients keep all.")
