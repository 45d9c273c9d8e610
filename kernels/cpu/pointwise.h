// Functions that printed cells call. Finite for every finite x where the function is, NaN for NaN.
// No branches and no calls, so that compilers vectorize a loop over hidden units.
// Errors: docs/numerics.md.
//
// `real` must be defined as float or double.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "philox.h"

#if defined(__clang__)
#define EACH_UNIT _Pragma("clang loop vectorize(assume_safety)")
#else
#define EACH_UNIT _Pragma("GCC ivdep")
#endif

namespace fused_rnn {  // where tanh and exp hide those of libm

// Bits of `real`, and the constants of its exponential.
template <typename T> struct Format;

template <> struct Format<float> {
  using Bits = int32_t;
  using Word = uint32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float shift = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.428606765330187e-6f;
  static constexpr float least = -104, most = 89;  // exp is 0 below, inf above
  static constexpr float flat = 20;                // tanh(x / 2) is 1 above
  // (e^r - 1 - r) / r² for |r| <= ln(2) / 2, fitted by least relative error of e^r - 1.
  static inline float tail(float r) {
    float q = 0.001394116325f;
    q = q * r + 0.008366794314f;
    q = q * r + 0.04166635223f;
    q = q * r + 0.1666654087f;
    return q * r + 0.5000000047f;
  }
  // Of the logarithm, as in FreeBSD's msun: the least normal number, and the factor that makes a
  // smaller one normal; the bits of 1 and of the square root of a half.
  static constexpr float normal = 1.17549435e-38f, rise = 33554432.0f;
  static constexpr int rises = 25;
  static constexpr Word one = 0x3f800000, root = 0x3f3504f3;
  static constexpr float log_ln2_high = 6.9313812256e-01f, log_ln2_low = 9.0580006145e-06f;
  // (log((1 + s) / (1 - s)) - 2 s) / s for z = s².
  static inline float log_tail(float z) {
    float q = 0.24279078841f;
    q = q * z + 0.28498786688f;
    q = q * z + 0.40000972152f;
    return z * (q * z + 0.66666662693f);
  }
};

template <> struct Format<double> {
  using Bits = int64_t;
  using Word = uint64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double shift = 6755399441055744.0;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr double least = -746, most = 710;
  static constexpr double flat = 40;
  static inline double tail(double r) {
    double q = 2.0921625276615323463e-9;
    q = q * r + 2.5109217017939995955e-8;
    q = q * r + 2.7557251767914609607e-7;
    q = q * r + 2.7557243666946529876e-6;
    q = q * r + 0.000024801587350258339794;
    q = q * r + 0.00019841269886700363879;
    q = q * r + 0.0013888888888871819167;
    q = q * r + 0.008333333333321383344;
    q = q * r + 0.041666666666666692323;
    q = q * r + 0.1666666666666667693;
    return q * r + 0.49999999999999999989;
  }
  static constexpr double normal = 2.2250738585072014e-308, rise = 18014398509481984.0;
  static constexpr int rises = 54;
  static constexpr Word one = 0x3ff0000000000000, root = 0x3fe6a09e00000000;
  static constexpr double log_ln2_high = ln2_high, log_ln2_low = ln2_low;
  static inline double log_tail(double z) {
    double q = 1.479819860511658591e-01;
    q = q * z + 1.531383769920937332e-01;
    q = q * z + 1.818357216161805012e-01;
    q = q * z + 2.222219843214978396e-01;
    q = q * z + 2.857142874366239149e-01;
    q = q * z + 3.999999999940941908e-01;
    return z * (q * z + 6.666666666666735130e-01);
  }
};

using Of = Format<real>;
using Bits = Of::Bits;
using Word = Of::Word;  // unsigned: sums and shifts are defined for the bits of NaN and inf too

static inline Word bits(real x) {
  Word n;
  std::memcpy(&n, &x, sizeof n);
  return n;
}

static inline real of_bits(Word n) {
  real x;
  std::memcpy(&x, &n, sizeof x);
  return x;
}

// 2^n for normal results.
static inline real power_of_2(Word n) {
  return of_bits((n + Of::bias) << Of::mantissa);
}

// e^x = 2^n (1 + p) with |p| < 0.42; x within the range of exponents.
static inline void split(real x, Word &n, real &p) {
  const real shifted = x * real(1.4426950408889634) + Of::shift;
  const real whole = shifted - Of::shift;
  n = bits(shifted) - bits(Of::shift);
  const real r = (x - whole * Of::ln2_high) - whole * Of::ln2_low;
  p = r + r * r * Of::tail(r);
}

static inline real exp(real x) {
  x = x < Of::least ? Of::least : x;
  x = x > Of::most ? Of::most : x;
  Word n;
  real p;
  split(x, n, p);
  // In two factors, since 2^n itself may be out of the range of normal numbers.
  const Word half = Word(Bits(n) >> 1);
  return (power_of_2(half) + p * power_of_2(half)) * power_of_2(n - half);
}

static inline real expm1(real x) {
  real a = x < -Of::flat ? -Of::flat : x;
  a = a > Of::flat ? Of::flat : a;
  Word n;
  real p;
  split(a, n, p);
  const real scale = power_of_2(n);
  return x > Of::flat ? exp(x) : scale * p + (scale - 1);
}

// x = 2^k m with m from the square root of a half to that of 2; x is positive and normal.
static inline void split_power(real x, real &k, real &m) {
  const Word n = bits(x) + (Of::one - Of::root);
  // Added to the bits of `shift`, an integer is added to its value.
  k = of_bits(bits(Of::shift) + (n >> Of::mantissa) - Of::bias) - Of::shift;
  m = of_bits((n & ((Word(1) << Of::mantissa) - 1)) + Of::root);
}

// k ln(2) + log(1 + f) + more.
static inline real log_of_parts(real k, real f, real more) {
  const real s = f / (2 + f), half = real(0.5) * f * f, tail = Of::log_tail(s * s);
  const real low = s * (half + tail) + (k * Of::log_ln2_low + more);
  return k * Of::log_ln2_high - ((half - low) - f);
}

static inline real log(real x) {
  const bool small = x < Of::normal;
  real k, m;
  split_power(small ? x * Of::rise : x, k, m);
  real y = log_of_parts(small ? k - Of::rises : k, m - 1, 0);
  y = x > 0 ? y : x == 0 ? -real(INFINITY) : real(NAN);
  return x < real(INFINITY) ? y : x;
}

static inline real log1p(real x) {
  const real u = 1 + x;
  real k, m;
  split_power(u, k, m);
  // What rounding 1 + x lost, relative to it. Near 0 nothing is taken from the rounded sum.
  const real lost = (u >= 2 ? 1 - (u - x) : x - (u - 1)) / u;
  real y = log_of_parts(k, k == 0 ? x : m - 1, k == 0 ? 0 : lost);
  y = x > -1 ? y : x == -1 ? -real(INFINITY) : real(NAN);
  return x < real(INFINITY) ? y : x;
}

static inline real sigmoid(real x) {
  // exp overflows to inf, and 1 / inf is the right limit.
  return 1 / (1 + exp(-x));
}

static inline real tanh(real x) {
  // (e^2a - 1) / (e^2a + 1), from e^2a - 1, which is accurate for small values.
  const real a = std::fabs(x);
  Word n;
  real p;
  split(2 * a > Of::flat ? Of::flat : 2 * a, n, p);
  const real scale = power_of_2(n);
  const real less_one = scale * p + (scale - 1);
  return std::copysign(less_one / (less_one + 2), x);
}

// fmod is exact, however large the quotient.
static inline real fmod(real a, real b) { return std::fmod(a, b); }
static inline real power(real x, real y) { return std::pow(x, y); }
static inline real truncated(real x) { return std::trunc(x); }
static inline real rounded(real x) { return std::nearbyint(x); }

// The remainder with the sign of b, as torch.remainder.
static inline real remainder(real a, real b) {
  const real r = fmod(a, b);
  return r != 0 && (b < 0) != (r < 0) ? r + b : r;
}

// As torch.div with rounding_mode="floor": by the exact remainder, not by rounding a / b.
static inline real floor_quotient(real a, real b) {
  const real q = a / b, r = fmod(a, b);
  real whole = (a - r) / b;
  whole = r != 0 && (b < 0) != (r < 0) ? whole - 1 : whole;
  const real below = std::floor(whole);
  const real nearest = whole - below > real(0.5) ? below + 1 : below;
  return b == 0 ? q : whole == 0 ? std::copysign(real(0), q) : nearest;
}

// NaN if either is.
static inline real maximum(real a, real b) { return a > b || a != a ? a : b; }
static inline real minimum(real a, real b) { return a < b || a != a ? a : b; }

}  // namespace fused_rnn
