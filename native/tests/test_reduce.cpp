// Reductions, merges, additions and copies have the bits of the plain definition, computed here element by element with exact
// multiples of powers of two: in every type, for every number of sources, any alignment and block edge, both kinds of stores and all loops
// that this processor runs.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "../src/reduce_kernels.hpp"
#include "wagma/digest.hpp"
#include "wagma/reduce.hpp"
#include "wagma/schedule.hpp"

namespace {

using wagma::DType;
using wagma::Stores;

int failures = 0;
std::string path;  // which loops and stores are under test

void expect(bool condition, const char* what, int n, std::size_t count) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s (n = %d, count = %zu, %s)\n", what, n, count, path.c_str());
}

// --- The types, by their definition ------------------------------------------------------------------------------------------------
template <class T, DType dtype>
struct Native {
  using Item = T;
  using Sum = T;
  static constexpr DType kDType = dtype;
  static Sum decode(Item item) { return item; }
  static Item encode(Sum sum) { return sum; }
};
using Float32 = Native<float, DType::float32>;
using Float64 = Native<double, DType::float64>;

// 16 bits with `digits` bits of mantissa; the smallest normal is 2^`least`.
template <int digits, int least, DType dtype>
struct Short {
  using Item = std::uint16_t;
  using Sum = float;
  static constexpr DType kDType = dtype;
  static constexpr int kTop = (1 << (15 - digits)) - 1;  // the exponent of infinities and NaNs
  static Sum decode(Item item) {
    const int exponent = (item & 0x7fff) >> digits, mantissa = item & ((1 << digits) - 1);
    double value = exponent == 0 ? std::ldexp(mantissa, least - digits) : std::ldexp((1 << digits) + mantissa, least - digits + exponent - 1);
    if (exponent == kTop) value = mantissa ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
    return static_cast<float>(item & 0x8000 ? -value : value);
  }
  static Item encode(Sum sum) {
    const int sign = std::signbit(sum) ? 0x8000 : 0;
    if (std::isnan(sum)) return static_cast<Item>(sign | kTop << digits | 1 << (digits - 1));
    const double value = std::fabs(static_cast<double>(sum));
    if (std::isinf(sum)) return static_cast<Item>(sign | kTop << digits);
    int exponent = std::max(value == 0 ? least : std::ilogb(value), least);
    double units = std::nearbyint(std::ldexp(value, digits - exponent));  // ties to even
    if (units == std::ldexp(1, digits + 1)) units /= 2, ++exponent;
    const int bits = units < (1 << digits) ? static_cast<int>(units) : static_cast<int>(units) + ((exponent - least) << digits);
    return static_cast<Item>(sign | std::min(bits, kTop << digits));
  }
};
using Float16 = Short<10, -14, DType::float16>;
using Bfloat16 = Short<7, -126, DType::bfloat16>;

template <class T>
bool same_bits(const T* a, const T* b, std::size_t count) { return count == 0 || std::memcmp(a, b, count * sizeof(T)) == 0; }

// Equal bits, or both NaN (whose payload and sign nobody promises). `decode` says what is a NaN.
template <class V, class Decode>
bool same(const V* got, const std::vector<V>& expected, Decode decode) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (same_bits(got + i, &expected[i], 1) || (std::isnan(decode(got[i])) && std::isnan(decode(expected[i])))) continue;
    return false;
  }
  return true;
}

