// Writes new keys and values into the paged cache. Layouts: see paged_cache.py. Each row of the call owns its slot: no races.

#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t PAGE = 16;

template <class T>
void write_row(const T *k, const T *v, T *k_cache, T *v_cache, int64_t slot, int64_t kv_heads, int64_t head_dim) {
    constexpr int64_t pack = 4 / sizeof(T);
    const int64_t page = slot / PAGE, offset = slot % PAGE;
    for (int64_t head = 0; head < kv_heads; ++head) {
        T *keys = k_cache + (page * kv_heads + head) * PAGE * head_dim + offset * pack;
        T *values = v_cache + (page * kv_heads + head) * PAGE * head_dim + offset / pack * head_dim * pack + offset % pack;
        for (int64_t d = 0; d < head_dim; d += pack) std::memcpy(keys + d * PAGE, k + head * head_dim + d, sizeof(T) * pack);
        for (int64_t d = 0; d < head_dim; ++d) values[d * pack] = v[head * head_dim + d];
    }
}

// What one call is told. paged_cache.py packs these fields in this order.
struct Call {
    const void *k, *v;
    void *k_cache, *v_cache;
    const int32_t *slots;
    int64_t k_stride, v_stride, tokens, pages, kv_heads, head_dim;
    int32_t itemsize, threads;
};

template <class T> int write(const Call &call) {
    for (int64_t t = 0; t < call.tokens; ++t)
        if (call.slots[t] < -1 || call.slots[t] >= call.pages * PAGE) return 1;
    const T *k = static_cast<const T *>(call.k), *v = static_cast<const T *>(call.v);
    T *k_cache = static_cast<T *>(call.k_cache), *v_cache = static_cast<T *>(call.v_cache);
#pragma omp parallel for num_threads(call.threads) if (call.tokens > 64)
    for (int64_t t = 0; t < call.tokens; ++t)
        if (call.slots[t] >= 0)
            write_row(k + t * call.k_stride, v + t * call.v_stride, k_cache, v_cache, call.slots[t], call.kv_heads,
                      call.head_dim);
    return 0;
}

} // namespace

// Returns 1, and writes nothing, if a slot lies outside the cache.
extern "C" int strop_paged_write(const Call *call) {
    return call->itemsize == 2 ? write<uint16_t>(*call) : write<uint32_t>(*call);
}
