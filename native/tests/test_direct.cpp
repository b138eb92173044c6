// The direct way (src/transport_node_direct.cpp): members that have all arrived average straight into their callers' arrays. Bits,
// and what a caller finds in its array when its wait ends early.
#include <algorithm>
#include <barrier>
#include <cstring>

#include "pretended_cores.hpp"
#include "ranks.hpp"
#include "wagma/node.hpp"
#include "wagma/reduce.hpp"
#include "wagma/transport_node.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

using Bytes = std::vector<std::byte>;

constexpr Version kVersions = 6;

struct Case {
  int world_size;
  std::size_t count;
  DType dtype = DType::float32;
  Version sync_period = 0;
  std::size_t shift = 0;  // elements by which the caller's array is out of line
};

EngineConfig direct_config(const Case& now) {
  auto config = config_of(now.world_size, now.world_size, now.sync_period, now.count);
  config.dtype = now.dtype;
  config.mean_when_fresh = true;
  config.record = config.digests = false;
  return config;
}

// Numbers from 1 to 2 whose sums round in every type.
void fill(std::byte* at, const Case& now, int rank, Version version) {
  for (std::size_t i = 0; i < now.count; ++i) {
    const std::uint64_t bits = draw(51, static_cast<std::uint64_t>(version * 8 + rank), i);
    if (now.dtype == DType::float64) {
      const std::uint64_t number = 0x3FF0000000000000u | bits >> 12;
      std::memcpy(at + i * 8, &number, 8);
    } else if (now.dtype == DType::float32) {
      const std::uint32_t number = 0x3F800000u | static_cast<std::uint32_t>(bits >> 41);
      std::memcpy(at + i * 4, &number, 4);
    } else {
      const auto number = static_cast<std::uint16_t>(now.dtype == DType::float16 ? 0x3C00 | bits >> 54 : 0x3F80 | bits >> 57);
      std::memcpy(at + i * 2, &number, 2);
    }
  }
}

Bytes mean_of(const Case& now, const std::vector<Bytes>& contributions, const Group& members) {
  const int n = static_cast<int>(members.size());
  if (n == 1) return contributions.at(members.front());
  std::vector<const void*> sources;
  for (const int member : members) sources.push_back(contributions.at(member).data());
  Bytes mean(now.count * item_size(now.dtype));
  void* target = mean.data();
  reduce(now.dtype, sources.data(), n, &target, &n, 1, now.count, Stores::cached);
  return mean;
}

// What the ranks arrive with at each version, and the mean over all of them in the order of the version's members. Made once, before there
// are ranks, which only read it: sanitizers look at each number that is drawn or summed, and at a copy or comparison of many as one.
struct Numbers {
  std::vector<std::vector<Bytes>> contributions;  // by version and rank
  std::vector<Group> members;                     // by version
  std::vector<Bytes> means;

  Numbers(const Case& now, Version versions, const std::function<Group(Version)>& members_at) {
    for (Version t = 0; t < versions; ++t) {
      auto& all = contributions.emplace_back();
      for (int rank = 0; rank < now.world_size; ++rank) {
        all.emplace_back(now.count * item_size(now.dtype));
        fill(all.back().data(), now, rank, t);
      }
      members.push_back(members_at(t));
      means.push_back(mean_of(now, all, members.back()));
    }
  }
};

// Not ==, which compares one byte after the other.
bool same(const Bytes& a, const Bytes& b) { return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0; }

// Ranks that fail leave it, and so the others do not wait for them.
struct Meeting {
  std::barrier<>& barrier;
  ~Meeting() { barrier.arrive_and_drop(); }
  void operator()() const { barrier.arrive_and_wait(); }
};

void check_no_errors(const std::vector<std::string>& errors) {
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
}

