// One DType each: items become sums when read, sums are rounded once to items. The very bits of src/reduce_lines.hpp, NaNs' included.
//
// Nothing depends on a compiler's flags: additions and divisions are the intrinsics that round to nearest, keep denormals and are never
// contracted. NaNs take care: a GPU's instructions answer all of them with one and the same NaN, a processor's keep sign and payload of the
// one that came in (made quiet). So there are two of each operation. Careful ones put a NaN together from the operands; the others are
// for values among which there is none, and say so themselves: they give a NaN exactly if the careful ones do. spans.hpp repeats with care.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.hpp"
#include "wagma/reduce.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

#if defined(__CUDACC__)
WAGMA_DEVICE std::uint32_t bits_of(float value) { return __float_as_uint(value); }
WAGMA_DEVICE std::uint64_t bits_of(double value) { return static_cast<std::uint64_t>(__double_as_longlong(value)); }
WAGMA_DEVICE float from_bits(std::uint32_t bits) { return __uint_as_float(bits); }
WAGMA_DEVICE double from_bits(std::uint64_t bits) { return __longlong_as_double(static_cast<long long>(bits)); }
#else
template <class To, class From>
WAGMA_DEVICE To same_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
WAGMA_DEVICE std::uint32_t bits_of(float value) { return same_bits<std::uint32_t>(value); }
WAGMA_DEVICE std::uint64_t bits_of(double value) { return same_bits<std::uint64_t>(value); }
WAGMA_DEVICE float from_bits(std::uint32_t bits) { return same_bits<float>(bits); }
WAGMA_DEVICE double from_bits(std::uint64_t bits) { return same_bits<double>(bits); }
#endif

template <class Sum>
WAGMA_DEVICE bool is_nan(Sum value) { return value != value; }

#if defined(__CUDACC__)

WAGMA_DEVICE float quiet(float nan) { return from_bits(bits_of(nan) | 0x00400000u); }
WAGMA_DEVICE double quiet(double nan) { return from_bits(bits_of(nan) | std::uint64_t{0x0008000000000000}); }

// What the host's processor answers to infinity - infinity.
template <class Sum>
WAGMA_DEVICE Sum invalid() {
#if defined(__x86_64__)
  constexpr std::uint64_t sign = 1;
#else
  constexpr std::uint64_t sign = 0;
#endif
  if constexpr (sizeof(Sum) == 4) {
    return from_bits(static_cast<std::uint32_t>(sign << 31 | 0x7fc00000u));
  } else {
    return from_bits(sign << 63 | std::uint64_t{0x7ff8000000000000});
  }
}

template <bool careful, class Sum>
WAGMA_DEVICE Sum plus(Sum a, Sum b) {
  Sum sum;
  if constexpr (sizeof(Sum) == 4) {
    sum = __fadd_rn(a, b);
  } else {
    sum = __dadd_rn(a, b);
  }
  if (!careful || !is_nan(sum)) return sum;
  if (is_nan(a)) return quiet(a);
  return is_nan(b) ? quiet(b) : invalid<Sum>();
}

// sum / divisor, which is a positive integer.
template <bool careful, class Sum>
WAGMA_DEVICE Sum divided(Sum sum, Sum divisor) {
  if (careful && is_nan(sum)) return quiet(sum);
  if constexpr (sizeof(Sum) == 4) {
    return __fdiv_rn(sum, divisor);
  } else {
    return __ddiv_rn(sum, divisor);
  }
}

#else

template <bool careful, class Sum>
WAGMA_DEVICE Sum plus(Sum a, Sum b) { return a + b; }
template <bool careful, class Sum>
WAGMA_DEVICE Sum divided(Sum sum, Sum divisor) { return sum / divisor; }

#endif

struct Float32 {
  using Item = float;
  using Sum = float;
  static constexpr DType kDType = DType::float32;
  template <bool careful>
  static WAGMA_DEVICE float read(float item) { return item; }
  template <bool careful>
  static WAGMA_DEVICE float rounded(float sum) { return sum; }
};

struct Float64 {
  using Item = double;
  using Sum = double;
  static constexpr DType kDType = DType::float64;
  template <bool careful>
  static WAGMA_DEVICE double read(double item) { return item; }
  template <bool careful>
  static WAGMA_DEVICE double rounded(double sum) { return sum; }
};

// The upper half of a float32. Rounded to nearest, ties to even; a NaN becomes the quiet one of its sign.
struct Bfloat16 {
  using Item = std::uint16_t;
  using Sum = float;
  static constexpr DType kDType = DType::bfloat16;
  template <bool careful>
  static WAGMA_DEVICE float read(Item item) { return from_bits(static_cast<std::uint32_t>(item) << 16); }
  template <bool careful>
  static WAGMA_DEVICE Item rounded(float sum) {
    const std::uint32_t bits = bits_of(sum);
    if (careful && is_nan(sum)) return static_cast<Item>((bits >> 16 & 0x8000u) | 0x7fc0u);
    return static_cast<Item>((bits + ((bits >> 16 & 1u) + 0x7fffu)) >> 16);
  }
};

