"""Vectors in C by the compiler's vector extensions, as wide as the machine's, and the functions on them.

The same text does on SSE, AVX2, AVX-512 and NEON; intrinsics stand only where one instruction does what the compiler
would not find.
"""

from __future__ import annotations

FUSED = ("relu", "tanh", "sigmoid", "silu", "relu6")
"""Functions that are applied to a product while it is in registers."""

PRELUDE = r"""
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * W)));
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef float vec_at __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef float vec_aligned __attribute__((vector_size(4 * W), may_alias));
typedef int32_t ivec_aligned __attribute__((vector_size(4 * W), may_alias));
typedef float quad __attribute__((vector_size(16)));
typedef int8_t bytes __attribute__((vector_size(W), aligned(1), may_alias));

INLINE vec load(const float *p) { return *(const vec_aligned *)p; }
INLINE vec load_any(const float *p) { return *(const vec_at *)p; }
INLINE vec load_code(const int8_t *p) { return __builtin_convertvector(*(const bytes *)p, vec); }
INLINE void store(float *p, vec v) { *(vec_at *)p = v; }
INLINE vec splat(float v) { return v - (vec){0}; }
INLINE ivec isplat(int32_t v) { return v - (ivec){0}; }
INLINE vec pick(ivec where, vec a, vec b) { return (vec)(((ivec)a & where) | ((ivec)b & ~where)); }

INLINE float total(vec v)
{
    quad q[W / 4], s;
    memcpy(q, &v, sizeof v);
    s = q[0];
    for (int k = 1; k < W / 4; k++) {
        s += q[k];
    }
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* The tangent as a rational function, 1 where it would reach it: within 1e-6 for every float; NaN gives NaN. */
#define TANH(v, s) \
    (v * ((((1.14037398e-05f * s + 2.94862452e-03f) * s + 1.29234032e-01f) * s) + 1.0f) / \
     (((((2.45159543e-07f * s + 2.38336868e-04f) * s + 2.38056346e-02f) * s + 4.62566319e-01f) * s) + 1.0f))

INLINE float tanh_s(float v)
{
    const float s = v * v;
    const float t = TANH(v, s);
    return v > 7.9f ? 1.0f : v < -7.9f ? -1.0f : t;
}
INLINE vec tanh_v(vec v)
{
    const vec s = v * v;
    const vec t = TANH(v, s);
    return pick(v > 7.9f, splat(1.0f), pick(v < -7.9f, splat(-1.0f), t));
}
INLINE float sigmoid_s(float v) { return 0.5f * tanh_s(0.5f * v) + 0.5f; }
INLINE vec sigmoid_v(vec v) { return 0.5f * tanh_v(0.5f * v) + 0.5f; }
INLINE float silu_s(float v) { return v * sigmoid_s(v); }
INLINE vec silu_v(vec v) { return v * sigmoid_v(v); }
INLINE float relu_s(float v) { return v < 0.0f ? 0.0f : v; }
INLINE vec relu_v(vec v) { return (vec)((ivec)v & ~(v < 0.0f)); }
INLINE float relu6_s(float v) { return v < 0.0f ? 0.0f : v > 6.0f ? 6.0f : v; }
INLINE vec relu6_v(vec v) { return pick(v > 6.0f, splat(6.0f), relu_v(v)); }
"""

SELECT = r"""
/* The entries of a and b, one after the other, whose places are given as bytes. With vectors of eight, a place in b has
   bit 7 set, where AVX2's blend looks for it. */
INLINE vec take(vec a, vec b, const uint8_t *places)
{
#if W == 8 && defined(__AVX2__)
    const __m256i i = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)places));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(a, i), _mm256_permutevar8x32_ps(b, i), _mm256_castsi256_ps(i));
#elif W == 16 && defined(__AVX512F__)
    return _mm512_permutex2var_ps(a, _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)places)), b);
#else
    vec v;
    for (int k = 0; k < W; k++) {
        const int i = W == 8 ? (places[k] & 7) | (places[k] >> 7 << 3) : places[k];
        v[k] = i < W ? a[i] : b[i - W];
    }
    return v;
#endif
}
"""

