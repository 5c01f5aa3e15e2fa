/* Arrays of numbers as integers in byte planes: codec 5 of docs/format.md. Wrapped by numeric_codec.pyx and unpack.pyx.
 *
 * reference.py is the slow twin of what is read; what is written need not be the same everywhere, only come back.
 */
#ifndef IJFS_NUMBERS_H
#define IJFS_NUMBERS_H

#include "bytes.h"

/* So that what is called with a constant width is compiled for it. */
#define IJFS_ALWAYS inline __attribute__((always_inline))

enum { IJFS_INTEGERS = 0, IJFS_DIFFERENCES = 1, IJFS_DECIMALS = 2, IJFS_MAX_DIGITS = 15 };

static const double ijfs_tens[IJFS_MAX_DIGITS + 1] = {1e0, 1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                                      1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};

/* --- Reading */

#define IJFS_LOW(A, B) __builtin_shuffle(A, B, (ijfs_v16){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23})
#define IJFS_HIGH(A, B) __builtin_shuffle(A, B, (ijfs_v16){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31})

/* 16 words out of 16 bytes of each plane. Interleaving the first half of the planes with the second, `width` times
 * halved, puts the bytes of each word side by side. */
static inline void ijfs_join_16(const uint8_t *const *planes, size_t at, const int width, uint8_t *out)
{
    ijfs_v16 a[8], b[8];
    for (int j = 0; j < width; j++)
        memcpy(&a[j], planes[j] + at, 16);
    for (int round = 1; round < width; round *= 2) {
        for (int j = 0; j < width / 2; j++) {
            b[2 * j] = IJFS_LOW(a[j], a[j + width / 2]);
            b[2 * j + 1] = IJFS_HIGH(a[j], a[j + width / 2]);
        }
        memcpy(a, b, width * sizeof a[0]);
    }
    memcpy(out, a, width * sizeof a[0]);
}

/* out = words whose byte j (0 the least significant) is planes[j][i]. */
static inline void ijfs_join_words(const uint8_t *const *planes, size_t words, const int width, uint8_t *out)
{
    size_t i = 0;
    for (; i + 16 <= words; i += 16)
        ijfs_join_16(planes, i, width, out + i * width);
    for (; i < words; i++)
        for (int j = 0; j < width; j++)
            out[i * width + j] = planes[j][i];
}

/* Each word becomes the sum of those up to it and `first`; negative differences are odd ("zigzag"). */
static inline void ijfs_sum_words(uint8_t *data, size_t words, const int width, uint64_t first)
{
    for (size_t i = 0; i < words; i++) {
        uint64_t d = 0;
        memcpy(&d, data + i * width, width);
        first += (d >> 1) ^ (0 - (d & 1));
        memcpy(data + i * width, &first, width);
    }
}

/* out = (u + least) / 10^digits as doubles or floats, u out of four planes. Both numbers are exact, so the quotient is the
 * number nearest to the decimal one, as a program gets that reads or rounds it. */
static inline void ijfs_join_decimals(const uint8_t *const *planes, size_t words, const int width, int64_t least,
                                      int digits, uint8_t *out)
{
    enum { BLOCK = 512 };
    int32_t u[BLOCK];
    double x[BLOCK], low = (double)least, scale = ijfs_tens[digits];
    float y[BLOCK];
    for (size_t at = 0; at < words; at += BLOCK) {
        size_t n = words - at < BLOCK ? words - at : BLOCK;
        const uint8_t *part[4] = {planes[0] + at, planes[1] + at, planes[2] + at, planes[3] + at};
        ijfs_join_words(part, n, 4, (uint8_t *)u);
        for (size_t i = 0; i < n; i++)
            x[i] = (u[i] + low) / scale;
        if (width == 4)
            for (size_t i = 0; i < n; i++)
                y[i] = (float)x[i];
        memcpy(out + at * width, width == 4 ? (void *)y : (void *)x, n * width);
    }
}

static inline void ijfs_join_numbers(const uint8_t *const *planes, size_t words, int width, int form, int64_t least,
                                     int digits, uint8_t *out)
{
    if (form == IJFS_DECIMALS)
        width == 4 ? ijfs_join_decimals(planes, words, 4, least, digits, out)
                   : ijfs_join_decimals(planes, words, 8, least, digits, out);
    else
        width == 4 ? ijfs_join_words(planes, words, 4, out) : ijfs_join_words(planes, words, 8, out);
    if (form == IJFS_DIFFERENCES)
        width == 4 ? ijfs_sum_words(out, words, 4, least) : ijfs_sum_words(out, words, 8, least);
}

/* --- Writing */

static inline double ijfs_number(const uint8_t *data, const int width)
{
    double x;
    float y;
    if (width == 8) {
        memcpy(&x, data, 8);
        return x;
    }
    memcpy(&y, data, 4);
    return y;
}

