// Causal attention in bfloat16 for CPUs with AVX-512 BF16: blocks of 64 queries and 64 keys whose scores never leave
// the cache (FlashAttention-2, Dao 2023). Built by build.py, called by attention.py.
//
// B batch, T tokens, H query heads, G key/value heads, R = H / G, X = H + 2 G, D head size, a multiple of 32.
// A block's scores are held with keys as rows and queries as columns: what belongs to a query (its maximum, its sum)
// is then a lane of a vector, and no reduction runs across a vector.
// "Packed" is the right factor of VDPBF16PS: rows 2k and 2k + 1 side by side, [K / 2][N][2].

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int S = 64;            // queries, and keys, of a block
constexpr float LOWEST = -1e30f;  // no score; finite, so that the difference of two is a number

// R rows and 16 V columns of C (+)= A B: A by rows, B packed with N columns.
template <int R, int V, bool ADD>
inline void tile(int K, const bf16* A, int lda, const bf16* B, int N, float* C) {
    __m512 c[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) c[r][v] = ADD ? load(C + r * N + 16 * v) : _mm512_setzero_ps();
    for (int k = 0; k < K; k += 2) {
        __m512bh b[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) b[v] = (__m512bh)_mm512_loadu_si512(B + k * N + 32 * v);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            int32_t pair;
            std::memcpy(&pair, A + r * lda + k, 4);
            const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) c[r][v] = _mm512_dpbf16_ps(c[r][v], a, b[v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) store(C + r * N + 16 * v, c[r][v]);
}

// M rows, a multiple of 16, and 16 V columns: in tiles of at least 16 sums, which hide what a sum waits for the one before.
template <int V, bool ADD>
void columns(int M, int K, const bf16* A, int lda, const bf16* B, int N, float* C) {
    constexpr int R = V == 1 ? 16 : V < 4 ? 8 : 4;
    for (int m = 0; m < M; m += R) tile<R, V, ADD>(K, A + m * lda, lda, B, N, C + m * N);
}

// C[M, N] (+)= A[M, K] B: M a multiple of 16, N of 32. C has rows of N.
template <bool ADD>
void multiply(int M, int N, int K, const bf16* A, int lda, const bf16* B, float* C) {
    int n = 0;
    for (; n + 64 <= N; n += 64) columns<4, ADD>(M, K, A, lda, B + 2 * n, N, C + n);
    if (n < N) columns<2, ADD>(M, K, A, lda, B + 2 * n, N, C + n);
}

// The three products of a block on the diagonal, where queries see no later key; by sixteens of them.
// C[key, query] = A[64, K] B, where the query is not before the key's sixteen; the rest of C stays.
void multiply_seen(int K, const bf16* A, int lda, const bf16* B, float* C) {
    columns<4, false>(16, K, A, lda, B, S, C);
    columns<3, false>(16, K, A + 16 * lda, lda, B + 2 * 16, S, C + 16 * (S + 1));
    columns<2, false>(16, K, A + 32 * lda, lda, B + 2 * 32, S, C + 32 * (S + 1));
    columns<1, false>(16, K, A + 48 * lda, lda, B + 2 * 48, S, C + 48 * (S + 1));
}

// C[key, N] += A[key, query] B[query, N], of those queries.
void add_to_keys(int N, const bf16* A, const bf16* B, float* C) {
    for (int m = 0; m < S; m += 16) multiply<true>(16, N, S - m, A + m * (S + 1), S, B + m * N, C + m * N);
}

// C[M, query] += A[M, key] B[key, query], of those keys.
void add_to_queries(int M, const bf16* A, const bf16* B, float* C) {
    for (int n = 0; n < S; n += 16) columns<1, true>(M, n + 16, A, S, B + 2 * n, S, C + n);
}

// 16 x 16 elements of 32 bits; r[i] becomes column i.
inline void transpose(__m512i r[16]) {
    __m512i t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 16
    for (int c = 0; c < 4; ++c) {
        const __m512i even = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), odd = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        const __m512i odd2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(even, even2, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(even, even2, 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
    }
    std::memcpy(r, t, sizeof(t));
}

// The first `rows` of a block's 64 rows of D, `stride` apart, one behind the other; zeros in place of the others.
void copy_rows(const bf16* x, long stride, int rows, int D, bf16* y) {
    for (int t = 0; t < rows; ++t) std::memcpy(y + t * D, x + t * stride, D * sizeof(bf16));
    std::memset(y + rows * D, 0, (S - rows) * D * sizeof(bf16));
}

// x[64][D] -> the packed right factor [D / 2][64][2] of a product over D.
void pack_transposed(const bf16* x, int D, bf16* y) {
    for (int m = 0; m < S; m += 16)
        for (int d = 0; d < D; d += 32) {
            __m512i r[16];
            for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(x + (m + i) * D + d);
            transpose(r);
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(y + ((d / 2 + i) * S + m) * 2, r[i]);
        }
}

// x[64][D] -> the packed right factor [64 / 2][D][2] of a product over its rows.
void pack(const bf16* x, int D, bf16* y) {
    alignas(64) static const uint16_t first[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                   8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(first), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int m = 0; m < S; m += 2)
        for (int d = 0; d < D; d += 32) {
            const __m512i a = _mm512_loadu_si512(x + m * D + d), b = _mm512_loadu_si512(x + (m + 1) * D + d);
            _mm512_storeu_si512(y + m * D + 2 * d, _mm512_permutex2var_epi16(a, low, b));
            _mm512_storeu_si512(y + m * D + 2 * d + 32, _mm512_permutex2var_epi16(a, high, b));
        }
}

// x[64][D] -> [D][64].
void transpose_rows(const bf16* x, int D, bf16* y) {
    for (int m = 0; m < S; m += 16)
        for (int d = 0; d < D; d += 32) {
            __m512i r[16];
            for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(x + (m + i) * D + d);
            transpose(r);
            for (int i = 0; i < 16; ++i) {
                bf16* out = y + (d + 2 * i) * S + m;
                _mm256_storeu_si256((__m256i*)out, _mm512_cvtepi32_epi16(r[i]));
                _mm256_storeu_si256((__m256i*)(out + S), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r[i], 16)));
            }
        }
}

