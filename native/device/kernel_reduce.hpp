// The sum along the association tree, divided and rounded: a slice of a version's data, for all of its members.
#pragma once

#include "arithmetic.hpp"
#include "spans.hpp"
#include "wagma/device.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

// Where a reduction says that a source's stamp is not the one expected: memory that the host can read once the kernel is over, for
// this reduction alone, with `source` -1 before it. Of several the first is named.
struct Finding {
  std::int32_t source = -1;
  Version found = 0;
};

// The binomial tree over n leaves from `first` on: the largest power of two below n on the left.
WAGMA_HOST_DEVICE constexpr int left_of(int n) {
  int left = 1;
  while (2 * left < n) left *= 2;
  return left;
}

template <class T, int first, int n, bool careful, class Leaves>
WAGMA_DEVICE typename T::Sum tree(const Leaves& leaves, int k) {
  if constexpr (n == 1) {
    return T::template read<careful>(leaves[first].items[k]);
  } else {
    constexpr int left = left_of(n);
    return plus<careful>(tree<T, first, left, careful>(leaves, k), tree<T, first + left, n - left, careful>(leaves, k));
  }
}

constexpr int kLeaves = 8;  // at most so many are added up in one go

template <class T, int capacity, int target_capacity>
struct Members {
  using Item = typename T::Item;
  using Sum = typename T::Sum;
  struct Source {
    const Item* data;  // at the slice's first element; nullptr: zeros
    const std::int64_t* stamp;
    Version expected;
  };
  struct Target {
    void* data;  // at the slice's first element
    std::int64_t* stamp;
    int divisor;  // equal ones lie next to each other
  };
  Source sources[capacity];
  Target targets[target_capacity];
  int n, m;

  template <int width>
  WAGMA_DEVICE Pack<Item, width> leaf(int source, std::size_t i) const {
    return sources[source].data ? load<Pack<Item, width>>(sources[source].data + i) : Pack<Item, width>{};
  }

  // To all targets, but for the vectors in `again`.
  template <int width, int number, bool careful>
  WAGMA_DEVICE void put(const Run& run, unsigned again, const Pack<Sum, width> (&sums)[number]) const {
    Pack<Item, width> means[number] WAGMA_UNSET;
    int divisor = 1;  // of the means
    WAGMA_ROLLED
    for (int j = 0; j < m; ++j) {
      const Target target = targets[j];
      if (target.divisor == 1) {
        WAGMA_UNROLL
        for (int k = 0; k < number; ++k) {
          if (run.has(k) && !(again >> k & 1)) store_sums(static_cast<Sum*>(target.data) + run.at(k), sums[k]);
        }
        continue;
      }
      if (target.divisor != divisor) {
        divisor = target.divisor;
        const auto divides = static_cast<Sum>(divisor);
        WAGMA_UNROLL
        for (int k = 0; k < number; ++k) {
          WAGMA_UNROLL
          for (int e = 0; e < width; ++e) {
            means[k].items[e] = T::template rounded<careful>(divided<careful>(sums[k].items[e], divides));
          }
        }
      }
      WAGMA_UNROLL
      for (int k = 0; k < number; ++k) {
        if (run.has(k) && !(again >> k & 1)) store(static_cast<Item*>(target.data) + run.at(k), means[k]);
      }
    }
  }

  // By one thread.
  WAGMA_DEVICE void check(Finding* finding) const {
    int wrong = -1;
    Version found = 0;
    for (int source = capacity - 1; source >= 0; --source) {
      if (source >= n || !sources[source].stamp) continue;
      const auto stamp = load<Pack<std::int64_t, 1>>(sources[source].stamp).items[0];
      if (stamp != sources[source].expected) wrong = source, found = stamp;
    }
    if (wrong < 0) return;
    finding->found = found;
    finding->source = wrong;
  }

 private:
  // Sums of 16-bit items are 32 bytes.
  template <int width>
  static WAGMA_DEVICE void store_sums(Sum* to, const Pack<Sum, width>& sums) {
    constexpr int most = width * sizeof(Sum) > 16 ? 16 / sizeof(Sum) : width;
    WAGMA_UNROLL
    for (int first = 0; first < width; first += most) {
      Pack<Sum, most> some;
      WAGMA_UNROLL
      for (int k = 0; k < most; ++k) some.items[k] = sums.items[first + k];
      store(to + first, some);
    }
  }
};

// The vectors in which there is a NaN.
template <class Sum, int width, int number>
WAGMA_DEVICE unsigned with_nan(const Run& run, const Pack<Sum, width> (&sums)[number]) {
  unsigned again = 0;
  WAGMA_UNROLL
  for (int k = 0; k < number; ++k) {
    bool nan = false;
    WAGMA_UNROLL
    for (int e = 0; e < width; ++e) nan |= is_nan(sums[k].items[e]);
    if (run.has(k) && nan) again |= 1u << k;
  }
  return again;
}

// A body of spans.hpp: n sources, all of whose items a thread has in registers before it adds them up.
template <class T, int n>
struct Few : Members<T, n, kLeaves> {
  using Item = typename T::Item;
  using Sum = typename T::Sum;
  static constexpr int kAtOnce = n >= 3 ? 1 : 2, kWidth = 16 / sizeof(Item);

