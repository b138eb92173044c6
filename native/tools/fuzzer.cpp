// wagma fuzzer: ranks under a seeded scheduler with hostile timing, for sizes that the explorer cannot enumerate. The
// seed decides everything, the configuration included, so a failure is replayed by `fuzzer --seed N`.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <limits>
#include <optional>
#include <queue>

#include "harness.hpp"
#include "options.hpp"
#include "wagma/digest.hpp"

namespace wagma::tools {
namespace {

// Not <random>: its distributions differ between standard libraries, and a seed has to mean the same run everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(detail::mix64(seed)) {}
  std::uint64_t next() { return detail::mix64(state_ += 0x9E3779B97F4A7C15u); }
  int below(int n) { return static_cast<int>(next() % static_cast<std::uint64_t>(n)); }
  bool one_in(int n) { return below(n) == 0; }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  // 10 to a uniform power: as many delays between 1 and 10 as between 1000 and 10000.
  double magnitude(double from, double to) { return std::pow(10.0, from + (to - from) * uniform()); }

 private:
  std::uint64_t state_;
};

Case draw_case(Random& random) {
  static constexpr int kMostRanks[] = {2, 4, 8, 16, 64};
  Case config;
  config.schedule.world_size = 1 + random.below(kMostRanks[random.below(5)]);
  config.schedule.group_size = 1 + random.below(config.schedule.world_size);
  config.schedule.sync_period = random.below(9);
  config.schedule.grouped = config.schedule.sync_period == 0 || !random.one_in(8);
  config.merge_once = random.one_in(3);
  config.schedule.initiators = random.one_in(2) ? 0 : 1 + random.below(config.schedule.world_size);
  config.schedule.seed = static_cast<std::int64_t>(random.next() >> 1);
  if (config.schedule.grouped && random.one_in(2)) {  // eager
    config.schedule.accumulate = true;
    config.schedule.group_size = config.schedule.world_size;
  }
  config.resident = !config.schedule.accumulate && random.one_in(2);
  const int iterations = random.below(13);
  const bool uneven = random.one_in(2);
  for (int rank = 0; rank < config.schedule.world_size; ++rank) {
    config.iterations.push_back(uneven ? random.below(iterations + 1) : iterations);
  }
  return config;
}

// Only two ranks out of seven activate, and any activation may come last: the smallest case in which a rank is stranded
// if a second activation is dropped. Drawn cases rarely look like this, so some seeds (with --two-activators all) run
// it.
Case two_activators(Mutation mutation) {
  return {{.world_size = 7, .group_size = 7}, {1, 0, 0, 0, 1, 0, 0}, false, mutation, false};
}

std::string text_of(const Case& config) {
  std::string text = "ranks " + std::to_string(config.schedule.world_size) + ", group size " +
                     std::to_string(config.schedule.group_size) + ", sync period " +
                     std::to_string(config.schedule.sync_period) + (config.schedule.grouped ? "" : ", syncs only") +
                     (config.merge_once ? ", merge once" : "") +
                     (config.resident ? ", resident" : "") + (config.schedule.accumulate ? ", accumulate" : "");
  if (config.schedule.selective()) {
    text += ", initiators " + std::to_string(config.schedule.initiators) + " of seed " + std::to_string(config.schedule.seed);
  }
  text += ", iterations";
  for (const int n : config.iterations) text += " " + std::to_string(n);
  return text;
}

struct Counts {
  std::uint64_t events = 0, starts = 0, passive = 0, completions = 0, late = 0, quiet = 0, sums = 0, nulls = 0;
};

class Run {
 public:
  Run(const Case& config, Random& random, Counts& counts) : case_(config), random_(random), counts_(counts) {
    case_.check_groups();
    const auto size = static_cast<std::size_t>(case_.schedule.world_size);
    for (double& scale : scale_) scale = random_.magnitude(-3, 3);
    for (std::size_t rank = 0; rank < size; ++rank) {
      ranks_.emplace_back(case_, static_cast<int>(rank));
      pace_.push_back(random_.magnitude(-1, 1));
    }
    stamps_.assign(static_cast<std::size_t>(case_.last() + 1), std::vector<std::optional<Version>>(size));
    executed_.assign(static_cast<std::size_t>(case_.last() + 1), std::vector<char>(size));
    eager_read_done_ = random_.one_in(2);
  }

