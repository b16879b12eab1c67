// Moments and linear combinations of latents: the definition is strop/kernels/guidance.py.
// Race-free: a work item is one block of one row. It writes that block of the output, or that block's partial sums, which one
// thread then adds up in order: results depend neither on the number of threads nor on the other rows.
#include <algorithm>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t block = 1 << 14;  // elements of a work item
constexpr int moments_kept = 8;

struct Sums {
    double values[moments_kept];  // c, d, cc, dd, cd, mm, cm, dm
};

template <class T> Sums sum_block(const T *cond, const T *uncond, const T *momentum, int64_t size) {
    Doubles c1, d1, cc, dd, cd, mm, cm, dm;
    for (int64_t i = 0; i < size; i += width) {
        const Floats c = load_part(cond + i, size - i, 0.0f), d = c - load_part(uncond + i, size - i, 0.0f);
        c1 += c;
        d1 += d;
        cc.add_product(c, c);
        dd.add_product(d, d);
        cd.add_product(c, d);
        if (!momentum) continue;
        const Floats m = load_part(momentum + i, size - i, 0.0f);
        mm.add_product(m, m);
        cm.add_product(c, m);
        dm.add_product(d, m);
    }
    return {{c1.sum(), d1.sum(), cc.sum(), dd.sum(), cd.sum(), mm.sum(), cm.sum(), dm.sum()}};
}

// Each product and each sum is rounded by itself, in the order of the tensors, as the reference does.
template <class T> void combine_block(const T *const *tensors, int count, const float *coefficients, T *out, int64_t size) {
    for (int64_t i = 0; i < size; i += width) {
        Floats sum = load_part(tensors[0] + i, size - i, 0.0f) * all(coefficients[0]);
        for (int k = 1; k < count; ++k) sum = sum + load_part(tensors[k] + i, size - i, 0.0f) * all(coefficients[k]);
        store_part(out + i, sum, size - i);
    }
}

}  // namespace

extern "C" void moments(const void *cond, const void *uncond, const void *momentum, int dtype, int64_t rows, int64_t size,
                        double *out, int threads) {
    const int64_t blocks = (size + block - 1) / block;
    std::vector<Sums> partial(rows * blocks);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const T *c = static_cast<const T *>(cond), *u = static_cast<const T *>(uncond);
        const T *m = static_cast<const T *>(momentum);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * blocks > 1)
        for (int64_t item = 0; item < rows * blocks; ++item) {
            const int64_t start = item % blocks * block, at = item / blocks * size + start;
            partial[item] = sum_block(c + at, u + at, m ? m + at : nullptr, std::min(block, size - start));
        }
    });
    std::fill(out, out + rows * moments_kept, 0.0);
    for (int64_t item = 0; item < rows * blocks; ++item)
        for (int j = 0; j < moments_kept; ++j) out[item / blocks * moments_kept + j] += partial[item].values[j];
}

extern "C" void combine(const float *coefficients, int count, const void *first, const void *second, const void *third,
                        const void *fourth, int dtype, int64_t rows, int64_t size, void *out, int threads) {
    const int64_t blocks = (size + block - 1) / block;
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * blocks > 1)
        for (int64_t item = 0; item < rows * blocks; ++item) {
            const int64_t b = item / blocks, start = item % blocks * block, at = b * size + start;
            const T *tensors[4];
            int k = 0;
            for (const void *each : {first, second, third, fourth})
                tensors[k++] = each ? static_cast<const T *>(each) + at : nullptr;
            combine_block(tensors, count, coefficients + b * count, static_cast<T *>(out) + at, std::min(block, size - start));
        }
    });
}
