"""Reports against run folders written here: every number in a table is computed again from the numbers that went in."""

import base64
import csv
import html.parser
import io
import json
import math
import re
import statistics
import zlib

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from experiments import report
from experiments.reporting import find_runs, read_run, write_report
from experiments.reporting.page import headline
from experiments.reporting.statistics import holm, mean_std, paired_t_test
from experiments.reporting.words import human_bytes, human_seconds
from fedpgp.errors import FedPGPError

DOMAINS = ("noto", "twemoji", "fluent", "openmoji")
COSTS = ["bytes", "seconds", "memory"]
CLASSES = (
    "mammal",
    "land vehicle",
    "clothing",
    "weather",
    "hand gesture",
    "heart",
    "bird",
    "fruit",
    "drink & food",
    "sea animal",
)
#: Where each method ends: (local, base, novel) of the global and of the personal prompt.
LEVELS = {
    "fedpgp": ((62.0, 58.0, 50.0), (71.0, 55.5, 49.0)),
    "promptfl": ((63.0, 59.0, 47.0),) * 2,
    "coop": (None, (70.0, 40.0, 33.0)),
    "fedotp": ((60.0, 55.0, 44.0), (72.5, 45.0, 38.0)),
}
ZERO_SHOT = (42.0, 41.0, 44.0)


def harmonic(*values):
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def block_of(rows, novel):
    """An accuracy block from client rows, as summary.json has it."""
    mean = {name: float(np.mean([row[name] for row in rows])) for name in ("local", "base", "novel")}
    spread = {name: float(np.std([row[name] for row in rows], ddof=len(rows) > 1)) for name in mean}
    hm3, hm2 = harmonic(*mean.values()), harmonic(mean["base"], mean["novel"])
    block = mean | {"hm3": hm3, "hm2": hm2, "cm": (mean["local"] + hm2) / 2, "ece": 6.5}
    block["worst10"] = min(row["local"] for row in rows)
    block["domains"] = {
        d: float(np.mean([r["local"] for r in rows if r["domain"] == d]))
        for d in dict.fromkeys(r["domain"] for r in rows)
    }
    block["std_clients"] = spread | {"hm3": 2.0, "hm2": 2.0}
    if not novel:
        for name in ("base", "novel", "hm3", "hm2", "cm"):
            block[name] = None
    return block


