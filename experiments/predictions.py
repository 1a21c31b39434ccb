"""Predictions as records: what answered, and each image's classes with their probabilities; as JSON
and as CSV."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.client_model import ClientModel
from experiments.spreadsheet import csv_text
from fedpgp.atomic_files import write_atomically
from fedpgp.plain_text import written_out

DIGITS = 6
"""Of a probability."""
LONGEST_PATH = 4096
"""Bytes, Linux's."""
STANDARD_OUTPUT = Path("-")


def about(model: ClientModel) -> dict:
    """Return what answers: the run, the round and the prompt, and the classes in their order. It
    names no path."""
    return {
        "run": model.run,
        "round": model.server_round,
        "prompt": model.digest,
        "client": model.client,
        "own_prompt": model.has_own_prompt,
        "method": model.federation.method.name,
        "classes": model.class_names,
    }


def prediction(probability: Tensor, names: Sequence[str]) -> dict:
    """Return one image's answer: its best class, and every class with its probability.

    Args:
        probability: (classes,).
        names: of the classes.
    """
    best = int(probability.argmax())
    values = [round(value, DIGITS) for value in probability.to(torch.float64).tolist()]
    return {
        "class": names[best],
        "probability": values[best],
        "probabilities": dict(zip(names, values, strict=True)),
    }


def as_json(model: ClientModel, answers: Iterable[tuple[Path, Tensor | str]]) -> str:
    """Return images with their answers, or why they have none, beside what answered."""
    found = [
        {"image": written_out(path), "error": answer}
        if isinstance(answer, str)
        else {"image": written_out(path), **prediction(answer, model.class_names)}
        for path, answer in answers
    ]
    return json.dumps({**about(model), "predictions": found}, indent=1, ensure_ascii=False) + "\n"


def as_csv(model: ClientModel, answers: Iterable[tuple[Path, Tensor | str]]) -> str:
    """Return a row an image: its best class, that class's probability, why it has none, and a
    column a class."""
    names = model.class_names
    rows: list[list[object]] = [["image", "class", "probability", "error", *names]]
    for path, answer in answers:
        if isinstance(answer, str):
            rows.append([written_out(path), "", "", answer, *[""] * len(names)])
        else:
            told = prediction(answer, names)
            values: Mapping[str, float] = told["probabilities"]
            rows.append(
                [written_out(path), told["class"], told["probability"], "", *values.values()]
            )
    return csv_text(rows, LONGEST_PATH)


def write(text: str, to: Path) -> None:
    """Write to a file, and say so on standard error; ``-`` is standard output.

    Raises:
        FedPGPError: the file cannot be written.
    """
    if to == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return
    write_atomically(to, text.encode())
    print(f"wrote {written_out(to)}", file=sys.stderr)
