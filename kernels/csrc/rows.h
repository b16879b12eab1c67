// Rows of logits as the row operations see them: `z(i)` gives `width` tempered float32 logits, -inf past the row's end.
#pragma once

#include <cmath>

#include "noise.h"

// x * scale
template <class T> struct TemperedRow {
    const T *x;
    int64_t size;
    float scale;

    Floats z(int64_t i) const { return load_part(x + i, size - i, minus_infinity) * all(scale); }
};

// weak + weight * (strong - weak), tempered; strong where weak is -inf; -inf where strong is, or is under `floor`.
template <class T> struct GuidedRow {
    const T *strong, *weak;
    int64_t size;
    float weight, floor, scale;

    Floats z(int64_t i) const {
        const Floats none = all(minus_infinity), s = load_part(strong + i, size - i, minus_infinity);
        const Floats w = load_part(weak + i, size - i, minus_infinity);
        const Floats steered = select(differs(w, none), w + all(weight) * (s - w), s);
        return select(differs(s, none) & ~greater(all(floor), s), steered, none) * all(scale);
    }
};

inline float largest(Floats x) {
    alignas(64) float values[width];
    store(values, x);
    float best = values[0];
    for (const float value : values) best = value > best ? value : best;
    return best;
}

// The largest z of the row, or NaN if it holds NaN.
template <class Row> float top_of(const Row &row) {
    Floats top = all(minus_infinity);
    uint32_t nan = 0;
    for (int64_t i = 0; i < row.size; i += width) {
        const Floats z = row.z(i);
        nan |= differs(z, z);
        top = maximum(top, z);
    }
    return nan ? std::nanf("") : largest(top);
}

// The first index whose z is the row's largest.
template <class Row> int64_t first_of(const Row &row, float top) {
    for (int64_t i = 0; i < row.size; i += width)
        if (const uint32_t found = at_least(row.z(i), all(top))) return i + __builtin_ctz(found);
    return -1;
}

// round(2^30 exp(d)) of each lane, d <= 0, by the same exactly rounded operations as `mass` of strop.kernels.sample.
inline Ints mass(Floats d) {
    d = maximum(d, all(-22.0f));
    const Floats n = nearest(d * all(1.44269504f));
    const Floats r = (d - n * all(0.693359375f)) - n * all(-2.12194440e-4f);
    Floats p = all(1.0f / 720);
    for (const float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + all(coefficient);
    return to_ints(p * as_floats(shift_left<23>(add(to_ints(n), all(127 + 30)))));
}

// The mass of the entries from `floor` up, which must not be under -inf.
template <class Row> int64_t mass_from(const Row &row, float floor, float top) {
    int64_t total = 0;
    for (int64_t i = 0; i < row.size; i += width) {
        const Floats z = row.z(i);
        if (const uint32_t kept = at_least(z, all(floor))) total += sum(mass(select(kept, z, all(minus_infinity)) - all(top)));
    }
    return total;
}
