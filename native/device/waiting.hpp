// Waiting for a device with a limit: its runtime waits without one.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace wagma {
namespace WAGMA_RUNTIME {

// Asks with naps that grow from 5 to 200 us; false if `limit_s` has passed first.
template <class Reached>
bool wait_until(double limit_s, Reached reached) {
  const auto begun = std::chrono::steady_clock::now();
  for (auto nap = std::chrono::microseconds(5); !reached(); nap = std::min(2 * nap, std::chrono::microseconds(200))) {
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() >= limit_s) return false;
    std::this_thread::sleep_for(nap);
  }
  return true;
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
