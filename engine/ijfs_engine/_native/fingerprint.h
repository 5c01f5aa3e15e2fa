/* Keyed page fingerprints: CLNH over two independent keys, folded into 128 bits, and of groups of pages. Used by
 * page_scan.pyx alone.
 *
 * docs/format.md ("Page fingerprints") has the definition and the proof of the bound; reference.py is the slow twin.
 * A page is 512 little-endian words m[0..511]; a pass with key k is
 *     H(k) = XOR over i of (m[2i] ^ k[2i]) * (m[2i+1] ^ k[2i+1])        carry-less, 127 bits
 * its fingerprint is f = a*H(k1) ^ b*H(k2) in GF(2)[x] / (x^128 + x^7 + x^2 + x + 1), and that of the up to 16 pages of
 * an aligned block of addresses is the XOR over them of f * c^(place in the block + 1).
 * Every path below returns the same 16 bytes; the tests compare them with each other and with the twin.
 */
#ifndef IJFS_FINGERPRINT_H
#define IJFS_FINGERPRINT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define IJFS_PAGE 4096
#define IJFS_PAGE_WORDS 512
/* k1 and k2 (a page each), then a, b and c. */
#define IJFS_KEY_BYTES (2 * IJFS_PAGE + 48)
#define IJFS_GROUP 16

enum { IJFS_PATH_PORTABLE = 0, IJFS_PATH_PCLMUL = 1, IJFS_PATH_VPCLMUL = 2 };

typedef struct {
    uint64_t lo, hi;
} ijfs_u128;

static inline uint64_t ijfs_word(const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    w = __builtin_bswap64(w);
#endif
    return w;
}

static inline void ijfs_put_word(uint8_t *p, uint64_t w)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    w = __builtin_bswap64(w);
#endif
    memcpy(p, &w, 8);
}

/* 64 x 64 -> 127 bits without carries, four bits of x at a time from a table of the multiples of y. */
static inline ijfs_u128 ijfs_clmul(uint64_t x, uint64_t y)
{
    ijfs_u128 multiple[16], r = {0, 0};
    multiple[0] = r;
    multiple[1].lo = y;
    multiple[1].hi = 0;
    for (int i = 2; i < 16; i += 2) {
        multiple[i].lo = multiple[i / 2].lo << 1;
        multiple[i].hi = (multiple[i / 2].hi << 1) | (multiple[i / 2].lo >> 63);
        multiple[i + 1].lo = multiple[i].lo ^ y;
        multiple[i + 1].hi = multiple[i].hi;
    }
    for (int shift = 60; shift >= 0; shift -= 4) {
        r.hi = (r.hi << 4) | (r.lo >> 60);
        r.lo <<= 4;
        r.lo ^= multiple[(x >> shift) & 15].lo;
        r.hi ^= multiple[(x >> shift) & 15].hi;
    }
    return r;
}

/* p = p ^ (x * y), 256 bits in four words. */
static inline void ijfs_muladd(uint64_t p[4], ijfs_u128 x, ijfs_u128 y)
{
    ijfs_u128 low = ijfs_clmul(x.lo, y.lo), high = ijfs_clmul(x.hi, y.hi);
    ijfs_u128 cross = ijfs_clmul(x.lo, y.hi), other = ijfs_clmul(x.hi, y.lo);
    cross.lo ^= other.lo;
    cross.hi ^= other.hi;
    p[0] ^= low.lo;
    p[1] ^= low.hi ^ cross.lo;
    p[2] ^= high.lo ^ cross.hi;
    p[3] ^= high.hi;
}

/* Reduce 256 bits modulo x^128 + x^7 + x^2 + x + 1: x^128 = x^7 + x^2 + x + 1, applied to word 3, then to word 2. */
static inline ijfs_u128 ijfs_reduce(const uint64_t p[4])
{
    uint64_t t = p[3], hi, lo;
    uint64_t w2 = p[2] ^ (t >> 63) ^ (t >> 62) ^ (t >> 57);
    hi = p[1] ^ t ^ (t << 1) ^ (t << 2) ^ (t << 7);
    hi ^= (w2 >> 63) ^ (w2 >> 62) ^ (w2 >> 57);
    lo = p[0] ^ w2 ^ (w2 << 1) ^ (w2 << 2) ^ (w2 << 7);
    return (ijfs_u128){lo, hi};
}

