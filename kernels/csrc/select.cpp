// Which masked positions a step commits: the definition is strop/kernels/select.py.
// Race-free: each row is decided and written by one thread.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

constexpr int64_t serial_below = 1 << 14;  // positions

enum Rule { threshold, quota, factor, frechet, entropy_bound, leftmost };  // as Rule in select.py

struct Candidate {
    float confidence;
    int64_t position;
};

bool surer(const Candidate &a, const Candidate &b) {
    return a.confidence != b.confidence ? a.confidence > b.confidence : a.position < b.position;
}

// How many of the candidates, in their order, the rule accepts; the guarantee of one is the caller's.
int64_t accepted(const std::vector<Candidate> &ordered, Rule rule, float value) {
    double sum = 0;
    for (int64_t n = 0; n < static_cast<int64_t>(ordered.size()); ++n) {
        const double confidence = ordered[n].confidence, doubt = 1.0 - confidence;
        bool accept = false;
        switch (rule) {
        case threshold: accept = confidence > value; break;
        case quota:
        case leftmost: accept = n < value; break;
        case factor: accept = double(n + 2) * doubt < value; break;
        case frechet: accept = (sum += doubt) < value; break;
        case entropy_bound:
            accept = sum <= value;
            sum -= confidence;
            break;
        }
        if (!accept) return n;
    }
    return static_cast<int64_t>(ordered.size());
}

}  // namespace

// Strides are in elements; `committed` is dense.
extern "C" void select_rows(int64_t *canvas, int64_t canvas_stride, uint8_t *masked, int64_t masked_stride,
                            const int64_t *proposals, int64_t proposals_stride, const float *confidence,
                            int64_t confidence_stride, int64_t rows, int64_t positions, const int32_t *rule,
                            const float *value, uint8_t *committed, int threads) {
#pragma omp parallel num_threads(threads) if (rows * positions >= serial_below)
    {
        std::vector<Candidate> candidates;
#pragma omp for schedule(static)
        for (int64_t b = 0; b < rows; ++b) {
            const int64_t *proposal = proposals + b * proposals_stride;
            uint8_t *mask = masked + b * masked_stride;
            candidates.clear();
            for (int64_t t = 0; t < positions; ++t) {
                committed[b * positions + t] = 0;
                const float c = confidence[b * confidence_stride + t];
                if (mask[t] && proposal[t] >= 0)
                    candidates.push_back({std::isnan(c) ? -std::numeric_limits<float>::infinity() : c, t});
            }
            if (candidates.empty()) continue;
            if (rule[b] != leftmost) std::sort(candidates.begin(), candidates.end(), surer);
            const int64_t count = std::max<int64_t>(accepted(candidates, static_cast<Rule>(rule[b]), value[b]), 1);
            for (int64_t n = 0; n < count; ++n) {
                const int64_t t = candidates[n].position;
                committed[b * positions + t] = 1;
                canvas[b * canvas_stride + t] = proposal[t];
                mask[t] = 0;
            }
        }
    }
}
