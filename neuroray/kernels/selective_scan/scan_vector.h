// Sixteen floats at a time: loads and stores in three number formats, exp, softplus, sigmoid and sums over lanes.
//
// GCC's vector extensions cut one 64-byte vector into what the machine has, so that all of this compiles everywhere;
// AVX-512 has its own form where the general one costs more instructions (NEURORAY_GENERAL_VECTORS: tests without it).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && !defined(NEURORAY_GENERAL_VECTORS)
#define NEURORAY_AVX512
#endif
#if defined(__F16C__) && !defined(NEURORAY_GENERAL_VECTORS)
#define NEURORAY_F16C
#endif

namespace neuroray {

constexpr int kLanes = 16;

typedef float Vec __attribute__((vector_size(64), may_alias));
typedef int32_t IntVec __attribute__((vector_size(64), may_alias));
typedef uint32_t UIntVec __attribute__((vector_size(64), may_alias));
typedef uint16_t ShortVec __attribute__((vector_size(32), may_alias));
typedef double DoubleVec __attribute__((vector_size(128), may_alias));

inline Vec spread(float value) { return value - Vec{}; }

inline Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

// Both keep NaN: a comparison with NaN is false, and the second choice is the value itself.
inline Vec at_most(Vec value, Vec limit) { return value > limit ? limit : value; }
inline Vec at_least(Vec value, Vec limit) { return value < limit ? limit : value; }

// 2^n of whole numbers n, times `value`: beyond the range of floats it is 0 or infinity.
inline Vec scale_by_power(Vec value, Vec n) {
#if defined(NEURORAY_AVX512)
  return _mm512_scalef_ps(value, n);
#else
  const IntVec whole = __builtin_convertvector(at_most(at_least(n, spread(-252.f)), spread(254.f)), IntVec);
  // Two factors, as 2^n alone may lie beyond the range where the product does not.
  const IntVec half = whole >> 1;
  const IntVec first = (half + 127) << 23, second = (whole - half + 127) << 23;
  return value * (Vec)first * (Vec)second;
#endif
}

inline Vec round_to_whole(Vec x) {
#if defined(NEURORAY_AVX512)
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  // Adding 1.5 * 2^23 leaves no bits for a fraction. Beyond 1,000 the result of exp2 is 0 or infinity anyway.
  const Vec bounded = at_most(at_least(x, spread(-1000.f)), spread(1000.f));
  return (bounded + 12582912.f) - 12582912.f;
#endif
}

inline Vec keep_fraction(Vec x, Vec whole) {
#if defined(NEURORAY_AVX512)
  return x - whole;
#else
  return at_most(at_least(x - whole, spread(-0.5f)), spread(0.5f));
#endif
}

// 2^x for finite x: exactly 1 at 0, relative error below 1.6e-7 (the polynomial's own 9.1e-8, made for +-0.5).
inline Vec exp2_fast(Vec x) {
  const Vec whole = round_to_whole(x);
  const Vec f = keep_fraction(x, whole);
  Vec p = f * 0.001326472731307149f + 0.009671512991189957f;
  p = p * f + 0.05550733581185341f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  return scale_by_power(p * f + 1.f, whole);
}

// exp(-|x|), infinity included: relative error below 1.2e-7 wherever the result is a normal float.
inline Vec exp_of_minus_abs(Vec x) {
  x = at_least(x < 0.f ? x : -x, spread(-110.f));
  const Vec whole = round_to_whole(x * 1.4426950408889634f);
  // ln 2 in two parts: the first has zeros at its end, so that its product with a whole number is exact.
  const Vec rest = (x - whole * 0.693145751953125f) - whole * 1.42860682030941723e-6f;
  const Vec f = rest * 1.4426950408889634f;
  Vec p = f * 0.00015353361959569156f + 0.0013398875016719103f;
  p = p * f + 0.00961843691766262f;
  p = p * f + 0.055503323674201965f;
  p = p * f + 0.24022647738456726f;
  p = p * f + 0.6931471824645996f;
  return scale_by_power(p * f + 1.f, whole);
}

// log(1 + v) for v from 0 to 1, relative error below 1e-7: v times a polynomial that is exactly 1 at 0.
inline Vec log1p_of_fraction(Vec v) {
  Vec p = v * -0.003318460425361991f + 0.020204532891511917f;
  p = p * v - 0.057664353400468826f;
  p = p * v + 0.1068054661154747f;
  p = p * v - 0.15355391800403595f;
  p = p * v + 0.19695399701595306f;
  p = p * v - 0.24958586692810059f;
  p = p * v + 0.33330512046813965f;
  p = p * v - 0.4999993145465851f;
  return (p * v + 1.f) * v;
}

// With v = exp(-|x|). Above 20 the logarithm adds less than half of x's last bit, which is torch's threshold.
inline Vec softplus(Vec x, Vec v) { return at_least(x, spread(0.f)) + log1p_of_fraction(v); }

inline Vec sigmoid(Vec x, Vec v) {
  const Vec s = 1.f / (1.f + v);
  return x < 0.f ? v * s : s;
}

// Number formats in memory; the order is known to the caller.
enum Kind : int64_t { kFloat = 0, kBfloat = 1, kHalf = 2 };

struct Float32 {
  typedef float Stored;
  static Vec unpack(const Stored* from) { return load(from); }
  static void pack(Stored* to, Vec value) { store(to, value); }
};

struct Bfloat16 {
  typedef uint16_t Stored;
  static Vec unpack(const Stored* from) {
    ShortVec bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Vec)(__builtin_convertvector(bits, UIntVec) << 16);
  }
  static void pack(Stored* to, Vec value) {
    const UIntVec bits = (UIntVec)value;
    // To the nearest, ties to even; a NaN is told by the number itself, as rounding might make it infinity.
    const UIntVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const UIntVec kept = value == value ? rounded : ((bits >> 16) | 0x40u);
    const ShortVec narrow = __builtin_convertvector(kept, ShortVec);
    std::memcpy(to, &narrow, sizeof narrow);
  }
};

