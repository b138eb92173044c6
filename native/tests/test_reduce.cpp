// Sums along the association tree and merges have the bits of the plain definition, for every number of leaves and any
// block edge.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "wagma/digest.hpp"
#include "wagma/reduce.hpp"
#include "wagma/schedule.hpp"

namespace {

int failures = 0;

void expect(bool condition, const char* what, int n, std::size_t count) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s (n = %d, count = %zu)\n", what, n, count);
}

template <class T>
constexpr wagma::DType kDType = sizeof(T) == 8 ? wagma::DType::float64 : wagma::DType::float32;

// Magnitudes over the whole range, denormals and signed zeros among them: almost every other order of additions rounds
// differently.
template <class T>
std::vector<std::vector<T>> crafted(int n, std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> exponent(-8, 8);
  std::uniform_real_distribution<double> mantissa(-1.0, 1.0);
  std::vector<std::vector<T>> values(static_cast<std::size_t>(n), std::vector<T>(count));
  for (auto& source : values) {
    for (auto& value : source) {
      value = static_cast<T>(std::ldexp(mantissa(random), exponent(random)));
      if (random() % 16 == 0) value = std::numeric_limits<T>::denorm_min() * static_cast<T>(random() % 100);
      if (random() % 32 == 0) value = static_cast<T>(-0.0);
    }
  }
  return values;
}

template <class T>
std::vector<T> reference_sum(std::vector<std::vector<T>> partial) {
  for (const auto& [into, from] : wagma::association(static_cast<int>(partial.size()))) {
    auto& a = partial[static_cast<std::size_t>(into)];
    const auto& b = partial[static_cast<std::size_t>(from)];
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = a[i] + b[i];
  }
  return partial[0];
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
void check_tree_sum(int n, std::size_t count) {
  auto values = crafted<T>(n, count, static_cast<unsigned>(n * 7919) + static_cast<unsigned>(count));
  const auto expected = reference_sum(values);
  std::vector<const void*> sources;
  for (const auto& source : values) sources.push_back(source.data());
  std::vector<T> sum(count);
  wagma::tree_sum(kDType<T>, sum.data(), sources.data(), n, count);
  expect(same_bits(sum, expected), "tree_sum", n, count);
  auto& last = values.back();  // in place: the destination is a source
  wagma::tree_sum(kDType<T>, last.data(), sources.data(), n, count);
  expect(same_bits(last, expected), "tree_sum in place", n, count);
}

template <class T>
void check_merge(std::size_t count) {
  const auto values = crafted<T>(2, count, 17);
  const int divisor = 3;  // a reciprocal would round differently
  for (const int own_weight : {0, 1}) {
    auto own = values[0];
    if (own_weight == 0) own.assign(count, std::numeric_limits<T>::infinity());  // must not be touched
    std::vector<T> expected(count);
    for (std::size_t i = 0; i < count; ++i) {
      expected[i] = (own_weight ? values[1][i] + own[i] : values[1][i]) / static_cast<T>(divisor);
    }
    std::vector<T> apart(count);
    wagma::merge_into(kDType<T>, apart.data(), own.data(), values[1].data(), own_weight, divisor, count);
    wagma::merge(kDType<T>, own.data(), values[1].data(), own_weight, divisor, count);
    expect(same_bits(own, expected), "merge", own_weight, count);
    expect(same_bits(apart, expected), "merge_into", own_weight, count);
  }
  auto mean = values[1];
  auto quotient = mean;
  for (auto& value : quotient) value = value / static_cast<T>(divisor);
  wagma::divide(kDType<T>, mean.data(), divisor, count);
  expect(same_bits(mean, quotient), "divide", divisor, count);
  auto own = values[0];
  std::vector<T> copy(count);
  wagma::merge(kDType<T>, own.data(), nullptr, 1, 1, count);
  wagma::merge_into(kDType<T>, copy.data(), own.data(), nullptr, 1, 1, count);
  expect(same_bits(own, values[0]) && same_bits(copy, values[0]), "merge of nothing", 0, count);
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
  for (int n = 1; n <= 70; ++n) {
    for (const std::size_t count :
         {std::size_t{0}, std::size_t{1}, std::size_t{37}, std::size_t{1024}, std::size_t{2085}}) {
      check_tree_sum<float>(n, count);
      check_tree_sum<double>(n, count);
    }
  }
  for (const std::size_t count : {std::size_t{1}, std::size_t{1000}}) {
    check_merge<float>(count);
    check_merge<double>(count);
  }
  check_digest();
  return failures ? 1 : 0;
}
