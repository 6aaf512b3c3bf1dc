"""Vector operations for compiled code, on 16 lanes of 32 bits.

Numba only has scalars, so each operation is written in LLVM IR, which LLVM compiles to the vector instructions of the
CPU. On CPUs with AVX-512 VBMI and VNNI (Intel since Ice Lake, AMD since Zen 4), `permute` and `weigh` are single
instructions; elsewhere, `gather` and multiplications give the same numbers.

Source: LLVM Language Reference Manual; Intel Intrinsics Guide for vpermb and vpdpbusd.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int32, int64, njit, types, uint16, uint32, void
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

LANES = 16
QUAD = 4  # adjacent pixels in a lane, one byte each
VECTOR_BYTES = LANES * QUAD  # also the size of a cache line
HALVES = 32  # 16-bit numbers in a vector

_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
HAS_BYTE_PRODUCTS = {"+avx512vbmi", "+avx512vnni"} <= set(_FEATURES)

_BYTE, _HALF, _WORD, _INDEX = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _HALVES, _WORDS = ir.VectorType(_BYTE, VECTOR_BYTES), ir.VectorType(_HALF, HALVES), ir.VectorType(_WORD, LANES)
_LOW_BYTES, _GREY = ir.VectorType(_BYTE, LANES), ir.VectorType(_BYTE, HALVES)


class _Lanes(types.Type):
    """Numba type of a vector."""

    def __init__(self) -> None:
        super().__init__("Lanes")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _WORDS)


_LANES = _Lanes()


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros aligned to a cache line, uint8: a load or store that straddles two takes twice the time."""
    size = math.prod(shape)
    raw = np.zeros(size + VECTOR_BYTES, np.uint8)
    start = -raw.ctypes.data % VECTOR_BYTES
    return raw[start : start + size].reshape(shape)


# --- defining operations --------------------------------------------------------------------------------------------


