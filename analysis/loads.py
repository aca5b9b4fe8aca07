"""Numbers as kernels read them out of packets and write them into Parquet, and hints what they need soon."""

from __future__ import annotations

import sys

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing import signature
from numba.extending import intrinsic

from analysis.layout import CACHE_LINE


def check_bounds(context, builder, array, at, width):
    """Code that raises IndexError unless `width` bytes from `at` on are in the array."""
    last = builder.sub(builder.extract_value(array.shape, 0), ir.Constant(at.type, width))
    outside = builder.or_(builder.icmp_signed("<", at, ir.Constant(at.type, 0)), builder.icmp_signed(">", at, last))
    with builder.if_then(outside, likely=False):
        context.call_conv.return_user_exc(builder, IndexError, ("index is out of bounds",))


def load_of(width, type_, order):
    """A kernel's read of `width` bytes in this byte order ("big" is the network's): one look at the array's bounds."""

    @intrinsic
    def load(context, data, at):
        if not (isinstance(data, types.Array) and data.dtype == types.uint8 and data.layout == "C"):
            return None

        def write_code(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            at = context.cast(builder, arguments[1], signature.args[1], types.int64)
            check_bounds(context, builder, array, at, width)
            pointer = builder.bitcast(builder.gep(array.data, [at]), ir.IntType(8 * width).as_pointer())
            value = builder.load(pointer, align=1)
            if sys.byteorder != order:
                value = builder.bswap(value)
            return value if width == 8 else builder.zext(value, ir.IntType(64))

        return signature(type_, data, at), write_code

    def load_in_python(data, at):
        if not 0 <= at <= len(data) - width:
            raise IndexError("index is out of bounds")
        return getattr(np, type_.name)(int.from_bytes(data[at : at + width].tobytes(), order))

    return load_in_python if numba.config.DISABLE_JIT else load


be16 = load_of(2, types.int64, "big")
be32 = load_of(4, types.int64, "big")
be64 = load_of(8, types.uint64, "big")
le16 = load_of(2, types.int64, "little")
le32 = load_of(4, types.int64, "little")


def little_endian_store(width):
    """A kernel's write of the lowest `width` bytes of a number, lowest byte first; as load_of()."""

    @intrinsic
    def store(context, data, at, value):
        if not (isinstance(data, types.Array) and data.dtype == types.uint8 and data.layout == "C"):
            return None

        def write_code(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            at = context.cast(builder, arguments[1], signature.args[1], types.int64)
            value = context.cast(builder, arguments[2], signature.args[2], types.uint64)
            check_bounds(context, builder, array, at, width)
            kind = ir.IntType(8 * width)
            value = value if width == 8 else builder.trunc(value, kind)
            if sys.byteorder == "big":
                value = builder.bswap(value)
            builder.store(value, builder.bitcast(builder.gep(array.data, [at]), kind.as_pointer()), align=1)
            return context.get_dummy_value()

        return signature(types.none, data, at, value), write_code

    def store_in_python(data, at, value):
        if not 0 <= at <= len(data) - width:
            raise IndexError("index is out of bounds")
        low = int(value) & ((1 << 8 * width) - 1)
        data[at : at + width] = np.frombuffer(low.to_bytes(width, "little"), np.uint8)

    return store_in_python if numba.config.DISABLE_JIT else store


put32 = little_endian_store(4)
put64 = little_endian_store(8)


def prefetch_of(all_lines):
    """A kernel's hint that it will need array[at] soon: of a record, its first cache line or all of them.

    Memory further away than the nearest caches takes as long as some hundred instructions: who knows early what is
    needed next does not have to wait. There need not be such an element.
    """

    @intrinsic
    def prefetch(context, array, at):
        if not (isinstance(array, types.Array) and array.ndim == 1):
            return None

        def write_code(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            at = context.cast(builder, arguments[1], signature.args[1], types.intp)
            begin = builder.add(builder.ptrtoint(array.data, at.type), builder.mul(at, array.itemsize))
            size = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
            pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
            hint = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            for line in range(0, size if all_lines else 1, CACHE_LINE):
                address = builder.inttoptr(builder.add(begin, ir.Constant(begin.type, line)), pointer)
                builder.call(hint, [address, number(1), number(3), number(1)])  # to write, keep, data
            return context.get_dummy_value()

        return signature(types.void, array, at), write_code

    def prefetch_in_python(array, at):
        pass

    return prefetch_in_python if numba.config.DISABLE_JIT else prefetch


prefetch = prefetch_of(all_lines=False)
prefetch_all = prefetch_of(all_lines=True)