// x[D][64] times factor[64], transposed, to the first `rows` rows of y, `stride` apart.
void write_transposed(const float* x, const float* factor, int rows, int D, bf16* y, long stride) {
    for (int m = 0; m < rows; m += 16)
        for (int d = 0; d < D; d += 16) {
            __m512i r[16];
            for (int i = 0; i < 16; ++i)
                r[i] = _mm512_castps_si512(_mm512_mul_ps(load(x + (d + i) * S + m), load(factor + m)));
            transpose(r);
            for (int i = 0; i < 16 && m + i < rows; ++i) store_half(y + (m + i) * stride + d, _mm512_castsi512_ps(r[i]));
        }
}

struct Shape {
    int B, T, H, G, D;
    const int64_t* starts;  // [B][T], or none
    int blocks() const { return (T + S - 1) / S; }
    int rows(int block) const { return std::min(S, T - block * S); }
    long qkv_stride() const { return (long)(H + 2 * G) * D; }
    long y_stride() const { return (long)H * D; }
    // log2(e) / sqrt(D): scores become exponents of 2.
    float scale() const { return 1.44269504f / std::sqrt((float)D); }
};

// Which keys each of a block's queries sees: from first[m] to itself.
struct Window {
    int32_t first[S];
    int query, begin, whole;  // the first query; the first block of keys; keys from here on are seen by all
    Window(const Shape& s, int b, int block) : query(block * S) {
        const int rows = s.rows(block);
        for (int m = 0; m < S; ++m)
            first[m] = m >= rows ? INT_MAX : s.starts ? (int32_t)s.starts[(long)b * s.T + query + m] : 0;
        begin = first[0] / S;
        whole = rows < S ? INT_MAX : first[rows - 1];
    }
    bool hides(int key) const { return key < whole || key + S > query; }
    // Of 16 queries from m on, those that see this key.
    __mmask16 sees(int m, int key) const {
        const __m512i k = _mm512_set1_epi32(key), lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __mmask16 past = _mm512_cmpge_epi32_mask(_mm512_add_epi32(lane, _mm512_set1_epi32(query + m)), k);
        return past & _mm512_cmple_epi32_mask(_mm512_loadu_si512(first + m), k);
    }
};

