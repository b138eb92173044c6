// Kernels between the tensors of a model and an array that holds all of it: publish, take, merge, add. And the merge of plain arrays.
//
// A tile that lies within one tensor is done with wide accesses if array and tensor allow it together, else element by element, a warp's
// next to each other. In one that several tensors share every thread looks up its elements among these few.
#pragma once

#include "arithmetic.hpp"
#include "spans.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

// The tensors of a model where kernels look them up: three arrays in the memory of the device.
struct PartsTable {
  const std::uint64_t* ends = nullptr;   // ends[p]: elements in parts 0 ... p; empty parts are allowed
  void* const* data = nullptr;           // data[p] nullptr: zeros, and what is written is lost
  const std::uint8_t* dtypes = nullptr;  // of DType
  std::uint32_t parts = 0;
  bool alike = true;  // all dtypes are the model's

  WAGMA_DEVICE std::size_t begin_of(unsigned part) const { return part == 0 ? 0 : ends[part - 1]; }
  // The part that has this element, which is one of these.
  WAGMA_DEVICE unsigned of(std::size_t element, unsigned first, unsigned last) const {
    while (first < last) {
      const unsigned middle = first + (last - first) / 2;
      if (ends[middle] > element) {
        last = middle;
      } else {
        first = middle + 1;
      }
    }
    return first;
  }
};

// What is done with an element of a part and one of the array: T is the model's dtype, P the part's. Without care it says whether what it
// would have needed that for.
template <class T>
struct Publish {
  using Type = T;
  using Array = typename T::Item;
  static constexpr bool kToParts = false;
  static constexpr int kAtOnce = 4;  // loads of each thread
  WAGMA_DEVICE bool reads_part() const { return true; }
  WAGMA_DEVICE bool reads_array() const { return false; }
  template <class P, bool careful>
  WAGMA_DEVICE bool apply(typename P::Item& part, Array& array) const {
    array = held<T, P, careful>(part);
    return !std::is_same_v<T, P> && is_nan(array);
  }
};

template <class T>
struct Take {
  using Type = T;
  using Array = typename T::Item;
  static constexpr bool kToParts = true;
  static constexpr int kAtOnce = 4;
  WAGMA_DEVICE bool reads_part() const { return false; }
  WAGMA_DEVICE bool reads_array() const { return true; }
  template <class P, bool careful>
  WAGMA_DEVICE bool apply(typename P::Item& part, Array& array) const {
    part = written<P, T, careful>(array);
    return !std::is_same_v<T, P> && is_nan(array);
  }
};

template <class T>
struct Add {
  using Type = T;
  using Array = typename T::Item;
  static constexpr bool kToParts = true;
  static constexpr int kAtOnce = 2;
  WAGMA_DEVICE bool reads_part() const { return true; }
  WAGMA_DEVICE bool reads_array() const { return true; }
  template <class P, bool careful>
  WAGMA_DEVICE bool apply(typename P::Item& part, Array& array) const {
    const auto own = T::template read<careful>(held<T, P, careful>(part));
    const auto sum = plus<careful>(T::template read<careful>(array), own);
    part = written<P, T, careful>(T::template rounded<careful>(sum));
    return is_nan(sum);
  }
};

template <class T>
struct Merge {
  using Type = T;
  using Array = typename T::Sum;
  static constexpr bool kToParts = true;
  static constexpr int kAtOnce = 2;
  bool with_own;  // else it is not touched: 0 * infinity would poison a mean that it is not part of
  Array divisor;
  WAGMA_DEVICE bool reads_part() const { return with_own; }
  WAGMA_DEVICE bool reads_array() const { return true; }
  template <class P, bool careful>
  WAGMA_DEVICE bool apply(typename P::Item& part, Array& array) const {
    Array sum = array;
    if (with_own) sum = plus<careful>(sum, T::template read<careful>(held<T, P, careful>(part)));
    part = written<P, T, careful>(T::template rounded<careful>(divided<careful>(sum, divisor)));
    return is_nan(sum);
  }
};

// A body of spans.hpp: a range of one part, and the array from its first element on.
template <class Operation, class P>
struct OnePart {
  using Item = typename P::Item;
  using Array = typename Operation::Array;
  static constexpr int kAtOnce = Operation::kAtOnce, kSinglesAtOnce = Operation::kAtOnce * (sizeof(Item) == 8 ? 1 : 2);
  Operation operation;
  Item* part;
  Array* array;

