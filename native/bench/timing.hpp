// What the microbenchmarks share: options, quartiles, lines of results, and the yardsticks that several of them print beside theirs.
#pragma once

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "wagma/reduce.hpp"

namespace wagma::timing {

// Options as pairs of words, `--name VALUE`: whole numbers above 0, or names.
using Options = std::map<std::string, std::variant<long long*, std::string*>>;

inline void read_options(int count, char** words, const Options& options) {
  for (int i = 1; i < count; i += 2) {
    const std::string name = words[i];
    const auto found = options.find(name);
    if (found == options.end()) {
      std::string allowed;
      for (const auto& [option, _] : options) allowed += (allowed.empty() ? "" : ", ") + option;
      throw std::invalid_argument(name + ": must be one of " + allowed);
    }
    if (i + 1 == count) throw std::invalid_argument(name + " needs a value");
    if (auto* const* text = std::get_if<std::string*>(&found->second)) {
      **text = words[i + 1];
      continue;
    }
    char* end = nullptr;
    const long long value = std::strtoll(words[i + 1], &end, 10);
    if (*end != '\0' || value < 1) throw std::invalid_argument(name + " = " + words[i + 1] + ": must be a whole number above 0");
    *std::get<long long*>(found->second) = value;
  }
}

inline int run_bench(const char* name, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: error: %s\n", name, error.what());
    return 2;
  }
  return 0;
}

struct Spread {
  double lower, median, upper;  // quartiles
};

inline Spread spread_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const auto at = [&](std::size_t quarter) { return samples[quarter * (samples.size() - 1) / 4]; };
  return {at(1), at(2), at(3)};
}

inline double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds of one call, `repeats` times `inner` calls; whatever was cold is warm by then.
inline Spread time_calls(long long repeats, long long inner, const std::function<void()>& call) {
  std::vector<double> samples;
  for (long long repeat = -1; repeat < repeats; ++repeat) {
    const double begin = seconds();
    for (long long i = 0; i < inner; ++i) call();
    if (repeat >= 0) samples.push_back((seconds() - begin) / static_cast<double>(inner));
  }
  return spread_of(std::move(samples));
}

// One line: what, its quartiles, and how its median compares with that of the yardstick.
inline void print_line(const std::string& what, Spread time, double unit, const char* unit_name, const char* yardstick, Spread other,
                       const std::string& more = "") {
  std::printf("%-44s %10.2f [%9.2f, %9.2f] %-2s  %s %9.2f %-2s  ratio %6.2f%s%s\n", what.c_str(), time.median / unit, time.lower / unit,
              time.upper / unit, unit_name, yardstick, other.median / unit, unit_name, time.median / other.median,
              more.empty() ? "" : "  ", more.c_str());
  std::fflush(stdout);
}

// The yardstick of whatever moves models: the same threads copy as many bytes, each an array of its own to another one, between two
// passes of a barrier.
inline Spread time_copies(int threads, std::size_t bytes, long long repeats) {
  const auto stores = 2 * static_cast<std::size_t>(threads) * bytes > (std::size_t{32} << 20) ? Stores::streaming : Stores::cached;
  std::barrier gate(threads);
  std::vector<double> samples;
  const auto run = [&](bool is_first) {
    std::vector<std::byte> from(bytes, std::byte{1}), to(bytes);
    for (long long repeat = -1; repeat < repeats; ++repeat) {
      gate.arrive_and_wait();
      const double begin = seconds();
      copy(to.data(), from.data(), bytes, stores);
      gate.arrive_and_wait();
      if (is_first && repeat >= 0) samples.push_back(seconds() - begin);
    }
  };
  std::vector<std::jthread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(run, false);
  run(true);
  others.clear();
  return spread_of(std::move(samples));
}

}  // namespace wagma::timing
