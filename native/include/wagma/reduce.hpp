// Sums along the association tree and the merge, with the bits of wagma/core/trees.py and averaging.py.
//
// Equal bits need no more than this: the same additions in the same order, one IEEE division (never a multiplication by
// a reciprocal), no contraction into FMA (-ffp-contract=off for the whole kernel), denormals kept. Blocking and
// vectorising change none of them, since every element has a tree of its own.
#pragma once

#include <cstddef>

namespace wagma {

enum class DType { float32, float64 };

constexpr std::size_t item_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// destination[i] = sum over the n >= 1 sources' [i] along association(n). Every pointer is aligned for its type;
// destination may be one of the sources, but must not overlap one otherwise. To reduce a slice, pass pointers into the
// arrays.
void tree_sum(DType dtype, void* destination, const void* const* sources, int n, std::size_t count);

// destination[i] /= divisor: the mean, in place.
void divide(DType dtype, void* destination, int divisor, std::size_t count);

// destination = (total + own_weight * own) / divisor, own_weight 0 or 1; 0 reads nothing of own (0 * inf would poison a
// mean that own is not part of). total == nullptr: nothing to merge, as if it were zeros; with own_weight == divisor destination = own. destination may be own or
// total.
void merge_into(DType dtype, void* destination, const void* own, const void* total, int own_weight, int divisor,
                std::size_t count);

// The same in place: own = (total + own_weight * own) / divisor; total == nullptr leaves own as it is.
void merge(DType dtype, void* own, const void* total, int own_weight, int divisor, std::size_t count);

}  // namespace wagma