/* All zero bytes stand for "a page of zeros", so a fingerprint that comes out as zero is stored as one. */
static inline void ijfs_store_fingerprint(uint8_t *out, ijfs_u128 h)
{
    if (!(h.lo | h.hi))
        h.lo = 1;
    ijfs_put_word(out, h.lo);
    ijfs_put_word(out + 8, h.hi);
}

static inline int ijfs_is_zero(const uint8_t *p, size_t n)
{
    uint64_t any = 0;
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        uint64_t w[8];
        memcpy(w, p + i, 64);
        any = (w[0] | w[1]) | (w[2] | w[3]) | (w[4] | w[5]) | (w[6] | w[7]);
        if (any)
            return 0;
    }
    for (; i < n; i++)
        any |= p[i];
    return any == 0;
}

static inline ijfs_u128 ijfs_key128(const uint8_t *p)
{
    return (ijfs_u128){ijfs_word(p), ijfs_word(p + 8)};
}

static inline ijfs_u128 ijfs_clnh_portable(const uint8_t *page, const uint8_t *key)
{
    ijfs_u128 sum = {0, 0};
    for (int i = 0; i < IJFS_PAGE; i += 16) {
        ijfs_u128 t = ijfs_clmul(ijfs_word(page + i) ^ ijfs_word(key + i), ijfs_word(page + i + 8) ^ ijfs_word(key + i + 8));
        sum.lo ^= t.lo;
        sum.hi ^= t.hi;
    }
    return sum;
}

static void ijfs_fingerprint_portable(const uint8_t *page, const uint8_t *key, uint8_t *out)
{
    uint64_t p[4] = {0, 0, 0, 0};
    ijfs_muladd(p, ijfs_clnh_portable(page, key), ijfs_key128(key + 2 * IJFS_PAGE));
    ijfs_muladd(p, ijfs_clnh_portable(page, key + IJFS_PAGE), ijfs_key128(key + 2 * IJFS_PAGE + 16));
    ijfs_store_fingerprint(out, ijfs_reduce(p));
}

#if defined(__x86_64__)
#include <immintrin.h>

/* Hardware prefetchers stop at page boundaries: asking for the next page while this one is hashed took a core from 9.4 to
 * 14.0 GB/s out of memory (512 bytes ahead: 10.8; two pages: 14.0). A prefetch past the end is ignored. */
#define IJFS_AHEAD(p) _mm_prefetch((const char *)(p) + IJFS_PAGE, _MM_HINT_T0)

#define IJFS_PCLMUL __attribute__((target("pclmul,sse4.1")))
#define IJFS_VPCLMUL __attribute__((target("avx512f,avx512bw,vpclmulqdq,pclmul")))

/* The last step of both fast paths: fold the two 128-bit sums with a and b, reduce, store. */
static inline IJFS_PCLMUL void ijfs_fold_pclmul(__m128i h1, __m128i h2, const uint8_t *ab, uint8_t *out)
{
    __m128i a = _mm_loadu_si128((const __m128i *)ab), b = _mm_loadu_si128((const __m128i *)(ab + 16));
    __m128i low = _mm_xor_si128(_mm_clmulepi64_si128(h1, a, 0x00), _mm_clmulepi64_si128(h2, b, 0x00));
    __m128i high = _mm_xor_si128(_mm_clmulepi64_si128(h1, a, 0x11), _mm_clmulepi64_si128(h2, b, 0x11));
    __m128i cross = _mm_xor_si128(
        _mm_xor_si128(_mm_clmulepi64_si128(h1, a, 0x01), _mm_clmulepi64_si128(h1, a, 0x10)),
        _mm_xor_si128(_mm_clmulepi64_si128(h2, b, 0x01), _mm_clmulepi64_si128(h2, b, 0x10)));
    uint64_t l[2], h[2], c[2], p[4];
    _mm_storeu_si128((__m128i *)l, low);
    _mm_storeu_si128((__m128i *)h, high);
    _mm_storeu_si128((__m128i *)c, cross);
    p[0] = l[0];
    p[1] = l[1] ^ c[0];
    p[2] = h[0] ^ c[1];
    p[3] = h[1];
    ijfs_store_fingerprint(out, ijfs_reduce(p));
}

