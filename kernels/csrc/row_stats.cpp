// Statistics of logits rows in one read: the definition is strop/kernels/row_stats.py.
// A row is folded block by block, from left to right, into a state of a few numbers. Blocks lie at fixed vocabulary indices,
// so the result depends neither on the other rows nor on how many calls the vocabulary is split over, bit for bit.
// Race-free: each row is folded by one thread, which owns that row's state and outputs.
#include <algorithm>

#include "rows.h"

namespace {

constexpr int64_t block = 4096;    // 16 KiB of float32: the second look at a block finds it in the first-level cache
constexpr int unroll = 4;          // independent accumulators, to hide the latency of max and add
constexpr int64_t stretch = 1024;  // elements that float32 accumulators take before float64 ones take over
constexpr int64_t serial_below = 1 << 16;

struct State {
    double top = minus_infinity, second = minus_infinity;
    double sum = 0, weighted = 0;  // of exp(z - top), and of exp(z - top) (z - top)
    double total = 0;              // of z - top over the finite z
    int64_t count = 0;             // of the finite z
    int64_t argmax = -1;
    Winner winner;
    double winner_z = 0;  // tempered as the statistics are
};
static_assert(sizeof(State) == 80, "row_stats.py allocates states of this size");

// What is asked of each row; null pointers stand for what is not.
struct Asked {
    const float *temperature;
    const int64_t *ids;
    int64_t ids_per_row;
    const int64_t *seeds, *positions;
    const float *draw_temperature;
};

struct Outputs {
    int64_t rows;
    float *numbers;   // [8, B]: max, second, lse, entropy, self-certainty, confidence, margin, log-probability of the winner
    int64_t *picks;   // [2, B]: argmax, winner
    float *logprobs;  // [B, K], of the ids
};

// `z_at(i)` gives the `width` logits from i on.
template <class ZAt> void two_largest(ZAt z_at, int64_t size, float &top, float &second) {
    Floats first[unroll], next[unroll];
    for (int u = 0; u < unroll; ++u) first[u] = next[u] = all(minus_infinity);
    for (int64_t i = 0; i < size; i += unroll * width)
        for (int u = 0; u < unroll; ++u) {
            const Floats z = z_at(i + u * width);
            next[u] = maximum(next[u], minimum(first[u], z));
            first[u] = maximum(first[u], z);
        }
    for (int u = 1; u < unroll; ++u) {
        next[0] = maximum(maximum(next[0], next[u]), minimum(first[0], first[u]));
        first[0] = maximum(first[0], first[u]);
    }
    alignas(64) float a[width], b[width];
    store(a, first[0]);
    store(b, next[0]);
    top = second = minus_infinity;
    for (int l = 0; l < width; ++l) {
        second = std::max({second, b[l], std::min(a[l], top)});
        top = std::max(top, a[l]);
    }
}

// Where the next block will come from: a loop that computes while memory idles has it fetched.
struct Ahead {
    const char *bytes;
    int64_t element;  // bytes

