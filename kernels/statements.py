"""Print a graph of pointwise operations as statements of a language.

``operations`` has the text of each operation, ``languages`` the syntax of each language.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..cells import Cell, graphs
from .languages import Language
from .operations import OPERATIONS, filled, word

aten = torch.ops.aten


class Word(NamedTuple):
    """The expression of a value, its dtype, and its number if it is a constant."""

    text: str
    dtype: torch.dtype
    number: float | None = None


def statements(
    cell: Cell,
    part: str,
    stage: int,
    places: list[str],
    language: Language,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[tuple[str, str]], list[str]]:
    """Print a traced function in a language, operation by operation.

    Args:
        part, stage: see ``graphs.graph``.
        places: expressions of its arguments, flattened.
        dtype: of the arithmetic, float32 or float64.

    Returns:
        Pairs of a name and the expression assigned to it; and the expressions of the results.

    Raises:
        NotImplementedError: the table lacks an operation; names it.
    """
    module = graphs.graph(cell, part, stage, True, dtype)
    nodes = list(module.graph.nodes)
    writer = _Writer(cell, language, dtype, nodes[0])
    lines, results, arguments = [], [], iter(places)
    # In Triton alone: on a GPU a reciprocal of two values is one special function less.
    products = graphs.joint_products(nodes) if language.name == "Triton" else {}
    factors = {factor for both in products.values() for factor in both}
    for node in nodes:
        if node in factors:
            continue
        if node.op == "placeholder":
            writer.words[node] = Word(next(arguments), dtype)
        elif node.op == "get_attr":
            writer.words[node] = writer.constant(getattr(module, node.target))
        elif node.op == "call_function":
            # The prefix keeps a node called sigmoid from hiding the function of that name.
            name = f"v_{node.name}"
            text = writer.joint_product(*products[node]) if node in products else writer.write(node)
            lines.append((name, text))
            writer.words[node] = Word(name, writer.dtype_of(node))
        elif node.op == "output":
            results = [writer.result(value) for value in node.args[0]]
    return lines, results


class _Writer:
    """Writes the nodes of a graph; ``words`` has the expressions of those written so far."""

    def __init__(self, cell, language, dtype, first):
        self.cell, self.language, self.dtype = cell, language, dtype
        self.words: dict[torch.fx.Node, Word] = {}
        self._first, self._recorded = first, self._dtype_in_graph(first)

    def refuse(self, what, why):
        return NotImplementedError(
            f"cell {self.cell.name!r}: the printer does not know how to write {what} "
            f"{why} in {self.language.name}".replace("  ", " ")
            + "; write the step with other pointwise operations, or use another backend"
        )

    def _dtype_in_graph(self, node):
        value = node.meta.get("val")
        return node.meta.get("dtype") if value is None else value.dtype

    def dtype_of(self, node) -> torch.dtype:
        found = self._dtype_in_graph(node)
        if found in (self._recorded, None):
            return self.dtype
        if found in (torch.bool, torch.float32, torch.float64):
            return found
        if found.is_floating_point or node.target is aten._to_copy.default:
            raise self.refuse(node.target, f"to {found}")
        return self.dtype  # small integers, such as the sum of two constants

    def constant(self, tensor) -> Word:
        """A tensor that is not an argument, as a number."""
        if tensor.numel() != 1:
            raise NotImplementedError(
                f"cell {self.cell.name!r}: the printer cannot write a tensor that is no argument "
                "of the step; make it a number, or one of the cell's params"
            )
        number = tensor.item()
        dtype = torch.bool if tensor.dtype == torch.bool else self.dtype
        return Word(self.language.number(number, dtype), dtype, number)

    def result(self, node) -> str:
        word = self.words[node]
        if word.number is not None:
            like = self.words[self._first].text
            return filled(self.language, self.dtype, like, word.number, self.dtype)
        if word.dtype != self.dtype:
            return self.language.cast(word.text, self.dtype)
        return word.text

    def write(self, node) -> str:
        """One operation."""
        operation = OPERATIONS.get(node.target)
        if operation is None:
            raise self.refuse(node.target, "")
        result = self.dtype_of(node)
        computed = self._computed_in(operation, node, result)
        values = [self._operand(operation, i, v, computed) for i, v in enumerate(node.args)]
        pattern: Any = getattr(operation, self.language.name.lower())
        if operation.booleans is not None and computed == torch.bool:
            pattern = getattr(self.language, operation.booleans)
        if isinstance(pattern, str):
            texts = [word(self.language, computed, v) for v in values]
            return pattern.format(*texts)
        options = {k: v for k, v in node.kwargs.items() if k in _OPTIONS}
        if operation.operands == "own":
            options["source"] = self.words[node.args[0]].dtype
        return pattern(self.language, computed, *values, **options)

    def joint_product(self, *factors) -> str:
        """One function of what the factors are functions of."""
        values = [self._operand(OPERATIONS[f.target], 0, f.args[0], self.dtype) for f in factors]
        texts = [
            value if isinstance(value, str) else self.language.argument(value, self.dtype)
            for value in values
        ]
        return f"sigmoid_tanh({', '.join(texts)})"

    def _computed_in(self, operation, node, result):
        if operation.operands == "boolean":
            return torch.bool
        if operation.operands == "common":
            words = [self.words[v] for v in node.args if isinstance(v, torch.fx.Node)]
            numbers = len(words) < len(node.args)
            dtypes = {word.dtype for word in words} - {torch.bool}
            result = max(dtypes, key=lambda d: d.itemsize) if dtypes else torch.bool
            result = self.dtype if numbers and result == torch.bool else result
        if result == torch.bool and operation.booleans is None and operation.operands == "common":
            return self.dtype
        return result

    def _operand(self, operation, place, value, computed):
        if not isinstance(value, torch.fx.Node):
            return value
        word = self.words[value]
        if word.number is not None:
            return word.number
        wanted = torch.bool if operation.operands == "choice" and place == 0 else computed
        if operation.operands == "own" or word.dtype == wanted:
            return word.text
        return self.language.cast(word.text, wanted)


# Keyword arguments to print; those about the memory of a result are left out.
_OPTIONS = ("alpha", "rounding_mode", "decimals", "min", "max", "value")
