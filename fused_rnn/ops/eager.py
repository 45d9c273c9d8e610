"""The op of a sequence without the wrapping of ``torch.library``.

That is for what looks at ops from outside: compilation, tracing, modes, subclasses of tensors. A
plain eager call on the CPU has none of these, and short sequences would pay more for it than for
their steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def differentiable(run: Callable, setup_context: Callable, pull_back: Callable) -> Callable:
    """``run``, which takes tensors and lists of them and returns a list, for autograd.

    Args:
        setup_context, pull_back: as in ``torch_func.transformable``.
    """

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, arguments, *_):
            outputs = run(*arguments)
            setup_context(ctx, arguments, outputs)
            ctx.spans = _spans(arguments)
            return tuple(outputs)

        @staticmethod
        def backward(ctx, *grads):
            flat = ctx.needs_input_grad[1:]
            needs = [
                list(flat[begin:end]) if several else end > begin and flat[begin]
                for begin, end, several in ctx.spans
            ]
            found = [None]
            for gradient, (begin, end, several) in zip(
                pull_back(ctx, needs, grads), ctx.spans, strict=True
            ):
                if several:
                    found += gradient
                elif end > begin:
                    found.append(gradient)
            return tuple(found)

    def call(*arguments):
        flat = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                flat.append(argument)
            elif isinstance(argument, list):
                flat += argument
        return list(Rule.apply(arguments, *flat))

    return call


def _spans(arguments) -> list[tuple[int, int, bool]]:
    """Where the tensors of each argument are among all, and whether it is a list."""
    spans, end = [], 0
    for argument in arguments:
        begin, several = end, isinstance(argument, list)
        end += len(argument) if several else isinstance(argument, Tensor)
        spans.append((begin, end, several))
    return spans
