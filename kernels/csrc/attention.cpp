// Causal attention over a paged cache. Layout: see paged_cache.py; law: see paged_attention.py.
//
// A task is a tile of up to ROWS rows (token, head) that share a key-value head of one sequence; it owns its outputs, so
// there are no races. Keys come in blocks counted from key 0 of the sequence. For each row the scores, the running maximum,
// the sum and the weighted values are updated by the same instructions in the same order whatever the other rows are; a key
// that a row does not see has weight exactly 0 and changes nothing. That makes results independent of batch and chunking.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "denormals.h"
#include "lanes.h"

namespace {

constexpr int PAGE = 16;
constexpr int BLOCK = 8; // pages
constexpr int KEYS = BLOCK * PAGE;
constexpr int MAX_DIM = 512;
#ifdef __AVX512F__
constexpr int ROWS = 12, SUMS = 24; // rows a tile; sums held in registers at once
#else
constexpr int ROWS = 4, SUMS = 4;
#endif
constexpr float FLOOR = -1e30f; // the running maximum before any key; finite, so that floor - floor is 0

enum Fault { NONE = 0, STARTS = 1, LENGTHS = 2, TABLES = 3 };

// What one call is told. paged_attention.py packs these fields in this order.
struct Call {
    const void *q, *k_cache, *v_cache;
    void *out;
    const int32_t *tables, *starts, *lengths;
    int64_t q_stride, tokens, sequences, table_width, pages, heads, kv_heads, head_dim, window;
    float scale, softcap; // softcap 0: none
    int32_t is_bf16, threads;
    int group() const { return int(heads / kv_heads); }
};

struct Tile {
    int sequence, first_row, rows; // row = token * group + head in group
};

// One tile at work. Weights are units of T, keys along a row.
template <class T, int R> struct Work {
    static constexpr int pack = 4 / sizeof(T);
    alignas(64) uint32_t queries[MAX_DIM / pack * R]; // [units, R]
    alignas(64) float scores[R][KEYS];
    alignas(64) uint32_t weights[R][KEYS / pack];
    alignas(64) float sums[R][PAGE];
    alignas(64) float values[R][MAX_DIM];
    float top[R];
    int first[R], last[R]; // keys that the row sees: first <= key < last
};

// The pages of one block that the tile visits, and how many keys of them are written.
struct Block {
    const uint32_t *keys[BLOCK], *values[BLOCK];
    int base, pages, written;
};

uint32_t below(int n) { return n <= 0 ? 0 : n >= PAGE ? 0xffff : (1u << n) - 1; }

// scores[r][16 n + i] = query r · key i of page n, for N pages held in registers.
template <class T, int R, int N> void score(const uint32_t *const *keys, const uint32_t *queries, int units, float *scores) {
    Lanes sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = broadcast(0);
    for (int unit = 0; unit < units; ++unit) {
        Lanes key[N];
        for (int n = 0; n < N; ++n) key[n] = load(keys[n] + unit * PAGE);
        for (int r = 0; r < R; ++r) {
            const Lanes query = broadcast_unit(queries[unit * R + r]);
            for (int n = 0; n < N; ++n) sums[r][n] = dot<T>(sums[r][n], key[n], query);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) store(scores + r * KEYS + n * PAGE, sums[r][n]);
}

template <class T, int R> void score_block(const Block &block, Work<T, R> &work, int units) {
    constexpr int N = std::max(1, std::min(4, SUMS / R));
    int page = 0;
    for (; page + N <= block.pages; page += N)
        score<T, R, N>(block.keys + page, work.queries, units, work.scores[0] + page * PAGE);
    for (; page < block.pages; ++page)
        score<T, R, 1>(block.keys + page, work.queries, units, work.scores[0] + page * PAGE);
}

// The online softmax of row r over this block: scores become weights, what was summed before is scaled to the new maximum.
template <class T, int R> void weigh(const Call &call, const Block &block, Work<T, R> &work, int r) {
    float *scores = work.scores[r];
    uint32_t seen[BLOCK];
    Lanes top = broadcast(work.top[r]);
    for (int page = 0; page < block.pages; ++page) {
        const int base = block.base + page * PAGE;
        seen[page] = below(work.last[r] - base) & ~below(work.first[r] - base);
        Lanes s = multiply(load(scores + page * PAGE), broadcast(call.scale));
        if (call.softcap > 0)
            s = multiply(hyperbolic_tangent(divide(s, broadcast(call.softcap))), broadcast(call.softcap));
        store(scores + page * PAGE, s);
        top = maximum(top, select(seen[page], s, broadcast(FLOOR)));
    }
    const float before = work.top[r], now = largest(top);
    const Lanes correction = exponential(broadcast(before - now));
    Lanes sum = multiply(load(work.sums[r]), correction);
    T *weights = reinterpret_cast<T *>(work.weights[r]);
    for (int page = 0; page < block.pages; ++page) {
        const Lanes s = subtract(load(scores + page * PAGE), broadcast(now));
        const Lanes weight = select(seen[page], exponential(s), broadcast(0));
        sum = add(sum, weight);
        store_as<T>(weights + page * PAGE, weight);
    }
    store(work.sums[r], sum);
    work.top[r] = now;
    if (before == now) return;
    for (int d = 0; d < call.head_dim; d += PAGE) store(work.values[r] + d, multiply(load(work.values[r] + d), correction));
}

// values[r][d …] += weights of row r · values of the block, for 16 C dimensions held in registers.
template <class T, int R, int C> void add_values(const Block &block, Work<T, R> &work, int head_dim, int d) {
    constexpr int pack = Work<T, R>::pack, units = PAGE / pack;
    Lanes sums[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sums[r][c] = load(work.values[r] + d + c * PAGE);
    // The page's unwritten rest may hold anything, even NaN, which weight 0 would not silence: stop at the last written key.
    const int whole = block.written / pack;
    const auto step = [&](int unit, bool halved) {
        Lanes value[C];
        for (int c = 0; c < C; ++c) {
            value[c] = load(block.values[unit / units] + unit % units * head_dim + d + c * PAGE);
            if (halved) value[c] = first_of_unit<T>(value[c]);
        }
        for (int r = 0; r < R; ++r) {
            const Lanes weight = broadcast_unit(work.weights[r][unit]);
            for (int c = 0; c < C; ++c) sums[r][c] = dot<T>(sums[r][c], value[c], weight);
        }
    };
    for (int unit = 0; unit < whole; ++unit) step(unit, false);
    if (block.written % pack) step(whole, true);
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(work.values[r] + d + c * PAGE, sums[r][c]);
}

template <class T, int R> void add_block(const Block &block, Work<T, R> &work, int head_dim) {
    constexpr int C = std::max(1, std::min(4, SUMS / R));
    int d = 0;
    for (; d + C * PAGE <= head_dim; d += C * PAGE) add_values<T, R, C>(block, work, head_dim, d);
    for (; d < head_dim; d += PAGE) add_values<T, R, 1>(block, work, head_dim, d);
}

template <class T, int R> void begin(const Call &call, const Tile &tile, int kv_head, Work<T, R> &work) {
    const int units = int(call.head_dim) / work.pack, start = call.starts[tile.sequence];
    const int queries = call.starts[tile.sequence + 1] - start;
    for (int r = 0; r < R; ++r) {
        const int row = tile.first_row + std::min(r, tile.rows - 1); // rows past the tile's end repeat the last; not stored
        const int token = row / call.group(), head = kv_head * call.group() + row % call.group();
        const T *query = static_cast<const T *>(call.q) + (start + token) * call.q_stride + head * call.head_dim;
        for (int unit = 0; unit < units; ++unit)
            std::memcpy(&work.queries[unit * R + r], query + unit * work.pack, sizeof(uint32_t));
        work.last[r] = std::max(0, call.lengths[tile.sequence] - queries + token + 1);
        work.first[r] = int(std::max<int64_t>(0, work.last[r] - call.window));
        work.top[r] = FLOOR;
        std::fill_n(work.sums[r], PAGE, 0.0f);
        std::fill_n(work.values[r], call.head_dim, 0.0f);
    }
}

template <class T, int R> void finish(const Call &call, const Tile &tile, int kv_head, const Work<T, R> &work) {
    for (int r = 0; r < tile.rows; ++r) {
        const int row = tile.first_row + r, head = kv_head * call.group() + row % call.group();
        const int64_t token = call.starts[tile.sequence] + row / call.group();
        T *out = static_cast<T *>(call.out) + (token * call.heads + head) * call.head_dim;
        const bool blind = work.last[r] <= work.first[r];
        const Lanes sum = broadcast(blind ? 1.0f : total(load(work.sums[r])));
        // Adding 0 makes -0 into 0: how often a weight of 0 was added must not show, not even in a sign.
        for (int d = 0; d < call.head_dim; d += PAGE)
            store_as<T>(out + d, add(divide(load(work.values[r] + d), sum), broadcast(0)));
    }
}

// With few rows the cache is read once, from memory: ask for the values while the scores are computed.
void prefetch(const uint32_t *from, int64_t units) {
    for (int64_t unit = 0; unit < units; unit += 16) _mm_prefetch(reinterpret_cast<const char *>(from + unit), _MM_HINT_T0);
}

template <class T, int R> void attend_tile(const Call &call, const Tile &tile, int kv_head) {
    Work<T, R> work;
    begin(call, tile, kv_head, work);
    const int32_t *table = call.tables + tile.sequence * call.table_width;
    const int64_t page_units = PAGE * call.head_dim / work.pack;
    const int end = work.last[R - 1], first_page = work.first[0] / PAGE, end_page = (end + PAGE - 1) / PAGE;
    for (int from = first_page; from < end_page;) {
        const int to = std::min(end_page, (from / BLOCK + 1) * BLOCK);
        Block block{{}, {}, from * PAGE, to - from, std::min(end, to * PAGE) - from * PAGE};
        for (int page = from; page < to; ++page) {
            const int64_t offset = (table[page] * call.kv_heads + kv_head) * page_units;
            block.keys[page - from] = static_cast<const uint32_t *>(call.k_cache) + offset;
            block.values[page - from] = static_cast<const uint32_t *>(call.v_cache) + offset;
            if (R <= 4) prefetch(block.values[page - from], page_units);
        }
        score_block<T, R>(block, work, int(call.head_dim) / work.pack);
        for (int r = 0; r < R; ++r) weigh<T, R>(call, block, work, r);
        add_block<T, R>(block, work, int(call.head_dim));
        from = to;
    }
    finish(call, tile, kv_head, work);
}

template <class T> void attend_rows(const Call &call, const Tile &tile, int kv_head) {
    if (tile.rows == 1) return attend_tile<T, 1>(call, tile, kv_head);
    if (tile.rows == 2) return attend_tile<T, 2>(call, tile, kv_head);
    if (tile.rows == 3) return attend_tile<T, 3>(call, tile, kv_head);
    if (tile.rows == 4 || ROWS == 4) return attend_tile<T, 4>(call, tile, kv_head);
    if (tile.rows <= 6) return attend_tile<T, std::min(6, ROWS)>(call, tile, kv_head);
    if (tile.rows <= 8) return attend_tile<T, std::min(8, ROWS)>(call, tile, kv_head);
    return attend_tile<T, ROWS>(call, tile, kv_head);
}

// What is wrong with the integers of the call: they steer memory accesses.
Fault check(const Call &call) {
    if (call.starts[0] != 0 || call.starts[call.sequences] > call.tokens) return STARTS;
    for (int64_t s = 0; s < call.sequences; ++s) {
        const int64_t queries = call.starts[s + 1] - call.starts[s], length = call.lengths[s];
        if (queries < 0) return STARTS;
        if (length < 0 || length > call.table_width * PAGE) return LENGTHS;
        const int64_t first = std::max<int64_t>(0, length - queries + 1 - call.window) / PAGE;
        for (int64_t page = first; queries > 0 && page * PAGE < length; ++page) {
            const int32_t id = call.tables[s * call.table_width + page];
            if (id < 0 || id >= call.pages) return TABLES;
        }
    }
    return NONE;
}

template <class T> Fault attend(const Call &call) {
    const Fault fault = check(call);
    if (fault != NONE) return fault;
    std::vector<Tile> tiles;
    for (int s = 0; s < call.sequences; ++s) {
        const int rows = (call.starts[s + 1] - call.starts[s]) * call.group();
        for (int row = 0; row < rows; row += ROWS) tiles.push_back({s, row, std::min(ROWS, rows - row)});
    }
    const int64_t tasks = int64_t(tiles.size()) * call.kv_heads, used = call.starts[call.sequences];
    const int64_t row_size = call.heads * call.head_dim;
    std::memset(static_cast<T *>(call.out) + used * row_size, 0, (call.tokens - used) * row_size * sizeof(T));
#pragma omp parallel num_threads(call.threads) if (tasks > 1)
    {
        const FlushDenormals flush;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; ++task)
            attend_rows<T>(call, tiles[task / call.kv_heads], int(task % call.kv_heads));
    }
    return NONE;
}

} // namespace

extern "C" int strop_attend(const Call *call) { return call->is_bf16 ? attend<bf16>(*call) : attend<float>(*call); }
