// Whole engines: of each rank the application's task and the progress thread's, which take turns in driving. While one application
// computes (it waits at a gate that its peer opens) only the progress thread answers; nothing but a ring gets that going.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "board.hpp"
#include "futex.hpp"
#include "model_device.hpp"
#include "scenarios.hpp"
#include "scheduler.hpp"
#include "wagma/engine.hpp"
#include "wagma/transport_device.hpp"
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
  bool averages = false;  // by Engine::average, which may take the application's array itself
  int gives_up = -1;      // in version 1 this rank's wait is interrupted by its tick, if it comes so far
  bool on_devices = false;  // buffers are
};

struct GivenUp {};
constexpr std::int64_t kTickInTwoLooks = 30'000'000;  // ns
constexpr std::uint64_t kGoneOn = ~std::uint64_t{0};  // what the application does with its array after that

class World {
 public:
  explicit World(const Plot& plot) : plot_(plot) {
    pretend_cores(plot.cores);
    if (plot.gives_up >= 0) look_takes(kTickInTwoLooks);
    EngineConfig config;
    config.schedule = plot.schedule;
    config.count = elements(plot.chunks);
    config.mean_when_fresh = plot.mean_when_fresh || plot.averages;
    config.timeout_s = 1e6;
    config.watchdog_s = 0;
    const int ranks = plot.schedule.world_size;
    returned_ = std::make_unique<Atomic<std::uint32_t>[]>(ranks);
    arrays_.assign(ranks, std::vector<std::uint64_t>(array_words(plot.chunks)));
    if (plot.on_devices) {
      config.count = device_elements(plot.chunks);
      make_on_devices(config);
      return;
    }
    const auto node = Node::in_process({ranks, config.buffers(), kChunks * kChunkElements * sizeof(float)});
    new Board(Layout::of(node), false);
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
        if (plot_.on_devices) engines_[rank].reset();  // with the device's memory
      }
    } catch (const GivenUp&) {
      pass_gate(rank, plot_.iterations[rank]);  // the others go on with what was published, and this rank answers
      engines_[rank]->abort("given up");
      claim(holds(rank, kGoneOn), "the application's array is touched after its wait has ended");
    } catch (const PeerFailed& failed) {
      claim(failed.rank == plot_.aborts, "the wrong rank is said to have failed");
      engines_[rank]->abort("after a peer");
    }
  }

 private:
  void make_on_devices(const EngineConfig& config) {
    const int ranks = plot_.schedule.world_size;
    auto* machinery = new Machinery(ranks, false);
    const auto node = Node::in_process({ranks, 0, 0});
    std::vector<std::string> addresses;
    for (int rank = 0; rank < ranks; ++rank) addresses.push_back(std::to_string(rank));
    for (int rank = 0; rank < ranks; ++rank) {
      auto transport = std::make_shared<DeviceNodeTransport>(node, rank, machinery->buffers(rank), addresses);
      engines_.push_back(std::make_unique<Engine>(config, std::move(transport), nullptr, stamped_models(config.count)));
    }
  }

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
    std::vector<std::uint64_t>& model = arrays_[rank];
    fill(rank, content(rank, t));
    Outcome outcome;
    try {
      outcome = plot_.averages ? engines_[rank]->average(t, model.data(), tick_of(rank, t)) : engines_[rank]->arrive(t, model.data());
    } catch (...) {
      claim(holds(rank, content(rank, t)), "an exception leaves the application with another array");
      fill(rank, kGoneOn);
      throw;
    }
    if (outcome.group_length == 0) return;
    if (plot_.averages) {
      // Merged already.
    } else if (plot_.schedule.is_sync(t)) {
      engines_[rank]->copy_result(model.data());
    } else {
      engines_[rank]->merge(model.data(), outcome.fresh ? 0 : 1, outcome.group_length + (outcome.fresh ? 0 : 1));
    }
    claim(holds(rank, model[0]), "a torn average");
    if (!outcome.fresh) return;
    const auto sums = sums_at(rank, t);
    claim(std::find(sums.begin(), sums.end(), model[0]) != sums.end(), "no sum of what the members may have published");
  }

  static std::uint64_t content(int rank, Version t) { return static_cast<std::uint64_t>(t * 16 + rank + 1); }

  // All that the model's data functions look at is where a chunk begins.
  void fill(int rank, std::uint64_t word) {
    for (int chunk = 0; chunk < plot_.chunks; ++chunk) arrays_[rank][chunk * kApart] = word;
  }
  bool holds(int rank, std::uint64_t word) const {
    for (int chunk = 0; chunk < plot_.chunks; ++chunk) {
      if (arrays_[rank][chunk * kApart] != word) return false;
    }
    return true;
  }

  Engine::Tick tick_of(int rank, int t) const {
    if (rank != plot_.gives_up || t != 1) return {};
    return [] { throw GivenUp{}; };
  }

  // What the member may have published last when `version` starts: since the last sync, whose mean it has otherwise (else the zeros
  // of the beginning).
  std::vector<std::uint64_t> published_at(int member, Version version) const {
    Version synced = version - 1;
    while (synced >= 0 && !plot_.schedule.is_sync(synced)) --synced;
    std::vector<std::uint64_t> words{synced < 0 ? 0 : sums_at(member, synced).front()};
    for (Version t = synced + 1; t <= version && t < plot_.iterations[member]; ++t) words.push_back(content(member, t));
    return words;
  }

  // For a rank that is fresh; at a sync all are (where all arrive).
  std::vector<std::uint64_t> sums_at(int rank, Version version) const {
    const bool sync = plot_.schedule.is_sync(version);
    std::vector<std::uint64_t> sums{0};
    for (const int member : plot_.schedule.group(rank, version)) {
      std::vector<std::uint64_t> words{content(member, version)}, longer;
      if (member != rank && !sync) words = published_at(member, version);
      for (const std::uint64_t sum : sums) {
        for (const std::uint64_t word : words) longer.push_back(Board::added(sum, word));
      }
      sums = std::move(longer);
    }
    return sums;
  }

  const Plot& plot_;
  std::vector<std::vector<std::uint64_t>> arrays_;  // the applications'
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
  const Schedule chosen{.world_size = 2, .group_size = 2, .initiators = 1}, three{.world_size = 3, .group_size = 2},
      all_synced{.world_size = 3, .group_size = 2, .sync_period = 2};
  return {
      scenario("engines: 2 ranks, one version", {.schedule = pair, .iterations = {1, 1}}, 1, 2),
      scenario("engines: one computes", {.schedule = pair, .iterations = {2, 1}, .gates = {{1, 1, 0, 2}}}, 2, 2),
      scenario("engines: one computes, a core each", {.schedule = pair, .iterations = {2, 1}, .gates = {{1, 1, 0, 2}}, .cores = 2}, 1, 2),
      scenario("engines: sync, 2 chunks", {.schedule = synced, .iterations = {2, 2}, .chunks = 2, .mean_when_fresh = true}, 1, 2),
      scenario("engines: late, then sync", {.schedule = synced, .iterations = {2, 2}, .gates = {{1, 0, 0, 1}}}, 1, 2),
      scenario("engines: the candidate closes", {.schedule = chosen, .iterations = {1, 3}}, 1, 2),
      scenario("engines: a rank fails", {.schedule = pair, .iterations = {2, 1}, .gates = {{1, 1, 0, 1}}, .aborts = 1}, 1, 2),
      scenario("engines: 3 ranks", {.schedule = three, .iterations = {2, 2, 1}, .gates = {{2, 1, 0, 2}}}, 1, 1),
      // The first version is shared in any case: cores are known once all have entered.
      scenario("direct engines: 2 versions", {.schedule = pair, .iterations = {2, 2}, .cores = 2, .averages = true}, 1, 2),
      scenario("direct engines: passive after a sync",
               {.schedule = synced, .iterations = {3, 2}, .chunks = 2, .gates = {{1, 2, 0, 3}}, .cores = 2, .averages = true}, 1, 2),
      scenario("direct engines: passive afterwards",
               {.schedule = pair, .iterations = {3, 2}, .chunks = 2, .gates = {{1, 2, 0, 3}}, .cores = 2, .averages = true}, 1, 2),
      scenario("direct engines: given up",
               {.schedule = pair, .iterations = {3, 3}, .chunks = 2, .gates = {{1, 3, 0, 3}}, .cores = 2, .aborts = 1, .averages = true, .gives_up = 1}, 1, 2),
      scenario("direct engines: given up at a sync",
               {.schedule = synced, .iterations = {3, 3}, .chunks = 2, .gates = {{1, 3, 0, 3}}, .cores = 2, .aborts = 1, .averages = true, .gives_up = 1}, 1, 2),
      scenario("direct engines: a rank fails", {.schedule = pair, .iterations = {2, 1}, .cores = 2, .aborts = 1, .averages = true}, 1, 2),
      scenario("engines: averages, one activates", {.schedule = chosen, .iterations = {2, 2}, .cores = 2, .averages = true}, 1, 2),
      scenario("engines: averages, ranks share a core", {.schedule = pair, .iterations = {2, 2}, .chunks = 2, .averages = true}, 1, 2),
      scenario("device engines: one computes", {.schedule = pair, .iterations = {2, 1}, .gates = {{1, 1, 0, 2}}, .on_devices = true}, 1, 2),
      scenario("device engines: late, then sync", {.schedule = synced, .iterations = {2, 2}, .chunks = 2, .gates = {{1, 0, 0, 1}}, .on_devices = true}, 1, 2),
      scenario("device engines: means, 2 chunks",
               {.schedule = pair, .iterations = {2, 2}, .chunks = 2, .mean_when_fresh = true, .on_devices = true}, 1, 2),
      scenario("direct engines: 3 ranks", {.schedule = all_synced, .iterations = {2, 2, 2}, .cores = 3, .averages = true}, 0, 1),
  };
}

std::vector<Scenario> scenarios() {
  auto all = transport_scenarios();
  for (auto* more : {device_scenarios, engine_scenarios}) {
    for (Scenario& scenario : more()) all.push_back(std::move(scenario));
  }
  return all;
}

}  // namespace wagma::check