  void run() {
    for (int rank = 0; rank < case_.schedule.world_size; ++rank) schedule_application(rank);
    while (!queue_.empty()) {
      const Pending pending = queue_.top();
      queue_.pop();
      now_ = pending.time;
      const bool application = is_application(pending.event.kind);
      if (!application) --system_pending_;
      // Applications are the only ones left that can do anything: whoever waits now would wait for them.
      if (application && system_pending_ == 0) check_quiet();
      step(pending.rank, pending.event);
      ++counts_.events;
    }
    check_quiet();
    for (const Rank& rank : ranks_) {
      if (!rank.machine().done()) throw Violation("deadlock: nothing can happen and a rank is not done");
    }
  }

 private:
  struct Pending {
    double time;
    std::uint64_t order;  // random: events at the same time happen in any order
    int rank;
    Event event;
    bool operator<(const Pending& other) const { return std::tie(other.time, other.order) < std::tie(time, order); }
  };

  static bool is_application(Event::Kind kind) {
    return kind == Event::arrive || kind == Event::merge_done || kind == Event::close || kind == Event::retract;
  }
  Rank& at(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }

  // Each kind of event has a scale, each rank a pace, each event three orders of magnitude of its own; some are held up
  // far longer than all that, so that a rank sleeps through many versions or an activation comes after everything else.
  void schedule(int rank, const Event& event) {
    double delay = scale_[event.kind] * random_.magnitude(-1.5, 1.5);
    if (is_application(event.kind)) delay *= pace_[static_cast<std::size_t>(rank)];
    if (random_.one_in(24)) delay *= 1e4;
    if (random_.one_in(24)) delay = 0;
    if (!is_application(event.kind)) ++system_pending_;
    queue_.push({now_ + delay, random_.next(), rank, event});
  }

  void schedule_application(int rank) {
    if (at(rank).application_ready()) schedule(rank, at(rank).application_event());
  }

  void step(int rank, const Event& event) {
    const bool was_ready = at(rank).application_ready();
    const Outputs outputs = at(rank).apply(event);
    if (event.kind == Event::exec_done) on_executed(rank, event.version);
    for (const Output& output : outputs) {
      if (const auto* forward = std::get_if<Forward>(&output)) {
        schedule(forward->rank, {Event::activation, forward->version, forward->dimension});
      } else if (const auto* solo = std::get_if<Solo>(&output)) {
        schedule(solo->rank, {Event::solo, solo->version, solo->dimension});
      } else if (const auto* start = std::get_if<Start>(&output)) {
        on_started(rank, *start);
      } else if (const auto* complete = std::get_if<Complete>(&output)) {
        ++counts_.completions;
        counts_.late += !complete->fresh;
      }
    }
    if (event.kind == Event::close) on_closed();
    if (is_application(event.kind) || (!was_ready && at(rank).application_ready())) schedule_application(rank);
  }

  void on_started(int rank, const Start& start) {
    auto& stamps = stamps_[static_cast<std::size_t>(start.version)];
    auto& stamp = stamps[static_cast<std::size_t>(rank)];
    if (stamp) throw Violation("order: a version starts twice");
    stamp = start.stamp;
    ++counts_.starts;
    counts_.passive += start.stamp < start.version;
    counts_.sums += start.oldest < start.stamp;
    counts_.nulls += start.buffer == kNone;
    const Group group = case_.schedule.group(rank, start.version);
    for (const int member : group) {
      if (!stamps[static_cast<std::size_t>(member)]) return;
    }
    bool any = false;
    for (const int member : group) {
      any |= !is_null(member, start.version);
      schedule(member, {Event::exec_done, start.version});
      if (eager_read_done_ && !is_null(member, start.version)) schedule(member, {Event::read_done});
    }
    if (!any) throw Violation("gradients: nobody contributes to a version");
  }

  // Nobody reads a null contribution, and its rank may be in a later version by now.
  bool is_null(int member, Version version) const {
    return case_.schedule.accumulate && stamps_[static_cast<std::size_t>(version)][static_cast<std::size_t>(member)] == kNone;
  }

  // The usual end of reading: all members have the sum. Half of the runs let it end at any time after the start
  // instead.
  void on_executed(int rank, Version version) {
    auto& executed = executed_[static_cast<std::size_t>(version)];
    executed[static_cast<std::size_t>(rank)] = 1;
    if (eager_read_done_) return;
    const Group group = case_.schedule.group(rank, version);
    for (const int member : group) {
      if (!executed[static_cast<std::size_t>(member)]) return;
    }
    for (const int member : group) {
      if (!is_null(member, version)) schedule(member, {Event::read_done});
    }
  }

