"""The calculator: arithmetic and spelling that a model wrote, computed without running anything.

In: an expression. Out: its value as text, or None. It walks a syntax tree of known nodes and never evaluates code, so
it is safe in any thread; every bound holds before an operation runs, so no answer takes more than milliseconds.
"""

import ast
import math
import operator
import re

MAX_INPUT = 1000  # characters of an expression
MAX_DEPTH = 100  # nested operations
MAX_BITS = 4096  # of an integer: 1,233 digits
MAX_ITEMS = 4096  # characters of a string, elements of a list

TOKEN = re.compile(
    r"""\s*(?: (?P<string> "[^"\\\n]*" | '[^'\\\n]*' )
             | (?P<number> (?: (?: \d{1,3}(?:,\d{3})+(?![\d,]) | \d+ )(?: \.\d* )? | \.\d+ )(?: [eE][+-]?\d+ )? )
             | (?P<name> [A-Za-z_]+ )
             | (?P<mark> \*\* | // | [<>=!]= | [-+*/%()\[\],.:<>] ) )""",
    re.VERBOSE,
)
COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
STRING_METHODS = frozenset(
    "count find index upper lower title capitalize swapcase startswith endswith strip replace split join".split()
)


class Refused(ValueError):
    """The calculator does not do this."""


def calculate(expression: str) -> str | None:
    """The value of an arithmetic or string expression as text, or None if it is wrong, unknown or too costly.

    Python's syntax for + - * / // % **, comparisons, round abs min max sum len, slices and the string methods in
    STRING_METHODS; `1,234` outside a call or a list is a number. Bounded: about 10 ms and 10 MB, in any thread.
    """
    try:
        tree = ast.parse(normalize(expression), mode="eval")
        if isinstance(tree.body, ast.Tuple):
            raise Refused("several values")
        return format_value(evaluate(tree.body))
    except (ValueError, TypeError, ArithmeticError, LookupError, SyntaxError, RecursionError, MemoryError):
        return None


def normalize(expression: str) -> str:
    """The same expression in plain Python: known tokens only, one space between, no thousands separators."""
    if len(expression) > MAX_INPUT:
        raise Refused("too long")
    text, tokens, arguments = expression.strip(), [], []  # arguments: for each open bracket, may a comma separate?
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if not match:
            raise Refused(f"unknown character {text[position]!r}")
        kind, token = match.lastgroup, match[match.lastgroup]
        if kind == "number" and "," in token:
            if any(arguments):  # max(1,234) has two arguments
                token = token[: token.index(",")]
            else:
                token = token.replace(",", "")
        position = match.start(kind) + (len(token) if any(arguments) else len(match[kind]))
        if kind == "number" and re.match("0[0-9]", token):
            raise Refused("a number starts with 0")  # in max(1,000) too, where either meaning would be a guess
        if kind == "mark" and token in "([":
            arguments.append(token == "[" or bool(tokens) and tokens[-1].isidentifier())
        elif kind == "mark" and token in ")]":
            if not arguments:
                raise Refused("a bracket closes that never opened")
            arguments.pop()
        tokens.append(token)
    return " ".join(tokens)


def evaluate(node: ast.AST, depth: int = 0):
    """The value of a syntax tree: int, float, bool, str, or a list or tuple of these."""
    if depth > MAX_DEPTH:
        raise Refused("too deeply nested")
    walk = lambda child: evaluate(child, depth + 1)  # noqa: E731
    if isinstance(node, ast.Constant):
        return bounded(node.value)
    if isinstance(node, ast.List | ast.Tuple):
        return [walk(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp):
        return apply_unary(node.op, walk(node.operand))
    if isinstance(node, ast.BinOp):
        return bounded(apply_binary(node.op, walk(node.left), walk(node.right)))
    if isinstance(node, ast.Compare):
        values = [walk(item) for item in (node.left, *node.comparators)]
        return all(COMPARISONS[type(op)](a, b) for op, a, b in zip(node.ops, values, values[1:]))
    if isinstance(node, ast.Subscript):
        return walk(node.value)[walk(node.slice)]
    if isinstance(node, ast.Slice):
        return slice(*(part and walk(part) for part in (node.lower, node.upper, node.step)))
    if isinstance(node, ast.Call) and not node.keywords:
        arguments = [walk(argument) for argument in node.args]
        if isinstance(node.func, ast.Name):
            return bounded(apply_function(node.func.id, arguments))
        if isinstance(node.func, ast.Attribute):
            return bounded(apply_method(walk(node.func.value), node.func.attr, arguments))
    raise Refused(f"{type(node).__name__} is not arithmetic")


def bounded(value):
    """The value, if it is of a known type and size."""
    if isinstance(value, bool | int) and value.bit_length() <= MAX_BITS:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str | list) and len(value) <= MAX_ITEMS:
        return value
    raise Refused(f"too large, or not a number or text: {type(value).__name__}")


def apply_unary(op: ast.unaryop, value):
    if isinstance(op, ast.Not):
        return not value
    require_numbers(value)
    return -value if isinstance(op, ast.USub) else +value if isinstance(op, ast.UAdd) else ~value


def apply_binary(op: ast.operator, a, b):
    if isinstance(a, str) and isinstance(b, str) and isinstance(op, ast.Add):
        return a + b
    if isinstance(a, str) and isinstance(b, int) and isinstance(op, ast.Mult):
        require_size(len(a) * max(b, 0))
        return a * b
    require_numbers(a, b)
    if isinstance(op, ast.Div):
        exact = isinstance(a, int) and isinstance(b, int) and a % b == 0
        return a // b if exact else a / b
    if isinstance(op, ast.Pow):
        if isinstance(a, int) and isinstance(b, int) and abs(a) > 1 and b * (a.bit_length() - 1) > MAX_BITS:
            raise Refused("the power is too large")
        return a**b
    operations = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
    operations |= {ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}
    return operations[type(op)](a, b)


def apply_function(name: str, arguments: list):
    if name == "len" and len(arguments) == 1:
        return len(arguments[0])
    if name in ("min", "max"):
        return {"min": min, "max": max}[name](*arguments)
    if name == "sum" and len(arguments) == 1:
        require_numbers(*arguments[0])
        return sum(arguments[0])
    require_numbers(*arguments)
    if name == "abs" and len(arguments) == 1:
        return abs(arguments[0])
    if name == "round" and len(arguments) in (1, 2) and abs(sum(arguments[1:])) <= 1000:  # round(5, -n) computes 10**n
        return round(*arguments)
    raise Refused(f"unknown function {name}")


def apply_method(text, name: str, arguments: list):
    if not isinstance(text, str) or name not in STRING_METHODS:
        raise Refused(f"unknown method {name}")
    if name == "replace":
        require_size(len(text) + (len(text) + 1) * len(arguments[1]))
    if name == "join":
        require_size(sum(len(part) + len(text) for part in arguments[0]))
    return getattr(text, name)(*arguments)


def require_numbers(*values) -> None:
    if not all(isinstance(value, int | float) for value in values):
        raise Refused("numbers only")


def require_size(length: int) -> None:
    if length > MAX_ITEMS:
        raise Refused("too long")


def format_value(value) -> str:
    """12 significant digits, so that 0.1 + 0.2 is 0.3; a float that is a whole number is written without a point."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else f"{value:.12g}"
    if isinstance(value, list):
        return "[" + ", ".join(repr(item) if isinstance(item, str) else format_value(item) for item in value) + "]"
    return str(value)
