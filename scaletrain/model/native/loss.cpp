// Cross-entropy of bfloat16 logits, which become their own gradient, row by row while a row is in the cache.

#include <cmath>

#include "vectors.h"

namespace {

const __m512 LOG2E = _mm512_set1_ps(1.44269504f);

// Of 16 elements at v, those before the row's end.
inline __mmask16 inside(int64_t v, int64_t V) { return V - v >= 16 ? 0xffff : (__mmask16)((1u << (V - v)) - 1); }

inline __m512 load_half(const bf16* x, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

inline float number(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

// e^(x - top); x may be -inf
inline __m512 exponential(__m512 x, __m512 top_log2e) {
    return exp2_of(_mm512_max_ps(_mm512_set1_ps(-1000.0f), _mm512_fmsub_ps(x, LOG2E, top_log2e)));
}

}  // namespace

extern "C" {

// logits[rows][V] -> softmax(logits) - onehot(label); loss[rows]: log(sum(exp(logits))) - logits[label]. A negative
// label has the loss 0, and its row a softmax.
void cross_entropy(bf16* logits, const int64_t* labels, float* loss, int64_t rows, int64_t V, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < rows; ++i) {
        bf16* row = logits + i * V;
        __m512 most = _mm512_set1_ps(-INFINITY);
        for (int64_t v = 0; v < V; v += 16) most = _mm512_mask_max_ps(most, inside(v, V), most, load_half(row + v, inside(v, V)));
        const float top = _mm512_reduce_max_ps(most);
        const __m512 exponent = _mm512_mul_ps(_mm512_set1_ps(top), LOG2E);
        __m512 total = _mm512_setzero_ps();
        for (int64_t v = 0; v < V; v += 16) {
            const __m512 e = exponential(load_half(row + v, inside(v, V)), exponent);
            total = _mm512_mask_add_ps(total, inside(v, V), total, e);
        }
        const float sum = _mm512_reduce_add_ps(total);
        const int64_t label = labels[i];
        const float of_label = label < 0 ? 0 : number(row[label]);
        const __m512 share = _mm512_set1_ps(1.0f / sum);
        for (int64_t v = 0; v < V; v += 16) {
            const __m512 e = exponential(load_half(row + v, inside(v, V)), exponent);
            _mm256_mask_storeu_epi16(row + v, inside(v, V), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(e, share)));
        }
        loss[i] = label < 0 ? 0 : top + std::log(sum) - of_label;
        if (label >= 0) {
            const __m512 p = exponential(_mm512_set1_ps(of_label), exponent);
            const __m512 less = _mm512_sub_ps(_mm512_mul_ps(p, share), _mm512_set1_ps(1.0f));
            _mm256_mask_storeu_epi16(row + label, 1, (__m256i)_mm512_cvtneps_pbh(less));
        }
    }
}
}
