// Ranks as threads of one process: eight iterations of group averaging, in one of which rank 3 is late. Prints who was fresh.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "wagma/engine.hpp"
#include "wagma/transport_local.hpp"

namespace {

using namespace wagma;

constexpr int kRanks = 4;
constexpr Version kIterations = 8;
constexpr int kLateRank = 3;
constexpr Version kLateIn = 5;

struct Rank {
  std::vector<float> model = std::vector<float>(1000, 0.0f);
  std::string history;  // one word for each iteration
  std::string error;
};

// One iteration after the update: publish the model, and merge what there is.
Outcome average(Engine& engine, Version iteration, std::vector<float>& model) {
  const Outcome outcome = engine.arrive(iteration, model.data());
  if (engine.config().schedule.is_sync(iteration)) {
    engine.copy_result(model.data());  // the mean of all models
  } else if (outcome.fresh) {
    engine.merge(model.data(), 0, outcome.group_length);  // sum / |G|: this model is in the sum
  } else {
    engine.merge(model.data(), 1, outcome.group_length + 1);  // (sum + model) / (|G| + 1): an older one is
  }
  return outcome;
}

// A gradient that takes longer than the whole collective takes the others: if they waited for this rank, they would not come back.
void be_slow(const std::atomic<int>& back) {
  const auto limit = Clock::now() + std::chrono::seconds(10);
  while (back < kRanks - 1 && Clock::now() < limit) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// back: how many of the other ranks have returned from the iteration in which one is late.
void train(Engine& engine, Rank& self, std::atomic<int>& back) {
  for (Version iteration = 0; iteration < kIterations; ++iteration) {
    for (float& value : self.model) value += static_cast<float>(engine.rank());  // the update
    const bool slow = iteration == kLateIn && engine.rank() == kLateRank;
    if (slow) be_slow(back);
    const Outcome outcome = average(engine, iteration, self.model);
    if (iteration == kLateIn) ++back;
    self.history += outcome.fresh ? "   fresh" : "    late";
  }
  engine.close();  // serves the others until they have closed, too
}

}  // namespace

int main() {
  EngineConfig config;
  config.schedule.world_size = kRanks;
  config.schedule.group_size = 2;
  config.schedule.sync_period = 4;  // iterations 3 and 7 average all models, and wait for everybody
  config.count = 1000;
  config.timeout_s = 30.0;

  LocalHub hub(kRanks);
  std::vector<Rank> ranks(kRanks);
  std::atomic<int> back{0};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      Rank& self = ranks[rank];
      try {
        Engine engine(config, hub.transport(rank, config.buffers(), config.buffer_bytes()), self.model.data());
        train(engine, self, back);
      } catch (const std::exception& error) {
        self.error = error.what();
        hub.fail(rank, self.error);  // the others' engines stop with PeerFailed
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  bool failed = false;
  for (int rank = 0; rank < kRanks; ++rank) {
    const Rank& self = ranks[rank];
    std::printf("rank %d:%s   model %.6f %s\n", rank, self.history.c_str(), self.model.front(), self.error.c_str());
    failed |= !self.error.empty();
  }
  return failed ? 1 : 0;
}
