// Inner loops for which XLA's CPU compiler has no fast code without AMX: products with 8-bit weights, products of few rows
// with float32 weights, and attention of one position to a cache. Called from compiled programs through XLA's FFI; the
// threads are XLA's.
//
// Compiled on the user's machine by `bark_jax.native`, for AVX512-VNNI or for AVX2 and FMA. 8-bit products are exactly
// what `linear._int8_product` gives: sums of integers, and what is done in floating point is done in the same order.
//
// Shapes: M rows of activations, N outputs, K inputs.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// --- vectors: what differs between the two instruction sets ----------------------------------------------------------

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

constexpr int kBytes = 64, kLanes = 16;
using Int = __m512i;
using Float = __m512;

inline Int load(const int8_t* p) { return _mm512_loadu_si512(p); }
inline Int zero() { return _mm512_setzero_si512(); }
inline Int raised(Int w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }  // -128 .. 127 to 0 .. 255
// Not the intrinsic: with it, GCC 12 writes every sum to memory at every step.
inline Int add_products(Int sums, Int u8, Int s8) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(u8), "vm"(s8));
  return sums;
}

// The sums over the lanes of four vectors.
inline __m128i totals(Int a, Int b, Int c, Int d) {
  Int ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  Int cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  Int all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

inline Float load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
inline Float all(float x) { return _mm512_set1_ps(x); }
inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
inline Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }
inline Float to_nearest(Float x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Float times_power_of_2(Float x, Float n) { return _mm512_scalef_ps(x, n); }
inline float total(Float x) { return _mm512_reduce_add_ps(x); }
inline float largest(Float x) { return _mm512_reduce_max_ps(x); }
// Of these two, what is not a number counts as above.
inline bool any_above(Float x, float limit) { return _mm512_cmp_ps_mask(x, all(limit), _CMP_NLE_UQ) != 0; }
inline Float where_above(Float x, float limit, Float y) {  // y, or 0
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(limit), _CMP_NLE_UQ), y);
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int kBytes = 32, kLanes = 8;
using Int = __m256i;
using Float = __m256;

inline Int load(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Int zero() { return _mm256_setzero_si256(); }
inline Int raised(Int w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }
// Not vpmaddubsw, whose sums of two products do not fit into its 16 bits: even and odd bytes apart, in 16 bits each.
inline Int add_products(Int sums, Int u8, Int s8) {
  Int even = _mm256_madd_epi16(_mm256_and_si256(u8, _mm256_set1_epi16(255)),
                               _mm256_srai_epi16(_mm256_slli_epi16(s8, 8), 8));
  Int odd = _mm256_madd_epi16(_mm256_srli_epi16(u8, 8), _mm256_srai_epi16(s8, 8));
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}

inline __m128i totals(Int a, Int b, Int c, Int d) {
  Int all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

inline Float load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
inline Float all(float x) { return _mm256_set1_ps(x); }
inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
inline Float larger(Float a, Float b) { return _mm256_max_ps(a, b); }
inline Float to_nearest(Float x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Float times_power_of_2(Float x, Float n) {  // n from -126 to 127
  Int exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}
inline float total(Float x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float largest(Float x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
inline bool any_above(Float x, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x, all(limit), _CMP_NLE_UQ)) != 0;
}
inline Float where_above(Float x, float limit, Float y) {
  return _mm256_and_ps(_mm256_cmp_ps(x, all(limit), _CMP_NLE_UQ), y);
}

#else
#error "compile for AVX512-VNNI, or for AVX2 and FMA"
#endif

// e to the power of x ≤ 0, to about one unit in the last place, and 0 where it is below 1e-37: Cephes' polynomial
// (expf.c of netlib.org/cephes).
inline Float exponential(Float given) {
  const float least = -85.0f;
  Float x = larger(all(least), given);  // in this order: what is not a number stays so
  Float n = to_nearest(x * all(1.44269504088896341f));
  x = fma(n, all(-0.693359375f), x);
  x = fma(n, all(2.12194440e-4f), x);
  Float y = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    y = fma(y, x, all(c));
  }
  return where_above(given, least, times_power_of_2(fma(y, x * x, x + all(1.0f)), n));
}

// --- threads ---------------------------------------------------------------------------------------------------------

// work(i) for every i below n, by this thread and those of the pool that have time. A helper that comes too late finds
// nothing left and does not touch `work`, so nothing waits for a thread that may itself be waiting.
template <typename Work>
void parallel(ffi::ThreadPool& pool, int64_t n, const Work& work) {
  int64_t helpers = std::min<int64_t>(n, pool.num_threads()) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < n; ++i) work(i);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0}, finished{0};
  };
  auto shared = std::make_shared<Shared>();
  auto join = [shared, n, &work] {
    int64_t done = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < n; ++done) work(i);
    shared->finished.fetch_add(done);
  };
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(join));
  join();
  while (shared->finished.load() < n) _mm_pause();
}

