// The activations of feed-forward layers in bfloat16, computed in float32: one pass over memory each.
// n elements, a multiple of 16.

#include "vectors.h"

namespace {

constexpr int PART = 1 << 14;  // elements that a thread does at a time

const __m512 ONE = _mm512_set1_ps(1.0f);

// 1 / (1 + e^-x)
inline __m512 sigmoid(__m512 x) {
    // Bounded, since exp2_of takes no infinity; beyond the bounds the result is 0 or 1.
    const __m512 bound = _mm512_set1_ps(200.0f), exponent = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const __m512 bounded = _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), bound), _mm512_min_ps(bound, exponent));
    return _mm512_div_ps(ONE, _mm512_add_ps(ONE, exp2_of(bounded)));
}

// GELU in its tanh form is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016).
constexpr float SLOPE = 1.5957691216f, CUBE = 0.044715f;

inline __m512 gelu(__m512 x) {
    const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(CUBE), ONE);
    return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_mul_ps(x, inner), _mm512_set1_ps(SLOPE))));
}

inline __m512 gelu_slope(__m512 x) {
    const __m512 square = _mm512_mul_ps(x, x);
    const __m512 inner = _mm512_fmadd_ps(square, _mm512_set1_ps(CUBE), ONE);
    const __m512 s = sigmoid(_mm512_mul_ps(_mm512_mul_ps(x, inner), _mm512_set1_ps(SLOPE)));
    const __m512 rise = _mm512_mul_ps(_mm512_fmadd_ps(square, _mm512_set1_ps(3 * CUBE), ONE), _mm512_set1_ps(SLOPE));
    // s + x s (1 - s) d(2 u) / dx
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(x, s), _mm512_sub_ps(ONE, s)), rise, s);
}

// f(i) for the i-th 16 elements of all n.
template <class F>
void for_each(int64_t n, int threads, F f) {
#pragma omp parallel for num_threads(threads)
    for (int64_t part = 0; part < n; part += PART)
        for (int64_t i = part; i < n && i < part + PART; i += 16) f(i);
}

}  // namespace

extern "C" {

void gelu_forward(const bf16* x, bf16* y, int64_t n, int threads) {
    for_each(n, threads, [=](int64_t i) { store_half(y + i, gelu(load_half(x + i))); });
}

// dy -> dx
void gelu_backward(const bf16* x, const bf16* dy, bf16* dx, int64_t n, int threads) {
    for_each(n, threads, [=](int64_t i) {
        store_half(dx + i, _mm512_mul_ps(load_half(dy + i), gelu_slope(load_half(x + i))));
    });
}

// y = silu(gate) up
void gated_silu_forward(const bf16* gate, const bf16* up, bf16* y, int64_t n, int threads) {
    for_each(n, threads, [=](int64_t i) {
        const __m512 g = load_half(gate + i);
        store_half(y + i, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), load_half(up + i)));
    });
}

void gated_silu_backward(const bf16* gate, const bf16* up, const bf16* dy, bf16* dgate, bf16* dup, int64_t n,
                         int threads) {
    for_each(n, threads, [=](int64_t i) {
        const __m512 g = load_half(gate + i), d = load_half(dy + i), s = sigmoid(g);
        store_half(dup + i, _mm512_mul_ps(d, _mm512_mul_ps(g, s)));
        // s + g s (1 - s)
        const __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(g, s), _mm512_sub_ps(ONE, s), s);
        store_half(dgate + i, _mm512_mul_ps(_mm512_mul_ps(d, load_half(up + i)), slope));
    });
}
}