// Magnitudes over the whole range, denormals, signed zeros, infinities, NaNs and what shows a wrong order at once (1, 2^-24, -1)
// among them: almost every other order of additions rounds differently.
template <class T>
std::vector<std::vector<typename T::Item>> crafted(int n, std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> exponent(-8, 8);
  std::uniform_real_distribution<double> mantissa(-1.0, 1.0);
  using Sum = typename T::Sum;
  const Sum special[] = {1, std::ldexp(Sum{1}, -24), -1, 65504, -65504, std::numeric_limits<Sum>::max()};
  std::vector<std::vector<typename T::Item>> values(static_cast<std::size_t>(n), std::vector<typename T::Item>(count));
  for (auto& source : values) {
    for (auto& item : source) {
      const unsigned kind = random() % 64;
      Sum value = static_cast<Sum>(std::ldexp(mantissa(random), exponent(random)));
      if (kind < 4) value = std::numeric_limits<Sum>::denorm_min() * static_cast<Sum>(random() % 100);
      if (kind < 8) value = static_cast<Sum>(std::ldexp(mantissa(random), -20));  // denormal in float16
      if (kind == 8) value = static_cast<Sum>(-0.0);
      if (kind > 8 && kind < 15) value = special[kind - 9];
      if (kind == 15 && random() % 32 == 0) value = (random() % 2 ? 1 : -1) * std::numeric_limits<Sum>::infinity();
      if (kind == 15 && random() % 64 == 0) value = std::numeric_limits<Sum>::quiet_NaN();
      item = T::encode(value);
    }
  }
  return values;
}

// --- The definition ------------------------------------------------------------------------------------------------------------------
template <class T>
std::vector<typename T::Sum> sums_of(const std::vector<const typename T::Item*>& sources, std::size_t count) {
  const auto steps = wagma::association(static_cast<int>(sources.size()));
  std::vector<typename T::Sum> sums(count), partial(sources.size());
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t leaf = 0; leaf < sources.size(); ++leaf) partial[leaf] = sources[leaf] ? T::decode(sources[leaf][i]) : 0;
    for (const auto& [into, from] : steps) partial[static_cast<std::size_t>(into)] += partial[static_cast<std::size_t>(from)];
    sums[i] = partial[0];
  }
  return sums;
}

template <class T>
std::vector<typename T::Item> means_of(const std::vector<typename T::Sum>& sums, int divisor) {
  std::vector<typename T::Item> means;
  for (const auto sum : sums) means.push_back(T::encode(sum / static_cast<typename T::Sum>(divisor)));
  return means;
}

// `count` elements at `skip` elements behind a cache line, between bytes that nobody may touch.
template <class V>
class Guarded {
 public:
  Guarded(std::size_t count, std::size_t skip) : count_(count), bytes_((count + skip) * sizeof(V) + 192, 0x5a) {
    const std::size_t to_line = -reinterpret_cast<std::size_t>(bytes_.data()) % 64;
    begin_ = to_line + 64 + skip * sizeof(V);
  }
  Guarded(const std::vector<V>& values, std::size_t skip) : Guarded(values.size(), skip) {
    if (count_ != 0) std::memcpy(data(), values.data(), count_ * sizeof(V));
  }
  V* data() { return reinterpret_cast<V*>(bytes_.data() + begin_); }
  bool intact() const {
    const auto untouched = [](unsigned char byte) { return byte == 0x5a; };
    const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(begin_);
    return std::all_of(bytes_.begin(), begin, untouched) &&
           std::all_of(begin + static_cast<std::ptrdiff_t>(count_ * sizeof(V)), bytes_.end(), untouched);
  }

 private:
  std::size_t count_;
  std::size_t begin_;
  std::vector<unsigned char> bytes_;
};

enum class Layout { aligned, shifted, scattered };  // all at cache lines, all as far behind one, each elsewhere

// Calls body(stores) for both kinds of stores with all loops that this processor has.
template <class Body>
void everywhere(Body body) {
  for (const wagma::Kernels* kernels : {&wagma::kBaselineKernels, wagma::avx2_kernels()}) {
    if (!kernels) continue;
    wagma::use_kernels(*kernels);
    for (const Stores stores : {Stores::cached, Stores::streaming}) {
      path = std::string(kernels->name) + (stores == Stores::streaming ? ", streaming" : ", cached");
      body(stores);
    }
  }
}