// --- rows ------------------------------------------------------------------------------------------------------------

// call(number of rows, first of them) until rows m .. end - 1 are done: eight, then four, two and one at a time. The
// number is a type, `std::integral_constant`, to be known when this is compiled.
template <int M = 8, typename Call>
void by_eights(int64_t m, int64_t end, const Call& call) {
  for (; m + M <= end; m += M) call(std::integral_constant<int, M>(), m);
  if constexpr (M > 1) by_eights<M / 2>(m, end, call);
}

// --- products with 8-bit weights -------------------------------------------------------------------------------------

// Activations in 8 bits: rows of `stride` bytes, zeros behind K.
struct Rows {
  const int64_t k, stride;
  std::unique_ptr<int8_t[]> values;
  std::vector<float> scale;
  std::vector<int32_t> offset;  // what raising the weights by 128 adds to each sum

  Rows(int64_t m, int64_t k)
      : k(k), stride((k + kBytes - 1) / kBytes * kBytes), values(new int8_t[m * stride]), scale(m), offset(m) {}

  const int8_t* row(int64_t i) const { return values.get() + i * stride; }

  void fill(int64_t i, const float* x) {
    uint32_t bits = 0;  // of the largest magnitude: as integers, so that not-a-number counts as the largest
    for (int64_t j = 0; j < k; ++j) {
      uint32_t one;
      std::memcpy(&one, x + j, 4);
      bits = std::max(bits, one & 0x7FFFFFFFu);
    }
    float most;
    std::memcpy(&most, &bits, 4);
    const float unit = (most == 0 ? 1.0f : most) * (1.0f / 127.0f), inverse = 1.0f / unit;
    int8_t* out = values.get() + i * stride;
    uint32_t sum = 0;  // unsigned: what is not a number may overflow it, and says so by its scale
    for (int64_t j = 0; j < k; ++j) {
      const int32_t value = static_cast<int32_t>(std::nearbyint(x[j] * inverse));
      out[j] = static_cast<int8_t>(value);
      sum += static_cast<uint32_t>(value);
    }
    std::memset(out + k, 0, stride - k);
    scale[i] = unit;
    offset[i] = static_cast<int32_t>(128 * sum);
  }
};

// M rows of activations by four rows of weights, which begin `apart` bytes after each other: the sums of M · 4 products
// of rows, over K that is a multiple of kBytes. Of few rows in all the weights are read one after the other, in the order
// in which they lie in memory, which is what it waits for: four at once, it reads at half of the rate.
template <int M, bool kFew>
[[gnu::always_inline]] inline void tile(const int8_t* x, int64_t stride, const int8_t* w, int64_t apart, int64_t k,
                                        __m128i sums[M]) {
  Int acc[M][4];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) acc[m][n] = zero();
  if constexpr (kFew) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < k; j += kBytes) {
        Int weights = raised(load(w + n * apart + j));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) acc[m][n] = add_products(acc[m][n], weights, load(x + m * stride + j));
      }
    }
  } else {
    for (int64_t j = 0; j < k; j += kBytes) {
      Int weights[4];
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) weights[n] = raised(load(w + n * apart + j));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        Int values = load(x + m * stride + j);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) acc[m][n] = add_products(acc[m][n], weights[n], values);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sums[m] = totals(acc[m][0], acc[m][1], acc[m][2], acc[m][3]);
}

// As `tile`, of `rows` ≤ 4 rows of weights and of the `left` last inputs, nothing behind which is read; the activations
// have zeros there.
template <int M>
void last(const int8_t* x, int64_t stride, const int8_t* w, int64_t apart, int64_t rows, int64_t left,
          __m128i sums[M]) {
  alignas(64) int8_t copy[4 * kBytes] = {};
  for (int64_t n = 0; n < rows; ++n) std::memcpy(copy + n * kBytes, w + n * apart, left);
  __m128i more[M];
  tile<M, true>(x, stride, copy, kBytes, kBytes, more);
  for (int m = 0; m < M; ++m) sums[m] = _mm_add_epi32(sums[m], more[m]);
}

constexpr int kTile = kLanes == 16 ? 6 : 2;  // rows of activations whose sums fit into the registers
constexpr int kMostFew = 8;                  // rows, with which the weights are read once