static IJFS_PCLMUL void ijfs_fingerprint_pclmul(const uint8_t *page, const uint8_t *key, uint8_t *out)
{
    __m128i s0 = _mm_setzero_si128(), s1 = s0, t0 = s0, t1 = s0;
    for (int i = 0; i < IJFS_PAGE; i += 32) {
        if (i % 64 == 0)
            IJFS_AHEAD(page + i);
        __m128i m0 = _mm_loadu_si128((const __m128i *)(page + i));
        __m128i m1 = _mm_loadu_si128((const __m128i *)(page + i + 16));
        __m128i a0 = _mm_xor_si128(m0, _mm_loadu_si128((const __m128i *)(key + i)));
        __m128i a1 = _mm_xor_si128(m1, _mm_loadu_si128((const __m128i *)(key + i + 16)));
        __m128i b0 = _mm_xor_si128(m0, _mm_loadu_si128((const __m128i *)(key + IJFS_PAGE + i)));
        __m128i b1 = _mm_xor_si128(m1, _mm_loadu_si128((const __m128i *)(key + IJFS_PAGE + i + 16)));
        s0 = _mm_xor_si128(s0, _mm_clmulepi64_si128(a0, a0, 0x01));
        s1 = _mm_xor_si128(s1, _mm_clmulepi64_si128(a1, a1, 0x01));
        t0 = _mm_xor_si128(t0, _mm_clmulepi64_si128(b0, b0, 0x01));
        t1 = _mm_xor_si128(t1, _mm_clmulepi64_si128(b1, b1, 0x01));
    }
    ijfs_fold_pclmul(_mm_xor_si128(s0, s1), _mm_xor_si128(t0, t1), key + 2 * IJFS_PAGE, out);
}

static inline IJFS_VPCLMUL __m128i ijfs_lanes(__m512i v)
{
    __m128i low = _mm_xor_si128(_mm512_extracti32x4_epi32(v, 0), _mm512_extracti32x4_epi32(v, 1));
    __m128i high = _mm_xor_si128(_mm512_extracti32x4_epi32(v, 2), _mm512_extracti32x4_epi32(v, 3));
    return _mm_xor_si128(low, high);
}

static IJFS_VPCLMUL void ijfs_fingerprint_vpclmul(const uint8_t *page, const uint8_t *key, uint8_t *out)
{
    __m512i s0 = _mm512_setzero_si512(), s1 = s0, t0 = s0, t1 = s0;
    for (int i = 0; i < IJFS_PAGE; i += 128) {
        IJFS_AHEAD(page + i);
        IJFS_AHEAD(page + i + 64);
        __m512i m0 = _mm512_loadu_si512(page + i), m1 = _mm512_loadu_si512(page + i + 64);
        __m512i a0 = _mm512_xor_si512(m0, _mm512_loadu_si512(key + i));
        __m512i a1 = _mm512_xor_si512(m1, _mm512_loadu_si512(key + i + 64));
        __m512i b0 = _mm512_xor_si512(m0, _mm512_loadu_si512(key + IJFS_PAGE + i));
        __m512i b1 = _mm512_xor_si512(m1, _mm512_loadu_si512(key + IJFS_PAGE + i + 64));
        s0 = _mm512_xor_si512(s0, _mm512_clmulepi64_epi128(a0, a0, 0x01));
        s1 = _mm512_xor_si512(s1, _mm512_clmulepi64_epi128(a1, a1, 0x01));
        t0 = _mm512_xor_si512(t0, _mm512_clmulepi64_epi128(b0, b0, 0x01));
        t1 = _mm512_xor_si512(t1, _mm512_clmulepi64_epi128(b1, b1, 0x01));
    }
    ijfs_fold_pclmul(ijfs_lanes(_mm512_xor_si512(s0, s1)), ijfs_lanes(_mm512_xor_si512(t0, t1)), key + 2 * IJFS_PAGE, out);
}
#endif

