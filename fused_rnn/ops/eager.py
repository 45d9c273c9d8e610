"""The op of a sequence without the wrapping of ``torch.library``.

That is for what looks at ops from outside: compilation, tracing, modes, subclasses of tensors. A
plain eager call on the CPU has none of these, and short sequences would pay more for it than for
their steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def differentiable(
    run: Callable[..., list[Tensor]], setup_context: Callable, pull_back: Callable
) -> Callable[..., list[Tensor]]:
    """``run``, which takes tensors and lists of them and returns a list, for autograd.

    Args:
        setup_context, pull_back: as in ``torch_func.transformable``.
    """

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, arguments, spans, *_):
            outputs = run(*arguments)
            setup_context(ctx, arguments, outputs)
            ctx.spans = spans
            return tuple(outputs)

        @staticmethod
        def backward(ctx, *grads):
            flat = ctx.needs_input_grad[2:]
            needs = [
                list(flat[begin:end]) if several else end > begin and flat[begin]
                for begin, end, several in ctx.spans
            ]
            found = [None, None]
            for gradient, (begin, end, several) in zip(
                pull_back(ctx, needs, grads), ctx.spans, strict=True
            ):
                if several:
                    found += gradient
                elif end > begin:
                    found.append(gradient)
            return tuple(found)

    def call(*arguments):
        # All tensors, and where among them those of each argument are.
        flat, spans = [], []
        for argument in arguments:
            begin, several = len(flat), isinstance(argument, list)
            if several:
                flat += argument
            elif isinstance(argument, Tensor):
                flat.append(argument)
            spans.append((begin, len(flat), several))
        return list(Rule.apply(arguments, spans, *flat))

    return call
