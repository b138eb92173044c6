// Where the program under check has its memory. What a run allocates is forgotten as a whole: one that is given up halfway leaves tasks
// whose objects nobody can destroy.
#pragma once

#include <cstddef>

namespace wagma::check {

struct Arena {
  static constexpr std::size_t kBytes = std::size_t{64} << 20;
  std::byte* base = nullptr;
  std::size_t used = 0;
  bool on = false;  // operator new takes from here; off while the scheduler itself works

  void* take(std::size_t bytes, std::size_t alignment);
  bool holds(const void* place) const { return base && place >= base && place < base + kBytes; }
};
extern Arena arena;

// Zeros, touched as they are needed.
std::byte* mapped(std::size_t bytes);

}  // namespace wagma::check