  template <int width, int number>
  struct Values {
    Pack<Item, width> part[number];
    Pack<Array, width> array[number];
  };
  template <int width, int number>
  WAGMA_DEVICE void read(const Run& run, Values<width, number>& values) const {
    WAGMA_UNROLL
    for (int k = 0; k < number; ++k) {
      if (!run.has(k)) continue;
      if (operation.reads_part()) values.part[k] = load<Pack<Item, width>>(part + run.at(k));
      if (operation.reads_array()) values.array[k] = load<Pack<Array, width>>(array + run.at(k));
    }
  }
  template <int width, int number, bool careful>
  WAGMA_DEVICE unsigned write(const Run& run, Values<width, number>& values) const {
    unsigned again = 0;
    WAGMA_UNROLL
    for (int k = 0; k < number; ++k) {
      if (!run.has(k)) continue;
      bool needs_care = false;
      WAGMA_UNROLL
      for (int j = 0; j < width; ++j) {
        needs_care |= operation.template apply<P, careful>(values.part[k].items[j], values.array[k].items[j]);
      }
      if (!careful && needs_care) {
        again |= 1u << k;
      } else if constexpr (Operation::kToParts) {
        store(part + run.at(k), values.part[k]);
      } else {
        store(array + run.at(k), values.array[k]);
      }
    }
    return again;
  }
};

// Calls function(P{}) with the dtype of a part.
template <class T, bool alike, class Function>
WAGMA_DEVICE void with_part_type(std::uint8_t dtype, Function function) {
  if constexpr (alike) {
    function(T{});
  } else {
    switch (static_cast<DType>(dtype)) {
      case DType::float16: return function(Float16{});
      case DType::bfloat16: return function(Bfloat16{});
      case DType::float32: return function(Float32{});
      case DType::float64:
        if constexpr (std::is_same_v<T, Float64>) function(Float64{});
    }
  }
}

// A body of spans.hpp, for single elements: parts `first` to `last`, and the array.
template <class Operation, bool alike>
struct SomeParts {
  using T = typename Operation::Type;
  using Array = typename Operation::Array;
  static constexpr int kSinglesAtOnce = 4;
  Operation operation;
  const PartsTable& table;
  unsigned first, last;
  std::size_t before;  // elements of the model before the array's
  Array* array;

  template <int, int number>
  struct Values {
    void* at[number];
    std::uint8_t dtype[number];
    std::uint64_t part[number];  // its bits
    Array array[number];
  };
  template <int width, int number>
  WAGMA_DEVICE void read(const Run& run, Values<width, number>& values) const {
    WAGMA_UNROLL
    for (int k = 0; k < number; ++k) {
      if (!run.has(k)) continue;
      const unsigned part = table.of(before + run.at(k), first, last);
      void* const data = table.data[part];
      values.at[k] = data;
      values.dtype[k] = alike ? std::uint8_t{} : table.dtypes[part];
      values.part[k] = 0;
      if (operation.reads_array()) values.array[k] = load<Pack<Array, 1>>(array + run.at(k)).items[0];
      if (!data) continue;
      with_part_type<T, alike>(values.dtype[k], [&](auto type) {
        using Item = typename decltype(type)::Item;
        Item* const item = static_cast<Item*>(data) + (before + run.at(k) - table.begin_of(part));
        values.at[k] = item;
        if (operation.reads_part()) set_bits(values.part[k], load<Pack<Item, 1>>(item));
      });
    }
  }
  template <int width, int number, bool careful>
  WAGMA_DEVICE unsigned write(const Run& run, Values<width, number>& values) const {
    unsigned again = 0;
    WAGMA_UNROLL
    for (int k = 0; k < number; ++k) {
      if (!run.has(k) || (Operation::kToParts && !values.at[k])) continue;
      with_part_type<T, alike>(values.dtype[k], [&](auto type) {
        using P = decltype(type);
        auto part = of_bits<Pack<typename P::Item, 1>>(values.part[k]);
        const bool needs_care = operation.template apply<P, careful>(part.items[0], values.array[k]);
        if (!careful && needs_care) {
          again |= 1u << k;
        } else if constexpr (Operation::kToParts) {
          store(values.at[k], part);
        } else {
          store(array + run.at(k), Pack<Array, 1>{{values.array[k]}});
        }
      });
    }
    return again;
  }
};

// The kernel: an operation on elements [begin, begin + tiles.count) of the parts, and the array from the first of these on.
template <class Operation, bool alike>
struct OverParts {
  using T = typename Operation::Type;
  using Array = typename Operation::Array;
  static constexpr int kWidth = 16 / sizeof(Array);  // no part's items are larger
  static constexpr unsigned kTile = kThreads * kWidth * Operation::kAtOnce;

  Operation operation;
  PartsTable table;
  Array* array;
  std::size_t begin;
  Tiles<kTile> tiles;
  std::int64_t* stamp;  // may be nullptr
  std::int64_t version;
  unsigned* ticket;

