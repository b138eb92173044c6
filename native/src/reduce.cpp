#include "wagma/reduce.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace wagma {
namespace {

// 1024 elements: the partials of one block stay in the first-level cache, and loop overhead is far below the loads.
constexpr std::size_t kBlock = 1024;
// Partials of 4, 8, 16, ... leaves: one slot for each size, so 16 slots are enough for 4 * (2^16 - 1) leaves.
constexpr int kSlots = 16;

template <class T>
void add(T* out, const T* left, const T* right, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = left[i] + right[i];
}

// The subtree of 1 to 4 leaves, straight from the sources into `out`, which may be one of them.
template <class T>
void sum_leaves(T* out, const void* const* leaves, int n, std::size_t offset, std::size_t count) {
  const auto leaf = [&](int i) { return i < n ? static_cast<const T*>(leaves[i]) + offset : nullptr; };
  const T *a = leaf(0), *b = leaf(1), *c = leaf(2), *d = leaf(3);
  switch (n) {
    case 1:
      if (out != a && count != 0) std::memcpy(out, a, count * sizeof(T));
      break;
    case 2:
      for (std::size_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
      break;
    case 3:
      for (std::size_t i = 0; i < count; ++i) out[i] = (a[i] + b[i]) + c[i];
      break;
    default:
      for (std::size_t i = 0; i < count; ++i) out[i] = (a[i] + b[i]) + (c[i] + d[i]);
  }
}

// One block of more than four leaves. Subtrees of four are added up like a binary counter: after q of them, slot j
// holds the sum of 2^j subtrees exactly if bit j of q is set. What is left at the end is folded from the right, as the
// binomial tree does it: association(28) is (16 + (8 + 4)).
template <class T>
void sum_block(T* destination, const void* const* sources, int n, std::size_t offset, std::size_t count) {
  alignas(64) std::array<std::array<T, kBlock>, kSlots + 1> blocks;
  std::array<T*, kSlots> slots;
  for (int slot = 0; slot < kSlots; ++slot) slots[slot] = blocks[slot].data();
  T* incoming = blocks[kSlots].data();
  unsigned quads = 0;
  for (int leaf = 0; leaf < n; leaf += 4, ++quads) {
    sum_leaves(incoming, sources + leaf, std::min(4, n - leaf), offset, count);
    int slot = 0;
    for (; quads >> slot & 1; ++slot) add(incoming, slots[slot], incoming, count);
    std::swap(slots[slot], incoming);
  }
  const T* total = nullptr;
  for (int slot = 0; slot < kSlots; ++slot) {
    if (!(quads >> slot & 1)) continue;
    if (total) add(slots[slot], slots[slot], total, count);
    total = slots[slot];
  }
  std::memcpy(destination + offset, total, count * sizeof(T));
}

template <class T>
void tree_sum_of(T* destination, const void* const* sources, int n, std::size_t count) {
  if (n <= 4) {
    sum_leaves(destination, sources, n, 0, count);
    return;
  }
  for (std::size_t offset = 0; offset < count; offset += kBlock) {
    sum_block(destination, sources, n, offset, std::min(kBlock, count - offset));
  }
}

template <class T>
void divide_of(T* destination, T divisor, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) destination[i] = destination[i] / divisor;
}

template <class T>
void merge_of(T* destination, const T* own, const T* total, int own_weight, T divisor, std::size_t count) {
  if (!total && static_cast<T>(own_weight) == divisor) {
    if (destination != own && count != 0) std::memcpy(destination, own, count * sizeof(T));
  } else if (!total) {  // own_weight 0 must not touch own: 0 * inf
    for (std::size_t i = 0; i < count; ++i) destination[i] = own_weight ? own[i] / divisor : T{0};
  } else if (own_weight) {
    for (std::size_t i = 0; i < count; ++i) destination[i] = (total[i] + own[i]) / divisor;
  } else {
    for (std::size_t i = 0; i < count; ++i) destination[i] = total[i] / divisor;
  }
}

}  // namespace

void tree_sum(DType dtype, void* destination, const void* const* sources, int n, std::size_t count) {
  if (n < 1 || n > 4 * ((1 << kSlots) - 1)) {
    throw std::invalid_argument("tree_sum of " + std::to_string(n) + " sources: must be from 1 to " +
                                std::to_string(4 * ((1 << kSlots) - 1)));
  }
  if (dtype == DType::float64) {
    tree_sum_of(static_cast<double*>(destination), sources, n, count);
  } else {
    tree_sum_of(static_cast<float*>(destination), sources, n, count);
  }
}

void divide(DType dtype, void* destination, int divisor, std::size_t count) {
  if (dtype == DType::float64) {
    divide_of(static_cast<double*>(destination), static_cast<double>(divisor), count);
  } else {
    divide_of(static_cast<float*>(destination), static_cast<float>(divisor), count);
  }
}

void merge_into(DType dtype, void* destination, const void* own, const void* total, int own_weight, int divisor,
                std::size_t count) {
  if (dtype == DType::float64) {
    merge_of(static_cast<double*>(destination), static_cast<const double*>(own), static_cast<const double*>(total),
             own_weight, static_cast<double>(divisor), count);
  } else {
    merge_of(static_cast<float*>(destination), static_cast<const float*>(own), static_cast<const float*>(total),
             own_weight, static_cast<float>(divisor), count);
  }
}

void merge(DType dtype, void* own, const void* total, int own_weight, int divisor, std::size_t count) {
  merge_into(dtype, own, own, total, own_weight, divisor, count);
}

}  // namespace wagma
