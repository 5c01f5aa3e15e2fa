/* BLAKE3-256 of whole buffers, with or without a key, without the interpreter: what ids of chunks are checked with. Used by
 * unpack.pyx.
 *
 * Why: ids are checked in loops without the interpreter's lock, on bytes just unpacked. The blake3 package can only be called
 * with the lock, once for each chunk: two threads hash chunks of 64 KiB at 6.3 GB/s by it (6.7 here), beside two threads that
 * run Python at 0.97 (1.33 here). Its loops are no slower: 8.5 GB/s of a core's time with AVX-512, 7.8 here.
 * Tests: test_native_bulk.py compares every width of vector with the package, at every length of the official test vectors.
 * What is stored is named by the package, so a fault here can refuse good chunks, but never name new ones wrongly.
 * It can go when the official C BLAKE3 is vendored, or the package lets C call it: only ijfs_blake3() is used elsewhere.
 *
 * The function is that of the BLAKE3 paper (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020), section 2, which the constants
 * are from.
 */
#ifndef IJFS_BLAKE3_H
#define IJFS_BLAKE3_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { IJFS_START = 1, IJFS_END = 2, IJFS_PARENT = 4, IJFS_ROOT = 8, IJFS_KEYED = 16 };
enum { IJFS_PIECE = 1024 };

static const uint32_t ijfs_blake3_iv[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                           0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
/* Which message words a round takes: each row is the one before it, permuted. */
static const uint8_t ijfs_blake3_order[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

#define TARGET
#define LANES 4
#define NAME(X) ijfs_blake3_4_##X
#include "blake3_lanes.h"
#undef LANES
#undef NAME
#undef TARGET

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx2")))
#define LANES 8
#define NAME(X) ijfs_blake3_8_##X
#include "blake3_lanes.h"
#undef LANES
#undef NAME
#undef TARGET

#define TARGET __attribute__((target("avx512f,avx512vl")))
#define LANES 16
#define NAME(X) ijfs_blake3_16_##X
#include "blake3_lanes.h"
#undef LANES
#undef NAME
#undef TARGET
#endif

/* The most inputs at once that this processor has: 4, 8 or 16. */
static inline int ijfs_blake3_best(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
        return 16;
    if (__builtin_cpu_supports("avx2"))
        return 8;
#endif
    return 4;
}

static inline void ijfs_blake3_inputs(int lanes, const uint32_t *begin, const uint8_t *data, size_t stride, size_t count, size_t blocks,
                                      uint64_t step, uint32_t flags, uint32_t first, uint32_t last, uint8_t *out)
{
#if defined(__x86_64__)
    if (lanes == 16 && count > 4) {
        ijfs_blake3_16_hash(begin, data, stride, count, blocks, 0, step, flags, first, last, out);
        return;
    }
    if (lanes >= 8 && count > 2) {
        ijfs_blake3_8_hash(begin, data, stride, count, blocks, 0, step, flags, first, last, out);
        return;
    }
#endif
    ijfs_blake3_4_hash(begin, data, stride, count, blocks, 0, step, flags, first, last, out);
}

static inline uint32_t ijfs_rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static inline void ijfs_mix(uint32_t *s, int a, int b, int c, int d, uint32_t x, uint32_t y)
{
    s[a] += s[b] + x, s[d] = ijfs_rotate(s[d] ^ s[a], 16), s[c] += s[d], s[b] = ijfs_rotate(s[b] ^ s[c], 12);
    s[a] += s[b] + y, s[d] = ijfs_rotate(s[d] ^ s[a], 8), s[c] += s[d], s[b] = ijfs_rotate(s[b] ^ s[c], 7);
}

/* One block, which may be shorter than 64 bytes. */
static inline void ijfs_blake3_block(uint32_t *h, const uint8_t *data, size_t size, uint64_t counter, uint32_t flags)
{
    uint32_t m[16] = {0}, s[16];
    memcpy(m, data, size);
    memcpy(s, h, 32);
    memcpy(s + 8, ijfs_blake3_iv, 16);
    s[12] = (uint32_t)counter, s[13] = (uint32_t)(counter >> 32), s[14] = (uint32_t)size, s[15] = flags;
    for (int round = 0; round < 7; round++) {
        const uint8_t *o = ijfs_blake3_order[round];
        for (int i = 0; i < 4; i++)
            ijfs_mix(s, i, i + 4, i + 8, i + 12, m[o[2 * i]], m[o[2 * i + 1]]);
        for (int i = 0; i < 4; i++)
            ijfs_mix(s, i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12, m[o[2 * i + 8]], m[o[2 * i + 9]]);
    }
    for (int i = 0; i < 8; i++)
        h[i] = s[i] ^ s[i + 8];
}

/* A piece of at most 1024 bytes; `root` is IJFS_ROOT if it is all there is. */
static inline void ijfs_blake3_piece(const uint32_t *begin, const uint8_t *data, size_t size, uint64_t counter,
                                     uint32_t keyed, uint32_t root, uint8_t *out)
{
    uint32_t h[8], flags = IJFS_START;
    memcpy(h, begin, 32);
    for (; size > 64; data += 64, size -= 64, flags = 0)
        ijfs_blake3_block(h, data, 64, counter, keyed | flags);
    ijfs_blake3_block(h, data, size, counter, keyed | flags | IJFS_END | root);
    memcpy(out, h, 32);
}

/* The hash of n bytes, with a key of 32 bytes where `key` is not NULL. `room` holds 32 bytes for each 1024 begun, and 32
 * more. */
static inline void ijfs_blake3(int lanes, const uint8_t *key, const uint8_t *data, size_t n, uint8_t *room, uint8_t *out)
{
    size_t whole = n / IJFS_PIECE, count;
    uint32_t begin[8], keyed = key != NULL ? IJFS_KEYED : 0;
    memcpy(begin, key != NULL ? key : (const uint8_t *)ijfs_blake3_iv, 32);
    if (n <= IJFS_PIECE) {
        ijfs_blake3_piece(begin, data, n, 0, keyed, IJFS_ROOT, out);
        return;
    }
    ijfs_blake3_inputs(lanes, begin, data, IJFS_PIECE, whole, 16, 1, keyed, IJFS_START, IJFS_END, room);
    count = whole;
    if (n % IJFS_PIECE)
        ijfs_blake3_piece(begin, data + whole * IJFS_PIECE, n % IJFS_PIECE, count++, keyed, 0, room + 32 * whole);
    /* Neighbours are joined level by level; one that has none goes up as it is. Two chaining values are one block. */
    for (; count > 2; count = (count + 1) / 2) {
        ijfs_blake3_inputs(lanes, begin, room, 64, count / 2, 1, 0, keyed | IJFS_PARENT, 0, 0, room);
        if (count % 2)
            memmove(room + 32 * (count / 2), room + 32 * (count - 1), 32);
    }
    ijfs_blake3_inputs(lanes, begin, room, 64, 1, 1, 0, keyed | IJFS_PARENT | IJFS_ROOT, 0, 0, out);
}

#endif
