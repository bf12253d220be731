"""Replace in-place sums of a forward, `x += y`, by new tensors, without changing a class or function.

Gradients of rows are computed by hooks on layers, and torch forbids in-place changes of the outputs of such layers.
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
    """Mode in which `x += y` on these lines of a function, and inplace=True anywhere, give a new tensor.

    Lines identify the sums, because torch sees `x += y` as x.add_(y), whose result may be unused.
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
    """Return the lines of `x += y` in the source of the forward of this kind of module; None without in-place changes.

    A variable that starts as a number or a tuple is not a tensor.
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
    return frozenset(lines) if lines or any(_is_inplace(node) for node in ast.walk(tree)) else None


def _is_inplace(node: ast.AST) -> bool:
    """Return whether this is an argument inplace=, other than False."""
    return isinstance(node, ast.keyword) and node.arg == "inplace" and getattr(node.value, "value", True) is not False


def anew(code: CodeType, lines: frozenset[int], forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Return forward(*args, **kwargs), run in the mode `New`."""
    with New(code, lines):
        return forward(*args, **kwargs)
