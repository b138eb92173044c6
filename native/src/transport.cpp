#include "wagma/transport.hpp"

#include <algorithm>

namespace wagma {

namespace {
constexpr std::size_t kLine = 16;  // elements: a cache line of float32, so that two members never write the same line
}

Slice slice_of(std::size_t count, int slices, int index) {
  const std::size_t unit = count >= kLine * static_cast<std::size_t>(slices) ? kLine : 1;
  const std::size_t units = (count + unit - 1) / unit;
  const auto edge = [&](int i) {
    const std::size_t whole = units / slices, extra = units % slices;
    return std::min(count, (whole * i + std::min<std::size_t>(i, extra)) * unit);
  };
  return {edge(index), edge(index + 1)};
}

}  // namespace wagma