// Two rows of 16 numbers, side by side as a packed right factor has them.
inline __m512i packed(__m512 a, __m512 b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

// Aligned parts of one piece of memory, which a thread takes anew for each of its tasks.
class Room {
  public:
    explicit Room(size_t bytes) : all_((char*)std::aligned_alloc(64, (bytes + 4095) / 64 * 64)), used_(0) {}
    ~Room() { std::free(all_); }
    void clear() { used_ = 0; }
    template <class E>
    E* take(size_t elements) {
        E* taken = (E*)(all_ + used_);
        used_ += (elements * sizeof(E) + 63) / 64 * 64;
        return taken;
    }

  private:
    char* all_;
    size_t used_;
};

size_t forward_bytes(const Shape& s) {
    const size_t one = S * s.D;
    return s.blocks() * one * 4 + one * (2 * 2 + 4) + S * S * (2 + 4);
}

size_t backward_bytes(const Shape& s) {
    const size_t one = S * s.D;
    return s.blocks() * one * (3 * 2 + 2 * 4) + one * (6 * 2 + 4) + S * S * (3 * 2 + 2 * 4);
}

// All queries of the heads that share key/value head g of sample b.
void forward(const Shape& s, int b, int g, const bf16* qkv, bf16* y, float* lse, Room& room) {
    const int D = s.D, blocks = s.blocks(), R = s.H / s.G;
    const long stride = s.qkv_stride();
    const bf16* row = qkv + b * s.T * stride;
    const size_t one = S * D, all = blocks * one;
    bf16 *k = room.take<bf16>(all), *v_t = room.take<bf16>(all), *q = room.take<bf16>(one), *q_t = room.take<bf16>(one);
    bf16* p = room.take<bf16>(S * S);
    float *scores = room.take<float>(S * S), *o = room.take<float>(one);
    for (int j = 0; j < blocks; ++j) {
        const bf16* from = row + j * S * stride + (s.H + g) * D;
        copy_rows(from, stride, s.rows(j), D, k + j * one);
        copy_rows(from + s.G * D, stride, s.rows(j), D, q);
        transpose_rows(q, D, v_t + j * one);
    }
    const __m512 scale = _mm512_set1_ps(s.scale());
    for (int h = g * R; h < (g + 1) * R; ++h)
        for (int i = 0; i < blocks; ++i) {
            const Window window(s, b, i);
            copy_rows(row + i * S * stride + h * D, stride, s.rows(i), D, q);
            pack_transposed(q, D, q_t);
            std::memset(o, 0, one * sizeof(float));
            alignas(64) float most[S], sum[S];
            std::fill(most, most + S, LOWEST);
            std::fill(sum, sum + S, 0.0f);
            for (int j = window.begin; j <= i; ++j) {
                const int key = j * S;
                const bool hides = window.hides(key);
                const bool is_last = i == j;
                if (is_last)
                    multiply_seen(D, k + j * one, D, q_t, scores);
                else
                    multiply<false>(S, S, D, k + j * one, D, q_t, scores);
                for (int m = 0; m < S; m += 16) {
                    const int keys = is_last ? m + 16 : S;
                    const __m512 before = load(most + m);
                    __m512 now = before;
                    if (hides)
                        for (int n = 0; n < keys; ++n)
                            now = _mm512_mask_max_ps(now, window.sees(m, key + n), now, load(scores + n * S + m));
                    else
                        for (int n = 0; n < keys; ++n) now = _mm512_max_ps(now, load(scores + n * S + m));
                    if (_mm512_cmp_ps_mask(now, before, _CMP_NEQ_UQ)) {
                        const __m512 less = exp2_of(_mm512_mul_ps(_mm512_sub_ps(before, now), scale));
                        store(most + m, now);
                        store(sum + m, _mm512_mul_ps(load(sum + m), less));
                        for (int d = 0; d < D; ++d) store(o + d * S + m, _mm512_mul_ps(load(o + d * S + m), less));
                    }
                    const __m512 exponent = _mm512_mul_ps(now, scale);
                    __m512 total = load(sum + m);
                    for (int n = 0; n < keys; n += 2) {
                        __m512 a = exp2_of(_mm512_fmsub_ps(load(scores + n * S + m), scale, exponent));
                        __m512 c = exp2_of(_mm512_fmsub_ps(load(scores + (n + 1) * S + m), scale, exponent));
                        if (hides) {
                            a = _mm512_maskz_mov_ps(window.sees(m, key + n), a);
                            c = _mm512_maskz_mov_ps(window.sees(m, key + n + 1), c);
                        }
                        total = _mm512_add_ps(total, _mm512_add_ps(a, c));
                        _mm512_storeu_si512(p + n * S + 2 * m, packed(a, c));
                    }
                    store(sum + m, total);
                }
                if (is_last)
                    add_to_queries(D, v_t + j * one, p, o);
                else
                    multiply<true>(D, S, S, v_t + j * one, S, p, o);
            }
            for (int m = 0; m < s.rows(i); ++m) {
                lse[((long)b * s.H + h) * s.T + i * S + m] = most[m] * s.scale() + std::log2(sum[m]);
                sum[m] = 1.0f / sum[m];
            }
            write_transposed(o, sum, s.rows(i), D, y + ((long)b * s.T + i * S) * s.y_stride() + h * D, s.y_stride());
        }
}

// The gradients of all queries of those heads, and of the key/value head.
void backward(const Shape& s, int b, int g, const bf16* qkv, const bf16* y, const float* lse, const bf16* dy,
              bf16* dqkv, Room& room) {
    const int D = s.D, blocks = s.blocks(), R = s.H / s.G;
    const long stride = s.qkv_stride();
    const bf16* row = qkv + b * s.T * stride;
    bf16* drow = dqkv + b * s.T * stride;
    const size_t one = S * D, all = blocks * one;
    bf16 *k = room.take<bf16>(all), *v = room.take<bf16>(all), *k_t = room.take<bf16>(all);
    float *dk = room.take<float>(all), *dv = room.take<float>(all);
    bf16 *q = room.take<bf16>(one), *q_t = room.take<bf16>(one), *q_p = room.take<bf16>(one);
    bf16 *u = room.take<bf16>(one), *u_t = room.take<bf16>(one), *u_p = room.take<bf16>(one);  // u: gradients of y
    float* dq = room.take<float>(one);
    float *scores = room.take<float>(S * S), *dp = room.take<float>(S * S);
    bf16 *p = room.take<bf16>(S * S), *ds = room.take<bf16>(S * S), *ds_p = room.take<bf16>(S * S);
    std::memset(dk, 0, all * sizeof(float));
    std::memset(dv, 0, all * sizeof(float));
    for (int j = 0; j < blocks; ++j) {
        const bf16* from = row + j * S * stride + (s.H + g) * D;
        copy_rows(from, stride, s.rows(j), D, k + j * one);
        copy_rows(from + s.G * D, stride, s.rows(j), D, v + j * one);
        transpose_rows(k + j * one, D, k_t + j * one);
    }
    const __m512 scale = _mm512_set1_ps(s.scale());
    alignas(64) float factor[S];
    std::fill(factor, factor + S, 1.0f / std::sqrt((float)D));
    for (int h = g * R; h < (g + 1) * R; ++h)
        for (int i = 0; i < blocks; ++i) {
            const Window window(s, b, i);
            const int rows = s.rows(i);
            const long place = ((long)b * s.T + i * S) * s.y_stride() + h * D;
            copy_rows(row + i * S * stride + h * D, stride, rows, D, q);
            copy_rows(dy + place, s.y_stride(), rows, D, u);
            pack_transposed(q, D, q_t);
            pack_transposed(u, D, u_t);
            pack(q, D, q_p);
            pack(u, D, u_p);
            alignas(64) float log_sum[S] = {}, dot[S] = {};  // of each query: log2 of its sum, and y . dy
            for (int m = 0; m < rows; ++m) {
                log_sum[m] = lse[((long)b * s.H + h) * s.T + i * S + m];
                __m512 total = _mm512_setzero_ps();
                for (int d = 0; d < D; d += 32)
                    total = _mm512_dpbf16_ps(total, (__m512bh)_mm512_loadu_si512(y + place + m * s.y_stride() + d),
                                             (__m512bh)_mm512_loadu_si512(u + m * D + d));
                dot[m] = _mm512_reduce_add_ps(total);
            }
            std::memset(dq, 0, one * sizeof(float));
            for (int j = window.begin; j <= i; ++j) {
                const int key = j * S;
                const bool hides = window.hides(key);
                const bool is_last = i == j;
                if (is_last) {
                    multiply_seen(D, k + j * one, D, q_t, scores);
                    multiply_seen(D, v + j * one, D, u_t, dp);
                } else {
                    multiply<false>(S, S, D, k + j * one, D, q_t, scores);
                    multiply<false>(S, S, D, v + j * one, D, u_t, dp);
                }
                for (int m = 0; m < S; m += 16) {
                    const int keys = is_last ? m + 16 : S;
                    const __m512 exponent = load(log_sum + m), mean = load(dot + m);
                    for (int n = 0; n < keys; n += 2) {
                        __m512 e[2], de[2];
#pragma GCC unroll 2
                        for (int x = 0; x < 2; ++x) {
                            const int at = (n + x) * S + m;
                            e[x] = exp2_of(_mm512_fmsub_ps(load(scores + at), scale, exponent));
                            if (hides) e[x] = _mm512_maskz_mov_ps(window.sees(m, key + n + x), e[x]);
                            de[x] = _mm512_mul_ps(e[x], _mm512_sub_ps(load(dp + at), mean));
                            store_half(p + at, e[x]);
                            store_half(ds + at, de[x]);
                        }
                        _mm512_storeu_si512(ds_p + n * S + 2 * m, packed(de[0], de[1]));
                    }
                }
                if (is_last) {
                    add_to_keys(D, p, u_p, dv + j * one);
                    add_to_keys(D, ds, q_p, dk + j * one);
                    add_to_queries(D, k_t + j * one, ds_p, dq);
                } else {
                    multiply<true>(S, D, S, p, S, u_p, dv + j * one);
                    multiply<true>(S, D, S, ds, S, q_p, dk + j * one);
                    multiply<true>(D, S, S, k_t + j * one, S, ds_p, dq);
                }
            }
            write_transposed(dq, factor, rows, D, drow + i * S * stride + h * D, stride);
        }
    for (int t = 0; t < s.T; ++t) {
        bf16* to = drow + t * stride + (s.H + g) * D;
        for (int d = 0; d < D; d += 16) {
            store_half(to + d, _mm512_mul_ps(load(dk + t * D + d), load(factor)));
            store_half(to + s.G * D + d, load(dv + t * D + d));
        }
    }
}

}  // namespace

