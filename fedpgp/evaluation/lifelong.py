"""What a run over several tasks is judged by: R[t, s], the accuracy on task s after task t, and the
figures that are made of it.

R has a row for each task that has ended and a column for each task, in percent; None where nothing
was measured. With T the last task that has ended:

* ``last`` = mean over s <= T of R[T, s]: what is known at the end;
* ``average`` = mean over t of the mean over s <= t of R[t, s] (the average incremental accuracy of
  Rebuffi et al., CVPR 2017);
* ``forgetting`` = mean over s < T of (max over t < T of R[t, s]) - R[T, s] (Chaudhry et al., ECCV
  2018);
* ``backward`` = mean over s < T of R[T, s] - R[s, s] (Lopez-Paz and Ranzato, NeurIPS 2017);
* ``transfer`` = mean over t < s of R[t, s]: accuracy on tasks before they come.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from fedpgp.evaluation.figures import MODELS
from fedpgp.prefixes import strip_prefix

Matrix = Sequence[Sequence[float | None]]
"""R: a row a task that has ended, a column a task."""


def task_accuracies(rows: Sequence[Mapping]) -> dict:
    """Return what the record of an evaluation says of the tasks; empty where it is not one after a
    task.

    Args:
        rows: one a client, with flat figures ``"<model>.tasks.T.S"``.

    Returns:
        ``task``: the task that has ended, from 1; ``tasks``: model -> accuracy on each task, the
        mean over the clients that have images of it.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for model in MODELS:
        for row in rows:
            for name, value in strip_prefix(f"{model}.tasks.", row).items():
                found.setdefault(model, {}).setdefault(name, []).append(value)
    names = {tuple(map(int, name.split("."))) for of in found.values() for name in of}
    if not names:
        return {}
    ended, many = max(task for task, _ in names), max(other for _, other in names)
    accuracies = {
        model: [_mean(of.get(f"{ended}.{other + 1}", ())) for other in range(many)]
        for model, of in found.items()
    }
    return {"task": ended, "tasks": accuracies}


def lifelong_summary(records: Iterable[Mapping]) -> dict[str, dict | None] | None:
    """Return the ``lifelong`` block of ``summary.json``: model -> its figures and its matrix; None
    for a model without, and None where no record is one after a task.

    Args:
        records: of the evaluations, oldest first.
    """
    after = {record["task"]: record["tasks"] for record in records if "task" in record}
    if not after:
        return None
    many = max(len(accuracies) for of in after.values() for accuracies in of.values())
    nothing: list[float | None] = [None] * many
    found: dict[str, dict | None] = {}
    for model in MODELS:
        matrix = [
            (list(after.get(task, {}).get(model, ())) + nothing)[:many]
            for task in range(1, max(after) + 1)
        ]
        measured = any(value is not None for row in matrix for value in row)
        found[model] = lifelong_figures(matrix) if measured else None
    return found


def lifelong_figures(matrix: Matrix) -> dict:
    """Return ``last``, ``average``, ``forgetting``, ``backward`` and ``transfer`` of a matrix, and
    itself; a figure that nothing was measured for is None.

    Example:
        >>> found = lifelong_figures([[80.0, 20.0], [60.0, 90.0]])
        >>> found["last"], found["average"], found["forgetting"], found["transfer"]
        (75.0, 77.5, 20.0, 20.0)
    """
    ended = len(matrix)
    of_each = [_mean(row[: task + 1]) for task, row in enumerate(matrix)]
    forgotten, gained = [], []
    for task in range(ended - 1):
        now = matrix[-1][task]
        before = _present(row[task] for row in matrix[:-1])
        if now is not None and before:
            forgotten.append(max(before) - now)
        if now is not None and matrix[task][task] is not None:
            gained.append(now - matrix[task][task])
    return {
        "last": of_each[-1],
        "average": _mean(of_each),
        "forgetting": _mean(forgotten),
        "backward": _mean(gained),
        "transfer": _mean(value for task, row in enumerate(matrix) for value in row[task + 1 :]),
        "matrix": [list(row) for row in matrix],
    }


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    values = _present(values)
    return fmean(values) if values else None