def picture(rng, label):
    image = Image.new("RGB", (64, 64), "white")
    colour = tuple(int(v) for v in rng.integers(40, 220, 3))
    draw = ImageDraw.Draw(image)
    box = (10, 10, 54, 54)
    [draw.ellipse, draw.rectangle, lambda b, fill: draw.polygon([(32, 8), (56, 56), (8, 56)], fill=fill)][
        len(label) % 3
    ](box, fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_run(
    path,
    method="fedpgp",
    seed=1,
    rounds=6,
    clients=8,
    status="finished",
    novel=True,
    dropped=(),
    dataset="emoji",
    domains=DOMAINS,
    **settings,
):
    """A run folder as experiments.run leaves it, of random but consistent numbers; returns the last accuracies."""
    rng = np.random.default_rng([seed, zlib.crc32(method.encode()), clients])
    path.mkdir(parents=True)
    config = {
        **{
            "seed": seed,
            "rounds": rounds,
            "clients": clients,
            "participation": 1.0,
            "local_epochs": 2,
            "batch_size": 32,
            "lr": 0.001,
        },
        **{
            "shots": 8,
            "n_ctx": 16,
            "evaluate_every": 1,
            "run_dir": str(path),
            "resume": None,
            "device": "cpu",
            "dtype": "float32",
        },
        "training": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
        "model": {"name": "tiny", "pretrained": None},
        "dataset": {"name": dataset, "root": None, "download": False},
        "partition": {"scheme": "domain_dirichlet", "beta": 0.3},
        "protocol": {"name": "base2novel", "base": "all"},
        "method": {"name": method, "optimizer_state": "reset"}
        | ({"rank": 8, "mu": 1.0, "tau": 0.5} if method == "fedpgp" else {}),
        "strategy": {"name": "fedavg"},
        "runtime": {"name": "ray", "workers": 2, "cache_dir": None},
        "logger": {"name": "none"},
        "experiment_name": "table",
        "versions": {"fedpgp": "0.1.0", "torch": "2.13.0", "flwr": "1.41.0"},
        "git_commit": "0123456789abcdef0123",
        "command": f"python -m experiments.run method={method} seed={seed}",
    }
    for key, value in settings.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    table = []
    for client in range(clients):
        counts = {
            name: int(n)
            for name, n in zip(CLASSES, rng.multinomial(60, rng.dirichlet([0.4] * len(CLASSES))), strict=True)
            if n
        }
        domain = domains[client * len(domains) // clients] if domains else None
        row = {
            "id": client,
            "domain": domain,
            "train_images": 60,
            "test_images": 30,
            "train_counts": counts,
            "test_counts": counts,
        }
        table.append(row)
    partition = {"scheme": "domain_dirichlet", "beta": 0.3, "class_names": list(CLASSES), "clients": table}
    (path / "partition.json").write_text(json.dumps(partition))

    prompts = LEVELS.get(method, (ZERO_SHOT, ZERO_SHOT))
    levels = dict(zip(("zero_shot", "global", "personal"), (ZERO_SHOT, *prompts), strict=True))
    offset = {model: rng.normal(0, 4, (clients, 3)) * (1, 0.3, 0.3) + rng.normal(0, 0.8, 3) for model in levels}
    offset["zero_shot"] = np.random.default_rng([seed, 7]).normal(0, 4, (clients, 3))
    if method == "promptfl":
        offset["personal"] = offset["global"]
    lines, rows = [], {}
    done = rounds if status == "finished" else rounds // 2
    for index in range(done + 1):
        share = 1 - math.exp(-3 * index / rounds)
        if index:
            lines.append(
                {
                    **{
                        "kind": "train",
                        "round": index,
                        "loss": 2.5 - 1.6 * share + float(rng.normal(0, 0.03)),
                        "clients": clients,
                    },
                    **{
                        "seconds": 2.0 + float(rng.random()),
                        "bytes_up": 32768 * clients,
                        "bytes_down": 32768 * clients,
                    },
                    "dropped": [entry for number, entry in dropped if number == index],
                }
            )
        evaluation = {"kind": "eval", "round": index}
        for model, level in levels.items():
            if level is None:
                evaluation[model] = None
                continue
            reached = np.array(ZERO_SHOT) * (1 - share) + np.array(level) * share
            figures = np.clip(reached + offset[model] * (0.4 + 0.6 * share if model != "zero_shot" else 1), 0, 100)
            keys = ("local", "base", "novel")
            rows[model] = [
                {**row, **dict(zip(keys, map(float, f), strict=True))} for row, f in zip(table, figures, strict=True)
            ]
            evaluation[model] = block_of(rows[model], novel)
        lines.append(evaluation)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    accuracy = {model: lines[-1][model] for model in levels}

    with (path / "clients.csv").open("w", newline="") as file:
        fields = ["id", "domain", "train_images", "test_images", "model", "local", "base", "novel", "hm3", "hm2"]
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        for model, of_model in rows.items():
            for row in of_model:
                three = {
                    "hm3": harmonic(row["local"], row["base"], row["novel"]),
                    "hm2": harmonic(row["base"], row["novel"]),
                }
                blank = {} if novel else {"base": "", "novel": "", "hm3": "", "hm2": ""}
                writer.writerow({**row, **three, "model": model, **blank})
    samples = []
    for row in table:
        for _ in range(4):
            label, other = (str(name) for name in rng.choice(CLASSES, 2, replace=False))
            correct = bool(rng.random() < 0.7)
            predicted = label if correct else other
            sample = {
                "client": row["id"],
                "domain": row["domain"],
                "label": label,
                "predicted": predicted,
                "correct": correct,
            }
            samples.append(sample | {"confidence": float(rng.uniform(0.3, 0.99)), "png": picture(rng, label)})
    (path / "samples.json").write_text(json.dumps({"samples": samples}))
    if status != "unfinished":
        summary = {
            **{
                "method": method,
                "dataset": dataset,
                "model": "tiny",
                "partition": "domain_dirichlet",
                "protocol": "base2novel",
            },
            **{"seed": seed, "rounds": rounds, "clients": clients, "status": status, "accuracy": accuracy},
            **{
                "bytes_up": 32768 * clients * done,
                "bytes_down": 32768 * clients * done,
                "wire_bytes_up": 70000,
                "wire_bytes_down": 80000,
            },
            "seconds": {"total": 30.0 + seed, "train": 20.0, "evaluate": 8.0, "overhead": 2.0 + seed},
            **{"images_per_second": 1234.5, "peak_rss_mb": 812.0, "peak_gpu_mb": 0},
        }
        (path / "summary.json").write_text(json.dumps(summary))
    return accuracy


VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects the texts and whatever a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.words, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(path):
    text = path.read_text()
    parsed = Page(text)
    assert all(load.startswith("data:image/png;base64,") for load in parsed.loads)
    assert "http" not in text and "@import" not in text and "url(" not in text and "script" not in parsed.tags
    assert not re.search(r"[\">, ]nan\b", text)
    return parsed


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Four methods, three seeds, and what they reached; beside them one unfinished run."""
    root = tmp_path_factory.mktemp("sweep")
    reached = {
        (method, seed): write_run(root / method / str(seed), method, seed) for method in LEVELS for seed in (1, 2, 3)
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
        capsys, root, "--format", "csv", "--models", "zero_shot,global,personal", "--columns", "worst10"
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
    assert "unfinished at round 3 of 6: fedpgp, seed 4" in err


def test_text_markdown_latex_agree_and_mark_the_best(sweep, capsys):
    root, reached = sweep
    order = sorted(LEVELS, key=lambda method: -expected(reached, method, "personal", "local")[0])
    texts = {form: run_report(capsys, root, "--format", form)[1] for form in ("text", "markdown", "latex")}
    for method in LEVELS:
        mean, std = expected(reached, method, "personal", "novel")
        assert all(
            f"{mean:.2f} {sign} {std:.2f}" in texts[form]
            for form, sign in (("text", "±"), ("markdown", "±"), ("latex", r"$\pm$"))
        )
    cell = {method: "{:.2f} ± {:.2f}".format(*expected(reached, method, "personal", "local")) for method in LEVELS}
    assert f"| **{cell[order[0]]}** |" in texts["markdown"]
    assert f"| <u>{cell[order[1]]}</u> |" in texts["markdown"]
    assert rf"\textbf{{{cell[order[0]].replace('±', '$' + chr(92) + 'pm$')}}}" in texts["latex"]
    assert rf"\underline{{{cell[order[1]].replace('±', '$' + chr(92) + 'pm$')}}}" in texts["latex"]
    assert texts["latex"].count(r"\\") == 1 + len(LEVELS)
    lines = texts["text"].splitlines()
    assert lines[0].split() == ["method", "seeds", "local", "base", "novel", "HM", "HM2", *COSTS]
    assert len(lines) == 1 + len(LEVELS) and max(map(len, lines)) < 130
    assert all(line.endswith(" 851 MB") for line in lines[1:])  # 812 MiB


def test_significance_is_the_paired_t_test(sweep, capsys):
    root, reached = sweep
    _, out, _ = run_report(capsys, root, "--format", "csv", "--significance")
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(out))}
    best = next(method for method, row in rows.items() if row["local_p"] == "")
    p_values = {}
    for method in set(LEVELS) - {best}:
        difference = [
            reached[best, s]["personal"]["local"] - reached[method, s]["personal"]["local"] for s in (1, 2, 3)
        ]
        assert float(rows[method]["local_behind_best"]) == pytest.approx(statistics.mean(difference))
        t = statistics.mean(difference) / (statistics.stdev(difference) / math.sqrt(3))
        p_values[method] = 1 - abs(t) / math.sqrt(
            t * t + 2
        )  # Student's t with two degrees of freedom has a closed form
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for method, p in corrected.items():
        assert float(rows[method]["local_p"]) == pytest.approx(p, abs=1e-9)
    assert "against" in run_report(capsys, root, "--significance")[1]


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
    assert paired_t_test([1.0, 2.0], [1.0, 2.0])[1] == 1 and paired_t_test([2.0, 3.0], [1.0, 2.0])[1] == 0
    assert holm([0.01, 0.04, math.nan, 0.03])[:2] == pytest.approx([0.03, 0.06])
    mean, std = mean_std([1.0, math.nan, 3.0])
    assert (mean, std) == (2.0, pytest.approx(math.sqrt(2))) and math.isnan(mean_std([1.0])[1])


def test_only_differing_settings_are_shown(tmp_path, capsys):
    for rank in (1, 8, 16):
        for seed in (1, 2):
            write_run(tmp_path / f"{rank}-{seed}", seed=seed, method__rank=rank, runtime__workers=rank)
    write_run(tmp_path / "promptfl", "promptfl", 1)
    _, out, _ = run_report(capsys, tmp_path)
    header, *rows = (line.split() for line in out.splitlines())
    assert header[:3] == [
        "method",
        "rank",
        "seeds",
    ]  # not mu, which only fedpgp has; not the workers, which change nothing
    assert [row[:3] for row in rows] == [
        ["fedpgp", "1", "2"],
        ["fedpgp", "8", "2"],
        ["fedpgp", "16", "2"],
        ["promptfl", "–", "1"],
    ]
    assert "±" not in out.splitlines()[-1].split("HM")[-1]  # one seed has no spread


def test_best_is_among_comparable_rows(tmp_path, capsys):
    for dataset in ("emoji", "dtd"):
        for method in ("fedpgp", "promptfl"):
            write_run(tmp_path / dataset / method, method, dataset=dataset)
    _, out, _ = run_report(capsys, tmp_path, "--format", "markdown")
    assert "dataset" in out.splitlines()[0]
    local = [line.split("|")[4].strip() for line in out.splitlines()[2:]]
    assert sum(cell.startswith("**") for cell in local) == 2 and sum(cell.startswith("<u>") for cell in local) == 2


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
        assert sorted(line.split()[0] for line in out.splitlines()) == ["fedpgp", "method", "zero_shot"]


def test_one_prompt_for_all_is_the_global_one(tmp_path, capsys):
    for method in ("zero_shot", "promptfl", "fedpgp", "coop"):
        write_run(tmp_path / method, method)
    lines = run_report(capsys, tmp_path, "--models", "personal,global")[1].splitlines()[1:]
    assert sorted(tuple(line.split()[:2]) for line in lines) == [
        *(("coop", "personal"), ("fedpgp", "global"), ("fedpgp", "personal")),
        *(("promptfl", "global"), ("zero_shot", "zero-shot")),
    ]


def test_columns_by_name(tmp_path, capsys):
    write_run(tmp_path / "1")
    _, out, _ = run_report(capsys, tmp_path, "--columns", "domains,ece,seconds.train,wire_bytes_up")
    assert out.splitlines()[0].split()[7:] == [*DOMAINS, "ECE", "seconds.train", "wire_bytes_up", *COSTS]
    status, _, err = run_report(capsys, tmp_path, "--columns", "accurracy")
    assert status == 2 and err.startswith("error: no column 'accurracy'; there are:")


def test_html_comparison(sweep, capsys):
    root, reached = sweep
    status, out, _ = run_report(capsys, root, "--format", "html", "--significance", "--out", root / "page.html")
    assert status == 0 and out == f"wrote {root / 'page.html'}\n"
    shown = page(root / "page.html")
    for method in LEVELS:
        assert method in shown.text
        assert "{:.2f} ± {:.2f}".format(*expected(reached, method, "personal", "hm3")) in shown.text
    assert "unfinished at round 3 of 6" in shown.text and "Significance" in shown.text
    assert shown.tags.count("svg") >= 7


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
    assert (
        reason in shown.text
        and "drink & food" in shown.text
        and "python -m experiments.run method=fedpgp seed=1" in shown.text
    )
    assert shown.tags.count("img") == 32 and shown.text.count("✗") + shown.text.count("✓") == 32
    assert shown.tags.count("svg") == 4 + 4 + 1 + 2  # curves and loss, domains, bubbles, bytes and time
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
    "name", ["config.yaml", "summary.json", "metrics.jsonl", "clients.csv", "partition.json", "samples.json"]
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
        tmp_path / "run", dropped=[(1, {"client": 1, "reason": "<script>alert(1)</script>"})], experiment_name='"><b>x'
    )
    assert "<script>alert(1)</script>" in page(write_report(tmp_path / "run")).text


def test_deployment_keeps_its_pictures(tmp_path):
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


def test_words():
    assert [human_bytes(n) for n in (0, 999, 1000, 32768, 1_572_864, 2.5e9)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "32.8 kB",
        "1.6 MB",
        "2.5 GB",
    ]
    assert [human_seconds(s) for s in (0.44, 12.3, 65, 7384)] == ["0.4 s", "12 s", "1:05 min", "2:03:04 h"]


def published_row(text, *words):
    """The line of the table of published figures that holds all these words."""
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_published_figures_stand_beside_ours(tmp_path, capsys):
    five = ("oxford_pets", "flowers102", "dtd", "caltech101", "food101")
    last = {}
    for seed in (1, 2):
        for dataset in five if seed == 1 else five[:4]:  # the second seed lacks one, so it does not count
            path = tmp_path / f"{dataset}{seed}"
            about = {"experiment_name": "paper_base2novel", "shots": 16}
            last[dataset, seed] = write_run(path, "fedpgp", seed, dataset=dataset, **about)
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    ours = statistics.fmean(last[dataset, 1]["personal"]["local"] for dataset in five)
    line = published_row(out, "pFedMMA", "fedpgp", "local")
    assert f"{ours:.2f}" in line and "95.38" in line and f"{ours - 95.38:+.2f}" in line
    assert "not run" in published_row(out, "pFedMMA", "promptfl", "local")
    assert "not run" in published_row(out, "FedDnC", "fedpgp")  # 8 shots
    assert report.main([str(tmp_path), "--format", "html", "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Published figures: paper_base2novel" in page and "not run" in page
    assert report.main(["--published", "dp_fpl_neighbour"]) == 0
    assert capsys.readouterr().out.count("not run") == 24
    assert report.main(["--published", "smoke"]) == 2 and report.main([]) == 2


def test_every_published_figure_can_be_read():
    from experiments.reporting.published import published
    from experiments.settings import CONF, choices
    from fedpgp.methods import METHODS

    files = [path.stem for path in (CONF / "experiment").glob("*.csv")]
    assert set(files) <= set(choices()["experiment"])
    for name in files:
        for row in published(name):
            assert row.figure in ("local", "base", "novel", "hm3", "unseen") and 0 < row.value <= 100
            assert row.where["method"] in METHODS
            assert set(row.mean_of) | {row.where["dataset"] or "emoji"} <= set(choices()["dataset"])


def test_rows_may_be_averaged_over_a_label(tmp_path, capsys):
    last = {}
    for dataset in ("emoji", "dtd"):
        for seed in (1, 2):
            last[dataset, seed] = write_run(tmp_path / f"{dataset}{seed}", "fedpgp", seed, dataset=dataset)
            write_run(tmp_path / f"{dataset}p{seed}", "promptfl", seed, dataset=dataset)
    assert report.main([str(tmp_path), "--mean-over", "dataset", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["method"] for row in rows] == ["fedpgp", "promptfl"] and "dataset" not in rows[0]
    seeds = [(last["emoji", s]["personal"]["local"] + last["dtd", s]["personal"]["local"]) / 2 for s in (1, 2)]
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
    assert sorted((row["runtime.dropout"], row["seeds"]) for row in rows) == [("", "1 2"), ("0.3", "1")]
