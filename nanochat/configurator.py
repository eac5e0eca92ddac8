"""A dataclass becomes a command line: every field is a flag, its docstring is the help.

In: a dataclass and argv. Out: an instance, or a message and exit code 2. `--device_batch_size` and
`--device-batch-size` are one flag; a leading `--` (torchrun's habit) is ignored.
"""

import errno
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from nanochat.files import BadFile

Config = TypeVar("Config")

# What a disk says that is full or may not be written; None: an error of our own, which is a sentence already.
REFUSED = (None, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def parse(config: type[Config], argv: list[str] | None = None, command: str | None = None) -> Config:
    """Build `config` from the command line. A wrong flag prints a suggestion and exits with code 2. `command` is what
    the help calls this, by default the `python -m` that was typed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--"]:
        argv = argv[1:]
    spec = sys.modules["__main__"].__spec__
    return tyro.cli(config, args=argv, prog=command or (spec and f"python -m {spec.name}"))


def launch(main: Callable, config: type | None = None, command: str | None = None) -> None:
    """The last line of every script: `main` with its command line. Of a file that is damaged, or a disk that refuses,
    the user sees the sentence and no traceback, which is for faults of the program."""
    try:
        main(parse(config, command=command)) if config else main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BadFile as error:
        raise SystemExit(f"\n{error}") from error
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        place = f"{error.filename or 'The disk'}: {error.strerror}. NANOCHAT_BASE_DIR says where all files go."
        raise SystemExit(f"\n{place if error.errno else error}") from error
