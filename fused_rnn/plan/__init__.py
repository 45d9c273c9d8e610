"""How a problem is launched on a GPU: strategy and blocks, as data; and what was measured."""

from .chips import STRATEGIES, Launch
from .plans import (
    Plan,
    describe,
    fitting,
    launches,
    plan,
    quickest,
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
    "launches",
    "plan",
    "quickest",
    "use_launch",
    "use_strategy",
    "values",
]