struct Float16 {
  typedef uint16_t Stored;
#if defined(NEURORAY_AVX512)
  static Vec unpack(const Stored* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void pack(Stored* to, Vec value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(NEURORAY_F16C)
  static Vec unpack(const Stored* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    const __m256 parts[2] = {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
    Vec value;
    std::memcpy(&value, parts, sizeof value);
    return value;
  }
  static void pack(Stored* to, Vec value) {
    __m256 parts[2];
    std::memcpy(parts, &value, sizeof value);
    __m128i* halves = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static Vec unpack(const Stored* from) {
    ShortVec narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    const UIntVec bits = __builtin_convertvector(narrow, UIntVec);
    const UIntVec magnitude = (bits & 0x7fffu) << 13;
    // 2^112 moves the exponent from one format's bias to the other's, for subnormal numbers as well.
    const UIntVec finite = (UIntVec)((Vec)magnitude * 5.192296858534828e33f);
    const UIntVec special = magnitude | 0x7f800000u;
    return (Vec)(((bits & 0x7c00u) == 0x7c00u ? special : finite) | ((bits & 0x8000u) << 16));
  }
  static void pack(Stored* to, Vec value) {
    const UIntVec bits = (UIntVec)value;
    const UIntVec magnitude = bits & 0x7fffffffu;
    // Below 2^-14 a half is subnormal: adding 0.5 rounds at its last bit, 2^-24.
    const UIntVec small = (UIntVec)((Vec)magnitude + 0.5f) - 0x3f000000u;
    const UIntVec normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const UIntVec infinite = UIntVec{} + 0x7c00u;
    UIntVec kept = magnitude < 0x38800000u ? small : normal;
    kept = magnitude >= 0x477ff000u ? infinite : kept;
    kept = magnitude > 0x7f800000u ? infinite + 0x200u : kept;
    const ShortVec narrow = __builtin_convertvector(kept | ((bits >> 16) & 0x8000u), ShortVec);
    std::memcpy(to, &narrow, sizeof narrow);
  }
#endif
};

inline float sum_of_lanes(Vec value) {
#if defined(NEURORAY_AVX512)
  return _mm512_reduce_add_ps(value);
#else
  float lanes[kLanes], total[4] = {0, 0, 0, 0};
  store(lanes, value);
  for (int i = 0; i < kLanes; i += 4)
    for (int j = 0; j < 4; ++j) total[j] += lanes[i + j];
  return (total[0] + total[1]) + (total[2] + total[3]);
#endif
}

// The sums over lanes of four vectors of each of two kinds, into four neighbouring floats of each.
inline void sum_lanes_of_eight(const Vec (&a)[4], const Vec (&b)[4], float* to_a, float* to_b) {
#if defined(NEURORAY_AVX512)
  // Each step adds two halves of two vectors into one, so that 8 vectors end as one with each sum twice.
  const auto halves = [](__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  };
  const auto quarters = [](__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  };
  const __m512 a01 = halves(a[0], a[1]), a23 = halves(a[2], a[3]);
  const __m512 b01 = halves(b[0], b[1]), b23 = halves(b[2], b[3]);
  // Each quarter of 4 lanes now holds one vector: 0, 1, 2, 3.
  const __m512 sums_a = quarters(a01, a23), sums_b = quarters(b01, b23);
  const __m512 pairs = _mm512_add_ps(_mm512_unpacklo_ps(sums_a, sums_b), _mm512_unpackhi_ps(sums_a, sums_b));
  // Lanes of a quarter: a, b, a, b.
  const __m512 both = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0x4e));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256 ordered = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, both));
  _mm_storeu_ps(to_a, _mm256_castps256_ps128(ordered));
  _mm_storeu_ps(to_b, _mm256_extractf128_ps(ordered, 1));
#else
  for (int i = 0; i < 4; ++i) {
    to_a[i] = sum_of_lanes(a[i]);
    to_b[i] = sum_of_lanes(b[i]);
  }
#endif
}

// States that fade under zero input would sink into subnormal numbers, which many processors handle in microcode;
// while this lives, its thread rounds them to 0.
class SubnormalsAreZero {
 public:
#if defined(NEURORAY_F16C)
  SubnormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
  ~SubnormalsAreZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  SubnormalsAreZero() {}
  ~SubnormalsAreZero() {}
#endif
};

}  // namespace neuroray
