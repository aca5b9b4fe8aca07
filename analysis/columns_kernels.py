"""Loops that turn numbers of a chunk into dictionary indexes and text."""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import inner, kernel

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
BASE64_DIGITS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8).copy()


@kernel
def number_values(high, low, table, index, firsts):
    """index[i] is the ordinal of (high[i], low[i]) among the distinct ones; firsts[k] where the k-th is first seen.

    `table` is -1 all over and has a power of two places, more than there are values. Returns how many are distinct.
    """
    mask = np.uint64(len(table) - 1)
    count = 0
    for i in range(len(low)):
        h = (low[i] ^ (high[i] * MULTIPLIER)) * MULTIPLIER
        at = (h ^ (h >> np.uint64(32))) & mask
        k = table[at]
        while k >= 0 and not (low[firsts[k]] == low[i] and high[firsts[k]] == high[i]):
            at = (at + np.uint64(1)) & mask
            k = table[at]
        if k < 0:
            k = count
            table[at] = k
            firsts[k] = i
            count += 1
        index[i] = k
    return count


@inner
def rotate(x, bits):
    return ((x << bits) | (x >> (32 - bits))) & 0xFFFFFFFF


@inner
def sha1_block(message, words, digest):
    """SHA-1 (RFC 3174) of one padded 64-byte block into five words."""
    for t in range(16):
        words[t] = (
            (np.int64(message[4 * t]) << 24)
            | (np.int64(message[4 * t + 1]) << 16)
            | (np.int64(message[4 * t + 2]) << 8)
            | np.int64(message[4 * t + 3])
        )
    for t in range(16, 80):
        words[t] = rotate(words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16], np.int64(1))
    a, b, c, d, e = 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0
    for t in range(80):
        if t < 20:
            mixed = ((b & c) | (~b & 0xFFFFFFFF & d)) + 0x5A827999
        elif t < 40:
            mixed = (b ^ c ^ d) + 0x6ED9EBA1
        elif t < 60:
            mixed = ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
        else:
            mixed = (b ^ c ^ d) + 0xCA62C1D6
        following = (rotate(a, np.int64(5)) + mixed + e + words[t]) & 0xFFFFFFFF
        a, b, c, d, e = following, a, rotate(b, np.int64(30)), c, d
    digest[0] = (a + 0x67452301) & 0xFFFFFFFF
    digest[1] = (b + 0xEFCDAB89) & 0xFFFFFFFF
    digest[2] = (c + 0x98BADCFE) & 0xFFFFFFFF
    digest[3] = (d + 0x10325476) & 0xFFFFFFFF
    digest[4] = (e + 0xC3D2E1F0) & 0xFFFFFFFF


@inner
def put_address(message, at, high, low):
    """The address as it is on the wire: 4 or 16 bytes. Returns where it ends."""
    is_v4 = high == 0 and low >> np.uint64(32) == np.uint64(0xFFFF)
    if not is_v4:
        for k in range(8):
            message[at + k] = (high >> np.uint64(56 - 8 * k)) & np.uint64(255)
        at += 8
    skipped = 4 if is_v4 else 0
    for k in range(skipped, 8):
        message[at + k - skipped] = (low >> np.uint64(56 - 8 * k)) & np.uint64(255)
    return at + 8 - skipped


@kernel
def write_community_ids(flows, one_way, text, message, numbers):
    """Community ID v1 with seed 0, "1:" and base64 of a SHA-1, 30 characters each, into text[30 * i].

    https://github.com/corelight/community-id-spec: seed, the smaller end's address, the other's, protocol, padding,
    ports in the same order. ICMP's are type and counterpart; a type without one is not reordered (`one_way`).
    message: uint8[64] and numbers: int64[106], room to work in.
    """
    words, digest, raw = numbers[:80], numbers[80:85], numbers[85:]
    raw[20] = 0
    for i in range(len(flows)):
        f = flows[i]
        a_hi, a_lo, a_port = f["orig_hi"], f["orig_lo"], np.int64(f["orig_port"])
        b_hi, b_lo, b_port = f["resp_hi"], f["resp_lo"], np.int64(f["resp_port"])
        swap = a_hi > b_hi or (a_hi == b_hi and (a_lo > b_lo or (a_lo == b_lo and a_port > b_port)))
        if swap and not one_way[i]:
            a_hi, a_lo, a_port, b_hi, b_lo, b_port = b_hi, b_lo, b_port, a_hi, a_lo, a_port
        message[:] = 0
        at = put_address(message, 2, a_hi, a_lo)
        at = put_address(message, at, b_hi, b_lo)
        message[at] = f["protocol"]
        at += 2
        if f["has_ports"]:
            message[at] = a_port >> 8
            message[at + 1] = a_port & 255
            message[at + 2] = b_port >> 8
            message[at + 3] = b_port & 255
            at += 4
        message[at] = 0x80
        message[62] = (8 * at) >> 8
        message[63] = (8 * at) & 255
        sha1_block(message, words, digest)
        for k in range(20):
            raw[k] = (digest[k // 4] >> (24 - 8 * (k % 4))) & 255
        start = 30 * i
        text[start] = 49
        text[start + 1] = 58
        for k in range(7):
            group = (raw[3 * k] << 16) | (raw[3 * k + 1] << 8) | raw[3 * k + 2]
            for digit in range(4):
                text[start + 2 + 4 * k + digit] = BASE64_DIGITS[(group >> (18 - 6 * digit)) & 63]
        text[start + 29] = 61
