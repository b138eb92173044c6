// What one iteration costs a rank in decisions: the machine alone, fed with what an engine feeds it, in ns; beside it one
// std::mutex locked and unlocked, which an engine does around each of these events.
//
//   bench_machine [--repeats N] [--versions N]
#include <mutex>

#include "timing.hpp"
#include "wagma/protocol.hpp"

namespace {

using namespace wagma;
using namespace wagma::timing;

// Fresh: this rank arrives first, activates the others, and is executed with its new model.
void fresh_iteration(Machine& machine, Version version) {
  machine.arrive(version);
  machine.exec_done(version);
  machine.read_done();
  machine.merge_done();
}

// Late: an activation comes first and the version is executed with an old model, which the application merges when it arrives.
void late_iteration(Machine& machine, Version version) {
  machine.activation(version, 0);
  machine.exec_done(version);
  machine.read_done();
  machine.arrive(version);
  machine.merge_done();
}

void bench(long long repeats, long long versions) {
  std::mutex mutex;
  const Spread lock = time_calls(repeats, 10 * versions, [&] { std::lock_guard lock(mutex); });
  for (int ranks = 2; ranks <= 1024; ranks *= 2) {
    for (const bool resident : {false, true}) {
      const std::string suffix = "P = " + std::to_string(ranks) + (resident ? ", resident" : "");
      Schedule schedule;
      schedule.world_size = ranks;
      schedule.group_size = std::min(ranks, 8);
      for (const bool fresh : {true, false}) {
        Machine machine(0, schedule, false, resident);
        Version version = 0;
        const auto iteration = fresh ? fresh_iteration : late_iteration;
        const Spread time = time_calls(repeats, versions, [&] { iteration(machine, version++); });
        print_line((fresh ? "fresh iteration, " : "late iteration, ") + suffix, time, 1e-9, "ns", "a lock", lock);
      }
    }
  }
}

}  // namespace

int main(int count, char** words) {
  long long repeats = 15, versions = 2000;
  return run_bench("bench_machine", [&] {
    read_options(count, words, {{"--repeats", &repeats}, {"--versions", &versions}});
    bench(repeats, versions);
  });
}
