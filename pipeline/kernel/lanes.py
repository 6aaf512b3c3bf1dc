"""Give compiled code vectors: 16 lanes of 32 bits, and what rendering a slice does with them.

Numba has scalars only, so each operation is a piece of LLVM's language. LLVM turns the plain ones into whatever vectors
the CPU has. Two come in two ways: `permute` and `weigh` are single instructions on CPUs with AVX-512 VBMI and VNNI
(Intel since Ice Lake, AMD since Zen 4); elsewhere `gather` and plain multiplications give the same numbers.

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
QUAD = 4  # pixels of a lane: bytes that lie beside each other
VECTOR_BYTES = LANES * QUAD  # a cache line, too
HALVES = 32  # 16-bit numbers of a vector

_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
HAS_BYTE_PRODUCTS = {"+avx512vbmi", "+avx512vnni"} <= set(_FEATURES)

_BYTE, _HALF, _WORD, _INDEX = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _HALVES, _WORDS = ir.VectorType(_BYTE, VECTOR_BYTES), ir.VectorType(_HALF, HALVES), ir.VectorType(_WORD, LANES)
_LOW_BYTES, _GREY = ir.VectorType(_BYTE, LANES), ir.VectorType(_BYTE, HALVES)


class _Lanes(types.Type):
    """Numba's type of a vector."""

    def __init__(self) -> None:
        super().__init__("Lanes")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _WORDS)