// Rows row .. row + M - 1 of y, columns first .. end - 1.
template <int M, bool kFew>
void some(const Rows& x, int64_t row, const int8_t* w, const float* scale, int64_t first, int64_t end, int64_t n_all,
          float* y) {
  const int8_t* values = x.row(row);
  const int64_t whole = x.k / kBytes * kBytes, left = x.k - whole;
  auto scaled = [&](__m128i sums, int m, __m128 unit) {
    __m128 exact = _mm_cvtepi32_ps(_mm_sub_epi32(sums, _mm_set1_epi32(x.offset[row + m])));
    return _mm_mul_ps(_mm_mul_ps(exact, _mm_set1_ps(x.scale[row + m])), unit);
  };
  __m128i sums[M];
  int64_t n = first;
  for (; n + 4 <= end; n += 4) {
    tile<M, kFew>(values, x.stride, w + n * x.k, x.k, whole, sums);
    if (left) last<M>(values + whole, x.stride, w + n * x.k + whole, x.k, 4, left, sums);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) _mm_storeu_ps(y + (row + m) * n_all + n, scaled(sums[m], m, _mm_loadu_ps(scale + n)));
  }
  for (; n < end; ++n) {  // one row of weights four times, for the first of four sums
    tile<M, true>(values, x.stride, w + n * x.k, 0, whole, sums);
    if (left) last<M>(values + whole, x.stride, w + n * x.k + whole, 0, 1, left, sums);
    for (int m = 0; m < M; ++m) _mm_store_ss(y + (row + m) * n_all + n, scaled(sums[m], m, _mm_set1_ps(scale[n])));
  }
}

ffi::Error Product(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> x, ffi::BufferR2<ffi::S8> w,
                   ffi::BufferR1<ffi::F32> scale, ffi::ResultBufferR2<ffi::F32> y) {
  const int64_t m_all = x.dimensions()[0], k = x.dimensions()[1], n_all = w.dimensions()[0];
  if (k < 1 || k > 1 << 16 || w.dimensions()[1] != k || scale.dimensions()[0] != n_all ||
      y->dimensions()[0] != m_all || y->dimensions()[1] != n_all)
    return ffi::Error::InvalidArgument("shapes of an 8-bit product do not fit");
  Rows x8(m_all, k);
  constexpr int64_t kAtOnce = 32;
  parallel(pool, (m_all + kAtOnce - 1) / kAtOnce, [&](int64_t i) {
    for (int64_t m = i * kAtOnce; m < std::min((i + 1) * kAtOnce, m_all); ++m) x8.fill(m, x.typed_data() + m * k);
  });
  // A part's weights stay in a core's own cache while all its rows of activations pass by.
  const bool few = m_all <= kMostFew;
  const int64_t wide = std::clamp<int64_t>((few ? 1 << 18 : 3 << 16) / k / 4 * 4, 4, few ? n_all + 4 : 128), deep = 192;
  const int64_t n_parts = (n_all + wide - 1) / wide, m_parts = (m_all + deep - 1) / deep;
  parallel(pool, n_parts * m_parts, [&](int64_t i) {
    const int64_t first = i % n_parts * wide, end = std::min(first + wide, n_all);
    int64_t m = i / n_parts * deep;
    const int64_t m_end = std::min(m + deep, m_all);
    if (!few) {
      for (; m + kTile <= m_end; m += kTile)
        some<kTile, false>(x8, m, w.typed_data(), scale.typed_data(), first, end, n_all, y->typed_data());
    }
    by_eights(m, m_end, [&](auto rows, int64_t m) {
      some<rows(), true>(x8, m, w.typed_data(), scale.typed_data(), first, end, n_all, y->typed_data());
    });
  });
  return ffi::Error::Success();
}

// --- products of few rows with float32 weights -----------------------------------------------------------------------

// Rows row .. row + M - 1 of y, columns first .. end - 1.
template <int M>
void few(const float* x, int64_t row, const float* w, int64_t k, int64_t first, int64_t end, int64_t n_all, float* y) {
  x += row * k;
  for (int64_t n = first; n < end; ++n) {
    const float* weights = w + n * k;
    Float sums[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m] = all(0.0f);
    int64_t j = 0;
#pragma GCC unroll 4
    for (; j + kLanes <= k; j += kLanes) {
      const Float weight = load(weights + j);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[m] = fma(weight, load(x + m * k + j), sums[m]);
    }
    for (int m = 0; m < M; ++m) {
      float sum = total(sums[m]);
      for (int64_t i = j; i < k; ++i) sum = std::fma(weights[i], x[m * k + i], sum);
      y[(row + m) * n_all + n] = sum;
    }
  }
}

