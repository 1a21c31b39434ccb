"""What was found on a GPU so far: JSON, and a page with tables."""

import json
import sys
import time
from pathlib import Path

from experiments.bench.measure import machine
from fedpgp.atomic_files import write_atomically
from fedpgp.towers.triton_attention import triton


class Record:
    """What was found so far, in two files.

    Args:
        rows_file, page: JSON, and a page with tables.
    """

    def __init__(self, rows_file: Path, page: Path):
        self.rows_file, self.page, self.rows = rows_file, page, []
        self._began, self._peak = time.monotonic(), {}
        self.machine = machine() | {"triton": getattr(triton, "__version__", None)}

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return time.monotonic() - self._began

    def add(self, row: dict) -> None:
        """Keep a row, write both files and show it. A step's gets its share of the speed of the
        large product in its precision."""
        if row["part"] == "peak" and "gflops" in row:
            self._peak[row["dtype"]] = row["gflops"]
        if row["part"] == "step" and "gflops" in row and row["dtype"] in self._peak:
            row = row | {"share_of_peak": row["gflops"] / self._peak[row["dtype"]]}
        self.rows.append(row | {"at": round(self.seconds, 1)})
        found = {"machine": self.machine, "rows": self.rows}
        write_atomically(self.rows_file, (json.dumps(found, indent=2) + "\n").encode())
        write_atomically(self.page, as_page(self.machine, self.rows).encode())
        print("  ".join(f"{key}={shown(value)}" for key, value in row.items()), flush=True)


def shown(value: object) -> str:
    """A figure as tables have it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_page(about: dict, rows: list[dict]) -> str:
    """Return all rows as Markdown, a table a part, and how Triton's steps compare with padded
    ones."""
    lines = ["# What this GPU did", "", ", ".join(f"{k} {v}" for k, v in about.items()), ""]
    lines += ["`python -m " + " ".join(["experiments.bench.gpu", *sys.argv[1:]]) + "`", ""]
    for part in dict.fromkeys(row["part"] for row in rows):
        of_part = [row for row in rows if row["part"] == part]
        columns = dict.fromkeys(key for row in of_part for key in row)
        columns = [key for key in columns if key not in ("part", "kernels", "said", "files")]
        lines += [
            f"## {part}",
            "",
            "| " + " | ".join(columns) + " |",
            "| --- " * len(columns) + "|",
        ]
        for row in of_part:
            cells = (" ".join(shown(row.get(key, "")).split()) for key in columns)
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        lines.append("")
        for row in of_part:
            if "said" in row:
                lines += ["```", *row["said"], "```", ""]
    return "\n".join([*lines, *compared(rows)]) + "\n"


def compared(rows: list[dict]) -> list[str]:
    """Return Triton's step against the padded one, a line for each precision, number of classes
    and clients; no more is a reason to take it than being faster in all of them."""
    ms: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["part"] == "step" and "ms_per_client" in row:
            size = row["dtype"], row["classes"], row["clients"]
            ms.setdefault(size, {})[row["attention"]] = row["ms_per_client"]
    lines = [
        f"- {dtype}, {classes} classes, {clients} clients: {of['padded'] / of['triton']:.2f}"
        for (dtype, classes, clients), of in ms.items()
        if {"padded", "triton"} <= set(of)
    ]
    return (
        ["## A step with Triton's attention, times as fast as padded", "", *lines] if lines else []
    )
