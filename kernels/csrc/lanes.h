// Sixteen float lanes and the arithmetic on them: one 512-bit register, or two of 256 bits. Every operation rounds once and
// stands alone (no reassociation), so a lane's result depends only on its own operands.
//
// A "unit" is 32 bits of storage: one float, or a pair of bf16. `dot` multiplies units and adds the products to float lanes.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

struct bf16 {
    uint16_t bits;
};

#ifdef __AVX512F__

struct Lanes {
    __m512 all;
};

inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const void *from) { return {_mm512_loadu_ps(from)}; }
inline void store(float *to, Lanes a) { _mm512_storeu_ps(to, a.all); }
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.all, b.all)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm512_sub_ps(a.all, b.all)}; }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline Lanes divide(Lanes a, Lanes b) { return {_mm512_div_ps(a.all, b.all)}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }
// Where either is NaN, the second is returned.
inline Lanes maximum(Lanes a, Lanes b) { return {_mm512_max_ps(a.all, b.all)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm512_min_ps(a.all, b.all)}; }
inline Lanes round(Lanes a) { return {_mm512_roundscale_ps(a.all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Lanes power_of_two(Lanes n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.all), _mm512_set1_epi32(127)), 23))};
}
// Lane i is a's where bit i is set, else b's.
inline Lanes select(uint32_t bits, Lanes a, Lanes b) { return {_mm512_mask_blend_ps(__mmask16(bits), b.all, a.all)}; }
inline Lanes low_halves(Lanes a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.all), 16))}; }
inline Lanes high_halves(Lanes a) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.all), _mm512_set1_epi32(int(0xffff0000))))};
}

#else

struct Lanes {
    __m256 low, high;
};

inline Lanes broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const void *from) {
    const float *floats = static_cast<const float *>(from);
    return {_mm256_loadu_ps(floats), _mm256_loadu_ps(floats + 8)};
}
inline void store(float *to, Lanes a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}
inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Lanes divide(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
// Where either is NaN, the second is returned.
inline Lanes maximum(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Lanes round(Lanes a) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, nearest), _mm256_round_ps(a.high, nearest)};
}
inline __m256 power_of_two_half(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Lanes power_of_two(Lanes n) { return {power_of_two_half(n.low), power_of_two_half(n.high)}; }
inline __m256 select_half(uint32_t bits, __m256 a, __m256 b) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lane), lane);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(set));
}
// Lane i is a's where bit i is set, else b's.
inline Lanes select(uint32_t bits, Lanes a, Lanes b) {
    return {select_half(bits, a.low, b.low), select_half(bits >> 8, a.high, b.high)};
}
inline __m256 low_half_words(__m256 a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16)); }
inline Lanes low_halves(Lanes a) { return {low_half_words(a.low), low_half_words(a.high)}; }
inline Lanes high_halves(Lanes a) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(int(0xffff0000)));
    return {_mm256_and_ps(a.low, mask), _mm256_and_ps(a.high, mask)};
}

#endif

inline Lanes broadcast_unit(uint32_t unit) {
    float x;
    std::memcpy(&x, &unit, sizeof x);
    return broadcast(x);
}

// sum + a * b, unit by unit. Of a bf16 pair, the two products are added one after the other.
template <class T> inline Lanes dot(Lanes sum, Lanes a, Lanes b);
template <> inline Lanes dot<float>(Lanes sum, Lanes a, Lanes b) { return multiply_add(a, b, sum); }
template <> inline Lanes dot<bf16>(Lanes sum, Lanes a, Lanes b) {
#ifdef __AVX512BF16__
    return {_mm512_dpbf16_ps(sum.all, (__m512bh)a.all, (__m512bh)b.all)};
#else
    return multiply_add(high_halves(a), high_halves(b), multiply_add(low_halves(a), low_halves(b), sum));
#endif
}

// Keep the first value of each unit, zero the second (a float unit has no second).
template <class T> inline Lanes first_of_unit(Lanes a);
template <> inline Lanes first_of_unit<float>(Lanes a) { return a; }
template <> inline Lanes first_of_unit<bf16>(Lanes a) {
#ifdef __AVX512F__
    return {_mm512_castsi512_ps(_mm512_srli_epi32(_mm512_castps_si512(low_halves(a).all), 16))};
#else
    const Lanes shifted = low_halves(a);
    return {_mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(shifted.low), 16)),
            _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(shifted.high), 16))};
#endif
}

inline uint16_t round_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fc0;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T> inline void store_as(T *to, Lanes a);
template <> inline void store_as<float>(float *to, Lanes a) { store(to, a); }
template <> inline void store_as<bf16>(bf16 *to, Lanes a) {
#ifdef __AVX512BF16__
    const __m256bh rounded = _mm512_cvtneps_pbh(a.all);
    std::memcpy(to, &rounded, sizeof rounded);
#else
    float lanes[16];
    store(lanes, a);
    for (int i = 0; i < 16; ++i) to[i].bits = round_to_bf16(lanes[i]);
#endif
}

inline float largest(Lanes a) {
    float lanes[16];
    store(lanes, a);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    return lanes[0];
}

inline float total(Lanes a) {
    float lanes[16];
    store(lanes, a);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

// e^x = power * (1 + fraction) for x <= 88. Below -87 it stays at e^-87, where the result would turn denormal. NaN stays.
struct Exponential {
    Lanes power, fraction;
    explicit Exponential(Lanes x) {
        x = maximum(broadcast(-87.0f), x);
        const Lanes n = round(multiply(x, broadcast(1.44269504f)));
        Lanes r = multiply_add(n, broadcast(-0.693359375f), x); // ln 2 in two parts; the first has 10 bits, so that
        r = multiply_add(n, broadcast(2.12194440e-4f), r);      // n times it is exact
        Lanes series = broadcast(1.0f / 5040);                  // Taylor to degree 7: 5e-9 at |r| = ln 2 / 2
        for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f})
            series = multiply_add(series, r, broadcast(coefficient));
        fraction = multiply(series, r);
        power = power_of_two(n);
    }
};

// e^x, exactly 1 at 0.
inline Lanes exponential(Lanes x) {
    const Exponential e(x);
    return multiply_add(e.fraction, e.power, e.power);
}

// tanh x = (e^2x - 1) / (e^2x + 1), by e^2x - 1 without cancellation, so that small results keep their digits.
inline Lanes hyperbolic_tangent(Lanes x) {
    x = minimum(broadcast(40.0f), maximum(broadcast(-40.0f), x));
    const Exponential e(add(x, x));
    const Lanes less_one = multiply_add(e.fraction, e.power, subtract(e.power, broadcast(1.0f)));
    return divide(less_one, add(less_one, broadcast(2.0f)));
}