DOT4 = r"""
/* The machine's dot product takes inputs without a sign: their codes are kept 128 too large, by flipping bit 7, which
   the start of a sum makes up for. */
#if (W == 16 && defined(__AVX512VNNI__)) || \
    (W == 8 && (defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))))
#define FLIP -128
#define START(p) (*(const ivec_aligned *)(p))
#else
#define FLIP 0
#define START(p) ((ivec){0})
#endif

/* Of each of W rows: its four codes times its four inputs, added to sum; exact with codes within 127. */
INLINE ivec dots(ivec sum, ivec codes, ivec inputs)
{
#if W == 16 && defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)inputs, (__m512i)codes);
#elif W == 8 && defined(__AVXVNNI__)
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)inputs, (__m256i)codes);
#elif W == 8 && defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (ivec)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)inputs, (__m256i)codes);
#elif W == 8 && defined(__AVX2__)
    const __m256i x = (__m256i)inputs, w = (__m256i)codes;
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return sum + (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int k = 0; k < 4; k++) {
        sum += (codes << (24 - 8 * k) >> 24) * (inputs << (24 - 8 * k) >> 24);
    }
    return sum;
#endif
}
INLINE ivec dot4(ivec sum, ivec codes, int32_t four) { return dots(sum, codes, isplat(four)); }
"""

TAKE_BYTES = r"""
/* The bytes of a and b, one after the other, whose places are given as bytes. */
INLINE ivec take_bytes(ivec a, ivec b, const uint8_t *places)
{
#if W == 16 && defined(__AVX512VBMI__)
    return (ivec)_mm512_permutex2var_epi8((__m512i)a, _mm512_load_si512((const void *)places), (__m512i)b);
#else
    uint8_t from[8 * W], to[4 * W];
    ivec v;
    memcpy(from, &a, sizeof a);
    memcpy(from + 4 * W, &b, sizeof b);
    for (int k = 0; k < 4 * W; k++) {
        to[k] = from[places[k]];
    }
    memcpy(&v, to, sizeof v);
    return v;
#endif
}
"""

TAKE_ONE = r"""
/* The entries of one vector whose places are given as bytes. */
INLINE vec take_one(vec a, const uint8_t *places)
{
#if W == 8 && defined(__AVX2__)
    return _mm256_permutevar8x32_ps(a, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)places)));
#else
    vec v;
    for (int k = 0; k < W; k++) {
        v[k] = a[places[k]];
    }
    return v;
#endif
}
"""

MIX = """
#ifdef __clang__
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIX(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
"""

INTRINSICS = """
#if defined(__AVX2__)
#include <immintrin.h>
#endif
"""


def prelude(width: int, code: str) -> str:
    """Return what code for vectors of ``width`` floats relies on; intrinsics, which compile slowly, only where used."""
    words = {"take(": SELECT, "take_one(": TAKE_ONE, "take_bytes(": TAKE_BYTES, "FLIP": DOT4}
    used = [text for word, text in words.items() if word in code]
    more = turned(width) if "square(" in code else ""
    return "".join((f"#define W {width}\n", PRELUDE, *([INTRINSICS] if used else []), *used, more))


def turned(width: int) -> str:
    """Write the transposition of a square as wide as a vector, by exchanging halves of halves (Eklundh 1972)."""
    rows, lanes = range(width), range(width)
    lines = [f"vec r{k} = load_any(from + {k} * fs);" for k in rows]
    half = width // 2
    while half:
        first = ", ".join(str(k if not k & half else width + k - half) for k in lanes)
        second = ", ".join(str(k + half if not k & half else width + k) for k in lanes)
        for k in (k for k in rows if not k & half):
            lines.append(f"t = MIX(r{k}, r{k + half}, {first});")
            lines.append(f"r{k + half} = MIX(r{k}, r{k + half}, {second});\nr{k} = t;")
        half //= 2
    lines += [f"store(to + {k} * ts, r{k});" for k in rows]
    body = "\n".join(lines)
    return f"{MIX}\nINLINE void square(const float *from, long fs, float *to, long ts)\n{{\nvec t;\n{body}\n}}\n"
