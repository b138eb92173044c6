// Deterministic simulation testing: ranks under a seeded scheduler with hostile timing, for sizes that the explorer cannot enumerate.
// The seed decides everything, the configuration included (fuzzer_plan.hpp), so that a failure is replayed by its seed. Each plan is
// run twice, and both logs have to be the same bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "fuzzer_run.hpp"

namespace wagma::tools {

inline constexpr const char* kUnseeded = "unseeded";  // the mutation that sets FuzzOptions::leaks

using Progress = std::function<void(std::uint64_t runs)>;  // called often, what it throws ends the work

struct FuzzOptions {
  std::uint64_t first = 0, seeds = 2000;
  Mutation mutation = Mutation::none;
  bool two_activators = false;  // that case alone
  bool leaks = false;           // planted: a run depends on those before it
  bool shrink = true;
  Progress progress;  // with the number of seeds that are done
};

// What is wrong with a plan. kind: what a smaller plan has to share with it to count as the same failure; empty: nothing is wrong.
struct Verdict {
  std::string kind, message;
  std::size_t events = 0;    // of the run, up to what is wrong
  std::uint64_t digest = 0;  // of the log
};

struct FuzzFailure {
  std::uint64_t seed;
  Verdict found;
  std::string config;
  Verdict shrunk;
  std::string shrunk_config;
  std::vector<std::string> trace;  // of the shrunk run, one line each event; it fails at the last one, or after it
  std::uint64_t attempts = 0;      // runs that shrinking took
};

struct FuzzResult {
  std::uint64_t runs = 0;    // seeds
  Counts counts;             // of one run of each seed
  std::uint64_t digest = 0;  // of all their logs, in order
  std::optional<FuzzFailure> failure;
};

// Ends at the first failure.
FuzzResult fuzz(const FuzzOptions& options);

// Runs a plan twice and compares; the second time as it was drawn once more, so that what a draw leaves to chance shows too.
class Judge {
 public:
  Verdict operator()(const Plan& plan, const Plan& again, Counts& counts);
  Verdict operator()(const Plan& plan, Counts& counts) { return (*this)(plan, plan, counts); }
  const Log& log() const { return logs_[0]; }                               // of the last run
  const std::unordered_map<Key, Delay>& delays() const { return delays_; }  // of the same, if something was wrong

 private:
  Verdict once(const Plan& plan, Counts& counts, Log& log);

  Log logs_[2];
  std::unordered_map<Key, Delay> delays_;
};

struct Shrunk {
  Case config;
  Verdict verdict;
  Log log;
  std::uint64_t attempts;
};

// A smaller plan that fails in the same way: fuzzer_shrink.cpp.
Shrunk shrink(const Plan& plan, const Shrunk& found, const std::function<void()>& progress);

}  // namespace wagma::tools
