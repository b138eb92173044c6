// Tries the orders of steps of a small program again and again, each time from its start: depth first, and no further from a state that
// was seen before. A state is what all words hold, and what each task has observed so far.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace wagma::check {

struct Limits {
  // How often another task goes on than the one that did, or, where that waits, the next in turn; -1: without a bound, every order.
  int deviations = -1;
  std::uint64_t states = 0;   // stop there; 0: without a limit
};

struct Found {
  std::uint64_t states = 0, runs = 0, steps = 0;
  std::uint64_t longest = 0;  // steps of a run
  bool complete = true;       // the limit of states was not reached
  std::string error;          // empty: none; with the last steps
};

// `setup` makes the program (it may construct what it wants; memory comes from an arena and is never given back) and spawns its tasks.
Found explore(const Limits& limits, const std::function<void()>& setup);

// For the program. A claim that does not hold ends the exploration.
[[noreturn]] void violated(const std::string& claim);
inline void claim(bool holds, const std::string& text) {
  if (!holds) violated(text);
}
// Checker's own data that a state depends on; by slot, fewer than 256.
void ghost(std::uint32_t slot, std::uint64_t value);
int task();
// How much time each look at the clock takes from here on, 12 us at the start of a run.
void look_takes(std::int64_t ns);

}  // namespace wagma::check
