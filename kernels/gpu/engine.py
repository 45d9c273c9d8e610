"""The Triton kernels as an engine, see ``fused_rnn.engines.contract``."""

from __future__ import annotations

from ...plan.plans import why_not_triton as why_not
from .backward import backward
from .forward import forward

__all__ = ["backward", "forward", "why_not"]