template <class T>
void check_reduce(int n, std::size_t count, bool some_absent, Layout layout, const std::vector<int>& divisors) {
  using Item = typename T::Item;
  const auto skip = [&](std::size_t i) { return layout == Layout::aligned ? 0 : layout == Layout::shifted ? 3 : i % 7; };
  std::vector<Guarded<Item>> held;
  for (const auto& values : crafted<T>(n, count, static_cast<unsigned>(n * 7919) + static_cast<unsigned>(count))) {
    held.emplace_back(values, skip(held.size()));
  }
  std::vector<const Item*> sources;
  for (auto& source : held) sources.push_back(some_absent && sources.size() % 3 == 1 ? nullptr : source.data());
  if (some_absent) sources[0] = nullptr;
  const std::vector<const void*> given(sources.begin(), sources.end());
  const auto sums = sums_of<T>(sources, count);
  everywhere([&](Stores stores) {
    std::vector<Guarded<typename T::Sum>> raw;
    std::vector<Guarded<Item>> means;
    std::vector<void*> targets;
    for (std::size_t j = 0; j < divisors.size(); ++j) {
      raw.emplace_back(divisors[j] == 1 ? count : 0, skip(j + 1));
      means.emplace_back(divisors[j] == 1 ? 0 : count, skip(j + 1));
      targets.push_back(divisors[j] == 1 ? static_cast<void*>(raw[j].data()) : means[j].data());
    }
    wagma::reduce(T::kDType, given.data(), n, targets.data(), divisors.data(), static_cast<int>(divisors.size()), count, stores);
    for (std::size_t j = 0; j < divisors.size(); ++j) {
      const bool equal = divisors[j] == 1 ? same(raw[j].data(), sums, [](auto sum) { return sum; })
                                          : same(means[j].data(), means_of<T>(sums, divisors[j]), T::decode);
      expect(equal, wagma::dtype_name(T::kDType), n, count);
      expect(raw[j].intact() && means[j].intact(), "reduce writes beside its target", n, count);
    }
  });
}

// A target that is a source: the last but one, with the mean and with as large a raw sum.
template <class T>
void check_in_place(int n, std::size_t count) {
  const auto values = crafted<T>(n, count, static_cast<unsigned>(n));
  everywhere([&](Stores stores) {
    for (const int divisor : {1, 3}) {
      if (divisor == 1 && sizeof(typename T::Item) != sizeof(typename T::Sum)) continue;
      auto own = values;
      std::vector<const typename T::Item*> sources;
      for (const auto& source : own) sources.push_back(source.data());
      const auto sums = sums_of<T>(sources, count);
      const std::vector<const void*> given(sources.begin(), sources.end());
      void* const target = own[static_cast<std::size_t>(std::max(0, n - 2))].data();
      wagma::reduce(T::kDType, given.data(), n, &target, &divisor, 1, count, stores);
      const auto expected = means_of<T>(sums, divisor);
      expect(same(static_cast<typename T::Item*>(target), expected, T::decode), "reduce in place", n, count);
    }
  });
}

// total and own apart; destination apart, own, or total.
template <class T>
void check_merge(std::size_t count, std::size_t skip, int divisor) {
  using Item = typename T::Item;
  using Sum = typename T::Sum;
  const auto values = crafted<T>(4, count, 17);
  const auto total = sums_of<T>({values[0].data(), values[1].data(), values[2].data()}, count);
  for (const bool with_total : {true, false}) {
    for (const int own_weight : {0, 1}) {
      auto items = values[3];
      if (own_weight == 0) items.assign(count, T::encode(std::numeric_limits<Sum>::infinity()));  // must not be touched
      std::vector<Sum> sums(count);
      for (std::size_t i = 0; i < count; ++i) sums[i] = (with_total ? total[i] : -Sum{0}) + (own_weight ? T::decode(items[i]) : -Sum{0});
      auto expected = means_of<T>(sums, divisor);
      if (!with_total && own_weight == divisor) expected = items;
      if (!with_total && own_weight == 0) expected.assign(count, Item{});
      everywhere([&](Stores stores) {
        Guarded<Item> own(items, skip), apart(count, skip);
        Guarded<Sum> sum(total, skip);
        const auto merge = [&](void* destination) {
          wagma::merge_into(T::kDType, destination, own.data(), with_total ? sum.data() : nullptr, own_weight, divisor, count, stores);
        };
        merge(apart.data());
        expect(same(apart.data(), expected, T::decode) && apart.intact(), "merge_into", own_weight, count);
        if (with_total) {
          merge(sum.data());
          expect(same(reinterpret_cast<Item*>(sum.data()), expected, T::decode) && sum.intact(), "merge over the total", own_weight, count);
          if (count != 0) std::memcpy(sum.data(), total.data(), count * sizeof(Sum));
        }
        merge(own.data());
        expect(same(own.data(), expected, T::decode) && own.intact(), "merge over own", own_weight, count);
      });
    }
  }
}

