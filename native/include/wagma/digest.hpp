// A 64-bit digest of bytes, equal to wagma/core/digest.py: cheap enough for every iteration, it tells torn, stale or
// differently rounded models apart. It is not cryptographic.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace wagma {

namespace detail {

// The finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
inline std::uint64_t mix64(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace detail

// Of bytes that come piece by piece.
class Digest {
 public:
  explicit Digest(std::size_t size) : total_(detail::mix64(size)) {}  // of all pieces together
  std::uint64_t value() const { return total_; }

  // The next piece; a multiple of 8 bytes, but for the last one. Each word is mixed with its position and all are added, so no word waits
  // for another one: the loop vectorises.
  void add(const void* bytes, std::size_t size) {
    static_assert(std::endian::native == std::endian::little, "words are little-endian by definition");
    constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15u;
    const auto* raw = static_cast<const unsigned char*>(bytes);
    const std::size_t words = size / 8;
    std::uint64_t total = total_;
    for (std::size_t i = 0; i < words; ++i) {
      std::uint64_t word;  // memcpy: the bytes need not be aligned
      std::memcpy(&word, raw + 8 * i, 8);
      total += detail::mix64(word + (words_ + i + 1) * kGolden);
    }
    words_ += words;
    if (const std::size_t rest = size % 8; rest != 0) {
      std::uint64_t word = 0;  // the tail counts as if zeros followed; the size tells it from real zeros
      std::memcpy(&word, raw + 8 * words, rest);
      total += detail::mix64(word + (words_ + 1) * kGolden);
    }
    total_ = total;
  }

 private:
  std::uint64_t total_;
  std::uint64_t words_ = 0;
};

inline std::uint64_t digest(const void* bytes, std::size_t size) {
  Digest all(size);
  all.add(bytes, size);
  return all.value();
}

}  // namespace wagma
