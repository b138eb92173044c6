// Ranks as processes of one machine, on memory that they share, with the model in the library's own buffers (resident).
//
//   processes        all ranks train
//   processes 2      rank 2 is killed on its way: the others are told, and stop with an error instead of waiting
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "wagma/engine.hpp"
#include "wagma/transport_node.hpp"

namespace {

using namespace wagma;

constexpr int kRanks = 4;
constexpr Version kIterations = 8;
constexpr Version kKilledIn = 5;

EngineConfig configuration() {
  EngineConfig config;
  config.schedule.world_size = kRanks;
  config.schedule.group_size = 2;
  config.schedule.sync_period = 4;
  config.count = 100'000;
  config.resident = true;         // the model lives in the engine's buffers,
  config.mean_when_fresh = true;  // and a fresh rank's group average is written there by whoever reduces it
  config.timeout_s = 30.0;
  return config;
}

float train(Engine& engine, bool is_killed) {
  for (Version iteration = 0; iteration < kIterations; ++iteration) {
    auto* model = static_cast<float*>(engine.live());  // another buffer after each collective
    for (std::size_t i = 0; i < engine.config().count; ++i) model[i] += static_cast<float>(engine.rank());
    if (is_killed && iteration == kKilledIn) ::raise(SIGKILL);
    engine.average(iteration, nullptr);  // the model is where it has to be; for a fresh rank its average is, too: nothing is copied
  }
  const float first = *static_cast<const float*>(engine.live());
  engine.close();
  return first;
}

int run_rank(const EngineConfig& config, std::shared_ptr<Node> node, int rank, bool is_killed) {
  try {
    const std::vector<float> initial(config.count, 0.0f);
    Engine engine(config, std::make_shared<NodeTransport>(std::move(node), rank), initial.data());
    std::printf("rank %d: model %.6f\n", rank, train(engine, is_killed));
    return 0;
  } catch (const std::exception& error) {
    std::printf("rank %d: %s\n", rank, error.what());
    return 1;
  }
}

}  // namespace

int main(int words, char** arguments) {
  const int killed = words > 1 ? std::atoi(arguments[1]) : -1;
  const EngineConfig config = configuration();
  const auto node = Node::create({kRanks, config.buffers(), config.buffer_bytes()});  // before the fork, which hands it on
  std::vector<pid_t> processes;
  for (int rank = 0; rank < kRanks; ++rank) {
    const pid_t process = ::fork();
    if (process == 0) {
      const int status = run_rank(config, node, rank, rank == killed);
      std::fflush(stdout);
      ::_exit(status);
    }
    if (process < 0) node->fail(rank, "cannot be forked");
    processes.push_back(process);
  }
  bool failed = false;
  int status = 0;
  for (pid_t process = 0; (process = ::wait(&status)) > 0; failed |= status != 0) {
    if (!WIFSIGNALED(status)) continue;
    // A process that is killed tells nobody. Peers that wait for it find out some time later; whoever has started it knows why, and at once.
    const auto rank = std::find(processes.begin(), processes.end(), process) - processes.begin();
    node->fail(static_cast<int>(rank), "killed by signal " + std::to_string(WTERMSIG(status)));
  }
  return failed ? 1 : 0;
}
