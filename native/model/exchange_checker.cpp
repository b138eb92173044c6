// Model check of the execution in shared memory: every order of steps (or those that deviate so often from one order) of a few ranks that meet,
// take chunks, reduce, complete, ring and sleep, and of the two threads of a rank that take turns. What runs is the kernel's own
// code: mailbox, desks, transport, doorbell, engine and decision machine. Replaced are atomics, locks and threads (checked.hpp), the
// futex (scheduler.cpp) and the data (data.cpp). Sleeps have no limit here, so that a lost wake-up is a deadlock, but
// where some time is part of the protocol (the grace before a ring): such a sleep may end whenever the scheduler likes.
//
// Bounds, and how many states they have: docs/kernel.md, "What checks it".
//
//   exchange_checker [--long] [--deviations N] [--only NAME]      one line of JSON; exit status 1 if a claim does not hold
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "board.hpp"
#include "scenarios.hpp"
#include "scheduler.hpp"

using namespace wagma::check;

namespace {

constexpr int kAsPlanned = -2;

struct Result {
  const Scenario* scenario;
  Found found;
  double seconds;
  std::uint64_t averaged_directly;
};

std::string in_json(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

Result check(const Scenario& scenario, int deviations) {
  Limits limits;
  limits.deviations = deviations;
  averaged_directly = 0;
  const auto begun = std::chrono::steady_clock::now();
  const Found found = explore(limits, scenario.setup);
  return {&scenario, found, std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(), averaged_directly};
}

}  // namespace

int main(int argc, char** argv) {
  bool long_run = false;
  int deviations = kAsPlanned;
  std::string only;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--long") == 0) {
      long_run = true;
    } else if (std::strcmp(argv[i], "--deviations") == 0 && i + 1 < argc) {
      deviations = std::atoi(argv[++i]);
    } else if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
      only = argv[++i];
    } else {
      std::fprintf(stderr, "exchange_checker: %s: must be --long, --deviations N or --only NAME\n", argv[i]);
      return 2;
    }
  }
  int wrong = 0, checked = 0;
  std::printf("{\"scenarios\": [");
  for (const Scenario& scenario : scenarios()) {
    if (only.empty() ? scenario.only_long && !long_run : only != scenario.name) continue;
    const int planned = long_run ? scenario.long_deviations : scenario.deviations;
    const int bound = deviations == kAsPlanned ? planned : deviations;
    const Result result = check(scenario, bound);
    std::printf("%s\n {\"name\": \"%s\", \"deviations\": %d, \"states\": %llu, \"runs\": %llu, \"longest\": %llu, "
                "\"averaged_directly\": %llu, \"seconds\": %.2f, \"error\": \"%s\"}",
                checked++ ? "," : "", scenario.name.c_str(), bound, static_cast<unsigned long long>(result.found.states),
                static_cast<unsigned long long>(result.found.runs), static_cast<unsigned long long>(result.found.longest),
                static_cast<unsigned long long>(result.averaged_directly), result.seconds,
                in_json(result.found.error).c_str());
    std::fflush(stdout);
    wrong += !result.found.error.empty();
  }
  std::printf("]}\n");
  if (checked == 0) {
    std::fprintf(stderr, "exchange_checker: --only %s: no such scenario\n", only.c_str());
    return 2;
  }
  return wrong ? 1 : 0;
}
