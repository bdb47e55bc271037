// LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019) of bfloat16 rows, computed and summed in float32.
// C is a multiple of 16. Without means it is RMSNorm.

#include <omp.h>

#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

struct Rows {
    long begin, end;
    // This thread's, of all.
    explicit Rows(long all) {
        const long threads = omp_get_num_threads(), thread = omp_get_thread_num();
        begin = all * thread / threads;
        end = all * (thread + 1) / threads;
    }
};

inline float sum(__m512 v) { return _mm512_reduce_add_ps(v); }

}  // namespace

extern "C" {

// x[rows][C] -> y; rstd[rows] and, where there is a bias, mean[rows].
void norm_forward(const bf16* x, const bf16* weight, const bf16* bias, bf16* y, float* mean, float* rstd, int64_t rows,
                  int64_t C, double eps, int threads) {
#pragma omp parallel num_threads(threads)
    for (Rows r(rows); r.begin < r.end; ++r.begin) {
        const bf16* row = x + r.begin * C;
        __m512 total = _mm512_setzero_ps();
        float middle = 0;
        if (bias) {
            for (int64_t c = 0; c < C; c += 16) total = _mm512_add_ps(total, load_half(row + c));
            middle = mean[r.begin] = sum(total) / (float)C;
        }
        const __m512 centre = _mm512_set1_ps(middle);
        total = _mm512_setzero_ps();
        for (int64_t c = 0; c < C; c += 16) {
            const __m512 d = _mm512_sub_ps(load_half(row + c), centre);
            total = _mm512_fmadd_ps(d, d, total);
        }
        rstd[r.begin] = (float)(1.0 / std::sqrt(sum(total) / (float)C + eps));
        const __m512 scale = _mm512_set1_ps(rstd[r.begin]);
        for (int64_t c = 0; c < C; c += 16) {
            const __m512 xhat = _mm512_mul_ps(_mm512_sub_ps(load_half(row + c), centre), scale);
            const __m512 shift = bias ? load_half(bias + c) : _mm512_setzero_ps();
            store_half(y + r.begin * C + c, _mm512_fmadd_ps(xhat, load_half(weight + c), shift));
        }
    }
}

// dy[rows][C] -> dx[rows][C]; dweight[C] and, where there are means, dbias[C]: sums over the rows.
void norm_backward(const bf16* dy, const bf16* x, const bf16* weight, const float* mean, const float* rstd, bf16* dx,
                   bf16* dweight, bf16* dbias, int64_t rows, int64_t C, int threads) {
    std::vector<float> sums(2 * C * threads, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        float *dw = sums.data() + 2 * C * omp_get_thread_num(), *db = dw + C;
        for (Rows r(rows); r.begin < r.end; ++r.begin) {
            const bf16 *row = x + r.begin * C, *grow = dy + r.begin * C;
            const __m512 centre = _mm512_set1_ps(mean ? mean[r.begin] : 0), scale = _mm512_set1_ps(rstd[r.begin]);
            __m512 plain = _mm512_setzero_ps(), along = _mm512_setzero_ps();
            for (int64_t c = 0; c < C; c += 16) {
                const __m512 g = load_half(grow + c), gw = _mm512_mul_ps(g, load_half(weight + c));
                const __m512 xhat = _mm512_mul_ps(_mm512_sub_ps(load_half(row + c), centre), scale);
                plain = _mm512_add_ps(plain, gw);
                along = _mm512_fmadd_ps(gw, xhat, along);
                store(dw + c, _mm512_fmadd_ps(g, xhat, load(dw + c)));
                store(db + c, _mm512_add_ps(g, load(db + c)));
            }
            const __m512 m1 = _mm512_set1_ps(mean ? sum(plain) / (float)C : 0), m2 = _mm512_set1_ps(sum(along) / (float)C);
            for (int64_t c = 0; c < C; c += 16) {
                const __m512 gw = _mm512_mul_ps(load_half(grow + c), load_half(weight + c));
                const __m512 xhat = _mm512_mul_ps(_mm512_sub_ps(load_half(row + c), centre), scale);
                store_half(dx + r.begin * C + c, _mm512_mul_ps(scale, _mm512_fnmadd_ps(xhat, m2, _mm512_sub_ps(gw, m1))));
            }
        }
    }
    for (int64_t c = 0; c < C; c += 16) {
        __m512 w = _mm512_setzero_ps(), b = _mm512_setzero_ps();
        for (int thread = 0; thread < threads; ++thread) {
            w = _mm512_add_ps(w, load(sums.data() + 2 * C * thread + c));
            b = _mm512_add_ps(b, load(sums.data() + 2 * C * thread + C + c));
        }
        store_half(dweight + c, w);
        if (dbias) store_half(dbias + c, b);
    }
}
}
