// wagma fuzzer: the command line of fuzzer.hpp. Prints one JSON line.
#include <chrono>
#include <cstdio>
#include <iostream>

#include "fuzzer.hpp"
#include "options.hpp"

namespace {

using namespace wagma::tools;

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + '"';
}

double share(std::uint64_t part, std::uint64_t all) { return all ? static_cast<double>(part) / static_cast<double>(all) : 0.0; }

void print(const FuzzResult& result, double seconds) {
  const Counts& counts = result.counts;
  const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
  std::printf(
      "{\"result\": \"%s\", \"runs\": %llu, \"events\": %llu, \"seconds\": %.3f, \"late\": %.4f, \"passive\": %.4f, \"quiet\": %llu, "
      "\"sums\": %.4f, \"nulls\": %.4f, \"digest\": \"%016llx\"",
      result.failure ? "violation" : "ok", number(result.runs), number(counts.events), seconds, share(counts.late, counts.completions),
      share(counts.passive, counts.starts), number(counts.quiet), share(counts.sums, counts.starts), share(counts.nulls, counts.starts),
      number(result.digest));
  if (result.failure) {
    const FuzzFailure& failure = *result.failure;
    std::printf(", \"seed\": %llu, \"violation\": %s, \"case\": %s, \"case_events\": %zu, \"shrunk\": %s, \"shrunk_case\": %s, \"trace\": [",
                number(failure.seed), quoted(failure.found.message).c_str(), quoted(failure.config).c_str(), failure.found.events,
                quoted(failure.shrunk.message).c_str(), quoted(failure.shrunk_config).c_str());
    for (std::size_t i = 0; i < failure.trace.size(); ++i) std::printf("%s%s", i ? ", " : "", quoted(failure.trace[i]).c_str());
    std::printf("]");
  }
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options(argc, argv, {"--seed", "--seeds", "--mutate"}, {"--two-activators", "--as-found"});
    auto seeds = options.integers("--seeds", ':', "0:2000");
    if (options.has("--seed")) seeds = {options.integer("--seed", 0), options.integer("--seed", 0) + 1};
    if (seeds.size() != 2 || seeds[0] < 0 || seeds[1] < seeds[0]) throw UsageError("--seeds: must be FROM:TO");
    const std::string mutation = options.text("--mutate", "none");
    FuzzOptions what;
    what.first = static_cast<std::uint64_t>(seeds[0]);
    what.seeds = static_cast<std::uint64_t>(seeds[1] - seeds[0]);
    what.leaks = mutation == kUnseeded;
    what.mutation = what.leaks ? Mutation::none : mutation_of(mutation);
    what.two_activators = options.has("--two-activators");
    what.shrink = !options.has("--as-found");
    const auto begin = std::chrono::steady_clock::now();
    const FuzzResult result = fuzz(what);
    print(result, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    return result.failure ? 1 : 0;
  } catch (const std::exception& error) {
    std::cerr << "fuzzer: " << error.what()
              << "\nusage: fuzzer [--seeds FROM:TO | --seed N] [--mutate NAME] [--two-activators] [--as-found]\n";
    return 2;
  }
}
