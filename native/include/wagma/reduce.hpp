// Sums along the association tree, means and merges, with the bits of wagma/core/trees.py and averaging.py.
//
// Equal bits need no more than this: the same additions in the same order in the accumulation type, one IEEE division (never a
// multiplication by a reciprocal), one rounding to the type of the model, no contraction into FMA (-ffp-contract=off for the whole
// kernel), denormals kept. Vectors, blocks, the kind of stores and the processor change none of them: every element has a tree of
// its own. Where two NaNs meet in an addition, the result is a NaN, but which one's payload and sign it has is not defined.
//
// Denormals are kept and roundings go to nearest even if the calling thread has said otherwise for itself (torch's
// set_flush_denormal): the application's threads take part in reductions, and who reduces a chunk must not show in its bits.
#pragma once

#include <cstddef>

namespace wagma {

// bfloat16 and float16 accumulate in float32; float64 in itself.
enum class DType { float32, float64, float16, bfloat16 };

constexpr std::size_t item_size(DType dtype) {
  if (dtype == DType::float64) return 8;
  return dtype == DType::float32 ? 4 : 2;
}

constexpr std::size_t accumulator_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float64: return "float64";
    case DType::float16: return "float16";
    case DType::bfloat16: return "bfloat16";
  }
  return "?";
}

// How results are written. `streaming` bypasses the caches, for data beyond them: a plain store first reads the line that it is
// about to overwrite, and drives out what others need.
//
// Streaming stores are not ordered with the stores after them: without a fence a caller's flag "this chunk is summed", even with
// release order, could be seen by another core before the chunk itself, which would then read an old sum. So every function here
// that may have streamed ends with a store fence; the caller publishes as after plain stores. Processors without such stores, and
// sanitizers, get plain ones, for which the caller's release store is enough.
enum class Stores { cached, streaming };

// For each element the sum of the n >= 1 sources' along association(n). A null source counts as zeros, which are added like any
// other value (-0.0 + 0.0 is +0.0). Target j of m receives the raw sum, as accumulators, if divisors[j] == 1, and sum / divisors[j],
// rounded once to items of `dtype`, else. Any alignment that the types have will do; 64 bytes are fastest. To reduce a slice, pass
// pointers into the arrays. A target may be one of the sources if its items are as large as theirs, but must not overlap one
// otherwise.
void reduce(DType dtype, const void* const* sources, int n, void* const* targets, const int* divisors, int m, std::size_t count,
            Stores stores);

// destination (items of `dtype`) = (total + own_weight * own) / divisor, own_weight 0 or 1; 0 reads nothing of own (0 * inf would
// poison a mean that own is not part of). `total` holds accumulators; nullptr: nothing to merge, as if it were zeros; with
// own_weight == divisor destination = own then. destination may be own or total. Another own_weight: std::invalid_argument.
void merge_into(DType dtype, void* destination, const void* own, const void* total, int own_weight, int divisor, std::size_t count,
                Stores stores = Stores::cached);

// own += taken, items of `dtype` both, added in the accumulation type and rounded once: what a rank took back.
void add_into(DType dtype, void* own, const void* taken, std::size_t count);

// The ranges must not overlap.
void copy(void* destination, const void* source, std::size_t bytes, Stores stores);

}  // namespace wagma
