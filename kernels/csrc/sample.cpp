// Token sampling: the definition is strop/kernels/sample.py and guided_sample.py. No sort: min-p, top-k and top-p all keep the
// tokens from some logit up, so a race among all tokens from a floor up has the right winner once that winner is itself kept.
// Race-free: each row is drawn by one thread, which writes that row's id and nothing else shared.
#include <algorithm>
#include <vector>

#include "rows.h"

namespace {

constexpr int64_t serial_below = 1 << 16;  // elements; under this, waking threads costs more than they save

struct Settings {
    const float *temperature;
    const int32_t *top_k;
    const float *top_p, *min_p;
    const int64_t *seeds, *positions;
};

// As GREEDY_BELOW in sample.py.
bool greedy(float temperature) { return temperature < 1e-5f; }
float scale_of(float temperature) { return greedy(temperature) ? 1.0f : 1.0f / temperature; }

float nth_largest(std::vector<float> &values, int64_t n) {
    std::nth_element(values.begin(), values.begin() + (n - 1), values.end(), std::greater<float>());
    return values[n - 1];
}

// The k-th largest z. Groups of the row give their maxima; the k-th of those bounds the answer from below, and few entries
// reach that bound. Groups are `depth` vectors deep, lane by lane, so that at least 8 k of them exist where the row allows.
template <class Row> float kth_largest(const Row &row, int64_t k, std::vector<float> &scratch) {
    const int64_t depth = std::clamp<int64_t>(row.size / (8 * k), 1, 64);
    scratch.clear();
    for (int64_t i = 0; i < row.size; i += depth * width) {
        Floats best = row.z(i);
        for (int64_t j = 1; j < depth; ++j) best = maximum(best, row.z(i + j * width));
        scratch.resize(scratch.size() + width);
        store(&*scratch.end() - width, best);
    }
    const float bound = nth_largest(scratch, k);
    if (depth == 1) return bound;
    scratch.clear();
    for (int64_t i = 0; i < row.size; i += width) {
        const Floats z = row.z(i);
        uint32_t reach = at_least(z, all(bound));
        if (!reach) continue;
        alignas(64) float values[width];
        store(values, z);
        for (; reach; reach &= reach - 1) scratch.push_back(values[__builtin_ctz(reach)]);
    }
    return nth_largest(scratch, k);
}

template <class Row> int64_t draw(const Row &row, const Settings &set, int64_t b, std::vector<float> &scratch) {
    const float top = top_of(row);
    if (!std::isfinite(top)) return -1;
    if (greedy(set.temperature[b])) return first_of(row, top);
    float floor = minus_infinity;
    if (set.min_p[b] > 0) floor = top + static_cast<float>(exact_log(std::fmin(set.min_p[b], 1.0f)));
    if (set.top_k[b] > 0) floor = std::fmax(floor, kth_largest(row, std::min<int64_t>(set.top_k[b], row.size), scratch));
    const bool nucleus = set.top_p[b] < 1;
    const double limit = nucleus ? std::fmax(double(set.top_p[b]) * double(mass_from(row, floor, top)), 1.0) : 0;
    const NoiseKey key{static_cast<uint64_t>(set.seeds[b]), static_cast<uint64_t>(set.positions[b])};
    for (;;) {
        Winner winner;
        race(row, 0, row.size, 0, floor, key, winner);
        floor = std::nextafter(winner.z, -minus_infinity);
        // A winner outside the nucleus shows where it cannot start; the next race is among what lies above.
        if (!nucleus || double(mass_from(row, floor, top)) < limit) return winner.index;
    }
}

template <class RowOf>
void draw_rows(RowOf row_of, int64_t rows, int64_t size, const Settings &set, int64_t *ids, int threads) {
#pragma omp parallel num_threads(threads) if (rows * size >= serial_below)
    {
        std::vector<float> scratch;
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < rows; ++b) ids[b] = draw(row_of(b), set, b, scratch);
    }
}

}  // namespace

extern "C" void sample(const void *logits, int dtype, int64_t rows, int64_t size, int64_t stride, const float *temperature,
                       const int32_t *top_k, const float *top_p, const float *min_p, const int64_t *seeds,
                       const int64_t *positions, int64_t *ids, int threads) {
    const Settings set{temperature, top_k, top_p, min_p, seeds, positions};
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto row_of = [&](int64_t b) {
            return TemperedRow<T>{static_cast<const T *>(logits) + b * stride, size, scale_of(temperature[b])};
        };
        draw_rows(row_of, rows, size, set, ids, threads);
    });
}

extern "C" void guided_sample(const void *strong, const void *weak, int dtype, int64_t rows, int64_t size,
                              int64_t strong_stride, int64_t weak_stride, const float *scale, const float *plausibility,
                              const float *temperature, const int32_t *top_k, const float *top_p, const float *min_p,
                              const int64_t *seeds, const int64_t *positions, int64_t *ids, int threads) {
    const Settings set{temperature, top_k, top_p, min_p, seeds, positions};
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto row_of = [&](int64_t b) {
            const T *s = static_cast<const T *>(strong) + b * strong_stride;
            const T *w = static_cast<const T *>(weak) + b * weak_stride;
            float floor = minus_infinity;
            if (plausibility[b] > 0)
                floor = top_of(TemperedRow<T>{s, size, 1.0f}) + static_cast<float>(exact_log(std::fmin(plausibility[b], 1.0f)));
            return GuidedRow<T>{s, w, size, scale[b], floor, scale_of(temperature[b])};
        };
        draw_rows(row_of, rows, size, set, ids, threads);
    });
}
