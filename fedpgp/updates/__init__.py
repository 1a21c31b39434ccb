"""What happens to an update between client and server: one file a step, which is all that a new
one needs here (docs/add_an_update_step.md)."""

from fedpgp.updates.base import (
    UPDATE_STEPS,
    ClientContext,
    RoundStart,
    ServerContext,
    StopTraining,
    Update,
    UpdateStep,
    register,
)

__all__ = [
    "UPDATE_STEPS",
    "ClientContext",
    "RoundStart",
    "ServerContext",
    "StopTraining",
    "Update",
    "UpdateStep",
    "register",
]
