// How elements are spread over blocks and threads, and read and written 16 bytes at a time with several loads under way.
//
// Elements [0, count) are cut into tiles; a block takes one after the other. A body says what is done with the elements of a Run, in two
// steps, so that a thread begins all of its loads before it waits for the first:
//
//     struct Body {
//       static constexpr int kAtOnce;  // vectors in one thread's run; kSinglesAtOnce: single elements, where there are runs of them
//       template <int width, int number> struct Values {...};  // of a run, in registers
//       template <int width, int number> void read(const Run&, Values<width, number>&) const;
//       template <int width, int number, bool careful> unsigned write(const Run&, Values<width, number>&) const;
//     };
//
// Without care (arithmetic.hpp) a vector in which there is a NaN stays as it is, and write() returns a set of these, bit k for the k-th:
// they are done again one element after the other. So what a NaN needs costs no registers where there is none.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "block.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

template <class Item, int width>
struct alignas(sizeof(Item) * width) Pack {
  Item items[width];
};

// One instruction each, past the first-level caches: nothing is read twice, and they know nothing of other devices.
#if defined(__CUDACC__)

template <std::size_t bytes>
struct Word;
template <>
struct Word<2> { using Type = unsigned short; };
template <>
struct Word<4> { using Type = unsigned; };
template <>
struct Word<8> { using Type = uint2; };
template <>
struct Word<16> { using Type = uint4; };

template <class P>
WAGMA_DEVICE P load(const void* from) {
  const auto word = __ldcg(static_cast<const typename Word<sizeof(P)>::Type*>(from));
  P pack;
  memcpy(&pack, &word, sizeof pack);
  return pack;
}

template <class P>
WAGMA_DEVICE void store(void* to, const P& pack) {
  typename Word<sizeof(P)>::Type word;
  memcpy(&word, &pack, sizeof word);
  __stcg(static_cast<typename Word<sizeof(P)>::Type*>(to), word);
}

#else

// A GPU gives up where an address is no multiple of the size.
template <class P>
WAGMA_DEVICE bool is_aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % sizeof(P) == 0; }

template <class P>
WAGMA_DEVICE P load(const void* from) {
  assert(is_aligned<P>(from));
  P pack;
  std::memcpy(&pack, from, sizeof pack);
  return pack;
}

template <class P>
WAGMA_DEVICE void store(void* to, const P& pack) {
  assert(is_aligned<P>(to));
  std::memcpy(to, &pack, sizeof pack);
}

#endif

// A small pack in a word, as it lies in memory, and back.
template <class P>
WAGMA_DEVICE void set_bits(std::uint64_t& bits, const P& pack) { memcpy(&bits, &pack, sizeof pack); }
template <class P>
WAGMA_DEVICE P of_bits(const std::uint64_t& bits) {
  P pack;
  memcpy(&pack, &bits, sizeof pack);
  return pack;
}

// How far behind a boundary of `width` items an item lies, in items: arrays can be gone through with wide accesses together exactly if
// this is the same for all.
template <class Item>
WAGMA_HOST_DEVICE unsigned phase_of(const Item* item, int width) {
  return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(item) / sizeof(Item) % static_cast<unsigned>(width));
}

// Tiles that all begin at a boundary of vectors, but for the first: `phase` elements are cut off that one.
template <unsigned size>
struct Tiles {
  std::size_t count = 0;
  unsigned phase = 0;

  WAGMA_HOST_DEVICE std::size_t number() const { return (count + phase + size - 1) / size; }
  WAGMA_HOST_DEVICE std::size_t begin(std::size_t tile) const { return tile == 0 ? 0 : tile * size - phase; }
  WAGMA_HOST_DEVICE std::size_t end(std::size_t tile) const {
    const std::size_t end = (tile + 1) * size - phase;
    return end < count ? end : count;
  }
  // Elements before its first vector: all, if the arrays cannot be gone through with wide accesses together.
  WAGMA_HOST_DEVICE unsigned head(std::size_t tile, unsigned width, bool wide) const {
    if (!wide) return size;
    return tile == 0 && phase != 0 ? width - phase : 0;
  }
};

// Enough that every multiprocessor is busy and none has much more to do than another; few enough that the start of blocks costs nothing.
template <unsigned size>
unsigned blocks_for(const Tiles<size>& tiles, unsigned processors) {
  const std::size_t number = std::max<std::size_t>(tiles.number(), 1), most = std::size_t{processors} * 32;
  const std::size_t rounds = (number + most - 1) / most;
  return static_cast<unsigned>((number + rounds - 1) / rounds);
}

// What one thread does in one go: vectors, or single elements, `step` elements from each other. As many as begin at less than `left`.
struct Run {
  std::size_t first;
  unsigned step;
  std::size_t left;
  WAGMA_DEVICE bool has(int k) const { return static_cast<unsigned>(k) * std::size_t{step} < left; }
  WAGMA_DEVICE std::size_t at(int k) const { return first + static_cast<unsigned>(k) * std::size_t{step}; }
};

// Elements from i on, one after the other, with care.
template <class Body>
WAGMA_DEVICE void carefully(const Body& body, std::size_t i, int number) {
  WAGMA_ROLLED
  for (int k = 0; k < number; ++k) {
    typename Body::template Values<1, 1> values WAGMA_UNSET;
    const Run run{i + static_cast<unsigned>(k), 1, 1};
    body.template read<1, 1>(run, values);
    body.template write<1, 1, true>(run, values);
  }
}

// Elements [begin, end), `head` of them before the first boundary of vectors, or all; at most kAtOnce vectors for each thread.
template <int width, class Body>
WAGMA_DEVICE void vectors(const Body& body, unsigned thread, std::size_t begin, std::size_t end, unsigned head) {
  const auto size = static_cast<unsigned>(end - begin);
  head = head < size ? head : size;
  const unsigned inside = (size - head) / width * width, before = thread * width;
  const Run run{begin + head + before, kThreads * width, before < inside ? inside - before : 0};
  unsigned again = 0;
  if (run.left != 0) {
    typename Body::template Values<width, Body::kAtOnce> values WAGMA_UNSET;
    body.template read<width, Body::kAtOnce>(run, values);
    again = body.template write<width, Body::kAtOnce, false>(run, values);
  }
  // What is no whole vector, at either end, and then the vectors that are to be done again.
  unsigned rest = thread;
  int k = 0;
  WAGMA_ROLLED
  while (rest < size - inside || again >> k != 0) {
    std::size_t i = begin + (rest < head ? rest : rest + inside);
    int number = 1;
    if (rest < size - inside) {
      rest += kThreads;
    } else {
      i = run.at(k);
      number = again >> k & 1 ? width : 0;
      ++k;
    }
    carefully(body, i, number);
  }
}

// Elements [begin, end) one by one, a warp's next to each other.
template <class Body>
WAGMA_DEVICE void singles(const Body& body, unsigned thread, std::size_t begin, std::size_t end) {
  constexpr int number = Body::kSinglesAtOnce;
  WAGMA_ROLLED
  for (std::size_t first = begin + thread; first < end; first += number * kThreads) {
    typename Body::template Values<1, number> values WAGMA_UNSET;
    const Run run{first, kThreads, end - first};
    body.template read<1, number>(run, values);
    const unsigned again = body.template write<1, number, false>(run, values);
    WAGMA_ROLLED
    for (int k = 0; again >> k != 0; ++k) carefully(body, run.at(k), again >> k & 1);
  }
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
