"""Python functions as machine code: how numba compiles what has to be fast and torch does not offer.

In: a function and the types of its arguments. Out: the same, compiled when first called, kept on disk.
"""

import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numba

# What kernels are made of. Counting references to arrays at every call would take most of the time, so `_nrt=False`
# turns it off; such a function cannot make arrays.
inlined = numba.njit(forceinline=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


class Kernel:
    """A function that numba compiles for one signature, when it is first called, and keeps on disk."""

    lock = threading.Lock()

    def __init__(self, function: Callable, signature: tuple, nrt: bool, vector: bool):
        function.__qualname__ += source_stamp(Path(function.__code__.co_filename))  # a part of the file's name on disk
        options = {"fastmath": {"reassoc", "contract", "arcp"}, "error_model": "numpy"} if vector else {}
        self.dispatcher = numba.njit(cache=True, nogil=True, _nrt=nrt, **options)(function)
        self.signature, self.ready = signature, False

    def __call__(self, *args):
        if not self.ready:
            with self.lock:
                self.compile()
        return self.dispatcher(*args)

    def compile(self) -> None:
        if self.ready:  # by another thread, while this one waited
            return
        message = "compiling for this machine, once ..."
        timer = threading.Timer(2, print, [message], {"file": sys.stderr, "flush": True})
        timer.daemon = True
        timer.start()
        try:
            self.dispatcher.compile(self.signature)
        finally:
            timer.cancel()
        self.dispatcher.disable_compile()  # other types are a mistake
        self.ready = True


def source_stamp(file: Path) -> str:
    """Changes with every file whose name begins like this one's (bpe_train, bpe, ...), of which kernels take functions.
    numba looks at the file of the kernel itself only."""
    status = [path.stat() for path in sorted(file.parent.glob(file.stem.split("_")[0] + "*.py"))]
    return f"_{zlib.crc32(repr([(file.st_mtime_ns, file.st_size) for file in status]).encode()):08x}"


def kernel(*signature, nrt: bool = False, vector: bool = False) -> Callable[[Callable], Kernel]:
    """nrt: the function may make arrays. vector: its loops over floats become vector code, for which sums are reordered
    and a division by zero is infinite instead of an error."""
    return lambda function: Kernel(function, signature, nrt, vector)
