// wagma explorer as a program of its own, for tests, mutants of the machine and C++ users; `wagma explore` is the same search.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "explorer_compare.hpp"
#include "options.hpp"

namespace {

using namespace wagma::tools;

constexpr const char* kUsage =
    "usage: explorer --ranks P --group-size S --sync-period T --iterations N[,N,...] [--merge-once] [--resident]\n"
    "                [--no-groups] [--accumulate] [--initiators M] [--seed N] [--edges FILE] [--mutate NAME]\n"
    "                [--max-states N] [--max-memory MIB] [--exact | [--no-symmetry] [--no-order | [--no-exchange] [--no-application]]]\n"
    "                [--cross-check | --cross-check-exact]\n"
    "Visits every reachable state; prints one JSON line. Exit status 0: all promises hold, 1: one is broken, 2: not "
    "decided.\n";

Case case_of(const Options& options) {
  Case config;
  config.schedule.world_size = static_cast<int>(options.integer("--ranks", 2));
  config.schedule.group_size = static_cast<int>(options.integer("--group-size", 2));
  config.schedule.sync_period = options.integer("--sync-period", 0);
  config.schedule.grouped = !options.has("--no-groups");
  config.schedule.accumulate = options.has("--accumulate");
  config.schedule.initiators = static_cast<int>(options.integer("--initiators", 0));
  config.schedule.seed = options.integer("--seed", 0);
  config.schedule.check();
  config.merge_once = options.has("--merge-once");
  config.resident = options.has("--resident");
  config.mutation = mutation_of(options.text("--mutate", "none"));
  for (const auto n : options.integers("--iterations", ',', "2")) config.iterations.push_back(static_cast<int>(n));
  if (config.iterations.size() == 1)
    config.iterations.resize(static_cast<std::size_t>(config.schedule.world_size), config.iterations[0]);
  if (static_cast<int>(config.iterations.size()) != config.schedule.world_size)
    throw UsageError("--iterations: one, or one per rank");
  return config;
}

ExploreOptions options_of(const Options& options) {
  ExploreOptions search;
  search.max_states = static_cast<std::uint64_t>(options.integer("--max-states", 0));
  search.max_bytes = static_cast<std::uint64_t>(options.integer("--max-memory", 4096)) << 20;
  search.exact = options.has("--exact");
  search.symmetry = !options.has("--no-symmetry");
  search.order = !options.has("--no-order");
  search.rules.exchange = !options.has("--no-exchange");
  search.rules.application = !options.has("--no-application");
  return search;
}

void print(const ExploreResult& result, double seconds) {
  const char* verdict = !result.violation.empty() ? "violation" : result.complete ? "ok" : "incomplete";
  const auto number = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
  std::printf("{\"result\": \"%s\", \"states\": %llu, \"edges\": %llu, \"local_edges\": %zu, \"seconds\": %.3f", verdict,
              number(result.states), number(result.transitions), result.edges.size(), seconds);
  std::printf(", \"quiet\": %llu, \"local_states\": %zu, \"symmetries\": %zu, \"bytes\": %llu, \"not_reduced\": \"%s\"",
              number(result.quiet), result.local_states, result.symmetries, number(result.bytes), result.not_reduced.c_str());
  if (!result.violation.empty()) {
    std::printf(", \"violation\": \"%s\", \"path\": [", result.violation.c_str());
    for (std::size_t i = 0; i < result.path.size(); ++i) std::printf("%s\"%s\"", i ? ", " : "", result.path[i].c_str());
    std::printf("]");
  }
  std::printf("}\n");
}

int cross_check(const Case& config, const ExploreOptions& search, bool exact) {
  ExploreOptions all = search;
  all.symmetry = all.order = false;
  all.exact = exact;
  const Comparison found = compare(config, search, all);
  std::printf("{\"result\": \"%s\", \"states\": %llu, \"reduced_states\": %llu, \"quiet\": %zu, \"reduced_quiet\": %zu, "
              "\"edges\": %zu, \"reduced_edges\": %zu, \"difference\": \"%s\"}\n",
              found.difference.empty() ? "ok" : "different", static_cast<unsigned long long>(found.all.states),
              static_cast<unsigned long long>(found.reduced.states), found.quiet, found.reduced_quiet, found.edges,
              found.reduced_edges, found.difference.c_str());
  return found.difference.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options(
        argc, argv,
        {"--ranks", "--group-size", "--sync-period", "--iterations", "--initiators", "--seed", "--edges", "--max-states",
         "--max-memory", "--mutate"},
        {"--merge-once", "--resident", "--no-groups", "--accumulate", "--exact", "--no-symmetry", "--no-order", "--no-exchange",
         "--no-application", "--cross-check", "--cross-check-exact"});
    const auto begin = std::chrono::steady_clock::now();
    if (options.has("--cross-check") || options.has("--cross-check-exact")) {
      return cross_check(case_of(options), options_of(options), options.has("--cross-check-exact"));
    }
    const ExploreResult result = explore(case_of(options), options_of(options));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (options.has("--edges")) {
      std::ofstream file(options.text("--edges", ""));
      for (const auto& line : result.edges) file << line << '\n';
      if (!file.flush()) throw UsageError("--edges: cannot write the file");
    }
    print(result, seconds.count());
    return !result.violation.empty() ? 1 : result.complete ? 0 : 2;
  } catch (const std::exception& error) {
    std::cerr << "explorer: " << error.what() << '\n' << kUsage;
    return 2;
  }
}