def _operation(result: Any, *kinds: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that emits LLVM IR, to make it an operation for compiled code.

    The function is called with the IR builder and the values of the arguments: for an array, a pointer to its first
    element; for a tuple, its members.

    Args:
        result: return type of the operation.
        kinds: types of its arguments; None for any type.
    """

    def declare(write: Callable[..., Any]) -> Any:
        def operation(context: Any, *given: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                plain = (_plain(context, builder, *pair) for pair in zip(signature.args, values, strict=True))
                written = write(builder, *plain)
                return context.get_dummy_value() if result is void else written

            return result(*(kind or its for kind, its in zip(kinds, given, strict=True))), generate

        operation.__signature__ = inspect.signature(write)  # type: ignore[attr-defined]  # numba reads the names
        return intrinsic(operation)

    return declare


def _plain(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        return cgutils.create_struct_proxy(kind)(context, builder, value).data
    return cgutils.unpack_tuple(builder, value) if isinstance(kind, types.BaseTuple) else value


def _at(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    """Return a pointer of this kind to element `index` of an array."""
    return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())


def _call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), values)


def _spread(builder: Any, number: Any, count: int) -> Any:
    """Return a vector with the same number in all elements."""
    first = builder.insert_element(ir.Constant(ir.VectorType(number.type, count), ir.Undefined), number, _WORD(0))
    return builder.shuffle_vector(first, first, _all(ir.VectorType(_WORD, count), 0))


def _all(kind: Any, number: int) -> Any:
    return ir.Constant(kind, [number] * kind.count)


# --- memory ---------------------------------------------------------------------------------------------------------


@_operation(_LANES, int32)
def splat(builder: Any, number: Any) -> Any:
    """Set all lanes to the same number."""
    return _spread(builder, number, LANES)


@_operation(_LANES, None, int64)
def load(builder: Any, array: Any, index: Any) -> Any:
    """Read 64 bytes of a uint8 array."""
    return builder.load(_at(builder, array, index, _WORDS), align=1)


@_operation(_LANES, None, int64)
def load_constant(builder: Any, array: Any, index: Any) -> Any:
    """Load from an array that no pass writes, so that LLVM may keep the vector in a register across stores."""
    lanes = builder.load(_at(builder, array, index, _WORDS), align=1)
    lanes.set_metadata("invariant.load", builder.module.add_metadata([]))
    return lanes


@_operation(_LANES, None, int64, None, int64)
def gather(builder: Any, array: Any, index: Any, offsets: Any, first: Any) -> Any:
    """Load into each lane the four bytes of a uint8 array at index + offsets[first + lane]."""
    lanes: Any = ir.Constant(_WORDS, ir.Undefined)
    for lane in range(LANES):
        offset = builder.load(builder.gep(offsets, [builder.add(first, _INDEX(lane))]))
        four = builder.load(_at(builder, array, builder.add(index, offset), _WORD), align=1)
        lanes = builder.insert_element(lanes, four, _WORD(lane))
    return lanes


@_operation(void, None, int64, _LANES)
def store(builder: Any, array: Any, index: Any, lanes: Any) -> None:
    """Write 64 bytes to a uint8 array."""
    builder.store(lanes, _at(builder, array, index, _WORDS), align=1)


@_operation(void, None, int64, _LANES)
def store_bytes(builder: Any, array: Any, index: Any, lanes: Any) -> None:
    """Write the low byte of each lane to a uint8 array."""
    builder.store(builder.trunc(lanes, _LOW_BYTES), _at(builder, array, index, _LOW_BYTES), align=1)


@_operation(void, None, int64, _LANES, int64)
def store_few_bytes(builder: Any, array: Any, index: Any, lanes: Any, count: Any) -> None:
    """Write the low byte of each of the first `count` lanes to a uint8 array."""
    last = _spread(builder, builder.trunc(count, _WORD), LANES)
    wanted = builder.icmp_unsigned("<", ir.Constant(_WORDS, list(range(LANES))), last)
    place = _at(builder, array, index, _LOW_BYTES)
    _call(builder, "masked.store.v16i8.p0", ir.VoidType(), builder.trunc(lanes, _LOW_BYTES), place, _WORD(1), wanted)


# --- arithmetic -----------------------------------------------------------------------------------------------------


@_operation(_LANES, _LANES, _LANES)
def add(builder: Any, a: Any, b: Any) -> Any:
    """Add lane by lane."""
    return builder.add(a, b)


@_operation(_LANES, _LANES, _LANES)
def multiply(builder: Any, a: Any, b: Any) -> Any:
    """Multiply lane by lane."""
    return builder.mul(a, b)


@_operation(_LANES, _LANES, int32)
def shift_left(builder: Any, lanes: Any, bits: Any) -> Any:
    """Shift each lane to the left."""
    return builder.shl(lanes, _spread(builder, bits, LANES))


@_operation(_LANES, _LANES, int32)
def shift_right(builder: Any, lanes: Any, bits: Any) -> Any:
    """Shift each lane to the right, filling with zeros."""
    return builder.lshr(lanes, _spread(builder, bits, LANES))


@_operation(_LANES, _LANES, int32)
def byte_of(builder: Any, lanes: Any, bits: Any) -> Any:
    """Extract the byte of each lane that starts at this bit."""
    return builder.and_(builder.lshr(lanes, _spread(builder, bits, LANES)), _all(_WORDS, 255))


@_operation(_LANES, _LANES, _LANES)
def append_byte(builder: Any, joined: Any, total: Any) -> Any:
    """Shift each lane of `joined` to the left by a byte, and set its low byte to bits 22 to 29 of `total`."""
    return _call(builder, "fshl.v16i32", _WORDS, joined, builder.shl(total, _all(_WORDS, 2)), _all(_WORDS, 8))


@_operation(uint32, _LANES)
def sum_lanes(builder: Any, lanes: Any) -> Any:
    """Add up all lanes."""
    return _call(builder, "vector.reduce.add.v16i32", _WORD, lanes)


@_operation(_LANES, _LANES, _LANES)
def permute(builder: Any, source: Any, positions: Any) -> Any:
    """Select the bytes of `source` at these positions, 0 to 63. AVX-512 VBMI."""
    both = (builder.bitcast(lanes, _BYTES) for lanes in (source, positions))
    return builder.bitcast(_call(builder, "x86.avx512.permvar.qi.512", _BYTES, *both), _WORDS)


@_operation(_LANES, _LANES, _LANES, _LANES)
def _add_byte_products(builder: Any, total: Any, quads: Any, weights: Any) -> Any:
    """Add to each lane of `total` the products of its four bytes with four int8 weights. AVX-512 VNNI."""
    return _call(builder, "x86.avx512.vpdpbusd.512", _WORDS, total, quads, weights)


# --- stored values --------------------------------------------------------------------------------------------------


@_operation(uint32, None, int64, uint16, uint16)
def within(builder: Any, row: Any, index: Any, first: Any, reach: Any) -> Any:
    """Return a bit for each of 32 numbers of a uint16 row: whether it is in [first, first + reach], modulo 2**16."""
    above = builder.sub(builder.load(_at(builder, row, index, _HALVES), align=1), _spread(builder, first, HALVES))
    return builder.bitcast(builder.icmp_unsigned("<=", above, _spread(builder, reach, HALVES)), _WORD)


@_operation(void, None, int64, None, None, int64)
def scale(builder: Any, row: Any, index: Any, numbers: Any, line: Any, to: Any) -> None:
    """Convert 32 stored values of a uint16 row to grey levels in a uint8 line.

    With the numbers flip, first, reach, up and factor: v = clip((stored ^ flip) - first, 0, reach), and
    grey = v x up x factor / 2**23, rounded half up. Only the upper half of the 32-bit product is computed.
    """
    flip, first, reach, up, factor = (_spread(builder, number, HALVES) for number in numbers)
    value = builder.xor(builder.load(_at(builder, row, index, _HALVES), align=1), flip)
    value = _call(builder, "usub.sat.v32i16", _HALVES, value, first)
    value = builder.mul(_call(builder, "umin.v32i16", _HALVES, value, reach), up)
    value = _call(builder, "umul.fix.v32i16", _HALVES, value, factor, _WORD(16))
    grey = builder.lshr(builder.add(value, _all(_HALVES, 1 << 6)), _all(_HALVES, 7))
    builder.store(builder.trunc(grey, _GREY), _at(builder, line, to, _GREY), align=1)


# --- weights --------------------------------------------------------------------------------------------------------


@njit(inline="always")
def _weigh_digits(total: Any, quads: Any, weights: Any, at: Any) -> Any:
    """Add the products of each lane's four pixels with one digit of their weights."""
    return _add_byte_products(total, quads, load_constant(weights, at))


@njit(inline="always")
def _weigh_whole(total: Any, quads: Any, weights: Any, at: Any) -> Any:
    """Add the products of each lane's four pixels with their weights."""
    for k in range(QUAD):
        total = add(total, multiply(byte_of(quads, int32(8 * k)), load_constant(weights, at + k * VECTOR_BYTES)))
    return total


# A 22-bit weight is used as a whole, or as three digits for byte products. In the latter case, the sum is shifted by a
# digit before the products with the next digit are added.
weigh, PARTS, WEIGHT_BYTES = (
    (_weigh_digits, 3, VECTOR_BYTES) if HAS_BYTE_PRODUCTS else (_weigh_whole, 1, QUAD * VECTOR_BYTES)
)


def pack_weights(weights: np.ndarray) -> np.ndarray:
    """Convert weights to the layout that `weigh` reads.

    Args:
        weights: (..., quads, 16, 4) int32, 0 to 2**22, for the four pixels of each lane.

    Returns:
        (..., PARTS x quads x WEIGHT_BYTES) uint8.
    """
    parts = _digits(weights) if HAS_BYTE_PRODUCTS else np.moveaxis(weights, -1, -2)
    return np.ascontiguousarray(parts).reshape(*weights.shape[:-3], -1).view(np.uint8)


def _digits(weights: np.ndarray) -> np.ndarray:
    """Convert weights to base 256 with digits from -128 to 127: (..., 3, quads, 16, 4) int8, highest digit first."""
    digits, rest = [], weights.astype(np.int64)
    for _ in range(3):
        digit = (rest + 128) % 256 - 128
        digits.append(digit.astype(np.int8))
        rest = (rest - digit) >> 8
    return np.stack(digits[::-1], axis=-4)
