// Runs whose ranks are late by times drawn from a seed, for models wherever they are: sums are exact integers, so every execution is checked
// against what its members published.
#pragma once

#include <algorithm>
#include <barrier>
#include <chrono>

#include "ranks.hpp"
#include "wagma/digest.hpp"

namespace wagma::testing {

// What rank publishes for version v: whole numbers, so that every sum is exact and names its summands' total.
inline double published(int rank, Version version) { return static_cast<double>((version + 2) * 1000 + rank); }

inline void check_no_errors(const std::vector<std::string>& errors) {
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
}

struct Run {
  int world_size, group_size;
  Version sync_period;
  std::vector<Version> iterations;  // by rank
  std::uint64_t seed;
  bool merge_once = false;
  Version begin = 0;  // of a resumed run
};

// Checks of one rank's records against the promises, as far as one rank can tell.
inline void check_records(const Run& run, int rank, const Schedule& schedule, const Records& records, Version last) {
  Version expected = run.begin;
  for (const auto& execution : records.executions) {
    WAGMA_CHECK(execution.version == expected++);  // exactly once, in order
    WAGMA_CHECK(execution.members == schedule.group(rank, execution.version));
    WAGMA_CHECK(execution.activated_ns <= execution.started_ns && execution.started_ns <= execution.completed_ns);
    const Version staleness = execution.version - execution.own_stamp;
    if (run.sync_period > 0 && execution.version <= run.iterations[rank] - 1) {
      WAGMA_CHECK(staleness >= 0 && staleness <= (execution.version + 1) % run.sync_period);
    }
  }
  WAGMA_CHECK(expected == last + 1);
  WAGMA_CHECK(static_cast<Version>(records.iterations.size()) == run.iterations[rank] - run.begin);
  for (const auto& iteration : records.iterations) {
    const auto& own = records.executions[static_cast<std::size_t>(iteration.iteration - run.begin)];
    WAGMA_CHECK(iteration.fresh == (own.own_stamp == iteration.iteration));  // fresh exactly if it is in the sum
    WAGMA_CHECK(iteration.fresh == (iteration.arrival_ns <= own.started_ns));
    if (iteration.merged_version == kNone) continue;
    const auto& merged = records.executions[static_cast<std::size_t>(iteration.merged_version - run.begin)];
    WAGMA_CHECK(iteration.merged_digest == merged.sum_digest);  // a complete result, the one that was promised
    WAGMA_CHECK(iteration.fresh ? merged.version == own.version : merged.started_ns <= iteration.arrival_ns);
    WAGMA_CHECK(merged.completed_ns <= iteration.return_ns);
  }
}

// All members of an execution saw the same sum, and it is the sum of what they say they contributed.
inline void check_sums(const Run& run, const std::vector<Records>& records, const Schedule& schedule, std::size_t count, Version last) {
  const auto place = [&](Version version) { return static_cast<std::size_t>(version - run.begin); };
  for (Version version = run.begin; version <= last; ++version) {
    for (int rank = 0; rank < schedule.world_size; ++rank) {
      const auto group = schedule.group(rank, version);
      double total = 0;
      for (const int member : group) {
        const Version stamp = records[member].executions[place(version)].own_stamp;
        const Version synced = schedule.sync_period > 0 ? (version / schedule.sync_period) * schedule.sync_period - 1 : -1;
        WAGMA_CHECK(stamp >= synced);
        total += published(member, stamp);
        // A stamp that is the last sync's names its mean instead of a pattern, and a closed rank's at a sync whatever it had;
        // such sums are compared between the members only.
        if ((stamp == synced && stamp >= run.begin) || stamp >= run.iterations[member]) total = -1e300;
      }
      const auto& own = records[rank].executions[place(version)];
      WAGMA_CHECK(own.sum_digest == records[group.front()].executions[place(version)].sum_digest);
      if (total < 0) continue;
      if (schedule.is_sync(version)) total /= static_cast<double>(group.size());
      const std::vector<double> expected(count, total);
      WAGMA_CHECK(own.sum_digest == digest(expected.data(), count * sizeof(double)));
    }
  }
}

inline std::vector<Records> run_late(const Run& run, std::size_t count, const MakeSetting& make = on_host) {
  auto config = config_of(run.world_size, run.group_size, run.sync_period, count);
  config.merge_once = run.merge_once;
  const auto setting = make(config);
  std::vector<Records> records(run.world_size);
  std::barrier all_began(run.world_size);
  const auto body = [&](int rank, Engine& engine) {
    if (run.begin > 0) {
      const std::vector<double> resumed(count, published(rank, run.begin - 1));
      engine.begin_at(run.begin, resumed.data());
      all_began.arrive_and_wait();
    }
    const auto model = setting->model(rank, std::vector<double>(count));
    for (Version t = run.begin; t < run.iterations[rank]; ++t) {
      model->set(std::vector<double>(count, published(rank, t)));
      if (draw(run.seed, rank, t) % 4 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(draw(run.seed, rank, t) % 2000));
      }
      const Outcome outcome = engine.arrive(t, model->own());
      if (outcome.group_length == 0) continue;
      if (config.schedule.is_sync(t)) {
        engine.copy_result(model->own());
      } else {
        engine.merge(model->own(), outcome.fresh ? 0 : 1, outcome.group_length + (outcome.fresh ? 0 : 1));
      }
      const std::vector<double> merged = model->values();
      WAGMA_CHECK(std::all_of(merged.begin(), merged.end(), [&](double x) { return x == merged.front(); }));
    }
    engine.close();
    records[rank] = engine.take_records();
  };
  check_no_errors(run_in(*setting, config, [](int rank) { return published(rank, -1); }, body));
  const Version last = *std::max_element(run.iterations.begin(), run.iterations.end()) - 1;
  for (int rank = 0; rank < run.world_size; ++rank) check_records(run, rank, config.schedule, records[rank], last);
  check_sums(run, records, config.schedule, count, last);
  return records;
}

}  // namespace wagma::testing
