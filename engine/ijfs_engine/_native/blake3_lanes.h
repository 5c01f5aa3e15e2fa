/* BLAKE3's compression of LANES inputs side by side, one in each lane of a vector. Included by blake3.h, once for each width
 * of vector, with LANES, TARGET (a function attribute) and NAME(x) (which gives x a name of its own) defined. */

typedef uint32_t NAME(v) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(pick) __attribute__((vector_size(4 * LANES)));

#define V NAME(v)
#define ROTATE(X, N) ((X) >> (N) | (X) << (32 - (N)))
#define G(A, B, C, D, X, Y)                                                                                             \
    do {                                                                                                                \
        A += B + (X), D = ROTATE(D ^ A, 16), C += D, B = ROTATE(B ^ C, 12);                                             \
        A += B + (Y), D = ROTATE(D ^ A, 8), C += D, B = ROTATE(B ^ C, 7);                                               \
    } while (0)

/* Word j of each input, as one vector for each j < LANES: rounds of a perfect shuffle, which transpose. */
static inline __attribute__((always_inline)) TARGET void NAME(transpose)(V *rows)
{
    NAME(pick) low, high;
    V mixed[LANES];
    for (int i = 0; i < LANES; i++) {
        low[i] = i / 2 + i % 2 * LANES;
        high[i] = low[i] + LANES / 2;
    }
    for (int round = 1; round < LANES; round *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + LANES / 2], low);
            mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + LANES / 2], high);
        }
        memcpy(rows, mixed, sizeof mixed);
    }
}

/* Advance the chaining values h by the block of 64 bytes that each of `at` points to. */
static inline __attribute__((always_inline)) TARGET void NAME(compress)(V *h, const uint8_t *const *at, size_t offset,
                                                                         V counter_low, V counter_high, uint32_t flags)
{
    V m[16], s[16];
    for (int part = 0; part < 16; part += LANES) {
        for (int i = 0; i < LANES; i++)
            memcpy(&m[part + i], at[i] + offset + 4 * part, sizeof(V));
        NAME(transpose)(m + part);
    }
    for (int i = 0; i < 8; i++)
        s[i] = h[i];
    for (int i = 0; i < 4; i++)
        s[8 + i] = (V){0} + ijfs_blake3_iv[i];
    s[12] = counter_low, s[13] = counter_high, s[14] = (V){0} + 64, s[15] = (V){0} + flags;
#pragma GCC unroll 7
    for (int round = 0; round < 7; round++) {
        const uint8_t *const o = ijfs_blake3_order[round];
        G(s[0], s[4], s[8], s[12], m[o[0]], m[o[1]]);
        G(s[1], s[5], s[9], s[13], m[o[2]], m[o[3]]);
        G(s[2], s[6], s[10], s[14], m[o[4]], m[o[5]]);
        G(s[3], s[7], s[11], s[15], m[o[6]], m[o[7]]);
        G(s[0], s[5], s[10], s[15], m[o[8]], m[o[9]]);
        G(s[1], s[6], s[11], s[12], m[o[10]], m[o[11]]);
        G(s[2], s[7], s[8], s[13], m[o[12]], m[o[13]]);
        G(s[3], s[4], s[9], s[14], m[o[14]], m[o[15]]);
    }
    for (int i = 0; i < 8; i++)
        h[i] = s[i] ^ s[i + 8];
}

/* out[i] = the chaining value, begun with `begin` (the constants, or the words of a key), of `blocks` blocks of 64 bytes at data + i * stride, for i < count. Input i has the number
 * counter + i * step. Lanes that are left over hash the last input once more. */
static TARGET void NAME(hash)(const uint32_t *begin, const uint8_t *data, size_t stride, size_t count, size_t blocks,
                              uint64_t counter, uint64_t step, uint32_t flags, uint32_t first, uint32_t last,
                              uint8_t *out)
{
    for (size_t done = 0; done < count; done += LANES) {
        const uint8_t *at[LANES];
        uint32_t words[8][LANES];
        V h[8], low, high;
        for (size_t i = 0; i < LANES; i++) {
            size_t number = done + i < count ? done + i : count - 1;
            at[i] = data + number * stride;
            low[i] = (uint32_t)(counter + number * step);
            high[i] = (uint32_t)((counter + number * step) >> 32);
        }
        for (int i = 0; i < 8; i++)
            h[i] = (V){0} + begin[i];
        for (size_t block = 0; block < blocks; block++)
            NAME(compress)(h, at, 64 * block, low, high,
                           flags | (block == 0 ? first : 0) | (block == blocks - 1 ? last : 0));
        memcpy(words, h, sizeof h);
        for (size_t i = 0; i < LANES && done + i < count; i++)
            for (int j = 0; j < 8; j++)
                memcpy(out + 32 * (done + i) + 4 * j, &words[j][i], 4);
    }
}

#undef V
#undef ROTATE
#undef G