  WAGMA_DEVICE void operator()(const Block& block) const {
    block.each([&](unsigned thread) {
      unsigned part = 0;
      for (std::size_t tile = block.number(); tile < tiles.number(); tile += block.blocks()) part = one_tile(thread, tile, part);
    });
    if (stamp) block.last(ticket, [&] { *stamp = version; });
  }

 private:
  // `part` is not behind the tile's first; returns that one.
  WAGMA_DEVICE unsigned one_tile(unsigned thread, std::size_t tile, unsigned part) const {
    const std::size_t from = tiles.begin(tile), to = tiles.end(tile);
    if (table.ends[part] <= begin + from) part = table.of(begin + from, part, table.parts - 1);
    void* const data = table.data[part];
    const bool whole = table.ends[part] >= begin + to;
    bool done = false;
    if (whole && data) {
      with_part_type<T, alike>(alike ? std::uint8_t{} : table.dtypes[part], [&](auto type) {
        done = one_part<decltype(type)>(thread, data, from, to, table.begin_of(part));
      });
    }
    if (!done) {
      const unsigned last = whole ? part : table.of(begin + to - 1, part, table.parts - 1);
      singles(SomeParts<Operation, alike>{operation, table, part, last, begin, array}, thread, from, to);
    }
    return part;
  }

  // Whether it is done.
  template <class P>
  WAGMA_DEVICE bool one_part(unsigned thread, void* data, std::size_t from, std::size_t to, std::size_t part_begin) const {
    auto* const items = static_cast<typename P::Item*>(data) + (begin + from - part_begin);
    const OnePart<Operation, P> body{operation, items, array + from};
    const unsigned phase = phase_of(array + from, kWidth);
    if (phase == phase_of(items, kWidth)) {
      vectors<kWidth>(body, thread, 0, to - from, phase == 0 ? 0 : kWidth - phase);
      return true;
    }
    if constexpr (alike) singles(body, thread, 0, to - from);
    return alike;
  }
};

// The kernel, and a body: destination[i] = (total[i] + own[i]) / divisor for i < tiles.count.
template <class T>
struct MergeInto {
  using Item = typename T::Item;
  using Sum = typename T::Sum;
  static constexpr int kAtOnce = 2, kWidth = 16 / sizeof(Sum);
  static constexpr unsigned kTile = kThreads * kWidth * kAtOnce;

  Item* destination;
  const Item* own;  // may be nullptr
  const Sum* total;
  Sum divisor;
  Tiles<kTile> tiles;
  bool wide;  // the arrays allow it together
  // In place, and items are smaller than sums: this is the array's beginning, and blocks would overwrite what others have to read. The
  // first element is done, then as many as are done already, again and again: their items lie where sums lay that are used up.
  bool doubling;

  template <int width, int number>
  struct Values {
    Pack<Item, width> own[number];
    Pack<Sum, width> total[number];
  };
  template <int width, int number>
  WAGMA_DEVICE void read(const Run& run, Values<width, number>& values) const {
    WAGMA_UNROLL
    for (int k = 0; k < number; ++k) {
      if (!run.has(k)) continue;
      if (own) values.own[k] = load<Pack<Item, width>>(own + run.at(k));
      values.total[k] = load<Pack<Sum, width>>(total + run.at(k));
    }
  }
  template <int width, int number, bool careful>
  WAGMA_DEVICE unsigned write(const Run& run, Values<width, number>& values) const {
    unsigned again = 0;
    WAGMA_UNROLL
    for (int k = 0; k < number; ++k) {
      if (!run.has(k)) continue;
      Pack<Item, width> merged;
      bool nan = false;
      WAGMA_UNROLL
      for (int j = 0; j < width; ++j) {
        Sum sum = values.total[k].items[j];
        if (own) sum = plus<careful>(sum, T::template read<careful>(values.own[k].items[j]));
        merged.items[j] = T::template rounded<careful>(divided<careful>(sum, divisor));
        nan |= is_nan(sum);
      }
      if (!careful && nan) {
        again |= 1u << k;
      } else {
        store(destination + run.at(k), merged);
      }
    }
    return again;
  }

  WAGMA_DEVICE void operator()(const Block& block) const {
    if (doubling) {
      for (std::size_t done = 0; done < tiles.count; done = done == 0 ? 1 : 2 * done) {
        const std::size_t end = done == 0 ? 1 : 2 * done;
        const unsigned size = static_cast<unsigned>((end < tiles.count ? end : tiles.count) - done);
        block.each([&](unsigned thread) { vectors<kWidth>(*this, thread, done, done + size, size); });
      }
      return;
    }
    block.each([&](unsigned thread) {
      for (std::size_t tile = block.number(); tile < tiles.number(); tile += block.blocks()) {
        vectors<kWidth>(*this, thread, tiles.begin(tile), tiles.end(tile), tiles.head(tile, kWidth, wide));
      }
    });
  }
};

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