typedef void (*ijfs_fingerprint_fn)(const uint8_t *page, const uint8_t *key, uint8_t *out);

/* The fastest path that this processor has; the others are for tests and for older machines. */
static inline int ijfs_best_path(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("sse4.1"))
        return IJFS_PATH_PORTABLE;
    if (__builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
        return IJFS_PATH_VPCLMUL;
    return IJFS_PATH_PCLMUL;
#else
    return IJFS_PATH_PORTABLE;
#endif
}

static ijfs_fingerprint_fn ijfs_fingerprint_path(int path)
{
#if defined(__x86_64__)
    if (path == IJFS_PATH_VPCLMUL)
        return ijfs_fingerprint_vpclmul;
    if (path == IJFS_PATH_PCLMUL)
        return ijfs_fingerprint_pclmul;
#endif
    (void)path;
    return ijfs_fingerprint_portable;
}

enum { IJFS_ZERO = 0, IJFS_SAME = 1, IJFS_FRESH = 2 };

/* A page of zeros; most others are told by their first 64 bytes, and the rest of a zero page is read once. */
static inline int ijfs_zero_page(const uint8_t *page)
{
    uint64_t any = 0;
    if (!ijfs_is_zero(page, 64))
        return 0;
    for (int i = 64; i < IJFS_PAGE && !any; i += 192) {
        uint64_t w[24];
        __builtin_prefetch(page + IJFS_PAGE + i);
        __builtin_prefetch(page + IJFS_PAGE + i + 64);
        __builtin_prefetch(page + IJFS_PAGE + i + 128);
        memcpy(w, page + i, 192);
        for (int j = 0; j < 24; j++)
            any |= w[j];
    }
    return any == 0;
}

/* Fingerprint `count` pages and say of each whether it is zero, what the base has at that place, or fresh.
 * `base` is NULL, or `count` fingerprints of which all-zero ones mean "the base has no bytes here". */
/* Fingerprint `count` pages and say of each whether it is zero (print: zeros) or not. */
static inline void ijfs_scan(int path, const uint8_t *pages, size_t count, const uint8_t *key, uint8_t *prints, uint8_t *kinds)
{
    ijfs_fingerprint_fn fingerprint = ijfs_fingerprint_path(path);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *page = pages + i * IJFS_PAGE;
        uint8_t *print = prints + i * 16;
        if (ijfs_zero_page(page)) {
            memset(print, 0, 16);
            kinds[i] = IJFS_ZERO;
            continue;
        }
        fingerprint(page, key, print);
        kinds[i] = IJFS_FRESH;
    }
}

typedef void (*ijfs_muladd_fn)(uint64_t p[4], ijfs_u128 x, ijfs_u128 y);

static void ijfs_muladd_portable(uint64_t p[4], ijfs_u128 x, ijfs_u128 y)
{
    ijfs_muladd(p, x, y);
}

#if defined(__x86_64__)
static IJFS_PCLMUL void ijfs_muladd_pclmul(uint64_t p[4], ijfs_u128 x, ijfs_u128 y)
{
    __m128i a = _mm_set_epi64x(x.hi, x.lo), b = _mm_set_epi64x(y.hi, y.lo);
    __m128i low = _mm_clmulepi64_si128(a, b, 0x00), high = _mm_clmulepi64_si128(a, b, 0x11);
    __m128i cross = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10));
    p[0] ^= (uint64_t)_mm_cvtsi128_si64(low);
    p[1] ^= (uint64_t)_mm_extract_epi64(low, 1) ^ (uint64_t)_mm_cvtsi128_si64(cross);
    p[2] ^= (uint64_t)_mm_cvtsi128_si64(high) ^ (uint64_t)_mm_extract_epi64(cross, 1);
    p[3] ^= (uint64_t)_mm_extract_epi64(high, 1);
}
#endif

