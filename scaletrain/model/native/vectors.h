// Vectors of 16 float32 numbers, and their bfloat16 form in memory.

#pragma once

#include <immintrin.h>

#include <cstdint>

typedef uint16_t bf16;

inline __m512 load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* x, __m512 v) { _mm512_storeu_ps(x, v); }
inline void store_half(bf16* x, __m512 v) { _mm256_storeu_si256((__m256i*)x, (__m256i)_mm512_cvtneps_pbh(v)); }

inline __m512 load_half(const bf16* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

// 2^x: x = n + f, |f| <= 1/2, 2^f by its Taylor series: within 3e-6.
inline __m512 exp2_of(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(0.0013333558f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0096181291f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0555041087f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2402265070f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6931471806f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}
