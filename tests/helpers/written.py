"""Run folders written by hand, of random but consistent numbers, and a reader of pages: what
tests of reports share."""

import base64
import csv
import html.parser
import io
import json
import math
import re
import zlib

import numpy as np
import yaml
from PIL import Image, ImageDraw

DOMAINS = ("noto", "twemoji", "fluent", "openmoji")
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
    mean = {
        name: float(np.mean([row[name] for row in rows])) for name in ("local", "base", "novel")
    }
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
    [
        draw.ellipse,
        draw.rectangle,
        lambda b, fill: draw.polygon([(32, 8), (56, 56), (8, 56)], fill=fill),
    ][len(label) % 3](box, fill=colour)
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
    """A run folder as experiments.run leaves it, of random but consistent numbers;
    returns the last accuracies."""
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
            for name, n in zip(
                CLASSES, rng.multinomial(60, rng.dirichlet([0.4] * len(CLASSES))), strict=True
            )
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
    partition = {
        "scheme": "domain_dirichlet",
        "beta": 0.3,
        "class_names": list(CLASSES),
        "clients": table,
    }
    (path / "partition.json").write_text(json.dumps(partition))

    prompts = LEVELS.get(method, (ZERO_SHOT, ZERO_SHOT))
    levels = dict(zip(("zero_shot", "global", "personal"), (ZERO_SHOT, *prompts), strict=True))
    offset = {
        model: rng.normal(0, 4, (clients, 3)) * (1, 0.3, 0.3) + rng.normal(0, 0.8, 3)
        for model in levels
    }
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
            figures = np.clip(
                reached + offset[model] * (0.4 + 0.6 * share if model != "zero_shot" else 1), 0, 100
            )
            keys = ("local", "base", "novel")
            rows[model] = [
                {**row, **dict(zip(keys, map(float, f), strict=True))}
                for row, f in zip(table, figures, strict=True)
            ]
            evaluation[model] = block_of(rows[model], novel)
        lines.append(evaluation)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    accuracy = {model: lines[-1][model] for model in levels}

    with (path / "clients.csv").open("w", newline="") as file:
        fields = [
            "id",
            "domain",
            "train_images",
            "test_images",
            "model",
            "local",
            "base",
            "novel",
            "hm3",
            "hm2",
        ]
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
            samples.append(
                sample | {"confidence": float(rng.uniform(0.3, 0.99)), "png": picture(rng, label)}
            )
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
            **{
                "seed": seed,
                "rounds": rounds,
                "clients": clients,
                "status": status,
                "accuracy": accuracy,
            },
            **{
                "bytes_up": 32768 * clients * done,
                "bytes_down": 32768 * clients * done,
                "wire_bytes_up": 70000,
                "wire_bytes_down": 80000,
            },
            "seconds": {
                "total": 30.0 + seed,
                "train": 20.0,
                "evaluate": 8.0,
                "overhead": 2.0 + seed,
            },
            **{"images_per_second": 1234.5, "peak_rss_mb": 812.0, "peak_gpu_mb": 0},
        }
        (path / "summary.json").write_text(json.dumps(summary))
    return accuracy


VOID = {"meta", "img", "input", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects the texts and whatever a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.words, self.tags, self.images = [], [], [], [], 0
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.images += ("role", "img") in attrs
        self.loads += [
            value
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "xlink:href")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def charts(self):
        """How many charts there are; the small drawings of legends are none."""
        return self.images

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(path):
    text = path.read_text()
    parsed = Page(text)
    assert all(load.startswith("data:image/png;base64,") for load in parsed.loads)
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert not re.search(r"[\">, ]nan\b", text)
    return parsed