// A NaN becomes quiet, in both directions, and keeps the upper bits of its payload.
struct Float16 {
  using Item = std::uint16_t;
  using Sum = float;
  static constexpr DType kDType = DType::float16;
  template <bool careful>
  static WAGMA_DEVICE float read(Item item) {
    const std::uint32_t magnitude = item & 0x7fffu, sign = (item & 0x8000u) << 16;
    if (careful && magnitude > 0x7c00u) return from_bits(sign | 0x7fc00000u | magnitude << 13);
    return exact(item, magnitude, sign);
  }
  template <bool careful>
  static WAGMA_DEVICE Item rounded(float sum) {
    const std::uint32_t bits = bits_of(sum);
    if (careful && is_nan(sum)) return static_cast<Item>((bits >> 16 & 0x8000u) | 0x7e00u | (bits >> 13 & 0x3ffu));
    return nearest(sum);
  }

 private:
#if defined(__CUDACC__)
  static WAGMA_DEVICE float exact(Item item, std::uint32_t, std::uint32_t) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(item));
    return value;
  }
  static WAGMA_DEVICE Item nearest(float sum) {
    Item item;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(item) : "f"(sum));
    return item;
  }
#else
  // In integers, as src/reduce_lines.hpp does it: exponents are moved by the difference of the biases; denormals are rounded, or made
  // normal, by an addition in float32 whose last bit is float16's last denormal bit.
  static WAGMA_DEVICE float exact(Item, std::uint32_t magnitude, std::uint32_t sign) {
    const std::uint32_t shifted = magnitude << 13;
    const std::uint32_t smallest = 113u << 23;
    const std::uint32_t special = magnitude >= 0x7c00u ? 112u << 23 : 0;  // infinity, or a NaN
    const std::uint32_t value =
        magnitude < 0x400u ? bits_of(from_bits(shifted + smallest) - from_bits(smallest)) : shifted + (112u << 23) + special;
    return from_bits(sign | value);
  }
  static WAGMA_DEVICE Item nearest(float sum) {
    const std::uint32_t sign = bits_of(sum) >> 16 & 0x8000u, magnitude = bits_of(sum) & 0x7fffffffu;
    const std::uint32_t half = 126u << 23;  // one unit in its last place is 2^-24
    std::uint32_t value = (magnitude - (112u << 23) + ((magnitude >> 13 & 1u) + 0xfffu)) >> 13;
    if (magnitude < 113u << 23) value = bits_of(from_bits(magnitude) + from_bits(half)) - half;
    if (magnitude >= 143u << 23) value = 0x7c00u;  // what rounds up to infinity from below gets there by the carry
    return static_cast<Item>(sign | value);
  }
#endif
};

// float32 and float64 into each other, as a processor does it: NaNs become quiet and keep the upper bits of their payload.
template <bool careful>
WAGMA_DEVICE double widened(float value) {
  const std::uint64_t bits = bits_of(value);
  if (careful && is_nan(value)) {
    return from_bits((bits & 0x80000000u) << 32 | std::uint64_t{0x7ff8000000000000} | (bits & 0x007fffffu) << 29);
  }
  return static_cast<double>(value);
}

template <bool careful>
WAGMA_DEVICE float narrowed(double value) {
  const std::uint64_t bits = bits_of(value);
  if (careful && is_nan(value)) {
    const auto payload = static_cast<std::uint32_t>(bits >> 29 & 0x007fffffu);
    return from_bits(static_cast<std::uint32_t>(bits >> 32 & 0x80000000u) | 0x7fc00000u | payload);
  }
#if defined(__CUDACC__)
  return __double2float_rn(value);
#else
  return static_cast<float>(value);
#endif
}

// An item of a part with dtype P as a model of dtype T holds it: exactly.
template <class T, class P, bool careful>
WAGMA_DEVICE typename T::Item held(typename P::Item item) {
  if constexpr (std::is_same_v<T, P>) {
    return item;
  } else if constexpr (std::is_same_v<T, Float32>) {
    return P::template read<careful>(item);
  } else {
    static_assert(std::is_same_v<T, Float64>);
    return widened<careful>(P::template read<careful>(item));
  }
}

// An item of a model of dtype T as a part with dtype P takes it: rounded once more; float64 to 16 bits by way of float32, as torch does it.
template <class P, class T, bool careful>
WAGMA_DEVICE typename P::Item written(typename T::Item item) {
  if constexpr (std::is_same_v<T, P>) {
    return item;
  } else if constexpr (std::is_same_v<T, Float32>) {
    return P::template rounded<careful>(item);
  } else {
    static_assert(std::is_same_v<T, Float64>);
    return P::template rounded<careful>(narrowed<careful>(item));
  }
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
