"""What is made of a function by torch.func and by compilation."""

from collections.abc import Callable

import torch
from torch import Tensor


def assert_transforms(run: Callable[[Tensor], Tensor], given: Tensor) -> None:
    """vmap over two values, both Jacobians and a compiled graph agree with plain calls."""
    values = torch.stack([given, -given])
    torch.testing.assert_close(torch.vmap(run)(values), torch.stack([run(v) for v in values]))
    jacobian = torch.autograd.functional.jacobian(run, given)
    torch.testing.assert_close(torch.func.jacrev(run)(given), jacobian)
    torch.testing.assert_close(torch.func.jacfwd(run)(given), jacobian)
    torch.testing.assert_close(torch.compile(run, backend="aot_eager")(given), run(given))
