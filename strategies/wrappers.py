"""Flower's wrappers of strategies, composed from the configuration (``strategy.wrap``)."""

import inspect

from flwr.serverapp import strategy as flower

from fedpgp.class_embeddings import ClassEmbeddings
from fedpgp.config import Config
from fedpgp.errors import FedPGPError, unknown
from fedpgp.methods import method_class
from fedpgp.registry import named_entries
from strategies.aggregation.base import StrategyContext
from strategies.flower_strategies import check_kinds, make_strategy, settable
from strategies.sampling import participants

WRAPPERS = {
    "server_side_fixed_clipping": flower.DifferentialPrivacyServerSideFixedClipping,
    "server_side_adaptive_clipping": flower.DifferentialPrivacyServerSideAdaptiveClipping,
}
"""Name -> Flower's class."""
NEED_MODS = {
    "client_side_fixed_clipping": "fixedclipping_mod",
    "client_side_adaptive_clipping": "adaptiveclipping_mod",
}
"""Name of a wrapper that cannot work here -> Flower's mod of the ClientApp that it relies on."""
NOISE = (
    "strategy.wrap: the noise of Flower's wrappers comes from the run's seed, so that the run can "
    "be repeated: who knows the seed takes it off again, and no epsilon is accounted"
)
"""What a person should know."""


def configured_strategy(
    config: Config, class_embeddings: ClassEmbeddings | None = None
) -> flower.Strategy:
    """Return the strategy of a configuration inside of its wrappers, the first one innermost.

    Args:
        config: resolved; ``strategy.wrap`` holds names, or mappings of a name and options. A run of
            an earlier version has no such key, and no wrapper.
        class_embeddings: for a strategy that compares updates by them; None where a configuration
            is only checked.

    Raises:
        FedPGPError: an unknown name or option, a value that is refused, a strategy or a wrapper
            that cannot work with this server or with the method.
    """
    chosen, method = config.strategy, method_class(config.method.name, config.method.component)
    about = (method.name, method.delta_params, method.no_class_embeddings, class_embeddings)
    strategy: flower.Strategy = make_strategy(chosen.name, chosen.options, StrategyContext(*about))
    if method.averages_itself and (chosen.name != "fedavg" or chosen.wrap):
        given = f"strategy={chosen.name}" if chosen.name != "fedavg" else "strategy.wrap"
        raise FedPGPError(
            f"{given} would do nothing with method={method.name}: {method.averages_itself}. Leave "
            "it out, or take method=fedit, whose server averages by the strategy"
        )
    for options in named_entries("strategy.wrap", chosen.wrap):
        strategy = _wrapped(strategy, config, options)
    return strategy


def _wrapped(strategy: flower.Strategy, config: Config, options: dict) -> flower.Strategy:
    name = options.pop("name")
    if name in NEED_MODS:
        raise FedPGPError(
            f"strategy.wrap={name} relies on {NEED_MODS[name]} of Flower, which clips one client a "
            "message; here a message is for all clients of a node. Take "
            f"{name.replace('client', 'server')}, or a step on the client (docs/"
            "add_an_update_step.md)"
        )
    if name not in WRAPPERS:
        raise FedPGPError(unknown("wrapper in strategy.wrap", name, [*WRAPPERS, *NEED_MODS]))
    method = method_class(config.method.name, config.method.component)
    if method.delta_params:
        raise FedPGPError(
            f"strategy.wrap={name} takes {', '.join(method.delta_params)} for a new value, and "
            f"method={method.name} sends a difference: its clipping would be of something else"
        )
    parameters = inspect.signature(WRAPPERS[name]).parameters
    valid = settable(WRAPPERS[name])
    for option in options:
        if option not in valid:
            raise FedPGPError(unknown(f"setting of the wrapper {name}", option, valid))
    options = {"num_sampled_clients": participants(config, config.clients), **options}
    needed = [o for o in valid if parameters[o].default is inspect.Parameter.empty]
    if missing := [option for option in needed if option not in options]:
        shown = ", ".join(f"{option}: ..." for option in missing)
        raise FedPGPError(f"strategy.wrap={name} needs settings: [{{name: {name}, {shown}}}]")
    check_kinds(f"strategy.wrap={name}", WRAPPERS[name], options)
    try:
        return WRAPPERS[name](strategy, **options)
    except (ValueError, TypeError) as error:
        raise FedPGPError(f"strategy.wrap={name}: {error}") from error
