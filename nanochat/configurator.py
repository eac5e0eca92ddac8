"""A dataclass becomes a command line: every field is a flag, its docstring is the help.

In: a dataclass and argv. Out: an instance, or a message and exit code 2. `--device_batch_size` and
`--device-batch-size` are one flag; a leading `--` (torchrun's habit) is ignored.
"""

import sys
from typing import TypeVar

import tyro

Config = TypeVar("Config")


def parse(config: type[Config], argv: list[str] | None = None, command: str | None = None) -> Config:
    """Build `config` from the command line. A wrong flag prints a suggestion and exits with code 2. `command` is what
    the help calls this, by default the `python -m` that was typed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--"]:
        argv = argv[1:]
    spec = sys.modules["__main__"].__spec__
    return tyro.cli(config, args=argv, prog=command or (spec and f"python -m {spec.name}"))
