"""Reports against run folders written here: every number in a table is computed again from the
numbers that went in."""

import csv
import io
import json
import math
import statistics

import numpy as np
import pytest

from experiments import report
from experiments.reporting import find_runs, read_run, write_report
from experiments.reporting.formatting import format_bytes, format_seconds
from experiments.reporting.headlines import headline
from experiments.reporting.statistics import holm, mean_std, paired_t_test
from experiments.reporting.titles import title
from fedpgp.errors import FedPGPError
from tests.helpers.written import DOMAINS, LEVELS, Page, page, write_run

COSTS = ["bytes", "seconds", "memory"]
COLUMNS = ["local", "base", "novel", "hm3", "hm2"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Four methods, three seeds, and what they reached; beside them one unfinished run."""
    root = tmp_path_factory.mktemp("sweep")
    reached = {
        (method, seed): write_run(root / method / str(seed), method, seed)
        for method in LEVELS
        for seed in (1, 2, 3)
    }
    write_run(root / "fedpgp" / "4", "fedpgp", 4, status="unfinished")
    return root, reached


def run_report(capsys, *argv):
    status = report.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def expected(reached, method, model, figure):
    values = [blocks[model][figure] for (name, _), blocks in reached.items() if name == method]
    return statistics.mean(values), statistics.stdev(values)


def test_csv_holds_mean_and_sample_deviation_over_seeds(sweep, capsys):
    root, reached = sweep
    status, out, err = run_report(
        capsys,
        root,
        "--format",
        "csv",
        "--models",
        "zero_shot,global,personal",
        "--columns",
        "worst10",
    )
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["method"], row["prompt"]) for row in rows if row["method"] == "coop"] == [
        ("coop", "personal")
    ]  # it has no global prompt
    assert sum(row["prompt"] == "zero_shot" for row in rows) == 1
    for row in rows:
        method = "fedpgp" if row["prompt"] == "zero_shot" else row["method"]
        assert row["seeds"] == "1 2 3" and row["local_n"] == "3"
        for figure in ("local", "base", "novel", "hm3", "hm2", "worst10"):
            mean, std = expected(reached, method, row["prompt"], figure)
            assert float(row[f"{figure}_mean"]) == pytest.approx(mean, abs=1e-9)
            assert float(row[f"{figure}_std"]) == pytest.approx(std, abs=1e-9)
        if row["prompt"] != "zero_shot":
            assert float(row["seconds_mean"]) == 32.0
            assert float(row["bytes_mean"]) == 2 * 32768 * 8 * 6
    assert "unfinished at round 3 of 6: FedPGP, seed 4" in err


def test_text_markdown_latex_agree_and_mark_the_best(sweep, capsys):
    root, reached = sweep
    order = sorted(LEVELS, key=lambda method: -expected(reached, method, "personal", "local")[0])
    texts = {
        form: run_report(capsys, root, "--format", form)[1]
        for form in ("text", "markdown", "latex")
    }
    for method in LEVELS:
        mean, std = expected(reached, method, "personal", "novel")
        assert all(
            f"{mean:.2f} {sign} {std:.2f}" in texts[form]
            for form, sign in (("text", "±"), ("markdown", "±"), ("latex", r"$\pm$"))
        )
    cell = {
        method: "{:.2f} ± {:.2f}".format(*expected(reached, method, "personal", "local"))
        for method in LEVELS
    }
    assert f"| **{cell[order[0]]}** |" in texts["markdown"]
    assert f"| <u>{cell[order[1]]}</u> |" in texts["markdown"]
    assert rf"\textbf{{{cell[order[0]].replace('±', '$' + chr(92) + 'pm$')}}}" in texts["latex"]
    assert rf"\underline{{{cell[order[1]].replace('±', '$' + chr(92) + 'pm$')}}}" in texts["latex"]
    assert texts["latex"].count(r"\\") == 1 + len(LEVELS)
    lines = texts["text"].splitlines()
    assert lines[0].split() == ["method", "seeds", "local", "base", "novel", "HM", "HM2", *COSTS]
    assert len(lines) == 1 + len(LEVELS) and max(map(len, lines)) <= 120
    assert (
        texts["text"].count(f"{cell[order[0]]}*") == 1 and f"{cell[order[1]]}*" not in texts["text"]
    )
    assert all(line.endswith(" 851 MB") for line in lines[1:])  # 812 MiB


def test_significance_is_the_paired_t_test_corrected_for_all_that_is_shown(sweep, capsys):
    root, reached = sweep
    _, out, _ = run_report(capsys, root, "--format", "csv", "--significance")
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(out))}
    p_values = {}
    for column in COLUMNS:
        best = next(method for method, row in rows.items() if row[f"{column}_p"] == "")
        for method in set(LEVELS) - {best}:
            difference = [
                reached[best, s]["personal"][column] - reached[method, s]["personal"][column]
                for s in (1, 2, 3)
            ]
            assert float(rows[method][f"{column}_behind_best"]) == pytest.approx(
                statistics.mean(difference)
            )
            t = statistics.mean(difference) / (statistics.stdev(difference) / math.sqrt(3))
            # Student's t with two degrees of freedom has a closed form
            p_values[method, column] = 1 - abs(t) / math.sqrt(t * t + 2)
    assert len(p_values) == 15
    largest = 0.0
    for rank, (method, column) in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, min(1, (15 - rank) * p_values[method, column]))
        assert float(rows[method][f"{column}_p"]) == pytest.approx(largest, abs=1e-9)
    _, out, err = run_report(capsys, root, "--significance")
    assert (
        "against" in out and "correction for all 15 tests shown" in err and "fewer than" not in err
    )


def test_significance_of_two_seeds_is_warned_of(tmp_path, capsys):
    for method in ("fedpgp", "promptfl"):
        for seed in (1, 2):
            write_run(tmp_path / f"{method}{seed}", method, seed)
    for form in ("text", "csv"):
        err = run_report(capsys, tmp_path, "--significance", "--format", form)[2]
        assert "5 of 5 comparisons have fewer than 3 seeds in common" in err
    run_report(capsys, tmp_path, "--significance", "--format", "html")
    assert "5 of 5 comparisons have fewer than 3 seeds" in page(tmp_path / "comparison.html").text


def test_significance_of_several_tasks_names_the_rows_as_their_tables_do(tmp_path, capsys):
    for method in ("fedpgp", "promptfl"):
        for seed in (1, 2):
            write_run(tmp_path / f"a{method}{seed}", method, seed)
            write_run(tmp_path / f"b{method}{seed}", method, seed, rounds=12, clients=6)
    models = ("--models", "zero_shot,global,personal")
    _, out, _ = run_report(capsys, tmp_path, "--significance", *models)
    assert (
        out.count("clients 6, rounds 12\nfigure ") == 1 == out.count("clients 8, rounds 6\nfigure ")
    )
    tests = [line for line in out.splitlines() if " ± " in line and "(" in line]
    assert any("FedPGP (personal)" in line and "PromptFL (global)" in line for line in tests)
    assert not [line for line in tests if "…" in line or "rounds" in line]
    run_report(capsys, tmp_path, "--significance", "--format", "html", *models)
    shown = page(tmp_path / "comparison.html").text
    assert "clients 6" in shown.split("Significance")[1].split("Trade-off")[0]


def test_t_test_against_tables():
    # t = 4.303 and 2.776 are the two-sided 5 % points with 2 and 4 degrees of freedom
    for n, quantile in (
        (3, 4.302652729911275),
        (5, 2.7764451051977987),
        (2, 12.706204736432095),
        (4, 3.182446305284263),
        (30, 2.045229642132703),
    ):
        values = np.arange(n) - (n - 1) / 2
        values = values / values.std(ddof=1) + quantile / math.sqrt(n)
        t, p = paired_t_test(values, np.zeros(n))
        assert (t, p) == (pytest.approx(quantile), pytest.approx(0.05, abs=1e-9))
    assert math.isnan(paired_t_test([1.0], [2.0])[1])
    assert (
        paired_t_test([1.0, 2.0], [1.0, 2.0])[1] == 1
        and paired_t_test([2.0, 3.0], [1.0, 2.0])[1] == 0
    )
    assert holm([0.01, 0.04, math.nan, 0.03])[:2] == pytest.approx([0.03, 0.06])
    mean, std = mean_std([1.0, math.nan, 3.0])
    assert (mean, std) == (2.0, pytest.approx(math.sqrt(2))) and math.isnan(mean_std([1.0])[1])


def test_only_differing_settings_are_shown(tmp_path, capsys):
    for rank in (1, 8, 16):
        for seed in (1, 2):
            write_run(
                tmp_path / f"{rank}-{seed}", seed=seed, method__rank=rank, runtime__workers=rank
            )
    write_run(tmp_path / "promptfl", "promptfl", 1)
    _, out, _ = run_report(capsys, tmp_path)
    header, *rows = (line.split() for line in out.splitlines())
    assert header[:3] == [
        "method",
        "rank",
        "seeds",
    ]  # not mu, which only fedpgp has; not the workers, which change nothing
    assert [row[:3] for row in rows] == [
        ["FedPGP", "1", "2"],
        ["FedPGP", "8", "2"],
        ["FedPGP", "16", "2"],
        ["PromptFL", "–", "1"],
    ]
    assert "±" not in out.splitlines()[-1].split("HM")[-1]  # one seed has no spread


def test_different_runs_are_grouped_and_fit_a_terminal(tmp_path, capsys, monkeypatch):
    """A table a task, what its rows share above it; costs go first, then labels are shortened."""
    long = "a_data_set_with_a_name_that_nobody_would_type_twice"
    for dataset, protocol in (("emoji", "base2novel"), (long, "dirichlet")):
        for method in ("fedpgp", "promptfl_ft"):
            path = tmp_path / dataset / method
            write_run(
                path,
                method,
                dataset=dataset,
                protocol={"name": protocol},
                method__init=long if "pgp" in method else 1,
            )
    write_run(
        tmp_path / "rank",
        "fedpgp",
        dataset="emoji",
        protocol={"name": "base2novel"},
        method__init="short",
    )
    for columns in ("160", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        _, out, err = run_report(capsys, tmp_path)
        blocks = [block.splitlines() for block in out.split("\n\n")]
        assert sorted(block[0] for block in blocks) == [
            f"dataset {long}, protocol dirichlet",
            "dataset emoji, protocol base2novel",
        ]
        assert all(
            block[1].split()[0] == "method" and "dataset" not in block[1] for block in blocks
        )
        assert all(len(line) <= int(columns) for block in blocks for line in block[1:])
        assert ("memory" in out) == (columns == "160") == ("no room" not in err)
    _, out, _ = run_report(capsys, tmp_path, "--columns", "seconds")
    assert "seconds" in out and "memory" not in out  # asked for: it stays


def test_best_is_among_comparable_rows(tmp_path, capsys):
    for dataset in ("emoji", "dtd"):
        for method in ("fedpgp", "promptfl"):
            write_run(tmp_path / dataset / method, method, dataset=dataset)
    _, out, _ = run_report(capsys, tmp_path, "--format", "markdown")
    assert "dataset" in out.splitlines()[0]
    local = [line.split("|")[4].strip() for line in out.splitlines()[2:]]
    assert (
        sum(cell.startswith("**") for cell in local) == 2
        and sum(cell.startswith("<u>") for cell in local) == 2
    )


def test_a_protocol_without_novel_classes(tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed=seed, novel=False)
    _, out, _ = run_report(capsys, tmp_path)
    assert out.splitlines()[0].split() == ["method", "seeds", "local", *COSTS]
    shown = page(write_report(tmp_path / "1"))
    assert "Novel accuracy" not in shown.text and "Local accuracy" in shown.text
    assert run_report(capsys, tmp_path, "--format", "html")[0] == 0
    page(tmp_path / "comparison.html")


def test_zero_shot_is_one_row(tmp_path, capsys):
    for method in ("zero_shot", "fedpgp"):
        write_run(tmp_path / method, method)
    for models in ("zero_shot,personal", "personal"):
        out = run_report(capsys, tmp_path, "--models", models)[1]
        assert sorted(line.split()[0] for line in out.splitlines()) == [
            "FedPGP",
            "Zero-shot",
            "method",
        ]


def test_one_prompt_for_all_is_the_global_one(tmp_path, capsys):
    for method in ("zero_shot", "promptfl", "fedpgp", "coop"):
        write_run(tmp_path / method, method)
    lines = run_report(capsys, tmp_path, "--models", "personal,global")[1].splitlines()[1:]
    assert sorted(tuple(line.split()[:2]) for line in lines) == [
        *(("CoOp", "personal"), ("FedPGP", "global"), ("FedPGP", "personal")),
        *(("PromptFL", "global"), ("Zero-shot", "CLIP")),
    ]


def test_columns_by_name(tmp_path, capsys):
    write_run(tmp_path / "1")
    _, out, _ = run_report(capsys, tmp_path, "--columns", "domains,ece,seconds.train,wire_bytes_up")
    assert out.splitlines()[0].split()[7:] == [
        *DOMAINS,
        "ECE",
        "seconds.train",
        "wire_bytes_up",
    ]  # no room for costs
    status, _, err = run_report(capsys, tmp_path, "--columns", "accurracy")
    assert status == 2 and err.startswith("error: no column 'accurracy'; there are:")


def test_html_comparison(sweep, capsys):
    root, reached = sweep
    status, out, _ = run_report(
        capsys, root, "--format", "html", "--significance", "--out", root / "page.html"
    )
    assert status == 0 and out == f"wrote {root / 'page.html'}\n"
    shown = page(root / "page.html")
    for method in LEVELS:
        assert title(method) in shown.text
        assert "{:.2f} ± {:.2f}".format(*expected(reached, method, "personal", "hm3")) in shown.text
    assert "unfinished at round 3 of 6" in shown.text and "Significance" in shown.text
    assert shown.charts >= 7


def test_page_of_a_run(tmp_path):
    reason = "loss is NaN at round 3, step 17"
    accuracy = write_run(tmp_path / "run", dropped=[(3, {"client": 5, "reason": reason})])
    path = write_report(tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    shown = page(path)
    for model in ("zero_shot", "global", "personal"):
        for figure in ("local", "base", "novel", "hm3"):
            assert f"{accuracy[model][figure]:.1f}" in shown.text
    gain = accuracy["personal"]["local"] - accuracy["global"]["local"]
    assert f"gained {gain:.1f} points over the global one" in shown.text
    assert "1 update: client 5 in 1 round." in shown.text
    assert (
        reason in shown.text
        and "drink & food" in shown.text
        and "python -m experiments.run method=fedpgp seed=1" in shown.text
    )
    assert shown.tags.count("img") == 32 and shown.text.count("✗") + shown.text.count("✓") == 32
    # local, base, novel, calibration, worst tenth, loss; domains; bubbles; bytes and time
    assert shown.charts == 6 + 4 + 1 + 2
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("clients", [1, 40, 200])
def test_page_for_few_and_many_clients(tmp_path, clients):
    write_run(tmp_path / "run", clients=clients, domains=None, rounds=2)
    page(write_report(tmp_path / "run"))


def test_headlines(tmp_path):
    write_run(tmp_path / "coop", "coop")
    write_run(tmp_path / "promptfl", "promptfl")
    write_run(tmp_path / "none", status="unfinished", rounds=1)
    (tmp_path / "none" / "metrics.jsonl").unlink()
    assert "above zero-shot CLIP" in headline(read_run(tmp_path / "coop"))
    assert headline(read_run(tmp_path / "promptfl")).startswith("One prompt for all is right on")
    assert "nothing is measured yet" in headline(read_run(tmp_path / "none"))
    for name in ("coop", "promptfl", "none"):
        page(write_report(tmp_path / name))


def test_an_interrupted_run_can_be_read(tmp_path, capsys):
    write_run(tmp_path / "run", status="interrupted")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "rou')  # killed while writing
    run = read_run(tmp_path / "run")
    assert (run.status, run.rounds_done, run.rounds) == ("interrupted", 3, 6)
    assert "interrupted: round 3 of 6" in page(write_report(tmp_path / "run")).text
    status, _, err = run_report(capsys, tmp_path)
    assert status == 2 and "interrupted at round 3 of 6" in err


def test_a_round_run_again_counts_once(tmp_path):
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    last = json.loads(path.read_text().splitlines()[-2])
    with path.open("a") as file:
        file.write(json.dumps(last | {"loss": 9.0}) + "\n")
    run = read_run(tmp_path / "run")
    assert len(run.trains) == 6 and run.trains[-1]["loss"] == 9.0


def test_the_newest_of_two_equal_runs_counts(tmp_path, capsys):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    _, out, err = run_report(capsys, tmp_path)
    assert len(out.splitlines()) == 2 and "seed 1 was run more than once" in err


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "summary.json",
        "metrics.jsonl",
        "clients.csv",
        "partition.json",
        "samples.json",
    ],
)
@pytest.mark.parametrize("damage", [b"", b"{\x00\xff: [}\n{}\n", b'{"kind": 3}\n[1]\n{}\n'])
def test_damaged_files_are_named(tmp_path, name, damage):
    write_run(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(damage)
    if name == "clients.csv" and not damage:
        damage = None  # an empty table is a table
    with pytest.raises(FedPGPError, match=name.replace(".", r"\.")):
        write_report(tmp_path / "run")
        if damage is None:
            raise FedPGPError(name)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "clients.csv", "partition.json"])
def test_missing_files_are_named(tmp_path, name):
    write_run(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(FedPGPError, match=name.replace(".", r"\.")):
        write_report(tmp_path / "run")


def test_texts_are_escaped(tmp_path):
    write_run(
        tmp_path / "run",
        dropped=[(1, {"client": 1, "reason": "<script>alert(1)</script>"})],
        experiment_name='"><b>x',
    )
    assert "<script>alert(1)</script>" in page(write_report(tmp_path / "run")).text


def test_deployment_keeps_its_images(tmp_path):
    write_run(tmp_path / "run", runtime__name="deployment")
    (tmp_path / "run" / "samples.json").unlink()
    assert "Kept by the client" in page(write_report(tmp_path / "run")).text


def test_one_run_is_its_own_page(tmp_path, capsys):
    write_run(tmp_path / "sweep" / "run")
    status, out, _ = run_report(capsys, tmp_path, "--format", "html")
    assert status == 0 and out.strip().endswith("sweep/run/report.html")


def test_finding_runs(tmp_path, capsys):
    write_run(tmp_path / "a" / "run", rounds=1)
    (tmp_path / "a" / "run" / ".hydra").mkdir()
    (tmp_path / "a" / "run" / ".hydra" / "config.yaml").write_text("seed: 1\n")
    assert find_runs([tmp_path, tmp_path / "a"]) == [(tmp_path / "a" / "run").resolve()]
    assert run_report(capsys, tmp_path / "nowhere")[0] == 2
    (tmp_path / "empty").mkdir()
    status, _, err = run_report(capsys, tmp_path / "empty")
    assert status == 2 and "no run folder in" in err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main(["--help"])
    assert stopped.value.code == 0 and "examples:" in capsys.readouterr().out


def test_a_method_is_named_as_its_paper_does_and_a_stranger_by_its_key():
    assert (title("dp_fpl"), title("my_own")) == ("DP-FPL", "my_own")


def test_words():
    assert [format_bytes(n) for n in (0, 999, 1000, 32768, 1_572_864, 2.5e9)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "32.8 kB",
        "1.6 MB",
        "2.5 GB",
    ]
    assert [format_seconds(s) for s in (0.44, 12.3, 65, 7384)] == [
        "0.4 s",
        "12 s",
        "1:05 min",
        "2:03:04 h",
    ]


def published_row(text, *words):
    """The line of the table of published figures that holds all these words."""
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_published_figures_stand_beside_ours(tmp_path, capsys, monkeypatch):
    five = ("oxford_pets", "flowers102", "dtd", "caltech101", "food101")
    last = {}
    for seed in (1, 2):
        for dataset in (
            five if seed == 1 else five[:4]
        ):  # the second seed lacks one, so it does not count
            path = tmp_path / f"{dataset}{seed}"
            about = {"experiment_name": "paper_base2novel", "shots": 16}
            last[dataset, seed] = write_run(path, "fedpgp", seed, dataset=dataset, **about)
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    ours = statistics.fmean(last[dataset, 1]["personal"]["local"] for dataset in five)
    line = published_row(out, "pFedMMA", "FedPGP", "local")
    assert f"{ours:.2f}" in line and "95.38" in line and f"{ours - 95.38:+.2f}" in line
    assert "not run" in published_row(out, "pFedMMA", "PromptFL", "local")
    assert "not run" in published_row(out, "FedDnC", "FedPGP")  # 8 shots
    assert (
        report.main([str(tmp_path), "--format", "html", "--out", str(tmp_path / "page.html")]) == 0
    )
    page = (tmp_path / "page.html").read_text()
    assert "Published figures: paper_base2novel" in page and "not run" in page
    assert report.main(["--published", "dp_fpl_neighbour,dp_fpl_factors"]) == 0
    out = capsys.readouterr().out
    assert (
        out.count("not run") == 24
        and out.count("DP-FPL, as FedPGP") == out.count("DP-FPL, as FedOTP") == 8
    )
    monkeypatch.setenv("COLUMNS", "100")
    for argv in ([str(tmp_path)], ["--published", "paper_base2novel"]):
        assert report.main(argv) == 0
        out, err = capsys.readouterr()
        assert max(map(len, out.splitlines())) <= 100 and "theirs" in out and "no room for" in err
    assert report.main(["--published", "smoke"]) == 2 and report.main([]) == 2


def test_every_published_figure_can_be_read():
    from experiments.reporting.published_figures import PUBLISHED, published
    from experiments.settings import choices
    from fedpgp.evaluation.figures import FIGURES
    from fedpgp.methods import METHODS

    files = [path.stem for path in PUBLISHED.glob("*.csv")]
    assert files and set(files) <= set(choices()["experiment"])
    for name in files:
        for row in published(name):
            assert row.figure in FIGURES and 0 < row.value <= 100
            assert row.where["method"] in METHODS
            assert set(row.mean_of) | {row.where["dataset"] or "emoji"} <= set(choices()["dataset"])


def test_rows_may_be_averaged_over_a_label(tmp_path, capsys):
    last = {}
    for dataset in ("emoji", "dtd"):
        for seed in (1, 2):
            last[dataset, seed] = write_run(
                tmp_path / f"{dataset}{seed}", "fedpgp", seed, dataset=dataset
            )
            write_run(tmp_path / f"{dataset}p{seed}", "promptfl", seed, dataset=dataset)
    assert report.main([str(tmp_path), "--mean-over", "dataset", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["method"] for row in rows] == ["fedpgp", "promptfl"] and "dataset" not in rows[0]
    seeds = [
        (last["emoji", s]["personal"]["local"] + last["dtd", s]["personal"]["local"]) / 2
        for s in (1, 2)
    ]
    assert float(rows[0]["local_mean"]) == pytest.approx(statistics.fmean(seeds))
    assert float(rows[0]["local_std"]) == pytest.approx(statistics.stdev(seeds))
    assert report.main([str(tmp_path), "--mean-over", "rank"]) == 2
    assert "the runs do not differ in 'rank'" in capsys.readouterr().err


def test_unseen_data_and_other_data_sets_have_their_place(tmp_path, capsys):
    last = write_run(tmp_path / "run", "fedpgp", 1, novel=False, protocol={"name": "cross_dataset"})
    for name in ("summary.json", "metrics.jsonl"):  # what a transfer adds
        lines = [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for line in lines:
            for block in (line.get("accuracy", line).get(model) for model in last):
                if block:
                    block |= {"unseen": 61.25, "datasets": {"dtd": 62.5, "emoji objects": 60.0}}
        (tmp_path / "run" / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(tmp_path / "run")
    page = Page((tmp_path / "run" / "report.html").read_text())
    for words in ("Other data sets", "emoji objects", "62.5", "61.2", "unseen"):
        assert words in page.text, words
    assert report.main([str(tmp_path), "--columns", "datasets"]) == 0
    out = capsys.readouterr().out
    assert "61.25" in out and "emoji objects" in out and "62.50" in out


def test_dropping_out_is_a_setting_and_nobody_dropping_out_is_none(tmp_path, capsys):
    write_run(tmp_path / "a", "fedpgp", 1)
    write_run(tmp_path / "b", "fedpgp", 2, runtime__dropout=0.0)
    write_run(tmp_path / "c", "fedpgp", 1, runtime__dropout=0.3)
    assert report.main([str(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sorted((row["runtime.dropout"], row["seeds"]) for row in rows) == [
        ("", "1 2"),
        ("0.3", "1"),
    ]
