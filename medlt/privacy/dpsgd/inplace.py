"""Sums that a forward writes into a tensor, `x += y`, as new tensors instead; no class and no function is changed.

Gradients one by one are taken by hooks on layers, whose outputs torch then forbids to write into.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from types import CodeType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

AUGMENTED = ("add_", "sub_", "mul_", "div_")


class New(TorchFunctionMode):
    """`x += y` on these lines of a function, and inplace=True anywhere, give a new tensor.

    Told by its line: to torch a sum into x looks as x.add_(y) does, whose result may be dropped.
    """

    def __init__(self, code: CodeType, lines: frozenset[int]) -> None:
        super().__init__()
        self.code, self.lines = code, lines

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame, kwargs = sys._getframe(1), dict(kwargs or {})
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        elif getattr(func, "__name__", "") in AUGMENTED and frame.f_code is self.code and frame.f_lineno in self.lines:
            func = getattr(Tensor, func.__name__.rstrip("_"))
        return func(*args, **kwargs)


def writes(kind: Any) -> frozenset[int] | None:
    """Lines of x += y in the forward of this kind of module; None where it writes into no tensor, as the source tells.

    What starts as a number or a tuple is no tensor.
    """
    try:
        source, first = inspect.getsourcelines(kind.forward)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, TypeError, SyntaxError):
        return None
    literal = (ast.Tuple, ast.List, ast.Constant)
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.value, literal)]
    plain = {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}
    sums = [node for node in ast.walk(tree) if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)]
    sums = [node for node in sums if isinstance(node.target, ast.Name) and node.target.id not in plain]
    lines = {first - 1 + line for node in sums for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return frozenset(lines) if lines or any(_asks(node) for node in ast.walk(tree)) else None


def _asks(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "inplace" and getattr(node.value, "value", True) is not False


def anew(code: CodeType, lines: frozenset[int], forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Return forward(...) under `New`."""
    with New(code, lines):
        return forward(*args, **kwargs)