  template <int width, int number>
  struct Values {
    Pack<Item, width> leaves[number][n];
  };
  template <int width, int number>
  WAGMA_DEVICE void read(const Run& run, Values<width, number>& values) const {
    WAGMA_UNROLL
    for (int k = 0; k < number; ++k) {
      if (!run.has(k)) continue;
      WAGMA_UNROLL
      for (int source = 0; source < n; ++source) values.leaves[k][source] = this->template leaf<width>(source, run.at(k));
    }
  }
  template <int width, int number, bool careful>
  WAGMA_DEVICE unsigned write(const Run& run, Values<width, number>& values) const {
    Pack<Sum, width> sums[number] WAGMA_UNSET;
    WAGMA_UNROLL
    for (int k = 0; k < number; ++k) {
      WAGMA_UNROLL
      for (int e = 0; e < width; ++e) sums[k].items[e] = tree<T, 0, n, careful>(values.leaves[k], e);
    }
    const unsigned again = careful ? 0 : with_nan(run, sums);
    this->template put<width, number, careful>(run, again, sums);
    return again;
  }
};

// A body of spans.hpp: any number of sources. Subtrees of eight are added up like a binary counter: after q of them, slot j holds the
// sum of 2^j subtrees exactly if bit j of q is set. What is left at the end is folded from the lowest slot, as the binomial tree does it:
// association(56) is (32 + (16 + 8)).
template <class T>
struct Many : Members<T, Device::kMostMembers, Device::kMostMembers> {
  using Item = typename T::Item;
  using Sum = typename T::Sum;
  static constexpr int kAtOnce = 1, kWidth = sizeof(Sum) == 8 ? 1 : 4;  // eight loads are under way, and registers are scarce
  static constexpr int kSlots = 5;
  static_assert(kLeaves << (kSlots - 1) == Device::kMostMembers);

  template <int, int>
  struct Values {};
  template <int width, int number>
  WAGMA_DEVICE void read(const Run&, Values<width, number>&) const {}
  template <int width, int number, bool careful>
  WAGMA_DEVICE unsigned write(const Run& run, Values<width, number>&) const {
    if (!run.has(0)) return 0;
    const Pack<Sum, width> sums[1] = {sum<width, careful>(run.first)};
    const unsigned again = careful ? 0 : with_nan(run, sums);
    this->template put<width, 1, careful>(run, again, sums);
    return again;
  }

 private:
  // sums = left + sums
  template <bool careful, int width>
  static WAGMA_DEVICE void add(const Pack<Sum, width>& left, Pack<Sum, width>& sums) {
    WAGMA_UNROLL
    for (int e = 0; e < width; ++e) sums.items[e] = plus<careful>(left.items[e], sums.items[e]);
  }

  // Counts on. (Not a loop: slots are registers only where each index is a constant.)
  template <int slot, bool careful, int width>
  static WAGMA_DEVICE void keep(unsigned octets, Pack<Sum, width> (&slots)[kSlots], Pack<Sum, width>& sums) {
    if constexpr (slot < kSlots) {
      if (octets >> slot & 1) {
        add<careful>(slots[slot], sums);
        keep<slot + 1, careful>(octets, slots, sums);
      } else {
        slots[slot] = sums;
      }
    }
  }

  // Of up to eight leaves from `first` on.
  template <int width, bool careful>
  WAGMA_DEVICE Pack<Sum, width> octet(int first, std::size_t i) const {
    Pack<Item, width> leaves[kLeaves] WAGMA_UNSET;
    const int few = this->n - first;
    WAGMA_UNROLL
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
      if (leaf < few) leaves[leaf] = this->template leaf<width>(first + leaf, i);
    }
    Pack<Sum, width> sums;
    WAGMA_UNROLL
    for (int e = 0; e < width; ++e) {
      Sum partial[kLeaves];
      WAGMA_UNROLL
      for (int leaf = 0; leaf < kLeaves; ++leaf) partial[leaf] = T::template read<careful>(leaves[leaf].items[e]);
      WAGMA_UNROLL
      for (int stride = 1; stride < kLeaves; stride *= 2) {
        WAGMA_UNROLL
        for (int into = 0; into + stride < kLeaves; into += 2 * stride) {
          if (into + stride < few) partial[into] = plus<careful>(partial[into], partial[into + stride]);
        }
      }
      sums.items[e] = partial[0];
    }
    return sums;
  }

  template <int width, bool careful>
  WAGMA_DEVICE Pack<Sum, width> sum(std::size_t i) const {
    Pack<Sum, width> slots[kSlots] WAGMA_UNSET, sums WAGMA_UNSET;
    unsigned octets = 0;
    WAGMA_ROLLED
    for (int first = 0; first < this->n; first += kLeaves, ++octets) {
      sums = octet<width, careful>(first, i);
      keep<0, careful>(octets, slots, sums);
    }
    bool begun = false;
    WAGMA_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      if (!(octets >> slot & 1)) continue;
      if (begun) {
        add<careful>(slots[slot], sums);
      } else {
        sums = slots[slot];
      }
      begun = true;
    }
    return sums;
  }
};

// The kernel.
template <class T, class Body>
struct Reduce {
  static constexpr int kWidth = Body::kWidth;
  static constexpr unsigned kTile = kThreads * kWidth * Body::kAtOnce;

  Body body;
  Tiles<kTile> tiles;
  bool wide;     // the arrays allow it together
  bool stamped;  // with `version`
  Version version;
  Finding* finding;
  unsigned* ticket;

  WAGMA_DEVICE void operator()(const Block& block) const {
    block.each([&](unsigned thread) {
      if (block.number() == 0 && thread == 0) body.check(finding);
      for (std::size_t tile = block.number(); tile < tiles.number(); tile += block.blocks()) {
        vectors<kWidth>(body, thread, tiles.begin(tile), tiles.end(tile), tiles.head(tile, kWidth, wide));
      }
    });
    if (!stamped) return;
    block.last(ticket, [&] {
      for (int j = 0; j < body.m; ++j) {
        if (body.targets[j].stamp) *body.targets[j].stamp = version;
      }
    });
  }
};

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
