// Whole engines: of each rank the application's task and the progress thread's, which take turns in driving. While one application
// computes (it waits at a gate that its peer opens) only the progress thread answers; nothing but a ring gets that going.
#include <memory>
#include <string>
#include <vector>

#include "board.hpp"
#include "futex.hpp"
#include "scenarios.hpp"
#include "scheduler.hpp"
#include "wagma/engine.hpp"
#include "wagma/transport_node.hpp"

namespace wagma::check {

namespace {

// Before its arrive `before` (or its close, if it arrives less often) the rank computes until `peer` has returned from `returns` arrives.
struct Gate {
  int rank, before, peer, returns;
};

struct Plot {
  Schedule schedule;
  std::vector<int> iterations;  // of each rank
  int chunks = 1;
  std::vector<Gate> gates{};
  int cores = 1;
  int aborts = -1;  // the rank that gives up instead of closing
  bool mean_when_fresh = false;
};

class World {
 public:
  explicit World(const Plot& plot) : plot_(plot) {
    pretend_cores(plot.cores);
    EngineConfig config;
    config.schedule = plot.schedule;
    config.count = elements(plot.chunks);
    config.mean_when_fresh = plot.mean_when_fresh;
    config.timeout_s = 1e6;
    const int ranks = plot.schedule.world_size;
    const auto node = Node::in_process({ranks, config.buffers(), kChunks * kChunkElements * sizeof(float)});
    new Board(node, false);
    returned_ = std::make_unique<Atomic<std::uint32_t>[]>(ranks);
    const std::vector<float> initial(config.count, 0.0f);
    for (int rank = 0; rank < ranks; ++rank) {
      engines_.push_back(std::make_unique<Engine>(config, std::make_shared<NodeTransport>(node, rank), initial.data()));
    }
  }

  void application(int rank) {
    try {
      for (int t = 0; t < plot_.iterations[rank]; ++t) {
        pass_gate(rank, t);
        iterate(rank, t);
        returned_[rank].fetch_add(1);
        futex_wake(returned_[rank], 1);
      }
      pass_gate(rank, plot_.iterations[rank]);
      if (rank == plot_.aborts) {
        engines_[rank]->abort("enough");
      } else {
        engines_[rank]->close();
        claim(plot_.aborts < 0, "a run with a failed rank ends in order");
      }
    } catch (const PeerFailed& failed) {
      claim(failed.rank == plot_.aborts, "the wrong rank is said to have failed");
      engines_[rank]->abort("after a peer");
    }
  }

 private:
  void pass_gate(int rank, int before) {
    for (const Gate& gate : plot_.gates) {
      if (gate.rank != rank || gate.before != before) continue;
      for (;;) {
        const std::uint32_t returns = returned_[gate.peer].load();
        if (static_cast<int>(returns) >= gate.returns) break;
        futex_wait(returned_[gate.peer], returns, {}, 1);
      }
    }
  }

  void iterate(int rank, int t) {
    // All that the model's data functions look at is where a chunk begins.
    constexpr std::size_t kApart = kChunkElements * sizeof(float) / sizeof(std::uint64_t);
    std::vector<std::uint64_t> model((plot_.chunks - 1) * kApart + 8);
    for (int chunk = 0; chunk < plot_.chunks; ++chunk) model[chunk * kApart] = static_cast<std::uint64_t>(t * 16 + rank + 1);
    const Outcome outcome = engines_[rank]->arrive(t, model.data());
    if (outcome.group_length == 0) return;
    if (plot_.schedule.is_sync(t)) {
      engines_[rank]->copy_result(model.data());
    } else {
      engines_[rank]->merge(model.data(), outcome.fresh ? 0 : 1, outcome.group_length + (outcome.fresh ? 0 : 1));
    }
    for (int chunk = 1; chunk < plot_.chunks; ++chunk) claim(model[chunk * kApart] == model[0], "a torn average");
  }

  const Plot& plot_;
  std::vector<std::unique_ptr<Engine>> engines_;
  std::unique_ptr<Atomic<std::uint32_t>[]> returned_;
};

Scenario scenario(const char* name, Plot plot, int deviations, int long_deviations, bool only_long = false) {
  const auto shared = std::make_shared<const Plot>(std::move(plot));
  const auto setup = [shared] {
    auto* world = new World(*shared);  // the arena forgets it
    for (int rank = 0; rank < shared->schedule.world_size; ++rank) {
      spawn([world, rank] { world->application(rank); });
    }
  };
  return {name, setup, deviations, long_deviations, only_long};
}

}  // namespace

std::vector<Scenario> engine_scenarios() {
  const Schedule pair{.world_size = 2, .group_size = 2}, synced{.world_size = 2, .group_size = 2, .sync_period = 2};
  const Schedule chosen{.world_size = 2, .group_size = 2, .initiators = 1}, three{.world_size = 3, .group_size = 2};
  return {
      scenario("engines: 2 ranks, one version", {.schedule = pair, .iterations = {1, 1}}, 1, 2),
      scenario("engines: one computes", {.schedule = pair, .iterations = {2, 1}, .gates = {{1, 1, 0, 2}}}, 2, 2),
      scenario("engines: one computes, a core each", {.schedule = pair, .iterations = {2, 1}, .gates = {{1, 1, 0, 2}}, .cores = 2}, 1, 2),
      scenario("engines: sync, 2 chunks", {.schedule = synced, .iterations = {2, 2}, .chunks = 2, .mean_when_fresh = true}, 1, 2),
      scenario("engines: late, then sync", {.schedule = synced, .iterations = {2, 2}, .gates = {{1, 0, 0, 1}}}, 1, 2),
      scenario("engines: the candidate closes", {.schedule = chosen, .iterations = {1, 3}}, 1, 2),
      scenario("engines: a rank fails", {.schedule = pair, .iterations = {2, 1}, .gates = {{1, 1, 0, 1}}, .aborts = 1}, 1, 2),
      scenario("engines: 3 ranks", {.schedule = three, .iterations = {2, 2, 1}, .gates = {{2, 1, 0, 2}}}, 1, 1),
  };
}

std::vector<Scenario> scenarios() {
  auto all = transport_scenarios();
  for (Scenario& scenario : engine_scenarios()) all.push_back(std::move(scenario));
  return all;
}

}  // namespace wagma::check
