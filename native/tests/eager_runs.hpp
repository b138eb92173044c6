// Gradients that accumulate, and who may activate, for models wherever they are. The gradient of rank r in iteration t is 2^t in element r,
// so that a sum says which gradients are in it: one that is counted twice carries into another's bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

#include "ranks.hpp"

namespace wagma::testing {

namespace eager {

constexpr int kRanks = 4;
constexpr std::size_t kCount = 5;  // an element for each rank, one for models

struct Run {
  int initiators;
  Version sync_period;
  std::vector<Version> iterations;
  std::uint64_t seed;
};

// What all ranks saw together.
struct Seen {
  std::mutex mutex;  // ranks add what they saw at the same time
  std::map<Version, std::vector<double>> results;
  std::vector<std::vector<double>> kept = std::vector<std::vector<double>>(kRanks, std::vector<double>(kCount));  // by rank: retracted
  std::vector<Records> records = std::vector<Records>(kRanks);

  void add(Version version, const std::vector<double>& result) {
    std::lock_guard lock(mutex);
    const auto [place, is_new] = results.emplace(version, result);
    WAGMA_CHECK(is_new || place->second == result);  // all members have the same sum
  }
};

inline double model_of(int rank, Version version) { return static_cast<double>((version + 1) * 10 + rank); }

inline void iterate(const Run& run, Setting& setting, int rank, Engine& engine, Seen& seen) {
  const Schedule& schedule = engine.config().schedule;
  std::vector<double> gradient(kCount);
  const auto own = setting.model(rank, gradient), kept = setting.model(rank, gradient);
  for (Version t = 0; t < run.iterations[rank]; ++t) {
    if (draw(run.seed, rank, t) % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(draw(run.seed, rank, t) % 1500));
    std::fill(gradient.begin(), gradient.end(), 0.0);
    if (schedule.is_sync(t)) {  // what no version has taken the rank applies by itself, and brings its model
      engine.retract(kept->own());
      seen.kept[rank] = kept->values();
      seen.kept[rank][rank] += std::ldexp(1.0, static_cast<int>(t));
      kept->set(seen.kept[rank]);
      gradient[kRanks] = model_of(rank, t);
      own->set(gradient);
    } else {
      gradient[rank] = std::ldexp(1.0, static_cast<int>(t));
      own->set(gradient);
      engine.retract(own->own());
    }
    const Outcome outcome = engine.arrive(t, own->own());
    WAGMA_CHECK(outcome.group_length == kRanks);
    engine.copy_result(own->own());
    seen.add(outcome.merged_version, own->values());
  }
  engine.retract(kept->own());
  seen.kept[rank] = kept->values();
  own->set({0, 0, 0, 0, model_of(rank, run.iterations[rank])});
  engine.close({}, own->own());
  seen.records[rank] = engine.take_records();
}

// A sync's mean: of the models of those who arrived, of what the others handed in when they closed, or what a later sync made of it.
inline void check_syncs(const Run& run, const Schedule& schedule, const Seen& seen, Version last) {
  std::vector<double> handed_in(kRanks);
  for (int rank = 0; rank < kRanks; ++rank) handed_in[rank] = model_of(rank, run.iterations[rank]);
  for (Version version = 0; version <= last; ++version) {
    if (!schedule.is_sync(version)) continue;
    double sum = 0;  // of small whole numbers and quarters: exact in any order
    for (int rank = 0; rank < kRanks; ++rank) {
      sum += version < run.iterations[rank] ? model_of(rank, version) : handed_in[rank];
    }
    WAGMA_CHECK(seen.results.at(version)[kRanks] == sum / kRanks);
    for (int rank = 0; rank < kRanks; ++rank) {
      if (version >= run.iterations[rank]) handed_in[rank] = sum / kRanks;
    }
  }
}

inline void every_gradient_once(const Run& run, const MakeSetting& make = on_host) {
  auto config = config_of(kRanks, kRanks, run.sync_period, kCount);
  config.schedule.accumulate = true;
  config.schedule.initiators = run.initiators;
  config.schedule.seed = 7;
  Seen seen;
  const auto setting = make(config);
  const auto errors = run_in(*setting, config, [](int) { return 0.0; }, [&](int rank, Engine& engine) {
    iterate(run, *setting, rank, engine, seen);
  });
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
  const Version last = *std::max_element(run.iterations.begin(), run.iterations.end()) - 1;
  std::vector<double> total(kCount);
  for (Version version = 0; version <= last; ++version) {
    WAGMA_CHECK(seen.results.contains(version));  // whoever activated it was fresh
    if (config.schedule.is_sync(version)) continue;
    for (int rank = 0; rank < kRanks; ++rank) total[rank] += seen.results[version][rank];
  }
  bool any_null = false;
  for (int rank = 0; rank < kRanks; ++rank) {
    WAGMA_CHECK(total[rank] + seen.kept[rank][rank] == std::ldexp(1.0, static_cast<int>(run.iterations[rank])) - 1);
    for (int other = 0; other < kRanks; ++other) WAGMA_CHECK(other == rank || seen.kept[rank][other] == 0);
    for (const auto& execution : seen.records[rank].executions) {
      any_null |= execution.own_stamp == kNone;
      const bool is_even = std::all_of(run.iterations.begin(), run.iterations.end(), [&](Version n) { return n == last + 1; });
      if (execution.activator && is_even) WAGMA_CHECK(config.schedule.may_activate(rank, execution.version));
    }
  }
  WAGMA_CHECK(any_null);  // else nobody was late, and this has shown little
  if (run.sync_period) check_syncs(run, config.schedule, seen, last);
}

}  // namespace eager

}  // namespace wagma::testing
