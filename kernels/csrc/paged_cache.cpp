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

template <class T>
int write(const T *k, const T *v, T *k_cache, T *v_cache, const int32_t *slots, int64_t k_stride, int64_t v_stride,
          int64_t tokens, int64_t pages, int64_t kv_heads, int64_t head_dim, int threads) {
    for (int64_t t = 0; t < tokens; ++t)
        if (slots[t] < -1 || slots[t] >= pages * PAGE) return 1;
#pragma omp parallel for num_threads(threads) if (tokens > 64)
    for (int64_t t = 0; t < tokens; ++t)
        if (slots[t] >= 0) write_row(k + t * k_stride, v + t * v_stride, k_cache, v_cache, slots[t], kv_heads, head_dim);
    return 0;
}

} // namespace

// Returns 1, and writes nothing, if a slot lies outside the cache.
extern "C" int strop_paged_write(const void *k, const void *v, void *k_cache, void *v_cache, const int32_t *slots,
                                 int64_t k_stride, int64_t v_stride, int64_t tokens, int64_t pages, int64_t kv_heads,
                                 int64_t head_dim, int is_16_bit, int threads) {
    if (is_16_bit)
        return write(static_cast<const uint16_t *>(k), static_cast<const uint16_t *>(v), static_cast<uint16_t *>(k_cache),
                     static_cast<uint16_t *>(v_cache), slots, k_stride, v_stride, tokens, pages, kv_heads, head_dim, threads);
    return write(static_cast<const uint32_t *>(k), static_cast<const uint32_t *>(v), static_cast<uint32_t *>(k_cache),
                 static_cast<uint32_t *>(v_cache), slots, k_stride, v_stride, tokens, pages, kv_heads, head_dim, threads);
}
