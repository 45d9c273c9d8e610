"""Plans: the strategy and the blocks that a problem is launched with, and measured times."""

from .chips import STRATEGIES, Launch
from .explicit import held
from .plans import (
    Plan,
    describe,
    fitting,
    held_choices,
    launches,
    plan,
    quickest,
    strategies,
    use_launch,
    use_strategy,
    values,
)

__all__ = [
    "STRATEGIES",
    "Launch",
    "Plan",
    "describe",
    "fitting",
    "held",
    "held_choices",
    "launches",
    "plan",
    "quickest",
    "strategies",
    "use_launch",
    "use_strategy",
    "values",
]


def __dir__() -> list[str]:
    return sorted(__all__)