template <class T>
void check_add_and_copy(std::size_t count, std::size_t skip) {
  using Item = typename T::Item;
  const auto values = crafted<T>(2, count, 23);
  const auto expected = means_of<T>(sums_of<T>({values[0].data(), values[1].data()}, count), 1);
  everywhere([&](Stores stores) {
    Guarded<Item> own(values[0], skip), taken(values[1], 0), copied(count, skip);
    wagma::copy(copied.data(), taken.data(), count * sizeof(Item), stores);
    expect(same_bits(copied.data(), values[1].data(), count) && copied.intact(), "copy", 0, count);
    wagma::add_into(T::kDType, own.data(), taken.data(), count);
    expect(same(own.data(), expected, T::decode) && own.intact(), "add_into", 0, count);
  });
}

// Every bit pattern of a 16-bit type, as a source, and the neighbourhood of every rounding, as a mean.
template <class T>
void check_conversions() {
  std::vector<std::uint16_t> items(1 << 16);
  for (std::size_t i = 0; i < items.size(); ++i) items[i] = static_cast<std::uint16_t>(i);
  std::vector<float> near;
  for (const auto item : items) {
    const auto bits = std::bit_cast<std::uint32_t>(T::decode(item));
    const auto half = std::bit_cast<std::uint32_t>(T::decode(static_cast<std::uint16_t>(item ^ 1)));
    const std::uint32_t middle = static_cast<std::uint32_t>((std::uint64_t{bits} + half) / 2);
    for (const std::uint32_t step : {0xffffffffu, 0u, 1u}) near.push_back(std::bit_cast<float>(middle + step));
    near.push_back(std::bit_cast<float>(bits));
  }
  for (float odd : {65519.99f, 65520.0f, 65536.0f, 3.4e38f, 2.98e-8f, 2.99e-8f}) near.insert(near.end(), {odd, -odd});
  const auto expected = means_of<T>(near, 1);
  std::vector<float> decoded;
  for (const auto item : items) decoded.push_back(T::decode(item));
  everywhere([&](Stores stores) {
    std::vector<float> sums(items.size());
    const void* const source = items.data();
    void* const target = sums.data();
    const int divisor = 1;
    wagma::reduce(T::kDType, &source, 1, &target, &divisor, 1, items.size(), stores);
    expect(same(sums.data(), decoded, [](float sum) { return sum; }), "items to sums", 1, items.size());
    std::vector<std::uint16_t> rounded(near.size());
    wagma::merge_into(T::kDType, rounded.data(), nullptr, near.data(), 0, 1, near.size(), stores);
    expect(same(rounded.data(), expected, T::decode), "sums to items", 1, near.size());
    for (const std::uint32_t nan : {0x7fc00000u, 0xffc00000u, 0x7f800001u}) {  // quiet, of either sign; what only the upper bits hold
      const float value = std::bit_cast<float>(nan);
      std::uint16_t item = 0;
      wagma::merge_into(T::kDType, &item, nullptr, &value, 0, 1, 1, stores);
      expect(item == T::encode(value), "NaNs are quiet and keep their sign", 1, 1);
    }
  });
}

