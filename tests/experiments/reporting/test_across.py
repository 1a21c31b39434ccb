"""``report --across``: the values of one setting side by side."""

import csv
import io
import json
import statistics

import yaml

from tests.experiments.reporting.test_report import run_report
from tests.helpers.written import write_run


def test_one_setting_across(tmp_path, capsys):
    """A column a strategy, a row an attack and share, blocks of a share; the best of a row."""
    local = {}
    for seed in (1, 2):
        for k, attack in enumerate(("alie", "ipm")):
            for share in (0.1, 0.3):
                for j, strategy in enumerate(("fedavg", "krum")):
                    if (attack, strategy) == ("ipm", "krum"):
                        continue
                    folder = tmp_path / f"{seed}{attack}{share}{strategy}"
                    write_run(folder, "promptfl", seed)
                    config = yaml.safe_load((folder / "config.yaml").read_text())
                    config["attack"] = {"name": attack, "share": share}
                    extra = {"beta": 0.2} if strategy == "krum" else {}
                    config["strategy"] = {"name": strategy, **extra}
                    (folder / "config.yaml").write_text(yaml.safe_dump(config))
                    path = folder / "summary.json"
                    summary = json.loads(path.read_text())
                    value = 50.0 + 10 * share + 3 * k + j + seed / 10
                    for model in ("global", "personal"):
                        summary["accuracy"][model]["local"] = value
                    summary["attack"] = {"success_rate": {"global": 5.0 * seed}}
                    path.write_text(json.dumps(summary))
                    local.setdefault((attack, share, strategy), []).append(value)
    status, out, err = run_report(capsys, tmp_path, "--across", "strategy", "--format", "csv")
    assert status == 0 and err == ""
    lines = list(csv.reader(io.StringIO(out)))
    assert lines[0] == ["attack", "attack.share", "fedavg", "krum"]
    assert [line[:2] for line in lines[1:]] == [
        ["alie", "0.1"],
        ["ipm", "0.1"],
        ["alie", "0.3"],
        ["ipm", "0.3"],
    ]
    for attack, share, *cells in lines[1:]:
        for strategy, cell in zip(("fedavg", "krum"), cells, strict=True):
            values = local.get((attack, float(share), strategy), [])
            assert (cell == "–") == (not values)
            if values:
                assert cell == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    columns = ("--columns", "local,attack.success_rate.global")
    _, out, _ = run_report(
        capsys, tmp_path, "--across", "strategy", "--format", "markdown", *columns
    )
    first, second = out.split("attack.success")
    assert "| alie | 0.1 | <u>51.15 ± 0.07</u> | **52.15 ± 0.07** |" in first
    assert "| ipm | 0.3 | 56.15 ± 0.07 | – |" in first
    assert "| alie | 0.1 | 7.50 ± 3.54 | 7.50 ± 3.54 |" in second
    status, _, err = run_report(capsys, tmp_path, "--across", "rank")
    assert status == 2 and "do not differ in 'rank'" in err and "strategy" in err
    status, _, err = run_report(capsys, tmp_path, "--across", "strategy", "--format", "html")
    assert status == 2 and "text, markdown, latex, csv" in err


def test_an_audit_stands_beside_accuracy(tmp_path, capsys):
    """The lower bound of audit.json, a column each claimed epsilon; a run without one has a dash,
    a damaged one is left out by name."""
    for epsilon, bound in ((1, 0.25), (8, 2.5), (16, None)):
        for seed in (1, 2):
            folder = tmp_path / f"{epsilon}_{seed}"
            write_run(folder, "promptfl", seed)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["privacy"] = {"name": "client", "epsilon": epsilon}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            if bound is not None and seed == 1:
                found = {"canaries": {"epsilon": bound, "right": 40}, "settings": {"seed": 0}}
                (folder / "audit.json").write_text(json.dumps(found))
    (tmp_path / "16_2" / "audit.json").write_text("{")
    asked = ("--across", "privacy.epsilon", "--format", "csv", "--columns")
    _, out, err = run_report(capsys, tmp_path, *asked, "audit.canaries.epsilon")
    assert list(csv.reader(io.StringIO(out))) == [["1", "8", "16"], ["0.25", "2.50", "–"]]
    assert err.count("not in the table") == 1 and "audit.json is damaged" in err
    status, _, err = run_report(capsys, tmp_path, *asked, "audit.settings.seed")
    listed = err.split("there are: ")[1]
    assert status == 2 and "audit.canaries.right" in listed and "audit.settings" not in listed
