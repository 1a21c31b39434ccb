"""The typed configuration: :class:`Config` and its sections."""

from fedpgp.config.section import Section
from fedpgp.config.sections import (
    AttackSection,
    Config,
    DatasetSection,
    LoggerSection,
    MethodSection,
    ModelSection,
    PartitionSection,
    PrivacySection,
    RuntimeSection,
    StrategySection,
    TrainingSection,
)

__all__ = [
    "AttackSection",
    "Config",
    "DatasetSection",
    "LoggerSection",
    "MethodSection",
    "ModelSection",
    "PartitionSection",
    "PrivacySection",
    "RuntimeSection",
    "Section",
    "StrategySection",
    "TrainingSection",
]
