// One set of vector operations for AVX-512 (16 floats) and AVX2 (8 floats); sources are compiled once for each.
#pragma once

// GCC 12 takes the undefined pass-through operand inside its own AVX-512 intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstdint>

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// Calls `run` with a value of the element type that a dtype code of strop.kernels.rows means.
template <class Run> void with_dtype(int code, Run run) {
    if (code == 0) run(float{});
    if (code == 1) run(BFloat16{});
    if (code == 2) run(Float16{});
}

#ifdef __AVX512F__

using Floats = __m512;
using Ints = __m512i;
constexpr int width = 16;

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Ints all(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints ascending() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline Floats load(const float *p) { return _mm512_loadu_ps(p); }
inline Floats load(const BFloat16 *p) {
    const Ints wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Floats load(const Float16 *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline Ints load(const uint32_t *p) { return _mm512_loadu_si512(p); }
// The upper halves are the nearest bfloat16, ties to even; NaN stays NaN.
inline Ints round_to_bfloat16(Floats x) {
    const Ints bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), all(1));
    const Ints rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, all(0x7FFF)));
    return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits, all(0x400000));
}
inline void store(float *p, Floats x) { _mm512_storeu_ps(p, x); }
inline void store(BFloat16 *p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_bfloat16(x), 16)));
}
inline void store(Float16 *p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(uint32_t *p, Ints x) { _mm512_storeu_si512(p, x); }

inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Ints to_ints(Floats x) { return _mm512_cvtps_epi32(x); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Floats as_floats(Ints x) { return _mm512_castsi512_ps(x); }
inline Ints as_ints(Floats x) { return _mm512_castps_si512(x); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints exclusive_or(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
template <int n> inline Ints shift_left(Ints x) { return _mm512_slli_epi32(x, n); }
template <int n> inline Ints shift_right(Ints x) { return _mm512_srli_epi32(x, n); }

// Bit l of a mask stands for lane l. A comparison with NaN is false, but for `differs`, where it is true.
inline uint32_t greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline uint32_t at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline uint32_t differs(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
inline Floats select(uint32_t mask, Floats chosen, Floats other) { return _mm512_mask_blend_ps(mask, other, chosen); }

// The high and low halves of the 64-bit products of 32-bit lanes.
inline void multiply_wide(Ints a, uint32_t factor, Ints &high, Ints &low) {
    const Ints b = all(static_cast<int32_t>(factor));
    const Ints even = _mm512_mul_epu32(a, b), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), b);
    high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

// The sum of non-negative 32-bit lanes, without overflow.
inline int64_t sum(Ints x) {
    const Ints low = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(x));
    const Ints high = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(x, 1));
    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

// exp(d) for -87 <= d <= 0, to 1e-7. Adding 1.5 * 2^18 rounds d log2 e to a multiple n of 1/32; 2^n is a power of two times a
// table entry, which the lowest bits of the sum number, and the rest of the exponent is so small that a parabola does.
inline Floats exponential(Floats d) {
    alignas(64) static constexpr float table[32] = {
        1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f, 1.1637249f,
        1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
        1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f,  1.61049032f, 1.64575553f,
        1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};
    const Floats log2_e = all(1.44269504f), shifted = fma(d, log2_e, all(0x1.8p18f)), n = shifted - all(0x1.8p18f);
    const Floats r = _mm512_fmsub_ps(d, log2_e, n);
    const Floats entry = _mm512_permutex2var_ps(load(table), _mm512_castps_si512(shifted), load(table + 16));
    const Floats p = fma(r, all(0.240226508f), all(0.69315733f)) * r;
    return _mm512_scalef_ps(fma(entry, p, entry), n);
}

// Float64 sums over lanes.
struct Doubles {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();

    void operator+=(Floats x) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    }
    void add_product(Floats a, Floats b) {  // exact before it is added
        const __m256 a_high = _mm512_extractf32x8_ps(a, 1), b_high = _mm512_extractf32x8_ps(b, 1);
        low = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_castps512_ps256(b)), low);
        high = _mm512_fmadd_pd(_mm512_cvtps_pd(a_high), _mm512_cvtps_pd(b_high), high);
    }
    double sum() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};

#else

using Floats = __m256;
using Ints = __m256i;
constexpr int width = 8;

inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Ints all(int32_t x) { return _mm256_set1_epi32(x); }
inline Ints ascending() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline Floats load(const float *p) { return _mm256_loadu_ps(p); }
inline Floats load(const BFloat16 *p) {
    const Ints wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Floats load(const Float16 *p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
inline Ints load(const uint32_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
// The upper halves are the nearest bfloat16, ties to even; NaN stays NaN.
inline Ints round_to_bfloat16(Floats x) {
    const Ints bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), all(1));
    const Ints rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, all(0x7FFF)));
    const Ints nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, all(0x400000)), nan);
}
inline void store(float *p, Floats x) { _mm256_storeu_ps(p, x); }
inline void store(BFloat16 *p, Floats x) {
    const Ints halves = _mm256_srli_epi32(round_to_bfloat16(x), 16);
    const Ints packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0b1000);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_castsi256_si128(packed));
}
inline void store(Float16 *p, Floats x) {
    const __m128i halves = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), halves);
}
inline void store(uint32_t *p, Ints x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), x); }

inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats nearest(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Ints to_ints(Floats x) { return _mm256_cvtps_epi32(x); }
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Floats as_floats(Ints x) { return _mm256_castsi256_ps(x); }
inline Ints as_ints(Floats x) { return _mm256_castps_si256(x); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints exclusive_or(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
template <int n> inline Ints shift_left(Ints x) { return _mm256_slli_epi32(x, n); }
template <int n> inline Ints shift_right(Ints x) { return _mm256_srli_epi32(x, n); }

// Bit l of a mask stands for lane l. A comparison with NaN is false, but for `differs`, where it is true.
inline uint32_t greater(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline uint32_t at_least(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline uint32_t differs(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ)); }
inline Floats select(uint32_t mask, Floats chosen, Floats other) {
    const Ints lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const Ints set = _mm256_cmpeq_epi32(_mm256_and_si256(all(static_cast<int32_t>(mask)), lane_bit), lane_bit);
    return _mm256_blendv_ps(other, chosen, _mm256_castsi256_ps(set));
}

// The high and low halves of the 64-bit products of 32-bit lanes.
inline void multiply_wide(Ints a, uint32_t factor, Ints &high, Ints &low) {
    const Ints b = all(static_cast<int32_t>(factor));
    const Ints even = _mm256_mul_epu32(a, b), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}

// The sum of non-negative 32-bit lanes, without overflow.
inline int64_t sum(Ints x) {
    const Ints low = _mm256_cvtepu32_epi64(_mm256_castsi256_si128(x));
    const Ints high = _mm256_cvtepu32_epi64(_mm256_extracti128_si256(x, 1));
    alignas(32) int64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<Ints *>(lanes), _mm256_add_epi64(low, high));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

// exp(d) for -87 <= d <= 0, to 1e-7: 2^n times a minimax polynomial of the rest of the exponent.
inline Floats exponential(Floats d) {
    const Floats t = d * all(1.44269504f), n = nearest(t), f = t - n;
    Floats p = all(0.000153458124f);
    for (const float c : {0.00133999309f, 0.00961848907f, 0.0555032864f, 0.240226462f, 0.693147182f, 1.0f})
        p = fma(p, f, all(c));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(to_ints(n), 23)));
}

// Float64 sums over lanes.
struct Doubles {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();

    void operator+=(Floats x) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    }
    void add_product(Floats a, Floats b) {  // exact before it is added
        const __m128 a_high = _mm256_extractf128_ps(a, 1), b_high = _mm256_extractf128_ps(b, 1);
        low = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_castps256_ps128(b)), low);
        high = _mm256_fmadd_pd(_mm256_cvtps_pd(a_high), _mm256_cvtps_pd(b_high), high);
    }
    double sum() const {
        alignas(32) double lanes[4];
        _mm256_store_pd(lanes, _mm256_add_pd(low, high));
        return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    }
};

#endif

// The first `count` of `width` elements at p, the rest `filler`; count may be <= 0 or >= width.
template <class T> Floats load_part(const T *p, int64_t count, float filler) {
    if (count >= width) return load(p);
    if (count <= 0) return all(filler);
    T part[width] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = p[i];
    return select((1u << count) - 1, load(part), all(filler));
}

// Stores the first `count` of `width` elements.
template <class T> void store_part(T *p, Floats x, int64_t count) {
    if (count >= width) return store(p, x);
    T part[width];
    store(part, x);
    for (int64_t i = 0; i < count; ++i) p[i] = part[i];
}
