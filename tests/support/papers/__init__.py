"""Cells written from their papers, a file per family: oracles of tests/cells/test_literature.py.

Nothing here uses ``fused_rnn``. A step is written as in the paper: x (I, B), states (H, B) and
vectors (H, 1) are columns, and matrices have the paper's names.
"""

from . import additive as additive
from . import clocks as clocks
from . import depth as depth
from . import independent as independent
from . import lstm as lstm
from . import mut as mut
from . import norms as norms
from . import oscillator as oscillator
from . import search as search
from . import small as small
from .paper import PAPERS as PAPERS
from .paper import Paper as Paper
