// The two calls of the operating system below a doorbell. The model check has its own.
#pragma once

#include <cstdint>

#include "wagma/concurrency.hpp"

namespace wagma {

// Until a wake of one of `bits`, or `deadline`; at once if the word is not `expected` any more. May return early.
void futex_wait(Atomic<std::uint32_t>& word, std::uint32_t expected, Clock::time_point deadline, std::uint32_t bits);
// Wakes everyone who waits for one of `bits`.
void futex_wake(Atomic<std::uint32_t>& word, std::uint32_t bits);

}  // namespace wagma