  void on_closed() {
    if (++closed_ < case_.schedule.world_size) return;
    for (int rank = 0; rank < case_.schedule.world_size; ++rank) schedule(rank, {Event::finish, case_.last()});
  }

  // See Explorer::check_quiet for what this proves there; here it is a sample of it.
  void check_quiet() {
    ++counts_.quiet;
    Version slowest = std::numeric_limits<Version>::max();
    for (const Rank& rank : ranks_) {
      if (rank.phase() != Rank::closed) slowest = std::min(slowest, rank.arrived());
    }
    for (const Rank& rank : ranks_) {
      if (rank.phase() == Rank::computing && !rank.application_ready()) {
        throw Violation("progress: a rank that wants to arrive has no buffer to arrive with");
      }
      if (rank.phase() != Rank::waiting) continue;
      if (rank.waits_in_group_version()) {
        if (case_.awaits_candidate(rank.arrived(), [&](int r) { return at(r).arrived(); },
                                   [&](int r) { return at(r).phase() == Rank::closed; })) {
          continue;
        }
        throw Violation("progress: a rank waits in a group version until others arrive");
      }
      if (slowest >= rank.arrived()) throw Violation("progress: a rank waits in a sync at which all have arrived");
    }
  }

  Case case_;
  Random& random_;
  Counts& counts_;
  std::vector<Rank> ranks_;
  std::vector<double> pace_;
  std::array<double, Event::kKinds> scale_;  // by kind of event
  bool eager_read_done_;
  double now_ = 0;
  int closed_ = 0;
  std::int64_t system_pending_ = 0;
  std::priority_queue<Pending> queue_;
  std::vector<std::vector<std::optional<Version>>> stamps_;  // [version][rank], of what has started
  std::vector<std::vector<char>> executed_;                  // [version][rank]
};

// The configuration and the broken promise, or nothing.
std::optional<std::string> failure_of(std::uint64_t seed, bool two_activators_only, Mutation mutation, Counts& counts) {
  Random random(seed);
  Case config = draw_case(random);
  config.mutation = mutation;
  if (two_activators_only || random.one_in(16)) config = two_activators(mutation);
  try {
    Run(config, random, counts).run();
  } catch (const std::runtime_error& error) {
    return std::string(error.what()) + "\", \"case\": \"" + text_of(config);
  }
  return std::nullopt;
}

}  // namespace
}  // namespace wagma::tools

int main(int argc, char** argv) {
  using namespace wagma::tools;
  try {
    const Options options(argc, argv, {"--seed", "--seeds", "--mutate"}, {"--two-activators"});
    auto seeds = options.integers("--seeds", ':', "0:2000");
    if (options.has("--seed")) seeds = {options.integer("--seed", 0), options.integer("--seed", 0) + 1};
    if (seeds.size() != 2) throw UsageError("--seeds: must be FROM:TO");
    const Mutation mutation = mutation_of(options.text("--mutate", "none"));
    const auto begin = std::chrono::steady_clock::now();
    Counts counts;
    std::optional<std::string> failure;
    auto seed = seeds[0];
    for (; seed < seeds[1] && !failure; ++seed) {
      failure = failure_of(static_cast<std::uint64_t>(seed), options.has("--two-activators"), mutation, counts);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    const auto share = [](std::uint64_t part, std::uint64_t all) {
      return all ? static_cast<double>(part) / static_cast<double>(all) : 0.0;
    };
    std::printf(
        "{\"result\": \"%s\", \"runs\": %lld, \"events\": %llu, \"seconds\": %.3f, \"late\": %.4f, \"passive\": %.4f, "
        "\"quiet\": %llu, \"sums\": %.4f, \"nulls\": %.4f",
        failure ? "violation" : "ok", static_cast<long long>(seed - seeds[0]),
        static_cast<unsigned long long>(counts.events), seconds.count(), share(counts.late, counts.completions),
        share(counts.passive, counts.starts), static_cast<unsigned long long>(counts.quiet),
        share(counts.sums, counts.starts), share(counts.nulls, counts.starts));
    if (failure)
      std::printf(", \"seed\": %lld, \"violation\": \"%s\"", static_cast<long long>(seed - 1), failure->c_str());
    std::printf("}\n");
    return failure ? 1 : 0;
  } catch (const std::exception& error) {
    std::cerr << "fuzzer: " << error.what()
              << "\nusage: fuzzer [--seeds FROM:TO | --seed N] [--mutate NAME] [--two-activators]\n";
    return 2;
  }
}