// The transports alone, where it is the test that says who has arrived: rank `late` has not, at odd versions. `direct`: whether the others
// may go the direct way.
void execute_versions(const Case& now, const Numbers& numbers, int late, bool direct, NodeTransport& transport) {
  const int rank = transport.rank();
  const std::size_t item = item_size(now.dtype), bytes = now.count * item;
  Bytes memory(bytes + (now.shift + 1) * item, std::byte{0x5A});
  std::byte* model = memory.data() + now.shift * item;
  for (Version t = 0; t < kVersions; ++t) {
    const bool present = rank != late || t % 2 == 0;
    std::byte* contribution = transport.buffer(static_cast<int>(t % 2));
    const Bytes& published = numbers.contributions[t][rank];
    std::memcpy(present ? model : contribution, published.data(), bytes);
    Execution execution;
    execution.version = t;
    execution.members = numbers.members[t];
    execution.contribution = contribution;
    execution.target = transport.buffer(2);
    execution.count = now.count;
    execution.dtype = now.dtype;
    execution.divisor = now.world_size;
    execution.model = present ? model : nullptr;
    execution.publishes_mean = present && t >= 4;
    transport.begin(execution);
    Progress progress;
    const auto limit = Clock::now() + std::chrono::seconds(30);
    while (!(progress = transport.progress()).released) {
      const auto since = transport.announce(Sleeper::application);
      if ((progress = transport.progress()).released) break;
      transport.sleep(Sleeper::application, since, limit);
      transport.awake();
      WAGMA_CHECK(Clock::now() < limit);
    }
    const Bytes& mean = numbers.means[t];
    WAGMA_CHECK(progress.in_model == (direct && (late < 0 || t % 2 == 0)));
    if (progress.in_model) WAGMA_CHECK(std::memcmp(model, mean.data(), bytes) == 0);
    if (!progress.in_model || execution.publishes_mean) WAGMA_CHECK(std::memcmp(execution.target, mean.data(), bytes) == 0);
    WAGMA_CHECK(std::memcmp(contribution, published.data(), bytes) == 0);
    WAGMA_CHECK(memory.back() == std::byte{0x5A} && (now.shift == 0 || memory.front() == std::byte{0x5A}));
  }
}

void check_transports(const Case& now, int late, int cores = 0, bool direct = true) {
  pretended_cores = cores ? cores : now.world_size;
  const Numbers numbers(now, kVersions, [&](Version t) {
    Group members;
    for (int i = 0; i < now.world_size; ++i) members.push_back((i + static_cast<int>(t)) % now.world_size);
    return members;
  });
  const auto node = Node::in_process({now.world_size, 3, now.count * accumulator_size(now.dtype)});
  std::vector<std::string> errors(now.world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < now.world_size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        NodeTransport transport(node, rank);
        execute_versions(now, numbers, late, direct, transport);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  check_no_errors(errors);
}

void the_bits_of_the_mean() {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    const std::size_t chunk = 128 * 1024 / item_size(dtype);
    check_transports({2, 1000, dtype}, -1);
    check_transports({2, 6 * chunk + 17, dtype, 0, 1}, -1);
    check_transports({2, 5 * chunk, dtype, 0, 1}, 1);
    check_transports({3, 5 * chunk + 5, dtype, 0, 3}, -1);
    check_transports({3, 2 * chunk, dtype}, 0);
    check_transports({4, chunk + 1, dtype}, -1);
  }
}

// Where ranks share cores, only models of many chunks go the direct way; others are filled after the beginning all the same, and shared.
void ranks_that_share_cores() {
  constexpr std::size_t kChunk = 32 * 1024;
  check_transports({3, 17 * kChunk + 5, DType::float32, 0, 3}, -1, 2);
  check_transports({2, 9 * kChunk, DType::float32}, 1, 1);
  check_transports({2, 2 * kChunk + 1, DType::float32}, -1, 1, false);
  check_transports({5, 2 * kChunk, DType::float32}, -1, 5, false);  // too many members
}