// What the application's threads do to their own arithmetic does not change bits, and is theirs again afterwards.
void check_control_register() {
#if defined(__x86_64__)
  const unsigned before = _mm_getcsr();
  const unsigned odd = before | 0x8040 | 0x2000;  // denormals flushed, rounding down
  const std::vector<float> tiny(100, std::numeric_limits<float>::denorm_min());
  std::vector<float> sum(tiny.size());
  const void* const sources[] = {tiny.data(), tiny.data(), tiny.data()};
  void* const target = sum.data();
  const int divisor = 2;
  _mm_setcsr(odd);
  wagma::reduce(DType::float32, sources, 3, &target, &divisor, 1, sum.size(), Stores::cached);
  const unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  expect(after == odd, "the thread's control register is as it was", 3, 100);
  expect(std::bit_cast<std::uint32_t>(sum[0]) == 2 && std::bit_cast<std::uint32_t>(sum[99]) == 2, "3 / 2 denormals, to even", 3, 100);
#endif
}

template <class T>
void check() {
  for (int n = 1; n <= 40; ++n) {
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{37}, std::size_t{1101}}) {
      const auto layout = static_cast<Layout>((static_cast<std::size_t>(n) + count) % 3);
      check_reduce<T>(n, count, false, layout, {n, n, n});
      check_reduce<T>(n, count, n % 4 == 0, layout, {1, n, 1, n});
    }
    check_reduce<T>(n, 2085, true, static_cast<Layout>(n % 3), {1, 3, 7, 3});
    check_in_place<T>(n, 1101);
  }
  for (const int n : {64, 67, 130}) check_reduce<T>(n, 1101, false, Layout::aligned, {1, 5});
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{95}, std::size_t{1000}}) {
    for (const std::size_t skip : {std::size_t{0}, std::size_t{3}}) {
      for (const int divisor : {1, 2, 3, 7}) check_merge<T>(count, skip, divisor);
      check_add_and_copy<T>(count, skip);
    }
  }
}

void check_refusals() {
  for (const int n : {0, -1, wagma::kMostSources + 1}) {
    bool refused = false;
    try {
      wagma::reduce(DType::float32, nullptr, n, nullptr, nullptr, 0, 0, Stores::cached);
    } catch (const std::invalid_argument& error) {
      refused = std::string(error.what()).find("must be from 1 to") != std::string::npos;
    }
    expect(refused, "a number of sources out of range is refused", n, 0);
  }
}

// A changed bit, a changed length and two exchanged words all change the digest; alignment does not.
void check_digest() {
  std::vector<unsigned char> bytes(101);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 37);
  std::vector<unsigned char> shifted(bytes.size() + 1);
  std::memcpy(shifted.data() + 1, bytes.data(), bytes.size());
  for (std::size_t size = 0; size <= 100; ++size) {
    const auto digest = wagma::digest(bytes.data(), size);
    expect(digest == wagma::digest(shifted.data() + 1, size), "digest of unaligned bytes", 0, size);
    expect(digest != wagma::digest(bytes.data(), size + 1), "digest of one byte more", 0, size);
    for (std::size_t i = 0; i < size; ++i) {
      bytes[i] ^= 0x10;
      expect(digest != wagma::digest(bytes.data(), size), "digest of a flipped bit", static_cast<int>(i), size);
      bytes[i] ^= 0x10;
    }
  }
  const std::uint64_t forth[2] = {1, 2}, back[2] = {2, 1};
  expect(wagma::digest(forth, 16) != wagma::digest(back, 16), "digest of exchanged words", 2, 2);
}

}  // namespace

int main() {
  check<Float32>();
  check<Float64>();
  check<Float16>();
  check<Bfloat16>();
  check_conversions<Float16>();
  check_conversions<Bfloat16>();
  check_control_register();
  check_refusals();
  check_digest();
  return failures ? 1 : 0;
}
