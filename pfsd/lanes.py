"""MD5 of 16 parts at once, one part in each SIMD lane (RFC 1321 for the algorithm).

The steps of one MD5 depend on each other, so a core spends most of its time waiting; the parts of a run are
independent. The kernel is plain Python that numba compiles: the loop over lanes innermost and without branches,
which LLVM turns into vector instructions, 16 lanes at a time with AVX-512, 8 with AVX2.

Importing this module imports numba, compiles the kernel (seconds the first time, then kept in a cache on disk)
and checks it against hashlib; ImportError when any of that fails. `hashing` decides whether to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit

#: Parts hashed at once. One vector of AVX-512; twice as many would need runs of 32 parts.
LANES = 16
BLOCK_BYTES = 64

_u32 = np.uint32
_u64 = np.uint64
_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)


# --- the kernel ---------------------------------------------------------------------------------
# numba widens the sum of two 32-bit numbers to 64 bits; _u32() around it keeps the vectors narrow.


@njit(inline="always")
def _step(a, b, mixed, word, shift, constant):
    a = _u32(a + mixed + word + _u32(constant))
    return _u32(b + _u32(_u32(a << _u32(shift)) | _u32(a >> _u32(32 - shift))))


@njit(inline="always")
def _f(a, b, c, d, word, shift, constant):
    return _step(a, b, d ^ (b & (c ^ d)), word, shift, constant)


@njit(inline="always")
def _g(a, b, c, d, word, shift, constant):
    return _step(a, b, c ^ (d & (b ^ c)), word, shift, constant)


@njit(inline="always")
def _h(a, b, c, d, word, shift, constant):
    return _step(a, b, b ^ c ^ d, word, shift, constant)


@njit(inline="always")
def _i(a, b, c, d, word, shift, constant):
    return _step(a, b, c ^ (b | ~d), word, shift, constant)


def _hash_blocks(memory, starts, blocks, state):
    """Hash `blocks` blocks of each lane; lane n begins at the 32-bit word starts[n] of `memory`."""
    words = np.empty((16, LANES), np.uint32)  # the 16 words of a block, lane beside lane
    for block in range(_u64(blocks)):
        for word in range(_u64(16)):
            for lane in range(_u64(LANES)):
                words[word, lane] = memory[starts[lane] + block * _u64(16) + word]
        for lane in range(_u64(LANES)):
            a = state[0, lane]
            b = state[1, lane]
            c = state[2, lane]
            d = state[3, lane]
            a = _f(a, b, c, d, words[0, lane], 7, 0xD76AA478)
            d = _f(d, a, b, c, words[1, lane], 12, 0xE8C7B756)
            c = _f(c, d, a, b, words[2, lane], 17, 0x242070DB)
            b = _f(b, c, d, a, words[3, lane], 22, 0xC1BDCEEE)
            a = _f(a, b, c, d, words[4, lane], 7, 0xF57C0FAF)
            d = _f(d, a, b, c, words[5, lane], 12, 0x4787C62A)
            c = _f(c, d, a, b, words[6, lane], 17, 0xA8304613)
            b = _f(b, c, d, a, words[7, lane], 22, 0xFD469501)
            a = _f(a, b, c, d, words[8, lane], 7, 0x698098D8)
            d = _f(d, a, b, c, words[9, lane], 12, 0x8B44F7AF)
            c = _f(c, d, a, b, words[10, lane], 17, 0xFFFF5BB1)
            b = _f(b, c, d, a, words[11, lane], 22, 0x895CD7BE)
            a = _f(a, b, c, d, words[12, lane], 7, 0x6B901122)
            d = _f(d, a, b, c, words[13, lane], 12, 0xFD987193)
            c = _f(c, d, a, b, words[14, lane], 17, 0xA679438E)
            b = _f(b, c, d, a, words[15, lane], 22, 0x49B40821)
            a = _g(a, b, c, d, words[1, lane], 5, 0xF61E2562)
            d = _g(d, a, b, c, words[6, lane], 9, 0xC040B340)
            c = _g(c, d, a, b, words[11, lane], 14, 0x265E5A51)
            b = _g(b, c, d, a, words[0, lane], 20, 0xE9B6C7AA)
            a = _g(a, b, c, d, words[5, lane], 5, 0xD62F105D)
            d = _g(d, a, b, c, words[10, lane], 9, 0x02441453)
            c = _g(c, d, a, b, words[15, lane], 14, 0xD8A1E681)
            b = _g(b, c, d, a, words[4, lane], 20, 0xE7D3FBC8)
            a = _g(a, b, c, d, words[9, lane], 5, 0x21E1CDE6)
            d = _g(d, a, b, c, words[14, lane], 9, 0xC33707D6)
            c = _g(c, d, a, b, words[3, lane], 14, 0xF4D50D87)
            b = _g(b, c, d, a, words[8, lane], 20, 0x455A14ED)
            a = _g(a, b, c, d, words[13, lane], 5, 0xA9E3E905)
            d = _g(d, a, b, c, words[2, lane], 9, 0xFCEFA3F8)
            c = _g(c, d, a, b, words[7, lane], 14, 0x676F02D9)
            b = _g(b, c, d, a, words[12, lane], 20, 0x8D2A4C8A)
            a = _h(a, b, c, d, words[5, lane], 4, 0xFFFA3942)
            d = _h(d, a, b, c, words[8, lane], 11, 0x8771F681)
            c = _h(c, d, a, b, words[11, lane], 16, 0x6D9D6122)
            b = _h(b, c, d, a, words[14, lane], 23, 0xFDE5380C)
            a = _h(a, b, c, d, words[1, lane], 4, 0xA4BEEA44)
            d = _h(d, a, b, c, words[4, lane], 11, 0x4BDECFA9)
            c = _h(c, d, a, b, words[7, lane], 16, 0xF6BB4B60)
            b = _h(b, c, d, a, words[10, lane], 23, 0xBEBFBC70)
            a = _h(a, b, c, d, words[13, lane], 4, 0x289B7EC6)
            d = _h(d, a, b, c, words[0, lane], 11, 0xEAA127FA)
            c = _h(c, d, a, b, words[3, lane], 16, 0xD4EF3085)
            b = _h(b, c, d, a, words[6, lane], 23, 0x04881D05)
            a = _h(a, b, c, d, words[9, lane], 4, 0xD9D4D039)
            d = _h(d, a, b, c, words[12, lane], 11, 0xE6DB99E5)
            c = _h(c, d, a, b, words[15, lane], 16, 0x1FA27CF8)
            b = _h(b, c, d, a, words[2, lane], 23, 0xC4AC5665)
            a = _i(a, b, c, d, words[0, lane], 6, 0xF4292244)
            d = _i(d, a, b, c, words[7, lane], 10, 0x432AFF97)
            c = _i(c, d, a, b, words[14, lane], 15, 0xAB9423A7)
            b = _i(b, c, d, a, words[5, lane], 21, 0xFC93A039)
            a = _i(a, b, c, d, words[12, lane], 6, 0x655B59C3)
            d = _i(d, a, b, c, words[3, lane], 10, 0x8F0CCC92)
            c = _i(c, d, a, b, words[10, lane], 15, 0xFFEFF47D)
            b = _i(b, c, d, a, words[1, lane], 21, 0x85845DD1)
            a = _i(a, b, c, d, words[8, lane], 6, 0x6FA87E4F)
            d = _i(d, a, b, c, words[15, lane], 10, 0xFE2CE6E0)
            c = _i(c, d, a, b, words[6, lane], 15, 0xA3014314)
            b = _i(b, c, d, a, words[13, lane], 21, 0x4E0811A1)
            a = _i(a, b, c, d, words[4, lane], 6, 0xF7537E82)
            d = _i(d, a, b, c, words[11, lane], 10, 0xBD3AF235)
            c = _i(c, d, a, b, words[2, lane], 15, 0x2AD7D2BB)
            b = _i(b, c, d, a, words[9, lane], 21, 0xEB86D391)
            state[0, lane] = _u32(state[0, lane] + a)
            state[1, lane] = _u32(state[1, lane] + b)
            state[2, lane] = _u32(state[2, lane] + c)
            state[3, lane] = _u32(state[3, lane] + d)


def _hash_parts(memory, starts, blocks, states):
    """Hash blocks[n] blocks of each part n from the word starts[n] on; states[n] is its state before and after.

    A lane that is done with its part takes the next, so the longest parts should come first.
    """
    part = np.full(LANES, -1, np.int64)
    left = np.zeros(LANES, np.int64)
    at = np.zeros(LANES, np.uint64)
    state = np.empty((4, LANES), np.uint32)
    following = 0
    while True:
        step, busy = np.int64(0), 0
        for lane in range(LANES):
            if left[lane] == 0:
                if part[lane] >= 0:
                    states[part[lane]] = state[:, lane]
                part[lane] = -1
                if following < len(starts):
                    part[lane], left[lane], at[lane] = following, blocks[following], starts[following]
                    state[:, lane] = states[following]
                    following += 1
            if left[lane] and (step == 0 or left[lane] < step):
                step, busy = left[lane], lane
        if step == 0:
            return
        for lane in range(LANES):
            if left[lane] == 0:
                at[lane] = at[busy]  # something that is there; what comes out is nobody's
        _hash_blocks(memory, at, _u64(step), state)
        for lane in range(LANES):
            if left[lane]:
                left[lane] -= step
                at[lane] += _u64(step) * _u64(16)


def _compile(function: Callable[..., None], signature: str) -> Callable[..., None]:
    try:
        compiled: Callable[..., None] = njit(signature, cache=True)(function)
    except RuntimeError:  # no directory for the cache can be written
        compiled = njit(signature)(function)
    return compiled


# --- around it ----------------------------------------------------------------------------------


def md5_lanes(memory: memoryview, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """The binary MD5s of the parts at these (offset, size) places of `memory`, the longest of them first.

    The offsets must be multiples of 4.
    """
    states = np.empty((len(places), 4), np.uint32)
    states[:] = _START
    starts = np.array([offset // 4 for offset, _ in places], np.uint64)
    blocks = np.array([size // BLOCK_BYTES for _, size in places], np.int64)
    _hash_parts(np.frombuffer(memory, np.uint32, len(memory) // 4), starts, blocks, states)
    endings = [_ending(memory, offset, size) for offset, size in places]
    lengths = np.array(list(map(len, endings)), np.int64)
    starts = ((np.cumsum(lengths) - lengths) // 4).astype(np.uint64)
    _hash_parts(np.frombuffer(bytearray().join(endings), np.uint32), starts, lengths // BLOCK_BYTES, states)
    digests: Any = states.astype("<u4")
    return [digest.tobytes() for digest in digests]


def _ending(memory: memoryview, offset: int, size: int) -> bytes:
    """The last blocks of a part: what fills no block, a bit, zeros, and the length in bits."""
    tail = bytes(memory[offset + size // BLOCK_BYTES * BLOCK_BYTES : offset + size]) + b"\x80"
    zeros = -(len(tail) + 8) % BLOCK_BYTES
    return tail + bytes(zeros) + (8 * size).to_bytes(8, "little")


def _check() -> None:
    memory = memoryview(bytearray(hashlib.shake_128(b"lanes").digest(4 * LANES * BLOCK_BYTES)))
    places = [(lane * 2 * BLOCK_BYTES, 5 * BLOCK_BYTES - 9 * lane) for lane in range(LANES + 3)]
    right = [hashlib.md5(memory[at : at + size], usedforsecurity=False).digest() for at, size in places]
    if md5_lanes(memory, places) != right:
        raise ImportError("MD5 in lanes gives wrong digests on this machine")


try:
    _hash_blocks = _compile(_hash_blocks, "void(uint32[::1], uint64[::1], uint64, uint32[:, ::1])")
    _hash_parts = _compile(_hash_parts, "void(uint32[::1], uint64[::1], int64[::1], uint32[:, ::1])")
    _check()
except ImportError:
    raise
except Exception as error:  # whatever a compiler can run into
    raise ImportError(f"MD5 in lanes cannot be compiled: {error}") from error
