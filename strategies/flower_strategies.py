"""Strategies by name: how the clients' tensors become the next global ones. All are Flower's
strategies.

Which clients take part is not their business here: the server offers a strategy only the sampled
clients, so each runs with fraction 1.
"""

import inspect
import random
from collections.abc import Mapping
from types import UnionType
from typing import Union, get_args, get_origin

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower

from fedpgp.config import StrategySection
from fedpgp.errors import FedPGPError, check_choice, check_number, unknown
from fedpgp.seeding import generator
from strategies.aggregation.base import STRATEGIES, StrategyContext

SERVERS = tuple(StrategySection.declared())
"""Keys of the configuration's group that are no options of a strategy: the server sees to them."""

_OURS = {
    name for name in inspect.signature(flower.FedAvg).parameters
}  # sampling and record keys: the server's business


def make_strategy(
    name: str, options: Mapping[str, object], context: StrategyContext | None = None
) -> flower.FedAvg:
    """Return a Flower strategy by name, with its own options (``server_momentum``, ``eta``,
    ``num_malicious_nodes`` …); those of the server are passed over.

    Args:
        name: of the strategy.
        options: of the configuration's group.
        context: given to a strategy that has such a parameter.

    Raises:
        FedPGPError: unknown strategy or option, or a value the strategy refuses.
    """
    if name not in STRATEGIES:
        raise FedPGPError(unknown("strategy", name, list(STRATEGIES)))
    valid = own_options(name)
    options = {option: value for option, value in options.items() if option not in SERVERS}
    for option in options:
        if option not in valid:
            raise FedPGPError(unknown(f"setting of strategy {name}", option, valid))
    check_kinds("strategy", STRATEGIES[name], options)
    if "context" in inspect.signature(STRATEGIES[name]).parameters:
        options["context"] = context
    try:
        return STRATEGIES[name](
            min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1, **options
        )
    except (ValueError, TypeError) as error:
        raise FedPGPError(f"strategy={name}: {error}") from error


def own_options(name: str) -> list[str]:
    """Return the options of a strategy that a configuration may set."""
    return settable(STRATEGIES[name])


def settable(strategy: type[flower.Strategy]) -> list[str]:
    """Return the parameters of a strategy or wrapper that a configuration can hold and that are
    not the server's business; a function or another strategy is none."""
    return [
        name
        for name, parameter in inspect.signature(strategy).parameters.items()
        if name not in _OURS and not any(map(_is_no_value, _kinds(parameter)))
    ]


def check_kinds(
    prefix: str, strategy: type[flower.Strategy], options: Mapping[str, object]
) -> None:
    """Refuse a text where a strategy takes a number, and the like. It would fail after the first
    round's training.

    Raises:
        FedPGPError: naming the option, its value and what is valid.
    """
    parameters = inspect.signature(strategy).parameters
    for name, value in options.items():
        kinds = _kinds(parameters[name])
        if value is None and type(None) in kinds:
            continue
        if bool in kinds:
            check_choice(f"{prefix}.{name}", value, (False, True))
        elif float in kinds:
            check_number(f"{prefix}.{name}", value)
        elif int in kinds:
            check_number(f"{prefix}.{name}", value, least=0, whole=True)


def _kinds(parameter: inspect.Parameter) -> tuple:
    """The kinds of values that a parameter says it takes."""
    annotation = parameter.annotation
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_no_value(kind: object) -> bool:
    """Whether no configuration can hold such a thing: a function, a strategy, an accountant."""
    plain = (bool, int, float, str, list, tuple, dict, type(None), inspect.Parameter.empty)
    return not isinstance(kind, str) and (get_origin(kind) or kind) not in plain


def clients_needed(strategy: flower.Strategy) -> int:
    """Return the fewest clients a strategy can aggregate, whatever is wrapped around it."""
    strategy = _innermost(strategy)
    malicious = getattr(strategy, "num_malicious_nodes", 0)
    if isinstance(strategy, flower.Bulyan):
        return 4 * malicious + 3
    if isinstance(strategy, flower.MultiKrum):
        return max(getattr(strategy, "num_nodes_to_select", 1), malicious + 3)
    return 1


