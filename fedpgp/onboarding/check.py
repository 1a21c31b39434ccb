"""What of onboarding cannot work is refused before the training."""

from fedpgp.config import Config
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from fedpgp.onboarding.base import onboarding_class
from fedpgp.onboarding.terms import FACTORS, blend
from fedpgp.protocols import EvalProtocol
from fedpgp.protocols.onboarding_options import OnboardingOptions


def check_onboarding(config: Config, protocol: EvalProtocol) -> None:
    """Refuse settings of onboarding that cannot work, whatever the data.

    Raises:
        FedPGPError: naming the setting and what to do.
    """
    if config.method.share_terms and config.runtime.name == "flower":
        raise FedPGPError(
            "method.share_terms=true does not go with a deployment so far: its nodes send no "
            "private tensors"
        )
    if config.method.share_terms and config.privacy.protects:
        raise FedPGPError(
            "method.share_terms=true does not go with privacy: private tensors carry no noise, and "
            "the server would see each of them"
        )
    if not isinstance(protocol, OnboardingOptions) or protocol.ways == ["global"]:
        return
    if config.runtime.name == "flower":
        raise FedPGPError(f"protocol.onboard={','.join(protocol.ways)} is measured in a simulation")
    for name in protocol.ways:
        way = onboarding_class(name, protocol)
        if config.privacy.name == "image" and (way.fine_tunes or way.uses_images):
            raise FedPGPError(
                f"protocol.onboard={name} does not go with privacy=image: newcomers would use "
                "their images without noise; take global or prior"
            )
        if way.needs_terms and not config.method.share_terms:
            raise FedPGPError(
                f"protocol.onboard={name} is made of the private tensors of trained clients, which "
                "is theirs to allow: method.share_terms=true (docs/privacy.md)"
            )


def check_private_tensors(federation: Federation, options: OnboardingOptions) -> None:
    """Refuse ways that do not go with this method, or that it has no private tensors for.

    Raises:
        FedPGPError: naming way and method.
    """
    for name in options.ways:
        way, method = onboarding_class(name, options), federation.method.name
        if why := way.why_not_method(options, federation.method):
            raise FedPGPError(f"protocol.onboard={name}: {why}")
        if not (way.fine_tunes or way.needs_terms):
            continue
        if not set(federation.models.personal_names) - set(federation.method.buffers):
            raise FedPGPError(
                f"protocol.onboard={name}: method={method} has no private tensors that a newcomer "
                "could have; take another method, such as fedpgp"
            )
        if way.needs_terms:
            blend([federation.models.initial_state(0)], [1.0])
        if way.needs_factors and set(federation.models.personal_names) != FACTORS:
            raise FedPGPError(
                f"protocol.onboard={name} is made of the low-rank terms U V of clients; take "
                "method.personal=low_rank"
            )
