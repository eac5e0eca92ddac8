"""What the tokenizer's compiled functions are made of: types, and four machine instructions that numba lacks.

In: arrays. Out: numbers read from them, many bytes at a time.
"""

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

bytes_in = types.Array(types.uint8, 1, "C", readonly=True)
u8, u64, i32, i64 = types.uint8[::1], types.uint64[::1], types.int32[::1], types.int64[::1]
i32_2d, i64_2d = types.int32[:, ::1], types.int64[:, ::1]

# What is rare stays out of the loops that `native.inlined` functions are put into.
outlined = numba.njit(_nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def bytes_at(context, builder, signature, args, type: ir.Type) -> ir.Value:
    """LLVM code that reads array[index:] as one value of a type."""
    pointer = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
    value = builder.load(builder.bitcast(pointer, type.as_pointer()))
    value.align = 1
    return value


@intrinsic
def load8(typing_context, array, index):
    """The 8 bytes at array[index:index + 8] as one little-endian number. The array must reach that far."""

    def generate(context, builder, signature, args):
        return bytes_at(context, builder, signature, args, ir.IntType(64))

    return types.uint64(array, types.int64), generate


@intrinsic
def ascii_letters(typing_context, array, index):
    """Which of the 16 bytes at array[index:index + 16] are ASCII letters: bit k for byte k."""

    def generate(context, builder, signature, args):
        sixteen = ir.VectorType(ir.IntType(8), 16)
        lower = builder.or_(bytes_at(context, builder, signature, args, sixteen), sixteen([0x20] * 16))
        letters = builder.icmp_unsigned("<", builder.sub(lower, sixteen([ord("a")] * 16)), sixteen([26] * 16))
        return builder.zext(builder.bitcast(letters, ir.IntType(16)), ir.IntType(64))

    return types.uint64(array, types.int64), generate


@intrinsic
def prefetch(typing_context, array, index):
    """Ask the processor to bring array[index] near: it is needed soon."""

    def generate(context, builder, signature, args):
        pointer = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer.type,), signature)
        builder.call(function, [pointer, number(0), number(3), number(1)])  # to read, keep it, data
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def trailing_zeros(typing_context, word):
    """How many of the low bits of a number are 0."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


PADDING = bytes(16)  # so that load8 and ascii_letters may read past the last byte of text
