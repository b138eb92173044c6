// What the two ways of executing a version over shared memory have in common (transport_node.cpp, transport_node_direct.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace wagma {

// Words on a desk: the version's tag in the upper half, a count in the lower one.
inline constexpr std::uint64_t kLower = 0xFFFFFFFFu;
inline constexpr std::uint64_t kPresent = std::uint64_t{1} << 31;  // of Desk::filled
inline constexpr std::uint64_t kCount = kPresent - 1;

// So many chunks a member fills before it has averaged them: few, so that they are still in its core's cache then.
inline constexpr std::size_t kWindow = 4;

}  // namespace wagma
