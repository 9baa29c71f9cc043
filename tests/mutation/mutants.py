"""Mutants of a module: the same code with one small harmful change each."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.MatMult: ast.Mult,
}
DROPPED = (ast.Expr, ast.AugAssign, ast.Raise, ast.Break, ast.Continue, ast.Delete)
"""Statements without which all names are still bound."""


@dataclass(frozen=True)
class Mutant:
    """One changed copy of a module.

    Args:
        module: path of its file in the project.
        name: function, kind of change, the code before and after it, and a number where a function
            has several that read alike. It outlives edits elsewhere in the file.
        index: of its change among all of the module.
    """

    module: str
    name: str
    line: int
    index: int


@dataclass(frozen=True)
class _Change:
    """Args:
    node: what is shown of the code: the expression or statement that holds what changes.
    place, key: the field of a node, or the element of a list, that is replaced.
    new: what takes its place; None drops the element of a list.
    """

    kind: str
    node: ast.AST
    place: ast.AST | list[ast.AST]
    key: str | int
    new: object

    def make(self) -> None:
        if isinstance(self.place, ast.AST):
            setattr(self.place, str(self.key), self.new)
        elif self.new is None:
            del self.place[self.key]
        else:
            self.place[self.key] = self.new

    def text(self) -> str:
        """The code before and after. The tree is left as it was."""
        before = ast.unparse(self.node)
        if self.kind == "statement":
            return f"{_short(before)} -> dropped"
        if isinstance(self.place, list):
            saved = list(self.place)
            self.make()
            after = ast.unparse(self.node)
            self.place[:] = saved
        else:
            old = getattr(self.place, str(self.key))
            self.make()
            after = ast.unparse(self.new if self.node is old else self.node)
            setattr(self.place, str(self.key), old)
        return f"{_short(before)} -> {_short(after)}"


def mutants(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its code."""
    found = []
    seen: Counter[str] = Counter()
    for index, (scope, change) in enumerate(_changes(ast.parse(source), "module")):
        name = f"{scope}: {change.kind}: {change.text()}"
        seen[name] += 1
        number = f" #{seen[name]}" if seen[name] > 1 else ""
        line = getattr(change.node, "lineno", getattr(change.place, "lineno", 0))
        found.append(Mutant(module, name + number, line, index))
    return found


def mutated(source: str, index: int) -> ast.Module:
    """The tree of a module with one change."""
    tree = ast.parse(source)
    list(_changes(tree, "module"))[index][1].make()
    return ast.fix_missing_locations(tree)


def _short(code: str) -> str:
    line = " ".join(code.split())
    return line if len(line) <= 100 else f"{line[:60]} ... {line[-35:]}"


def _changes(node: ast.AST, scope: str) -> Iterator[tuple[str, _Change]]:
    for child in _code(node):
        inner = scope
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = child.name if scope == "module" else f"{scope}.{child.name}"
        for change in _of_node(child, node):
            yield inner, change
        yield from _changes(child, inner)
    if isinstance(node, ast.Module):
        for change in _statements(node):
            yield scope, change


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Children that decide what code computes: no annotations, decorators, base classes, assertions
    or texts of messages.
    """
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Assert | ast.JoinedStr):
                yield child


def _of_node(node: ast.AST, parent: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Compare):
        for position, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                yield _Change("comparison", node, node.ops, position, other())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield _Change("arithmetic", node, node, "op", ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        new = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield _Change("boolean", node, node, "op", new)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _Change("boolean", node, node, "operand", ast.UnaryOp(ast.Not(), node.operand))
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        if isinstance(node.test, ast.Name | ast.Attribute | ast.Call) and not _is_for_types(node):
            new_test = ast.UnaryOp(ast.Not(), node.test)
            yield _Change("boolean", node.test, node, "test", new_test)
    elif isinstance(node, ast.Constant) and not _is_of_no_effect(parent):
        if isinstance(node.value, bool):
            yield _Change("constant", parent, node, "value", not node.value)
        elif isinstance(node.value, int | float):
            yield _Change("constant", parent, node, "value", node.value + 1)
    elif isinstance(node, ast.Call):
        for position, keyword in enumerate(node.keywords):
            if keyword.arg is not None and not _is_of_no_effect(keyword):
                yield _Change("keyword", node, node.keywords, position, None)
    yield from _statements(node)


def _is_of_no_effect(node: ast.AST) -> bool:
    """`strict` of `zip` states an invariant, as an assertion does; `encoding` is always UTF-8, the
    default of Linux; `comment` is text that a database shows.
    """
    return isinstance(node, ast.keyword) and node.arg in ("strict", "encoding", "comment")


def _is_for_types(node: ast.If | ast.While | ast.IfExp) -> bool:
    """Imports that only annotations need, which nothing evaluates."""
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _statements(node: ast.AST) -> Iterator[_Change]:
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(node, field, None)
        for position, child in enumerate(statements if isinstance(statements, list) else []):
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, DROPPED) and not text:
                yield _Change("statement", child, statements, position, ast.Pass())
