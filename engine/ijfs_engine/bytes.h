/* Loops over bytes that native.pyx wraps: content-defined cuts, XOR against a base, float planes.
 *
 * reference.py is the slow twin of each. Lengths are checked by the callers in native.pyx, in one place.
 */
#ifndef IJFS_BYTES_H
#define IJFS_BYTES_H

#include "fingerprint.h"

/* The word gear (docs/format.md, "Cuts"): h = 8 h + w * IJFS_GEAR_MUL over 8-byte words, a cut after a word where
 * h >= IJFS_GEAR_CUT. A word is shifted out of the 64 bits after 22 steps, so a cut depends on 176 bytes.
 * The multiplier is 2^64 divided by the golden ratio (Knuth, TAOCP 3, 6.4): each word's top bits depend on all of it. */
#define IJFS_GEAR_MUL 0x9E3779B97F4A7C15ull
#define IJFS_GEAR_WINDOW 176

/* First cut in data[0..n), at least `min` and at most `max` bytes; n if there is none. All three are multiples of 8,
 * except n at the end of the data. */
static inline size_t ijfs_gear_cut(const uint8_t *data, size_t n, size_t min, size_t max, uint64_t threshold)
{
    uint64_t h = 0;
    size_t i, end = n < max ? n : max;
    if (n <= min)
        return n;
    i = min > IJFS_GEAR_WINDOW ? min - IJFS_GEAR_WINDOW : 0;
    for (; i + 8 < min; i += 8)
        h = (h << 3) + ijfs_word(data + i) * IJFS_GEAR_MUL;
    for (; i + 8 <= end; i += 8) {
        h = (h << 3) + ijfs_word(data + i) * IJFS_GEAR_MUL;
        if (h >= threshold)
            return i + 8;
    }
    return end;
}

static size_t ijfs_gear_cuts(const uint8_t *data, size_t n, size_t min, size_t max, uint64_t threshold, uint64_t *cuts)
{
    size_t at = 0, found = 0;
    while (at < n) {
        at += ijfs_gear_cut(data + at, n - at, min, max, threshold);
        cuts[found++] = at;
    }
    return found;
}

/* How many 64-byte lines of a and b differ. n is a multiple of 64. */
static size_t ijfs_changed_lines(const uint8_t *a, const uint8_t *b, size_t n)
{
    size_t changed = 0;
    for (size_t i = 0; i < n; i += 64) {
        uint64_t x[8], y[8], any = 0;
        memcpy(x, a + i, 64);
        memcpy(y, b + i, 64);
        for (int j = 0; j < 8; j++)
            any |= x[j] ^ y[j];
        changed += any != 0;
    }
    return changed;
}

static void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] ^= b[i];
}

/* top = the last (most significant) byte of each word, rest = the others and the tail, in order.
 * `width` is a constant in each call below, so that the compiler unrolls the inner loop. */
static inline void ijfs_split(const uint8_t *data, size_t words, size_t tail, const int width, uint8_t *top, uint8_t *rest)
{
    for (size_t i = 0; i < words; i++) {
        for (int j = 0; j < width - 1; j++)
            rest[i * (width - 1) + j] = data[i * width + j];
        top[i] = data[i * width + width - 1];
    }
    memcpy(rest + words * (width - 1), data + words * width, tail);
}

static inline void ijfs_join(const uint8_t *top, const uint8_t *rest, size_t words, size_t tail, const int width, uint8_t *data)
{
    for (size_t i = 0; i < words; i++) {
        for (int j = 0; j < width - 1; j++)
            data[i * width + j] = rest[i * (width - 1) + j];
        data[i * width + width - 1] = top[i];
    }
    memcpy(data + words * width, rest + words * (width - 1), tail);
}

static void ijfs_split_planes(const uint8_t *data, size_t n, int width, uint8_t *top, uint8_t *rest)
{
    size_t words = n / width, tail = n % width;
    switch (width) {
    case 2: ijfs_split(data, words, tail, 2, top, rest); break;
    case 4: ijfs_split(data, words, tail, 4, top, rest); break;
    case 8: ijfs_split(data, words, tail, 8, top, rest); break;
    }
}

static void ijfs_join_planes(const uint8_t *top, const uint8_t *rest, size_t n, int width, uint8_t *data)
{
    size_t words = n / width, tail = n % width;
    switch (width) {
    case 2: ijfs_join(top, rest, words, tail, 2, data); break;
    case 4: ijfs_join(top, rest, words, tail, 4, data); break;
    case 8: ijfs_join(top, rest, words, tail, 8, data); break;
    }
}

/* Counts of each byte value at each position modulo 8, over every `stride`-th 8-byte word. */
static void ijfs_histograms(const uint8_t *data, size_t n, size_t stride, uint32_t *counts)
{
    memset(counts, 0, 8 * 256 * sizeof(uint32_t));
    for (size_t i = 0; i + 8 <= n; i += 8 * stride)
        for (int j = 0; j < 8; j++)
            counts[j * 256 + data[i + j]]++;
}

#endif
