// The one clock of all of an engine's timestamps.
#pragma once

#include <chrono>
#include <cstdint>

#include "wagma/transport.hpp"

namespace wagma {

inline std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

}  // namespace wagma
