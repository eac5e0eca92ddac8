"""The calculator: arithmetic and spelling that a model wrote, computed without running anything.

In: an expression. Out: its value as text, or None. It walks a syntax tree of known nodes and never evaluates code, so
it is safe in any thread; every operation is paid for before it runs, so no answer takes more than milliseconds.
"""

import ast
import math
import operator
import re

MAX_INPUT = 1000  # characters of an expression
MAX_DEPTH = 100  # nested operations
MAX_BITS = 4096  # of an integer: 1,233 digits
MAX_ITEMS = 4096  # characters of a string, elements of a list, characters of the answer
MAX_WORK = 1_000_000  # steps of about a nanosecond that all operations of an expression may take together

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
CONSTANTS = {"pi": math.pi}
STRING_METHODS = frozenset(
    "count find index upper lower title capitalize swapcase startswith endswith strip replace split join".split()
)


class Refused(ValueError):
    """The calculator does not do this."""


class Meter:
    """What an expression may still cost."""

    def __init__(self):
        self.left = MAX_WORK

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise Refused("too much work")

    def pay(self, *values) -> None:
        """For an operation that goes over each of the values once."""
        self.spend(8 * sum(map(size_of, values)))

    def pay_product(self, a, b) -> None:
        """For an operation that may go over all of `b` for each part of `a`: a multiplication, a search."""
        self.spend(8 * size_of(a) * size_of(b))


def size_of(value) -> int:
    """Machine words that a value takes."""
    if isinstance(value, int):
        return 1 + value.bit_length() // 64
    if isinstance(value, str):
        return 1 + len(value) // 8
    return 1 + sum(map(size_of, value)) if isinstance(value, list) else 1


def calculate(expression: str) -> str | None:
    """The value of an arithmetic or string expression as text, or None if it is wrong, unknown or too costly.

    Python's syntax for + - * / // % **, comparisons, sqrt round abs min max sum len, pi, slices and the string methods
    in STRING_METHODS; `1,234` outside a call or a list is a number. Bounded: under 10 ms and 10 MB, in any thread.
    """
    meter = Meter()
    try:
        tree = ast.parse(normalize(expression), mode="eval")
        if isinstance(tree.body, ast.Tuple):
            raise Refused("several values")
        text = format_value(evaluate(tree.body, meter), meter)
        require_size(len(text))
        return text
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


def evaluate(node: ast.AST, meter: Meter, depth: int = 0):
    """The value of a syntax tree: int, float, bool, str, or a list or tuple of these."""
    if depth > MAX_DEPTH:
        raise Refused("too deeply nested")
    walk = lambda child: evaluate(child, meter, depth + 1)  # noqa: E731
    if isinstance(node, ast.Constant):
        return bounded(node.value)
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [walk(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp):
        return apply_unary(node.op, walk(node.operand))
    if isinstance(node, ast.BinOp):
        return bounded(apply_binary(node.op, walk(node.left), walk(node.right), meter))
    if isinstance(node, ast.Compare):
        return compare(node.ops, [walk(item) for item in (node.left, *node.comparators)], meter)
    if isinstance(node, ast.Subscript):
        value = walk(node.value)
        meter.pay(value)
        return value[walk(node.slice)]
    if isinstance(node, ast.Slice):
        return slice(*(part and walk(part) for part in (node.lower, node.upper, node.step)))
    if isinstance(node, ast.Call) and not node.keywords:
        arguments = [walk(argument) for argument in node.args]
        if isinstance(node.func, ast.Name):
            return bounded(apply_function(node.func.id, arguments, meter))
        if isinstance(node.func, ast.Attribute):
            return bounded(apply_method(walk(node.func.value), node.func.attr, arguments, meter))
    raise Refused(f"{type(node).__name__} is not arithmetic")


def compare(operations: list[ast.cmpop], values: list, meter: Meter) -> bool:
    for operation, a, b in zip(operations, values, values[1:]):
        meter.pay_product(a, b) if isinstance(operation, ast.In | ast.NotIn) else meter.pay(a, b)
        if not COMPARISONS[type(operation)](a, b):
            return False
    return True


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


def apply_binary(op: ast.operator, a, b, meter: Meter):
    if isinstance(a, str) and isinstance(b, str) and isinstance(op, ast.Add):
        meter.pay(a, b)
        return a + b
    if isinstance(a, str) and isinstance(b, int) and isinstance(op, ast.Mult):
        require_size(len(a) * max(b, 0))
        meter.spend(MAX_ITEMS)
        return a * b
    require_numbers(a, b)
    meter.pay_product(a, b)
    if isinstance(op, ast.Div):
        exact = isinstance(a, int) and isinstance(b, int) and a % b == 0
        return a // b if exact else a / b
    if isinstance(op, ast.Pow):
        if isinstance(a, int) and isinstance(b, int):
            if abs(a) > 1 and b * (a.bit_length() - 1) > MAX_BITS:
                raise Refused("the power is too large")
            meter.spend(8 * b.bit_length() * (MAX_BITS // 64 if abs(a) > 1 else 1))
        return a**b
    operations = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
    operations |= {ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}
    return operations[type(op)](a, b)


def apply_function(name: str, arguments: list, meter: Meter):
    meter.pay(*arguments)
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
        meter.spend(MAX_BITS)
        return round(*arguments)
    if name == "sqrt" and len(arguments) == 1:
        meter.spend(2 * MAX_BITS)
        return square_root(arguments[0])
    raise Refused(f"unknown function {name}")


def square_root(x):
    """A whole number if there is one, however large, as with a division. ValueError if x is negative."""
    root = math.isqrt(x) if isinstance(x, int) else 0
    return root if root * root == x else math.sqrt(x)


def apply_method(text, name: str, arguments: list, meter: Meter):
    if not isinstance(text, str) or name not in STRING_METHODS:
        raise Refused(f"unknown method {name}")
    for argument in arguments or [1]:
        meter.pay_product(text, argument)
    if name == "replace":
        require_size(len(text) + (len(text) + 1) * len(arguments[1]))
    if name == "join":
        require_size(sum(len(part) + len(text) for part in arguments[0]))
    if name == "split":
        meter.spend(64 * len(text))  # each part is an object
    return getattr(text, name)(*arguments)


def require_numbers(*values) -> None:
    if not all(isinstance(value, int | float) for value in values):
        raise Refused("numbers only")


def require_size(length: int) -> None:
    if length > MAX_ITEMS:
        raise Refused("too long")


def format_value(value, meter: Meter) -> str:
    """12 significant digits, so that 0.1 + 0.2 is 0.3; a float that is a whole number is written without a point."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else f"{value:.12g}"
    if isinstance(value, list):
        return (
            "[" + ", ".join(repr(item) if isinstance(item, str) else format_value(item, meter) for item in value) + "]"
        )
    if isinstance(value, int):
        meter.pay_product(value, value)
    return str(value)
