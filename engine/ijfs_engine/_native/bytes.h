/* Loops over bytes that the .pyx wraps: content-defined cuts, XOR against a base, float planes.
 *
 * reference.py is the slow twin of each. Lengths are checked by the callers in the .pyx, in one place.
 */
#ifndef IJFS_BYTES_H
#define IJFS_BYTES_H

#include <math.h>

#include "fingerprint.h"

/* The word gear (docs/format.md, "Cuts"): h = 8 h + w * IJFS_GEAR_MUL over 8-byte words, a cut after a word where
 * h >= IJFS_GEAR_CUT. A word is shifted out of the 64 bits after 22 steps, so a cut depends on 176 bytes.
 * The multiplier is 2^64 divided by the golden ratio (Knuth, TAOCP 3, 6.4): each word's top bits depend on all of it. */
#define IJFS_GEAR_MUL 0x9E3779B97F4A7C15ull
#define IJFS_GEAR_WINDOW 176

/* First cut in data[0..n), at least `min` and at most `max` bytes; n if there is none. All three are multiples of 8,
 * except n at the end of the data. `key` is XORed to each word: 0, or a secret of an encrypted repository. */
static inline size_t ijfs_gear_cut(const uint8_t *data, size_t n, size_t min, size_t max, uint64_t threshold,
                                   uint64_t key)
{
    uint64_t h = 0;
    size_t i, end = n < max ? n : max;
    if (n <= min)
        return n;
    i = min > IJFS_GEAR_WINDOW ? min - IJFS_GEAR_WINDOW : 0;
    for (; i + 8 < min; i += 8)
        h = (h << 3) + (ijfs_word(data + i) ^ key) * IJFS_GEAR_MUL;
    for (; i + 8 <= end; i += 8) {
        h = (h << 3) + (ijfs_word(data + i) ^ key) * IJFS_GEAR_MUL;
        if (h >= threshold)
            return i + 8;
    }
    return end;
}

static inline size_t ijfs_gear_cuts(const uint8_t *data, size_t n, size_t min, size_t max, uint64_t threshold,
                                    uint64_t key, uint64_t *cuts)
{
    size_t at = 0, found = 0;
    while (at < n) {
        at += ijfs_gear_cut(data + at, n - at, min, max, threshold, key);
        cuts[found++] = at;
    }
    return found;
}

/* How many 64-byte lines of a and b differ. n is a multiple of 64. */
static inline size_t ijfs_changed_lines(const uint8_t *a, const uint8_t *b, size_t n)
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

static inline void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] ^= b[i];
}

typedef uint8_t ijfs_v16 __attribute__((vector_size(16)));
#define IJFS_EVEN(A, B) __builtin_shuffle(A, B, (ijfs_v16){0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30})
#define IJFS_ODD(A, B) __builtin_shuffle(A, B, (ijfs_v16){1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31})

/* a[j] = byte j (0 the least significant) of each of 16 words of 8 bytes. Parting the even bytes from the odd ones, three
 * times, is a sort by the place in the word. */
static inline void ijfs_split_16(const uint8_t *words, ijfs_v16 a[8])
{
    ijfs_v16 b[8];
    memcpy(a, words, sizeof b);
    for (int round = 0; round < 3; round++) {
        for (int j = 0; j < 4; j++) {
            b[j] = IJFS_EVEN(a[2 * j], a[2 * j + 1]);
            b[j + 4] = IJFS_ODD(a[2 * j], a[2 * j + 1]);
        }
        memcpy(a, b, sizeof b);
    }
}

/* planes = the `tops` most significant bytes of each word, one plane behind the other, the most significant first;
 * rest = the other bytes of each word in order, then the tail. `width` and `tops` are constants in each call below, so
 * that the compiler unrolls the inner loops. Of all planes of 8 bytes it makes 4.4 GB/s a core, the sort above 9.2; for other
 * shapes its own loops are as fast or faster. */