/* Whether a number is exactly *d / 10^digits, *d a whole number below 2^50. */
static IJFS_ALWAYS int ijfs_is_decimal(const uint8_t *data, const int width, int digits, double *d)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds what is below 2^51 to a whole number */
    double scaled = ijfs_number(data, width) * ijfs_tens[digits], back;
    float narrow;
    uint64_t bits, back_bits;
    uint32_t narrow_bits, back_narrow;
    if (!(scaled > -1125899906842624.0 && scaled < 1125899906842624.0))
        return 0;
    *d = (scaled + magic) - magic;
    back = *d / ijfs_tens[digits];
    if (width == 8) {
        memcpy(&bits, data, 8);
        memcpy(&back_bits, &back, 8);
        return bits == back_bits;
    }
    narrow = (float)back;
    memcpy(&narrow_bits, data, 4);
    memcpy(&back_narrow, &narrow, 4);
    return narrow_bits == back_narrow;
}

/* How many digits behind the point about 40 of the words have, -1 if they are no decimal numbers; *low is the least of
 * these times 10^digits. A tenth may be anything. Words that are integers, pointers or text are 0 or no sensible number
 * as floats, and noise has no few digits: four words tell, for each number of digits. */
static IJFS_ALWAYS int ijfs_digits(const uint8_t *data, size_t words, const int width, double *low)
{
    size_t stride = (words / 40) | 1, most = words / stride / 10, bad, zeros, seen;
    for (int digits = 0; digits <= (width == 8 ? 9 : 5); digits++) {
        double d, high = -1e300;
        *low = 1e300;
        bad = zeros = seen = 0;
        for (size_t i = stride / 2; i < words && bad <= most; i += stride) {
            seen++;
            if (!ijfs_is_decimal(data + i * width, width, digits, &d)) {
                bad++;
                continue;
            }
            zeros += d == 0;
            *low = d < *low ? d : *low;
            high = d > high ? d : high;
        }
        if (bad <= most && seen > 8 && high - *low < (1 << 29))
            return 4 * zeros > 3 * seen ? -1 : digits;
    }
    return -1;
}

static inline int ijfs_decimal_digits(const uint8_t *data, size_t words, int width, double *low)
{
    return width == 8 ? ijfs_digits(data, words, 8, low) : ijfs_digits(data, words, 4, low);
}

/* The words as whole numbers above the least of them, which is returned in *least. Those that are none keep the number
 * before theirs in `u` and are listed in `where`; returns how many there are, or -1 for more than `most`. */
static IJFS_ALWAYS long ijfs_scale(const uint8_t *data, size_t words, const int width, int digits, double low,
                                   size_t most, uint32_t *u, uint16_t *where, int64_t *least)
{
    double d, floor = low - (1 << 29), ceiling = low + (1 << 30), least_seen = ceiling;
    size_t others = 0;
    int32_t offset, shift;
    /* Offsets from the floor first: the least is known at the end. */
    offset = 1 << 29;
    for (size_t i = 0; i < words; i++) {
        if (ijfs_is_decimal(data + i * width, width, digits, &d) && d >= floor && d < ceiling) {
            least_seen = d < least_seen ? d : least_seen;
            offset = (int32_t)(d - floor);
        } else {
            if (others == most)
                return -1;
            where[others++] = (uint16_t)i;
        }
        u[i] = (uint32_t)offset;
    }
    if (least_seen > low)
        least_seen = low;
    *least = (int64_t)least_seen;
    shift = (int32_t)(least_seen - floor);
    for (size_t i = 0; i < words; i++)
        u[i] -= (uint32_t)shift;
    return (long)others;
}

static inline long ijfs_split_decimals(const uint8_t *data, size_t words, int width, int digits, double low,
                                       size_t most, uint32_t *u, uint16_t *where, int64_t *least)
{
    return width == 8 ? ijfs_scale(data, words, 8, digits, low, most, u, where, least)
                      : ijfs_scale(data, words, 4, digits, low, most, u, where, least);
}

/* Differences of 8-byte words, negative ones odd; the first is 0. */
static inline void ijfs_split_differences(const uint8_t *data, size_t words, uint8_t *out)
{
    uint64_t before = words ? ijfs_word(data) : 0;
    for (size_t i = 0; i < words; i++) {
        uint64_t w = ijfs_word(data + 8 * i), d = w - before;
        d = (d << 1) ^ (0 - (d >> 63));
        memcpy(out + 8 * i, &d, 8);
        before = w;
    }
}

/* As ijfs_entropies, of the differences of neighbouring 8-byte words. */
static inline void ijfs_difference_entropies(const uint8_t *data, size_t n, size_t samples, double *bits)
{
    uint64_t differences[2 * 1024];
    size_t words = n / 8, stride = (words / samples) | 1, count = 0;
    for (size_t i = 1; i < words && count < 2 * 1024; i += stride) {
        uint64_t d = ijfs_word(data + 8 * i) - ijfs_word(data + 8 * (i - 1));
        differences[count++] = (d << 1) ^ (0 - (d >> 63));
    }
    ijfs_entropies((const uint8_t *)differences, NULL, 8 * count, count, bits);
}

#endif