    void fetch(int64_t i, int64_t count) const {
        for (int64_t byte = i * element; byte < (i + count) * element; byte += 64) _mm_prefetch(bytes + byte, _MM_HINT_T0);
    }
};

// The sums over one block; `top` is its largest z. The exponent is clamped where exp would become a denormal number.
// `masked` leaves entries at -inf out of the total and the count; without it they turn the total infinite.
template <bool masked> void sums(const float *row, int64_t size, float top, Ahead ahead, State &part) {
    Doubles sum, weighted, total;
    part.count = masked ? 0 : size;
    for (int64_t start = 0; start < size; start += stretch) {
        Floats es[unroll], weights[unroll], belows[unroll];
        for (int u = 0; u < unroll; ++u) es[u] = weights[u] = belows[u] = all(0.0f);
        for (int64_t i = start; i < std::min(start + stretch, size); i += unroll * width) {
            for (int u = 0; u < unroll; ++u) {
                const Floats z = load(row + i + u * width), below = z - all(top), d = maximum(below, all(-87.0f));
                const Floats e = exponential(d);
                const uint32_t counted = masked ? differs(z, all(minus_infinity)) : ~0u;
                es[u] = es[u] + e;
                weights[u] = fma(e, d, weights[u]);
                belows[u] = belows[u] + (masked ? select(counted, below, all(0.0f)) : below);
                if (masked) part.count += __builtin_popcount(counted);
            }
            ahead.fetch(i, unroll * width);
        }
        sum += (es[0] + es[1]) + (es[2] + es[3]);
        weighted += (weights[0] + weights[1]) + (weights[2] + weights[3]);
        total += (belows[0] + belows[1]) + (belows[2] + belows[3]);
    }
    part.sum = sum.sum();
    part.weighted = weighted.sum();
    part.total = total.sum();
}

int64_t first_at(const float *row, int64_t size, float top) {
    for (int64_t i = 0; i < size; i += width)
        if (const uint32_t found = at_least(load(row + i), all(top))) return i + __builtin_ctz(found);
    return -1;
}

// The same sums, taken from another top.
void rebase(State &state, double top) {
    if (state.count > 0) {
        const double shift = state.top - top, factor = std::exp(shift);
        state.weighted = factor * (state.weighted + state.sum * shift);
        state.sum *= factor;
        state.total += double(state.count) * shift;
    }
    state.top = top;
}

// `row` holds what `z_at` gives, from the moment that it was called; `size` is a multiple of `tile`; the block starts at
// vocabulary index `index`.
template <class ZAt> void fold_block(ZAt z_at, const float *row, int64_t size, int64_t index, Ahead ahead, State &state) {
    float top, second;
    two_largest(z_at, size, top, second);
    State part;
    const float from = top == minus_infinity ? 0.0f : top;
    sums<false>(row, size, from, ahead, part);
    if (!std::isfinite(part.total)) sums<true>(row, size, from, ahead, part);
    if (top > minus_infinity) {
        part.top = top;
        state.second = std::max({state.second, double(second), std::min(state.top, part.top)});
        if (part.top > state.top) {
            state.argmax = index + first_at(row, size, top);
            rebase(state, part.top);
        } else {
            rebase(part, state.top);
        }
        state.sum += part.sum;
        state.weighted += part.weighted;
        state.count += part.count;
    }
    state.total += part.total;  // NaN if the block holds one
}

template <class T> float value_at(const TemperedRow<T> &row, int64_t i) {
    alignas(64) float values[width];
    store(values, row.z(i));
    return values[0];
}

// Float32 blocks at temperature 1 are folded where they lie, others from a tempered float32 copy.
template <class T> void fold_row(const TemperedRow<T> &row, int64_t offset, State &state) {
    for (int64_t i = 0; i < row.size; i += block) {
        const Ahead ahead{reinterpret_cast<const char *>(row.x + i + block), sizeof(T)};
        const int64_t left = std::min(block, row.size - i), padded = (left + tile - 1) / tile * tile;
        if (std::is_same_v<T, float> && row.scale == 1.0f && left == padded) {
            const float *here = reinterpret_cast<const float *>(row.x + i);
            fold_block([&](int64_t j) { return load(here + j); }, here, left, offset + i, ahead, state);
        } else {
            alignas(64) float copy[block];
            const auto tempered = [&](int64_t j) {
                const Floats z = row.z(i + j);
                store(copy + j, z);
                return z;
            };
            fold_block(tempered, copy, padded, offset + i, ahead, state);
        }
    }
}

void finish(const State &state, int64_t b, int64_t ids, const Outputs &out) {
    const bool valid = std::isfinite(state.top) && !std::isnan(state.total);
    const double missing = std::nan(""), log_sum = std::log(state.sum), lse = state.top + log_sum;
    const double entropy = std::fmax(log_sum - state.weighted / state.sum, 0.0);
    const double certainty = log_sum - state.total / double(state.count) - std::log(double(state.count));
    const double margin = -std::expm1(state.second - state.top) / state.sum;
    const double winner = state.winner.index < 0 ? missing : state.winner_z - lse;
    const double numbers[8] = {state.top, state.second, lse, entropy, certainty, 1 / state.sum, margin, winner};
    for (int j = 0; j < 8; ++j) out.numbers[j * out.rows + b] = static_cast<float>(valid ? numbers[j] : missing);
    out.picks[b] = valid ? state.argmax : -1;
    out.picks[out.rows + b] = valid ? state.winner.index : -1;
    for (int64_t k = b * ids; k < (b + 1) * ids; ++k)
        out.logprobs[k] = static_cast<float>(valid ? out.logprobs[k] - lse : missing);
}

bool greedy(float temperature) { return temperature < 1e-5f; }  // as GREEDY_BELOW in sample.py

template <class T> void draw(const TemperedRow<T> &row, const Asked &asked, int64_t b, int64_t offset, State &state) {
    const int64_t before = state.winner.index;
    if (asked.draw_temperature && greedy(asked.draw_temperature[b])) {
        state.winner.index = state.argmax;
    } else {
        const float scale = asked.draw_temperature ? 1.0f / asked.draw_temperature[b] : row.scale;
        const NoiseKey key{static_cast<uint64_t>(asked.seeds[b]), static_cast<uint64_t>(asked.positions[b])};
        race(TemperedRow<T>{row.x, row.size, scale}, 0, row.size, offset, minus_infinity, key, state.winner);
    }
    if (state.winner.index != before) state.winner_z = value_at(row, state.winner.index - offset);
}

}  // namespace

// Folds columns [offset, offset + size) of the vocabulary; offset, a multiple of `block`, is 0 in the first call and `last` is
// set in the final one.
extern "C" void row_stats(const void *logits, int dtype, int64_t rows, int64_t size, int64_t stride, int64_t offset, int last,
                          const float *temperature, const int64_t *ids, int64_t ids_per_row, const int64_t *seeds,
                          const int64_t *positions, const float *draw_temperature, void *states, float *numbers,
                          int64_t *picks, float *logprobs, int threads) {
    const Asked asked{temperature, ids, ids_per_row, seeds, positions, draw_temperature};
    const Outputs out{rows, numbers, picks, logprobs};
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * size >= serial_below)
        for (int64_t b = 0; b < rows; ++b) {
            const float scale = temperature ? 1.0f / temperature[b] : 1.0f;
            const TemperedRow<T> row{static_cast<const T *>(logits) + b * stride, size, scale};
            State &state = static_cast<State *>(states)[b];
            if (offset == 0) state = State();
            fold_row(row, offset, state);
            if (seeds) draw(row, asked, b, offset, state);
            for (int64_t k = b * ids_per_row; k < (b + 1) * ids_per_row; ++k) {
                if (offset == 0) logprobs[k] = std::nanf("");
                if (ids[k] >= offset && ids[k] < offset + size) logprobs[k] = value_at(row, ids[k] - offset);
            }
            if (last) finish(state, b, ids_per_row, out);
        }
    });
}