extern "C" {

// qkv[B][T][X][D] -> y[B][T][H][D] and lse[B][H][T]: log2 of each query's sum of 2^score. starts[B][T]: the first key
// that each query sees, or null.
void attention_forward(const bf16* qkv, const int64_t* starts, bf16* y, float* lse, int64_t B, int64_t T, int64_t H,
                       int64_t G, int64_t D, int threads) {
    const Shape s{(int)B, (int)T, (int)H, (int)G, (int)D, starts};
#pragma omp parallel num_threads(threads)
    {
        Room room(forward_bytes(s));
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < B * G; ++task) {
            room.clear();
            forward(s, task / G, task % G, qkv, y, lse, room);
        }
    }
}

// And dy[B][T][H][D] -> dqkv[B][T][X][D].
void attention_backward(const bf16* qkv, const int64_t* starts, const bf16* y, const float* lse, const bf16* dy,
                        bf16* dqkv, int64_t B, int64_t T, int64_t H, int64_t G, int64_t D, int threads) {
    const Shape s{(int)B, (int)T, (int)H, (int)G, (int)D, starts};
#pragma omp parallel num_threads(threads)
    {
        Room room(backward_bytes(s));
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < B * G; ++task) {
            room.clear();
            backward(s, task / G, task % G, qkv, y, lse, dy, dqkv, room);
        }
    }
}
}