_LANES = _Lanes()


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Bytes that begin a cache line: vectors that straddle two take twice the time."""
    size = math.prod(shape)
    raw = np.zeros(size + VECTOR_BYTES, np.uint8)
    start = -raw.ctypes.data % VECTOR_BYTES
    return raw[start : start + size].reshape(shape)


# --- how an operation is made ---------------------------------------------------------------------------------------


def _operation(result: Any, *kinds: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an operation of compiled code out of a function that writes its LLVM.

    Args:
        result: type of what the operation returns.
        kinds: types of what it takes; None where any will do.

    The function gets LLVM's builder and the values: of an array a pointer to its first element, of a tuple its members.
    """

    def declare(write: Callable[..., Any]) -> Any:
        def operation(context: Any, *given: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                plain = (_plain(context, builder, *pair) for pair in zip(signature.args, values, strict=True))
                written = write(builder, *plain)
                return context.get_dummy_value() if result is void else written

            return result(*(kind or its for kind, its in zip(kinds, given, strict=True))), generate

        operation.__signature__ = inspect.signature(write)  # type: ignore[attr-defined]  # numba wants to see the names
        return intrinsic(operation)

    return declare


def _plain(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        return cgutils.create_struct_proxy(kind)(context, builder, value).data
    return cgutils.unpack_tuple(builder, value) if isinstance(kind, types.BaseTuple) else value


def _at(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    """Pointer to something of this kind, `index` elements on."""
    return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())


def _call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """Call one of LLVM's own functions."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), values)


def _spread(builder: Any, number: Any, count: int) -> Any:
    """The same number in every place."""
    first = builder.insert_element(ir.Constant(ir.VectorType(number.type, count), ir.Undefined), number, _WORD(0))
    return builder.shuffle_vector(first, first, _all(ir.VectorType(_WORD, count), 0))


def _all(kind: Any, number: int) -> Any:
    return ir.Constant(kind, [number] * kind.count)


# --- memory ---------------------------------------------------------------------------------------------------------


@_operation(_LANES, int32)
def splat(builder: Any, number: Any) -> Any:
    """All lanes the same number."""
    return _spread(builder, number, LANES)


@_operation(_LANES, None, int64)
def load(builder: Any, array: Any, index: Any) -> Any:
    """Read 64 bytes of a uint8 array."""
    return builder.load(_at(builder, array, index, _WORDS), align=1)


@_operation(_LANES, None, int64)
def load_constant(builder: Any, array: Any, index: Any) -> Any:
    """As `load`, of what no pass writes: it may stay in a register while others are stored."""
    lanes = builder.load(_at(builder, array, index, _WORDS), align=1)
    lanes.set_metadata("invariant.load", builder.module.add_metadata([]))
    return lanes


@_operation(_LANES, None, int64, None, int64)
def gather(builder: Any, array: Any, index: Any, offsets: Any, first: Any) -> Any:
    """Bring the four bytes of a uint8 array at index + offsets[first + lane] into each lane."""
    lanes: Any = ir.Constant(_WORDS, ir.Undefined)
    for lane in range(LANES):
        offset = builder.load(builder.gep(offsets, [builder.add(first, _INDEX(lane))]))
        four = builder.load(_at(builder, array, builder.add(index, offset), _WORD), align=1)
        lanes = builder.insert_element(lanes, four, _WORD(lane))
    return lanes


@_operation(void, None, int64, _LANES)
def store(builder: Any, array: Any, index: Any, lanes: Any) -> None:
    """Write 64 bytes into a uint8 array."""
    builder.store(lanes, _at(builder, array, index, _WORDS), align=1)


@_operation(void, None, int64, _LANES)
def store_bytes(builder: Any, array: Any, index: Any, lanes: Any) -> None:
    """Write the low byte of each lane into a uint8 array."""
    builder.store(builder.trunc(lanes, _LOW_BYTES), _at(builder, array, index, _LOW_BYTES), align=1)


@_operation(void, None, int64, _LANES, int64)
def store_few_bytes(builder: Any, array: Any, index: Any, lanes: Any, count: Any) -> None:
    """Write the low byte of each of the first lanes into a uint8 array."""
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
    """Shift every lane to the left."""
    return builder.shl(lanes, _spread(builder, bits, LANES))


@_operation(_LANES, _LANES, int32)
def shift_right(builder: Any, lanes: Any, bits: Any) -> Any:
    """Shift every lane to the right; what comes in is 0."""
    return builder.lshr(lanes, _spread(builder, bits, LANES))


@_operation(_LANES, _LANES, int32)
def byte_of(builder: Any, lanes: Any, bits: Any) -> Any:
    """The byte of each lane that begins at this bit."""
    return builder.and_(builder.lshr(lanes, _spread(builder, bits, LANES)), _all(_WORDS, 255))


@_operation(_LANES, _LANES, _LANES)
def append_byte(builder: Any, joined: Any, total: Any) -> Any:
    """Shift each lane up by a byte, and bits 22 to 29 of `total` in from below."""
    return _call(builder, "fshl.v16i32", _WORDS, joined, builder.shl(total, _all(_WORDS, 2)), _all(_WORDS, 8))


@_operation(uint32, _LANES)
def sum_lanes(builder: Any, lanes: Any) -> Any:
    """Add up all lanes."""
    return _call(builder, "vector.reduce.add.v16i32", _WORD, lanes)


@_operation(_LANES, _LANES, _LANES)
def permute(builder: Any, source: Any, positions: Any) -> Any:
    """Bring the bytes of `source` at these positions, 0 to 63, into the lanes. AVX-512 VBMI."""
    both = (builder.bitcast(lanes, _BYTES) for lanes in (source, positions))
    return builder.bitcast(_call(builder, "x86.avx512.permvar.qi.512", _BYTES, *both), _WORDS)


@_operation(_LANES, _LANES, _LANES, _LANES)
def _add_byte_products(builder: Any, total: Any, quads: Any, weights: Any) -> Any:
    """Add to each lane its four bytes, each times one of four int8 weights. AVX-512 VNNI."""
    return _call(builder, "x86.avx512.vpdpbusd.512", _WORDS, total, quads, weights)


# --- stored values --------------------------------------------------------------------------------------------------


@_operation(uint32, None, int64, uint16, uint16)
def within(builder: Any, row: Any, index: Any, first: Any, reach: Any) -> Any:
    """Which of 32 numbers of a uint16 row are `first` to `first + reach`, modulo 2**16: a bit each."""
    above = builder.sub(builder.load(_at(builder, row, index, _HALVES), align=1), _spread(builder, first, HALVES))
    return builder.bitcast(builder.icmp_unsigned("<=", above, _spread(builder, reach, HALVES)), _WORD)


@_operation(void, None, int64, None, None, int64)
def scale(builder: Any, row: Any, index: Any, numbers: Any, line: Any, to: Any) -> None:
    """Turn 32 stored values of a uint16 row into grey levels in a uint8 line.

    Of the numbers flip, first, reach, up and factor: v = stored ^ flip, less `first` but not below 0, `reach` at most;
    grey = v x up x factor / 2**23, rounded half up. The product is one of 16 by 16 bits of which the upper half stays.
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
    """Add four pixels a lane times one digit of their weights."""
    return _add_byte_products(total, quads, load_constant(weights, at))


@njit(inline="always")
def _weigh_whole(total: Any, quads: Any, weights: Any, at: Any) -> Any:
    """Add four pixels a lane times their weights."""
    for k in range(QUAD):
        total = add(total, multiply(byte_of(quads, int32(8 * k)), load_constant(weights, at + k * VECTOR_BYTES)))
    return total


# A weight of 22 bits is one part, or three digits that fit the products of bytes: then a sum is made of three, each
# of them shifted by a digit before the next is added.
weigh, PARTS, WEIGHT_BYTES = (
    (_weigh_digits, 3, VECTOR_BYTES) if HAS_BYTE_PRODUCTS else (_weigh_whole, 1, QUAD * VECTOR_BYTES)
)


def pack_weights(weights: np.ndarray) -> np.ndarray:
    """Lay out weights as `weigh` reads them.

    Args:
        weights: (..., quads, 16, 4) int32, 0 to 2**22: of each lane those of its four pixels.

    Returns:
        (..., PARTS x quads x WEIGHT_BYTES) uint8.
    """
    parts = _digits(weights) if HAS_BYTE_PRODUCTS else np.moveaxis(weights, -1, -2)
    return np.ascontiguousarray(parts).reshape(*weights.shape[:-3], -1).view(np.uint8)


def _digits(weights: np.ndarray) -> np.ndarray:
    """Write weights to base 256 with digits of -128 to 127: (..., 3, quads, 16, 4) int8, the highest first."""
    digits, rest = [], weights.astype(np.int64)
    for _ in range(3):
        digit = (rest + 128) % 256 - 128
        digits.append(digit.astype(np.int8))
        rest = (rest - digit) >> 8
    return np.stack(digits[::-1], axis=-4)
