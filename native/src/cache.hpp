// How large the last cache is, which decides how results are written (reduce.hpp, Stores).
#pragma once

#include <unistd.h>

#include <cstddef>

#include "wagma/reduce.hpp"

namespace wagma {

// Beyond the last cache's size data goes past the caches: what is written would evict what is yet to be read, and each line written
// would be read first.
inline Stores stores_for(std::size_t working_set) {
  static const long bytes = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
  const std::size_t cache = bytes > 0 ? static_cast<std::size_t>(bytes) : std::size_t{16} << 20;
  return working_set > cache ? Stores::streaming : Stores::cached;
}

}  // namespace wagma
