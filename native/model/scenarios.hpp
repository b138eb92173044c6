#pragma once

#include <functional>
#include <string>
#include <vector>

namespace wagma::check {

struct Scenario {
  std::string name;
  std::function<void()> setup;
  // Deviations (scheduler.hpp) as far as they are explored; -1: every order.
  int deviations = -1, long_deviations = -1;
  bool only_long = false;
};

std::vector<Scenario> transport_scenarios();  // one task a rank: meeting, chunks, ringing and sleeping
std::vector<Scenario> device_scenarios();     // the same between buffers on devices, whose kernels are tasks, too
std::vector<Scenario> engine_scenarios();     // whole engines: two tasks a rank, which take turns
std::vector<Scenario> scenarios();

}  // namespace wagma::check