static inline void ijfs_split(const uint8_t *data, size_t words, size_t tail, const int width, const int tops,
                              uint8_t *planes, uint8_t *rest)
{
    const int low = width - tops;
    size_t sorted = width == 8 && tops == 8 ? words / 16 * 16 : 0;
    for (size_t i = 0; i < words; i++)
        for (int j = 0; j < low; j++)
            rest[i * low + j] = data[i * width + j];
    for (size_t i = 0; i < sorted; i += 16) {
        ijfs_v16 a[8];
        ijfs_split_16(data + i * width, a);
        for (int j = 0; j < tops; j++)
            memcpy(planes + j * words + i, &a[7 - j], 16);
    }
    for (int j = 0; j < tops; j++)
        for (size_t i = sorted; i < words; i++)
            planes[j * words + i] = data[i * width + width - 1 - j];
    memcpy(rest + words * low, data + words * width, tail);
}

static inline void ijfs_join(const uint8_t *planes, const uint8_t *rest, size_t words, size_t tail, const int width,
                             const int tops, uint8_t *data)
{
    const int low = width - tops;
    for (size_t i = 0; i < words; i++) {
        for (int j = 0; j < low; j++)
            data[i * width + j] = rest[i * low + j];
        for (int j = 0; j < tops; j++)
            data[i * width + width - 1 - j] = planes[j * words + i];
    }
    memcpy(data + words * width, rest + words * low, tail);
}

#define IJFS_SHAPES(F) F(2, 1) F(2, 2) F(4, 1) F(4, 2) F(4, 3) F(4, 4) F(8, 1) F(8, 2) F(8, 3) F(8, 4) F(8, 5) F(8, 6) \
    F(8, 7) F(8, 8)

static inline void ijfs_split_planes(const uint8_t *data, size_t n, int width, int tops, uint8_t *planes, uint8_t *rest)
{
    size_t words = n / width, tail = n % width;
    switch (width * 16 + tops) {
#define IJFS_SPLIT(W, T) case W * 16 + T: ijfs_split(data, words, tail, W, T, planes, rest); break;
        IJFS_SHAPES(IJFS_SPLIT)
    }
}

static inline void ijfs_join_planes(const uint8_t *planes, const uint8_t *rest, size_t n, int width, int tops, uint8_t *data)
{
    size_t words = n / width, tail = n % width;
    switch (width * 16 + tops) {
#define IJFS_JOIN(W, T) case W * 16 + T: ijfs_join(planes, rest, words, tail, W, T, data); break;
        IJFS_SHAPES(IJFS_JOIN)
    }
}

/* Counts of each byte value at each position modulo 8, over every `stride`-th 8-byte word of data, or of data ^ other
 * where that is not NULL. */
static inline void ijfs_histograms(const uint8_t *data, const uint8_t *other, size_t n, size_t stride, uint32_t *counts)
{
    memset(counts, 0, 8 * 256 * sizeof(uint32_t));
    for (size_t i = 0; i + 8 <= n; i += 8 * stride) {
        uint64_t w = ijfs_word(data + i) ^ (other ? ijfs_word(other + i) : 0);
        for (int j = 0; j < 8; j++)
            counts[j * 256 + ((w >> (8 * j)) & 0xff)]++;
    }
}

/* c * log2(c) for the counts that occur: 2048 logarithms a call took as long as a fifth of a zstd-1 of 64 KiB. */
#define IJFS_LOGS 2049
static double ijfs_c_log2_c[IJFS_LOGS];

static inline void ijfs_make_logs(void)
{
    for (int c = 1; c < IJFS_LOGS; c++)
        ijfs_c_log2_c[c] = c * log2(c);
}

/* Bits of entropy of the bytes at each position modulo 8, over about `samples` words of data (^ other), spread evenly.
 * Strides are odd, so that a power-of-two structure of the data does not hide in the steps. */
static inline void ijfs_entropies(const uint8_t *data, const uint8_t *other, size_t n, size_t samples, double *bits)
{
    uint32_t counts[8 * 256];
    size_t words = n / 8, stride = (words / (samples ? samples : 1)) | 1, total = (words + stride - 1) / stride;
    ijfs_histograms(data, other, n, stride, counts);
    for (int j = 0; j < 8; j++) {
        bits[j] = 0;
        for (int i = 0; i < 256; i++) {
            uint32_t c = counts[j * 256 + i];
            bits[j] += c < IJFS_LOGS ? ijfs_c_log2_c[c] : c * log2(c);
        }
        bits[j] = total ? log2(total) - bits[j] / total : 0;
    }
}

#endif
