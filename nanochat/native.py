"""Python functions as machine code: how numba compiles what has to be fast and torch does not offer.

In: a function and the types of its arguments. Out: the same, compiled when first called, kept on disk.
"""

import functools
import re
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np

f32 = np.float32

# What kernels are made of. Counting references to arrays at every call would take most of the time, so `_nrt=False`
# turns it off; such a function cannot make arrays.
inlined = numba.njit(forceinline=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@inlined
def exp(x):
    """e^x for |x| < 87, to 2e-7 of its value, from operations that vector units have: e^x = 2^k 2^f, |f| <= 1/2."""
    t = x * f32(1.4426950408889634)  # 1 / ln 2
    k = np.floor(t + f32(0.5))
    f = (t - k) * f32(0.6931471805599453)
    taylor = f32(1) + f * (
        f32(1) + f * (f32(1 / 2) + f * (f32(1 / 6) + f * (f32(1 / 24) + f * (f32(1 / 120) + f * f32(1 / 720)))))
    )
    return taylor * np.int32((np.int32(k) + 127) << 23).view(f32)


class Kernel:
    """A function that numba compiles for one signature, when it is first called, and keeps on disk."""

    lock = threading.Lock()

    def __init__(self, function: Callable, signature: tuple, nrt: bool, vector: bool):
        options = {"fastmath": {"reassoc", "contract", "arcp"}, "error_model": "numpy"} if vector else {}
        self.dispatcher = compiled(_nrt=nrt, **options)(function)
        self.signature, self.ready = signature, False

    def __call__(self, *args):
        if not self.ready:
            with self.lock:
                self.compile()
        return self.dispatcher(*args)

    def compile(self) -> None:
        if self.ready:  # by another thread, while this one waited
            return
        with said_if_slow("compiling for this machine, once ..."):
            self.dispatcher.compile(self.signature)
        self.dispatcher.disable_compile()  # other types are a mistake
        self.ready = True


@contextmanager
def said_if_slow(message: str) -> Iterator[None]:
    """Print a message if what is done meanwhile takes more than two seconds."""
    timer = threading.Timer(2, print, [message], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def source_stamp(file: Path) -> str:
    """Changes with the file and with those of ours that it imports from, and so on: machine code is made of them all.
    numba looks at the file of the function itself only."""
    files, stamp = [file], 0
    for file in files:  # which grows
        text = file.read_bytes()
        stamp = zlib.crc32(text, stamp)
        names = re.findall(rb"^from nanochat\.(\w+) import", text, re.MULTILINE)
        files += [other for name in names if (other := file.with_name(f"{name.decode()}.py")) not in files]
    return f"_{stamp:08x}"


def compiled(**options) -> Callable[[Callable], Callable]:
    """numba.njit for functions that call each other. The first call compiles; what it made is kept on disk."""

    def decorate(function: Callable) -> Callable:
        function.__qualname__ += source_stamp(Path(function.__code__.co_filename))  # a part of the file's name on disk
        return numba.njit(nogil=True, cache=True, **options)(function)

    return decorate


def kernel(*signature, nrt: bool = False, vector: bool = False) -> Callable[[Callable], Kernel]:
    """nrt: the function may make arrays. vector: its loops over floats become vector code, for which sums are reordered
    and a division by zero is infinite instead of an error."""
    return lambda function: Kernel(function, signature, nrt, vector)