// One that has filled all, and has yet to average, is what the others wait for.
void whoever_is_not_through_is_named() {
  pretended_cores = 2;
  const Case now{2, 1000};
  const auto node = Node::in_process({2, 2, now.count * sizeof(float)});
  std::vector<float> models[] = {std::vector<float>(now.count, 1.0f), std::vector<float>(now.count, 3.0f)};
  std::vector<std::unique_ptr<NodeTransport>> transports;
  for (int rank = 0; rank < 2; ++rank) transports.push_back(std::make_unique<NodeTransport>(node, rank));
  for (const int rank : {1, 0}) {
    Execution execution;
    execution.members = {0, 1};
    execution.contribution = transports[rank]->buffer(0);
    execution.target = transports[rank]->buffer(1);
    execution.count = now.count;
    execution.divisor = 2;
    execution.model = reinterpret_cast<std::byte*>(models[rank].data());
    transports[rank]->begin(execution);
    WAGMA_CHECK(!transports[rank]->progress().released);
    WAGMA_CHECK(transports[rank]->missing() == std::vector<int>{1 - rank});
  }
  WAGMA_CHECK(transports[1]->progress().in_model && transports[0]->progress().in_model);
  WAGMA_CHECK(transports[0]->missing().empty() && models[0] == models[1] && models[0].front() == 2.0f);
}

// Whole engines, where all are fresh at each sync.
void check_syncs(const Case& now) {
  pretended_cores = now.world_size;
  const auto config = direct_config(now);
  const Numbers numbers(now, kVersions, [&](Version t) { return config.schedule.group(0, t); });
  const auto errors = run_ranks(config, [](int) { return 0.0; }, [&](int rank, Engine& engine) {
    Bytes model(now.count * item_size(now.dtype));
    for (Version t = 0; t < kVersions; ++t) {
      std::memcpy(model.data(), numbers.contributions[t][rank].data(), model.size());
      const Outcome outcome = engine.average(t, model.data());
      if (!config.schedule.is_sync(t)) continue;
      WAGMA_CHECK(config.schedule.group(rank, t) == numbers.members[t]);
      WAGMA_CHECK(outcome.fresh && same(model, numbers.means[t]));
    }
    engine.close();
  });
  check_no_errors(errors);
}

void syncs() {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    check_syncs({1, 100, dtype, 1});
    check_syncs({2, 100000, dtype, 1});
    check_syncs({3, 100000, dtype, 2});
    check_syncs({4, 70000, dtype, 1});
    check_syncs({5, 70000, dtype, 1});  // too many members
  }
}

// A member that misses the version after a sync brings the sync's mean.
void a_syncs_mean_is_published() {
  pretended_cores = 2;
  const Case now{2, 100000, DType::float32, 2};
  auto config = direct_config(now);
  std::barrier<> barrier(2);
  const auto errors = run_ranks(config, [](int) { return 0.0; }, [&](int rank, Engine& engine) {
    const Meeting meet{barrier};
    std::vector<float> model(now.count);
    for (Version t = 0; t < 10; ++t) {
      std::fill(model.begin(), model.end(), static_cast<float>(t * 10 + 4 * rank));
      meet();
      const bool sync = config.schedule.is_sync(t);
      const float synced = t == 0 ? 0.0f : static_cast<float>((t - 1) * 10 + 2);
      if (!sync && rank == 1) meet();  // the other one has returned
      const Outcome outcome = engine.average(t, model.data());
      float expected = static_cast<float>(t * 10 + 2);
      if (!sync) expected = rank == 0 ? (static_cast<float>(t * 10) + synced) / 2 : (static_cast<float>(t * 20 + 4) + synced) / 3;
      WAGMA_CHECK(outcome.fresh == (sync || rank == 0));
      WAGMA_CHECK(std::all_of(model.begin(), model.end(), [&](float x) { return x == expected; }));
      if (!sync && rank == 0) meet();
      meet();
    }
    engine.close();
  });
  check_no_errors(errors);
}

