"""The two sides of a check: a program that answers with values, and a judge in another process that compares them.

In: requests of execution.py, as data. Out: lines of JSON between the two, and the judge's way of ending, which is the
verdict. What the program says is parsed here and never run, unpickled or called. Standard library only.
"""

import ast
import builtins
import json
import linecache
import sys
import types

CHANNEL = 3  # the descriptor of the line between the two
MESSAGE_BYTES = 4 << 20  # of one question or answer
ENDS_LOOPS = (StopIteration, StopAsyncIteration)  # an error to a call, but to `all(map(f, xs))` the end of the test

# ---------------------------------------------------------------------------------------------------------------------
# Values: JSON in which everything but None, bool, int, float, str and list is tagged


class Opaque:
    """A value of a type that does not travel: equal to nothing but itself."""


def encode(value):
    if isinstance(value, int) and value.bit_length() > 8192:
        return {"int": hex(value)}  # Python reads and writes no decimals as long as that
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {name: [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: value.decode("latin-1")}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"object": type(value).__name__}


def decode(data):
    """The value that `encode` was given. ValueError or TypeError if this is none of its results."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError("one tag a value")
    ((tag, content),) = data.items()
    if tag in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[tag](decode(item) for item in content)
    if tag == "dict":
        return {decode(key): decode(item) for key, item in content}
    if tag in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[tag](content, "latin-1")
    if tag == "int":
        return int(content, 16)
    if tag == "complex":
        return complex(*content)
    if tag == "object":
        return Opaque()
    raise ValueError(f"unknown tag {tag!r}")


# ---------------------------------------------------------------------------------------------------------------------
# The two sides


def answer_calls(request: dict) -> None:
    """The untrusted side of a check: load the program, then answer each line of arguments with a line of result."""
    function = load_module("program", request["code"])[request["entry_point"]]
    with open(CHANNEL, "rb") as questions, open(CHANNEL, "wb", closefd=False) as answers:
        for question in questions:
            args, kwargs = decode(json.loads(question))
            try:
                answer = {"value": encode(function(*args, **kwargs))}
            except Exception as error:
                known = next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")
                answer = {"error": [known, str(error)[:500]]}
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


class Stopped(BaseException):
    """The function's process broke the conversation off; no `except Exception` in a test hides it."""


def judge(request: dict) -> None:
    """The trusted side: run the test against a stand-in that asks the other process. Returns if the test holds."""
    questions, answers = open(CHANNEL, "wb", closefd=False), open(CHANNEL, "rb")
    broken = []

    def candidate(*args, **kwargs):
        try:
            questions.write(json.dumps(encode((args, kwargs))).encode() + b"\n")
            questions.flush()
            answer = json.loads(answers.readline(MESSAGE_BYTES))
            if "error" not in answer:
                return decode(answer["value"])
            error = rebuild_error(*answer["error"])
        except Exception as problem:
            broken.append(problem)
            raise Stopped("the program stopped, or answered with something that is no data") from None
        raise error

    names = {"__name__": "judge"}
    exec(compile(request["prelude"], "<prelude>", "exec", dont_inherit=True), names)
    names[request["entry_point"]] = candidate
    exec(compile(request["test"], "<test>", "exec", dont_inherit=True), names)
    if "check" in names:
        names["check"](candidate)
    if broken:
        raise Stopped(str(broken[0]))


def rebuild_error(name: str, message: str) -> Exception:
    """The built-in exception of that name, or one that it is a kind of, or a RuntimeError."""
    kind = getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, ENDS_LOOPS):
        return RuntimeError(message)
    for ancestor in kind.__mro__:
        try:
            return ancestor(message)
        except TypeError:
            pass  # a UnicodeDecodeError, say, is made of more than a message


def load_module(name: str, code: str, echo: bool = False) -> dict:
    """Run code as a module of that name (dataclasses and typing look it up) and return its variables.

    `echo`: print the value of a last expression that is not None.
    """
    module = sys.modules[name] = types.ModuleType(name)
    linecache.cache["<program>"] = (len(code), None, code.splitlines(keepends=True), "<program>")
    tree = compile(code, "<program>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body.pop() if echo and tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<program>", "exec", dont_inherit=True), module.__dict__)
    if last:
        value = eval(compile(ast.Expression(last.value), "<program>", "eval", dont_inherit=True), module.__dict__)
        if value is not None:
            print(repr(value))
    return module.__dict__
