// What stays until the process ends, as something may still use its memory.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace wagma {

inline void keep(std::shared_ptr<void> object) {
  static std::mutex mutex;  // ranks of one process may end at the same time
  static auto& kept = *new std::vector<std::shared_ptr<void>>;  // never destroyed, and still reachable
  std::lock_guard lock(mutex);
  kept.push_back(std::move(object));
}

}  // namespace wagma
