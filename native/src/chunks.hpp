// What the ways of executing a version on a node have in common (node_rank.cpp, transport_node*.cpp, transport_device.cpp).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "wagma/concurrency.hpp"

namespace wagma {

// Words on a desk: the version's tag in the upper half, a count in the lower one.
inline constexpr std::uint64_t kLower = 0xFFFFFFFFu;
inline constexpr std::uint64_t kPresent = std::uint64_t{1} << 31;  // of Desk::filled
inline constexpr std::uint64_t kThrough = std::uint64_t{1} << 30;  // of Desk::filled, in the direct way; for messages
inline constexpr std::uint64_t kCount = kThrough - 1;

// So many chunks a member fills before it has averaged them: few, so that they are still in its core's cache then.
inline constexpr std::size_t kWindow = 4;
// Where ranks share cores the members work in turns, and each turn costs a change of threads: more, as far as all of them together stay in
// the shared cache.
inline constexpr std::size_t kSharedWindow = 8;

inline std::int64_t in_ns(Clock::time_point at) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(at.time_since_epoch()).count();
}

}  // namespace wagma