struct Interrupted {};

// Rank 0's wait is interrupted by its tick, about when its peers arrive: it has its array back, whole, and nobody writes into it after that.
// The others' mean has what rank 0 arrived with in it.
void an_interrupted_caller_has_its_array_back(const Case& now, int delay_us) {
  pretended_cores = now.world_size;
  const auto config = direct_config(now);
  const std::size_t bytes = now.count * item_size(now.dtype);
  const Numbers numbers(now, 2, [&](Version t) { return config.schedule.group(0, t); });
  const Bytes overwritten(bytes, std::byte{0x77});
  std::barrier<> barrier(now.world_size);
  const auto errors = run_ranks(config, [](int) { return 0.0; }, [&](int rank, Engine& engine) {
    const Meeting meet{barrier};
    Bytes model(bytes);
    for (Version t = 0; t < 2; ++t) {
      const Bytes& before = numbers.contributions[t][rank];
      std::memcpy(model.data(), before.data(), bytes);
      meet();
      if (t == 1 && rank > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us + 100 * rank));
      try {
        const bool interrupts = t == 1 && rank == 0;
        engine.average(t, model.data(), interrupts ? Engine::Tick([] { throw Interrupted{}; }) : Engine::Tick{});
        if (config.schedule.is_sync(t)) WAGMA_CHECK(config.schedule.group(rank, t) == numbers.members[t] && same(model, numbers.means[t]));
      } catch (const Interrupted&) {
        WAGMA_CHECK(same(model, before));
        std::memcpy(model.data(), overwritten.data(), bytes);
        meet();  // all others have their mean
        WAGMA_CHECK(same(model, overwritten));
        return;
      }
    }
    meet();
  });
  for (const auto& error : errors) WAGMA_CHECK(error.empty() || error.find("dropped without being closed") != std::string::npos);
}

void interrupted_callers() {
  for (int i = 0; i < 6; ++i) {
    an_interrupted_caller_has_its_array_back({2 + i % 2, 400000, i % 4 < 2 ? DType::float32 : DType::bfloat16, 1}, 47000 + 700 * i);
  }
}

// A peer fails at about the time of the arrival: nothing may be begun yet, and then nothing is to be restored.
void a_failure_leaves_the_array() {
  pretended_cores = 2;
  const Case now{2, 200000};
  const auto config = direct_config(now);
  const Numbers numbers(now, 3, [](Version) { return Group{0, 1}; });
  for (int i = 0; i < 60; ++i) {
    const auto errors = run_ranks(config, [](int) { return 0.0; }, [&](int rank, Engine& engine) {
      Bytes model(now.count * sizeof(float));
      for (Version t = 0; t < 3; ++t) {
        const Bytes& before = numbers.contributions[t][rank];
        std::memcpy(model.data(), before.data(), model.size());
        if (rank == 1 && t == 1 + i % 2) {
          std::this_thread::sleep_for(std::chrono::microseconds(draw(52, 0, i) % 300));
          engine.abort("enough");
          return;
        }
        try {
          engine.average(t, model.data());
        } catch (const PeerFailed&) {
          WAGMA_CHECK(same(model, before));
          throw;
        }
      }
      engine.close();
    });
    WAGMA_CHECK(errors[1].empty());
    WAGMA_CHECK(errors[0].empty() || errors[0] == "rank 1 failed: enough");
  }
}

}  // namespace

int main() {
  return run_tests({{"the_bits_of_the_mean", the_bits_of_the_mean},
                    {"ranks_that_share_cores", ranks_that_share_cores},
                    {"whoever_is_not_through_is_named", whoever_is_not_through_is_named},
                    {"syncs", syncs},
                    {"a_syncs_mean_is_published", a_syncs_mean_is_published},
                    {"interrupted_callers", interrupted_callers},
                    {"a_failure_leaves_the_array", a_failure_leaves_the_array}});
}