/* The hint of a page: two bytes of its fingerprint, zeros for a page of zeros and for no other. */
static inline uint16_t ijfs_hint(ijfs_u128 print)
{
    uint16_t hint = (uint16_t)print.lo;
    return !hint && (print.lo | print.hi) ? 1 : hint;
}

static inline void ijfs_hints(const uint8_t *prints, size_t count, uint8_t *hints)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t hint = ijfs_hint(ijfs_key128(prints + 16 * i));
        hints[2 * i] = (uint8_t)hint;
        hints[2 * i + 1] = (uint8_t)(hint >> 8);
    }
}

/* Class as SAME the fresh pages whose fingerprint is also in `theirs`, at the same place; how many of all pages differ. */
static inline size_t ijfs_mark_same(const uint8_t *prints, const uint8_t *theirs, size_t count, uint8_t *kinds)
{
    size_t different = 0;
    for (size_t i = 0; i < count; i++) {
        if (memcmp(prints + 16 * i, theirs + 16 * i, 16))
            different++;
        else if (kinds[i] == IJFS_FRESH)
            kinds[i] = IJFS_SAME;
    }
    return different;
}

/* Fold the prints of a leaf's pages. `pieces` are (first page number, pages) of what they hold, in order. Writes two
 * bytes per page to `hints` (zeros for a page of zeros and for no other) and 16 per group to `groups`; pages of one
 * block that follow one another in the leaf are a group. Returns the number of groups, at most one per page. */
static inline size_t ijfs_fold(int path, const uint8_t *prints, const uint64_t *pieces, size_t n_pieces, const uint8_t *key,
                        uint8_t *hints, uint8_t *groups)
{
    ijfs_muladd_fn muladd = ijfs_muladd_portable;
    ijfs_u128 powers[IJFS_GROUP];
    uint64_t p[4] = {0, 0, 0, 0}, block = UINT64_MAX;
    size_t page = 0, found = 0;
#if defined(__x86_64__)
    if (path != IJFS_PATH_PORTABLE)
        muladd = ijfs_muladd_pclmul;
#else
    (void)path;
#endif
    powers[0] = ijfs_key128(key + 2 * IJFS_PAGE + 32);
    for (int i = 1; i < IJFS_GROUP; i++) {
        uint64_t product[4] = {0, 0, 0, 0};
        muladd(product, powers[i - 1], powers[0]);
        powers[i] = ijfs_reduce(product);
    }
    for (size_t piece = 0; piece < n_pieces; piece++) {
        for (uint64_t i = 0; i < pieces[2 * piece + 1]; i++, page++) {
            uint64_t number = pieces[2 * piece] + i;
            ijfs_u128 print = ijfs_key128(prints + 16 * page);
            uint16_t hint = ijfs_hint(print);
            hints[2 * page] = (uint8_t)hint;
            hints[2 * page + 1] = (uint8_t)(hint >> 8);
            if (number / IJFS_GROUP != block) {
                if (page) {
                    ijfs_u128 whole = ijfs_reduce(p);
                    ijfs_put_word(groups + 16 * found, whole.lo);
                    ijfs_put_word(groups + 16 * found++ + 8, whole.hi);
                    memset(p, 0, sizeof p);
                }
                block = number / IJFS_GROUP;
            }
            muladd(p, print, powers[number % IJFS_GROUP]);
        }
    }
    if (page) {
        ijfs_u128 whole = ijfs_reduce(p);
        ijfs_put_word(groups + 16 * found, whole.lo);
        ijfs_put_word(groups + 16 * found++ + 8, whole.hi);
    }
    return found;
}

#endif