ffi::Error Few(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> x, ffi::BufferR2<ffi::F32> w,
               ffi::ResultBufferR2<ffi::F32> y) {
  const int64_t m_all = x.dimensions()[0], k = x.dimensions()[1], n_all = w.dimensions()[0];
  if (k < 1 || w.dimensions()[1] != k || y->dimensions()[0] != m_all || y->dimensions()[1] != n_all)
    return ffi::Error::InvalidArgument("shapes of a product do not fit");
  // Half a megabyte at a time: a smaller weight is read sooner than another thread has woken.
  const int64_t wide = std::max<int64_t>((1 << 17) / k, 1);
  parallel(pool, (n_all + wide - 1) / wide, [&](int64_t i) {
    const int64_t first = i * wide, end = std::min(first + wide, n_all);
    by_eights(0, m_all, [&](auto rows, int64_t m) {
      few<rows()>(x.typed_data(), m, w.typed_data(), k, first, end, n_all, y->typed_data());
    });
  });
  return ffi::Error::Success();
}

// --- attention of one position ---------------------------------------------------------------------------------------

constexpr int64_t kMostChunks = 256 / kLanes;  // vectors of a head

// One head: slots that nothing is to be seen of are not read, kLanes of them at a time. `scores` begins as what is added
// to the scores, and is as long as a multiple of kLanes; what is behind the slots counts as unseen.
void attend(const float* q, const float* keys, const float* values, int64_t slots, int64_t size, float* scores,
            float* y) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(size)), unseen = -1e29f;
  const int64_t chunks = size / kLanes;
  Float query[kMostChunks], sums[kMostChunks];
  for (int64_t c = 0; c < chunks; ++c) {
    query[c] = load(q + c * kLanes);
    sums[c] = all(0.0f);
  }
  Float most = all(unseen);
  for (int64_t s = 0; s < slots; s += kLanes) {
    if (!any_above(load(scores + s), unseen)) continue;
    for (int64_t i = s; i < std::min(s + kLanes, slots); ++i) {
      const float* key = keys + i * size;
      Float sum = query[0] * load(key);
      for (int64_t c = 1; c < chunks; ++c) sum = fma(query[c], load(key + c * kLanes), sum);
      scores[i] += total(sum) * scale;
    }
    most = larger(most, load(scores + s));
  }
  const float top = largest(most);
  Float weight = all(0.0f);
  for (int64_t s = 0; s < slots; s += kLanes) {
    if (!any_above(load(scores + s), unseen)) continue;
    Float p = exponential(load(scores + s) - all(top));
    weight = weight + p;
    store(scores + s, p);
    for (int64_t i = s; i < std::min(s + kLanes, slots); ++i) {
      const float* value = values + i * size;
      Float share = all(scores[i]);
      for (int64_t c = 0; c < chunks; ++c) sums[c] = fma(share, load(value + c * kLanes), sums[c]);
    }
  }
  const float whole = total(weight);
  const Float share = all(whole > 0 ? 1.0f / whole : 0.0f);  // a row with nothing to see gives zeros
  for (int64_t c = 0; c < chunks; ++c) store(y + c * kLanes, sums[c] * share);
}

bool same(ffi::Span<const int64_t> a, ffi::Span<const int64_t> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

ffi::Error Attend(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> q, ffi::BufferR3<ffi::F32> keys,
                  ffi::BufferR3<ffi::F32> values, ffi::BufferR2<ffi::F32> bias, ffi::ResultBufferR2<ffi::F32> y) {
  const int64_t heads = keys.dimensions()[0], slots = keys.dimensions()[1], size = keys.dimensions()[2];
  const int64_t rows = bias.dimensions()[0], per_row = rows > 0 ? heads / rows : 0;
  if (size < 1 || size % kLanes || size / kLanes > kMostChunks || per_row * rows != heads ||
      bias.dimensions()[1] != slots || !same(values.dimensions(), keys.dimensions()) || q.dimensions()[0] != heads ||
      q.dimensions()[1] != size || !same(y->dimensions(), q.dimensions()))
    return ffi::Error::InvalidArgument("shapes of attention to a cache do not fit");
  parallel(pool, heads, [&](int64_t i) {
    static thread_local std::vector<float> scores;
    scores.assign((slots + kLanes - 1) / kLanes * kLanes, -1e30f);
    std::copy_n(bias.typed_data() + i / per_row * slots, slots, scores.data());
    attend(q.typed_data() + i * size, keys.typed_data() + i * slots * size, values.typed_data() + i * slots * size, slots,
           size, scores.data(), y->typed_data() + i * size);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(bark_jax_product, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::S8>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bark_jax_few, Few,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bark_jax_attend, Attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR3<ffi::F32>>()
                                  .Arg<ffi::BufferR3<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>());