def beyond_theorem(strategy: flower.Strategy, clients: int) -> str:
    """Return what is to be said of a strategy that is to bear more malicious clients than its
    theorem allows; empty: nothing.

    Krum and Multi-Krum need 2 f + 3 clients a round (Blanchard et al., NeurIPS 2017, proposition
    1), Bulyan 4 f + 3 (El Mhamdi et al., ICML 2018, theorem 2).

    Args:
        strategy: whatever is wrapped around it.
        clients: that take part in a round.
    """
    strategy = _innermost(strategy)
    if not isinstance(strategy, flower.MultiKrum | flower.Bulyan):
        return ""
    malicious, times = strategy.num_malicious_nodes, 4 if isinstance(strategy, flower.Bulyan) else 2
    allowed = (clients - 3) // times
    if malicious <= allowed:
        return ""
    least = times * malicious + 3
    most = f"at most {allowed}" if allowed >= 0 else "none"
    return (
        f"strategy.num_malicious_nodes={malicious}: what its paper proves needs {times} f + 3 = "
        f"{least} clients a round, and {clients} take part; with {clients} clients it holds for "
        f"{most}"
    )


def _innermost(strategy: flower.Strategy) -> flower.Strategy:
    """The strategy inside of its wrappers."""
    while isinstance(inner := getattr(strategy, "strategy", None), flower.Strategy):
        strategy = inner
    return strategy


def seed_libraries(seed: int, server_round: int) -> None:
    """Seed the libraries' global generators, from which Flower draws (order of clients, noise of
    privacy wrappers); "rule" is the name of the stream."""
    drawn = int(generator(seed, "rule", server_round).integers(2**32))
    random.seed(drawn)
    np.random.seed(drawn)


# A strategy's state between rounds (momentum, second moments, clipping norms …) has to survive a
# restart. Flower keeps it in attributes of the strategy: arrays in lists, dicts or records, and
# numbers. They are found by type, so any strategy, wrapped or not, is covered.


def strategy_state(strategy: flower.Strategy) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return a strategy's state between rounds: tensors by path ("m_t/d/p_G"), and plain values by
    path."""
    tensors: dict[str, np.ndarray] = {}
    values: dict[str, object] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, flower.Strategy):
            inner_tensors, inner_values = strategy_state(value)
            tensors |= {f"{name}.{path}": tensor for path, tensor in inner_tensors.items()}
            values |= {f"{name}.{path}": inner for path, inner in inner_values.items()}
        elif isinstance(value, ArrayRecord):
            tensors |= {f"{name}/r/{key}": array.numpy() for key, array in value.items()}
        elif (
            isinstance(value, dict)
            and value
            and all(isinstance(v, np.ndarray) for v in value.values())
        ):
            tensors |= {f"{name}/d/{key}": array for key, array in value.items()}
        elif isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
            tensors |= {f"{name}/l/{i:04d}": array for i, array in enumerate(value)}
        elif isinstance(value, np.ndarray):
            tensors[f"{name}/a/"] = value
        elif isinstance(value, (bool, int, float, str)):
            values[name] = value
    return tensors, values


def restore_strategy(
    strategy: flower.Strategy, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]
) -> None:
    """Put back what :func:`strategy_state` took."""
    for path, value in values.items():
        target, name = _owner(strategy, path)
        setattr(target, name, value)
    grouped: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for path, tensor in sorted(tensors.items()):
        name, kind, key = path.split("/", 2)
        grouped.setdefault((name, kind), {})[key] = tensor
    for (path, kind), entries in grouped.items():
        target, name = _owner(strategy, path)
        setattr(target, name, _BUILD[kind](entries))


_BUILD = {
    "r": lambda entries: ArrayRecord({key: Array(array) for key, array in entries.items()}),
    "d": dict,
    "l": lambda entries: list(entries.values()),
    "a": lambda entries: entries[""],
}


def _owner(strategy: flower.Strategy, path: str) -> tuple[flower.Strategy, str]:
    *wrappers, name = path.split(".")
    for wrapper in wrappers:
        strategy = getattr(strategy, wrapper)
    return strategy, name
