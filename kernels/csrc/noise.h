// The noise of strop.kernels.rng, bit for bit, and the race for the largest perturbed logit of a row.
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

constexpr int lanes = 16;        // counters of a tile of noise
constexpr int tile = 4 * lanes;  // indices of a tile: word w of counter l belongs to index 16 w + l
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

struct NoiseKey {
    uint64_t seed, position;
};

// The 64 words of random bits of one tile.
inline void noise_tile(NoiseKey key, uint32_t number, uint32_t *bits) {
    for (int half = 0; half < lanes / width; ++half) {
        Ints a = add(ascending(), all(static_cast<int32_t>(number * lanes + half * width)));
        Ints b = all(0);
        Ints c = all(static_cast<int32_t>(key.position)), d = all(static_cast<int32_t>(key.position >> 32));
        uint32_t k = static_cast<uint32_t>(key.seed), l = static_cast<uint32_t>(key.seed >> 32);
        for (int round = 0; round < 10; ++round) {
            Ints left_high, left_low, right_high, right_low;
            multiply_wide(a, 0xD2511F53u, left_high, left_low);
            multiply_wide(c, 0xCD9E8D57u, right_high, right_low);
            a = exclusive_or(exclusive_or(right_high, b), all(static_cast<int32_t>(k)));
            c = exclusive_or(exclusive_or(left_high, d), all(static_cast<int32_t>(l)));
            b = right_low;
            d = left_low;
            k += 0x9E3779B9u;
            l += 0xBB67AE85u;
        }
        const Ints words[4] = {a, b, c, d};
        for (int w = 0; w < 4; ++w) store(bits + w * lanes + half * width, words[w]);
    }
}

// log y as rng.log computes it. Exact rounding of every operation needs -ffp-contract=off.
inline double exact_log(double y) {
    int exponent;
    double mantissa = std::frexp(y, &exponent);
    if (mantissa < 0.70710678118654757) {
        mantissa += mantissa;
        --exponent;
    }
    const double s = (mantissa - 1.0) / (mantissa + 1.0), square = s * s;
    double series = 1.0 / 11;
    for (const double coefficient : {1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0}) series = series * square + coefficient;
    return (s + s) * series + exponent * 0.69314718055994529;
}

inline float gumbel(uint32_t bits) {
    const double w = (bits + 0.5) * 0x1p-32;
    return static_cast<float>(-exact_log(-exact_log(1.0 - w)));
}

// No noise exceeds this: -log(-log(1 - 2^-33)) = 22.87.
constexpr float largest_noise = 23.0f;

// An upper bound of gumbel(bits), lane by lane: -log(-log(1 - w)) <= -log w, and the bits of a float are, as an integer, a
// chord under its log2. Cheap, so that the race computes the noise itself only where it can win: for some 30 of 150,000.
inline Floats noise_bound(Ints bits) {
    const Floats half = to_floats(shift_right<1>(bits));
    constexpr float log2 = 0.69314718f;
    return fma(to_floats(as_ints(half)), all(-log2 * 0x1p-23f), all(log2 * (31 + 127) + 1e-3f));
}

struct Winner {
    float score = minus_infinity, z = minus_infinity;
    int64_t index = -1;
};

// Lets the entries [begin, end) of a row, all of whose z are at least `floor`, compete. `row.z(i)` loads `width` tempered
// logits; the row starts at vocabulary index `offset`; begin and offset are multiples of `tile`.
template <class Row>
void race(const Row &row, int64_t begin, int64_t end, int64_t offset, float floor, NoiseKey key, Winner &winner) {
    for (int64_t start = begin; start < end; start += tile) {
        Floats z[tile / width];
        uint32_t can_win = 0;
        const Floats need = all(std::fmax(floor, winner.score - largest_noise));
        for (int v = 0; v < tile / width; ++v) {
            z[v] = row.z(start + v * width);
            can_win |= at_least(z[v], need);
        }
        if (!can_win) continue;
        alignas(64) uint32_t bits[tile];
        noise_tile(key, static_cast<uint32_t>((offset + start) / tile), bits);
        for (int v = 0; v < tile / width; ++v) {
            const Floats bound = z[v] + noise_bound(load(bits + v * width));
            uint32_t left = at_least(bound, all(winner.score)) & at_least(z[v], all(floor));
            left &= greater(z[v], all(minus_infinity));
            if (!left) continue;
            alignas(64) float values[width];
            store(values, z[v]);
            for (; left; left &= left - 1) {
                const int lane = __builtin_ctz(left);
                const float score = values[lane] + gumbel(bits[v * width + lane]);
                // Indices come in ascending order, so the lowest wins a tie.
                if (score > winner.score) winner = {score, values[lane], offset + start + v * width + lane};
            }
        }
    }
}
