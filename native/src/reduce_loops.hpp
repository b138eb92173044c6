// The loops of one set of Kernels; included after reduce_lines.hpp by each reduce_*.cpp.
//
// They go line by line in ascending order, and a line is read from everywhere before it is written anywhere: so a target may be a
// source, and a merge may write over its total. What is no whole line, at either end, goes vector by vector, padded with zeros,
// through the same arithmetic.

namespace wagma {
namespace {

// How a vector of items, or of sums, is read: all of it, or the first `count` elements and zeros.
struct Whole {
  template <class T>
  WAGMA_INLINE typename T::Vector items(const typename T::Item* from) const { return T::read(from); }
  template <class T>
  WAGMA_INLINE typename T::Vector sums(const typename T::Sum* from) const { return load<typename T::Vector>(from); }
};

struct Part {
  std::size_t count;
  template <class T>
  WAGMA_INLINE typename T::Vector items(const typename T::Item* from) const {
    typename T::Item padded[Line<T>::kLanes] = {};
    for (std::size_t i = 0; i < count; ++i) padded[i] = from[i];
    return T::read(padded);
  }
  template <class T>
  WAGMA_INLINE typename T::Vector sums(const typename T::Sum* from) const {
    typename T::Sum padded[Line<T>::kLanes] = {};
    for (std::size_t i = 0; i < count; ++i) padded[i] = from[i];
    return load<typename T::Vector>(padded);
  }
};

// The binomial tree over n leaves from `first` on: the largest power of two below n on the left.
constexpr int left_of(int n) {
  int left = 1;
  while (2 * left < n) left *= 2;
  return left;
}

template <class T, int first, int n, class How>
WAGMA_INLINE typename T::Vector tree(const void* const* leaves, std::size_t at, How how) {
  if constexpr (n == 1) {
    return how.template items<T>(static_cast<const typename T::Item*>(leaves[first]) + at);
  } else {
    constexpr int left = left_of(n);
    return tree<T, first, left>(leaves, at, how) + tree<T, first + left, n - left>(leaves, at, how);
  }
}

// Up to this many leaves are added up in registers.
constexpr int kDirect = 8;
template <class T, int n>
struct Direct {
  const void* leaves[n];
  explicit Direct(const void* const* sources) {
    for (int i = 0; i < n; ++i) leaves[i] = sources[i];
  }
  template <class How>
  WAGMA_INLINE typename T::Vector operator()(std::size_t at, How how) const {
    return tree<T, 0, n>(leaves, at, how);
  }
};

// The same for the ends, where a loop does.
template <class T>
struct Few {
  const void* const* leaves;
  int n;  // at most kDirect
  template <class How>
  typename T::Vector operator()(std::size_t at, How how) const {
    typename T::Vector partial[kDirect] = {};
    for (int i = 0; i < n; ++i) partial[i] = how.template items<T>(static_cast<const typename T::Item*>(leaves[i]) + at);
    for (int stride = 1; stride < n; stride *= 2) {
      for (int i = 0; i + stride < n; i += 2 * stride) partial[i] = partial[i] + partial[i + stride];
    }
    return partial[0];
  }
};

// What a merge divides.
template <class T, bool with_total, bool with_own>
struct Merge {
  const void* total;
  const void* own;
  template <class How>
  WAGMA_INLINE typename T::Vector operator()(std::size_t at, How how) const {
    if constexpr (with_total && with_own) {
      return how.template sums<T>(sum_at(at)) + how.template items<T>(own_at(at));
    } else if constexpr (with_total) {
      return how.template sums<T>(sum_at(at));
    } else {
      return how.template items<T>(own_at(at));
    }
  }
  WAGMA_INLINE const typename T::Sum* sum_at(std::size_t at) const { return static_cast<const typename T::Sum*>(total) + at; }
  WAGMA_INLINE const typename T::Item* own_at(std::size_t at) const { return static_cast<const typename T::Item*>(own) + at; }
};

template <class T, bool streaming>
WAGMA_INLINE void write_line(const Line<T>& sums, const Plan& plan, std::size_t at) {
  constexpr std::size_t lanes = Line<T>::kLanes, vectors = Line<T>::kVectors;
  for (int j = 0; j < plan.raws; ++j) {
    auto* const to = static_cast<typename T::Sum*>(plan.raw[j]) + at;
    for (std::size_t v = 0; v < vectors; ++v) store<streaming>(to + v * lanes, sums.vectors[v]);
  }
  if (plan.divideds == 0) return;
  decltype(T::rounded(sums.vectors[0])) means[vectors];
  const auto divisor = static_cast<typename T::Sum>(plan.divisor);
  for (std::size_t v = 0; v < vectors; ++v) means[v] = T::rounded(sums.vectors[v] / divisor);
  for (int j = 0; j < plan.divideds; ++j) {
    auto* const to = static_cast<typename T::Item*>(plan.divided[j]) + at;
    for (std::size_t v = 0; v < vectors; ++v) store<streaming>(to + v * lanes, means[v]);
  }
}

// Elements [at, at + count) vector by vector, with plain stores: a few at either end.
template <class T, class Sums>
void write_parts(const Sums& sums, const Plan& plan, std::size_t at, std::size_t count) {
  constexpr std::size_t lanes = Line<T>::kLanes;
  for (std::size_t step; count != 0; at += step, count -= step) {
    step = count < lanes ? count : lanes;
    const typename T::Vector sum = sums(at, Part{step});
    for (int j = 0; j < plan.raws; ++j) {
      auto* const to = static_cast<typename T::Sum*>(plan.raw[j]) + at;
      for (std::size_t i = 0; i < step; ++i) to[i] = sum[i];
    }
    if (plan.divideds == 0) continue;
    typename T::Item means[lanes];
    store<false>(means, T::rounded(sum / static_cast<typename T::Sum>(plan.divisor)));
    for (int j = 0; j < plan.divideds; ++j) {
      auto* const to = static_cast<typename T::Item*>(plan.divided[j]) + at;
      for (std::size_t i = 0; i < step; ++i) to[i] = means[i];
    }
  }
}

// The first element from which on every target's lines begin where cache lines do, as streaming stores need it; kNowhere if there is
// none. A line written as a whole leaves the processor's write-combining buffer in one piece.
constexpr std::size_t kNowhere = ~std::size_t{0};

template <class T>
std::size_t aligned_from(const Plan& plan) {
  const auto aligned = [](const void* target, std::size_t bytes) {
    return (reinterpret_cast<std::size_t>(target) + bytes) % kLineBytes == 0;
  };
  for (std::size_t at = 0; at < Line<T>::kItems; ++at) {
    bool all = true;
    for (int j = 0; j < plan.raws; ++j) all &= aligned(plan.raw[j], at * sizeof(typename T::Sum));
    for (int j = 0; j < plan.divideds; ++j) all &= aligned(plan.divided[j], at * sizeof(typename T::Item));
    if (all) return at;
  }
  return kNowhere;
}

template <class T, bool streaming, class Sums>
void write_lines(const Sums& sums, const Plan& plan, std::size_t at, std::size_t end) {
  for (; at < end; at += Line<T>::kItems) {
    Line<T> line;
    for (std::size_t v = 0; v < Line<T>::kVectors; ++v) line.vectors[v] = sums(at + v * Line<T>::kLanes, Whole{});
    write_line<T, streaming>(line, plan, at);
  }
}

template <class T, class Sums, class Ends>
void write(const Sums& sums, const Ends& ends, const Plan& plan, std::size_t count, Stores stores) {
  std::size_t begin = stores == Stores::streaming ? aligned_from<T>(plan) : kNowhere;
  const bool streaming = begin != kNowhere;
  if (!streaming) begin = 0;
  if (begin > count) begin = count;
  const std::size_t end = begin + (count - begin) / Line<T>::kItems * Line<T>::kItems;
  write_parts<T>(ends, plan, 0, begin);
  if (streaming) {
    write_lines<T, true>(sums, plan, begin, end);
  } else {
    write_lines<T, false>(sums, plan, begin, end);
  }
  write_parts<T>(ends, plan, end, count - end);
}

// At most kDirect sources, in registers.
template <class T>
void reduce_few(const void* const* sources, int n, const Plan& plan, std::size_t count, Stores stores) {
  const Few<T> few{sources, n};
  switch (n) {
    case 1: return write<T>(Direct<T, 1>(sources), few, plan, count, stores);
    case 2: return write<T>(Direct<T, 2>(sources), few, plan, count, stores);
    case 3: return write<T>(Direct<T, 3>(sources), few, plan, count, stores);
    case 4: return write<T>(Direct<T, 4>(sources), few, plan, count, stores);
    case 5: return write<T>(Direct<T, 5>(sources), few, plan, count, stores);
    case 6: return write<T>(Direct<T, 6>(sources), few, plan, count, stores);
    case 7: return write<T>(Direct<T, 7>(sources), few, plan, count, stores);
    default: return write<T>(Direct<T, 8>(sources), few, plan, count, stores);
  }
}

// Partials of 8, 16, 32, ... leaves: one slot for each size, enough for kMostSources.
constexpr int kSlots = 16;

// 4 KiB of sums: a block and the partials at work stay in the first-level cache, and a block is a long enough run in each source.
template <class T>
constexpr std::size_t kBlock = 4096 / sizeof(typename T::Sum);
template <class T>
using Block = typename T::Sum[kBlock<T>];

// out = left + right, blocks of sums; out may be either.
template <class T>
void add_blocks(typename T::Sum* out, const typename T::Sum* left, const typename T::Sum* right, std::size_t count) {
  for (std::size_t at = 0; at < count; at += Line<T>::kLanes) {  // whole vectors: what is beyond count lies within the blocks
    store<false>(out + at, load<typename T::Vector>(left + at) + load<typename T::Vector>(right + at));
  }
}

// The sums of one block in one of `blocks`. Subtrees of eight are added up like a binary counter: after q of them, slot j holds the
// sum of 2^j subtrees exactly if bit j of q is set. What is left at the end is folded from the right, as the binomial tree does it:
// association(56) is (32 + (16 + 8)).
template <class T>
const typename T::Sum* sum_block(Block<T>* blocks, const void* const* sources, int n, std::size_t begin, std::size_t count) {
  typename T::Sum* slots[kSlots];
  for (int slot = 0; slot < kSlots; ++slot) slots[slot] = blocks[slot];
  typename T::Sum* incoming = blocks[kSlots];
  unsigned octets = 0;
  for (int first = 0; first < n; first += kDirect, ++octets) {
    const int few = n - first < kDirect ? n - first : kDirect;
    const void* leaves[kDirect];
    for (int i = 0; i < few; ++i) leaves[i] = static_cast<const typename T::Item*>(sources[first + i]) + begin;
    void* const only[] = {incoming};
    reduce_few<T>(leaves, few, {only, 1, nullptr, 0, 1}, count, Stores::cached);
    int slot = 0;
    for (; octets >> slot & 1; ++slot) add_blocks<T>(incoming, slots[slot], incoming, count);
    typename T::Sum* const kept = incoming;
    incoming = slots[slot];
    slots[slot] = kept;
  }
  int slot = __builtin_ctz(octets);
  typename T::Sum* const total = slots[slot];
  while (octets >> ++slot) {
    if (octets >> slot & 1) add_blocks<T>(total, slots[slot], total, count);
  }
  return total;
}

void stream_of(void* destination, const void* source, std::size_t bytes);

// From the block to every target in turn, so that each gets a long run: many targets written line by line would be many open pages.
template <class T>
void write_block(const typename T::Sum* sums, const Plan& plan, std::size_t begin, std::size_t count, Stores stores) {
  const auto put = [&](void* to, const void* from, std::size_t bytes) {
    stores == Stores::streaming ? stream_of(to, from, bytes) : static_cast<void>(__builtin_memcpy(to, from, bytes));
  };
  for (int j = 0; j < plan.raws; ++j) {
    put(static_cast<typename T::Sum*>(plan.raw[j]) + begin, sums, count * sizeof(typename T::Sum));
  }
  if (plan.divideds == 0) return;
  alignas(kLineBytes) typename T::Item means[kBlock<T>];
  void* const only[] = {means};
  const Merge<T, true, false> mean{sums, nullptr};
  write<T>(mean, mean, {nullptr, 0, only, 1, plan.divisor}, count, Stores::cached);
  for (int j = 0; j < plan.divideds; ++j) {
    put(static_cast<typename T::Item*>(plan.divided[j]) + begin, means, count * sizeof(typename T::Item));
  }
}

// Reading and writing 16 arrays line by line takes four times as long as in runs of a block.
template <class T>
void reduce_of(const void* const* sources, int n, const Plan& plan, std::size_t count, Stores stores) {
  if (n <= kDirect) return reduce_few<T>(sources, n, plan, count, stores);
  alignas(kLineBytes) Block<T> blocks[kSlots + 1];
  for (std::size_t begin = 0; begin < count; begin += kBlock<T>) {
    const std::size_t size = count - begin < kBlock<T> ? count - begin : kBlock<T>;
    write_block<T>(sum_block<T>(blocks, sources, n, begin, size), plan, begin, size, stores);
  }
}

template <class T>
void merge_of(void* destination, const void* own, const void* total, int divisor, std::size_t count, Stores stores) {
  const Plan plan{nullptr, 0, &destination, 1, divisor};
  const auto merge = [&](const auto& sums) { write<T>(sums, sums, plan, count, stores); };
  if (total && own) return merge(Merge<T, true, true>{total, own});
  if (total) return merge(Merge<T, true, false>{total, own});
  merge(Merge<T, false, true>{total, own});
}

void stream_of(void* destination, const void* source, std::size_t bytes) {
  auto* to = static_cast<char*>(destination);
  const auto* from = static_cast<const char*>(source);
  std::size_t head = -reinterpret_cast<std::size_t>(to) % kLineBytes;
  if (head > bytes) head = bytes;
  __builtin_memcpy(to, from, head);
  const std::size_t end = head + (bytes - head) / kLineBytes * kLineBytes;
  for (std::size_t at = head; at < end; at += kLineBytes) {
    Words line[kLineBytes / kVectorBytes];
    for (std::size_t v = 0; v < kLineBytes / kVectorBytes; ++v) line[v] = load<Words>(from + at + v * kVectorBytes);
    for (std::size_t v = 0; v < kLineBytes / kVectorBytes; ++v) store<true>(to + at + v * kVectorBytes, line[v]);
  }
  __builtin_memcpy(to + end, from + end, bytes - end);
}

}  // namespace
}  // namespace wagma

#define WAGMA_KERNELS(name)                                                                        \
  {                                                                                                \
    name, {reduce_of<Float32>, reduce_of<Float64>, reduce_of<Float16>, reduce_of<Bfloat16>},       \
        {merge_of<Float32>, merge_of<Float64>, merge_of<Float16>, merge_of<Bfloat16>}, stream_of   \
  }
