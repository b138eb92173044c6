// Shrinking: from a plan that fails to a small one that fails in the same way and is no longer, by trying. Small plans are drawn first,
// with few of the ranks and other delays. Then is left out what can be: ranks, iterations, settings; delays, by delta debugging (Zeller
// and Hildebrandt, 2002; here of the set of events that are delayed); what applications do last. Again, until nothing can be.
#include <algorithm>
#include <set>

#include "fuzzer.hpp"

namespace wagma::tools {
namespace {

constexpr std::uint64_t kMostAttempts = 20'000;
constexpr int kDraws = 64, kMostDrawnRanks = 16;
constexpr int kRankShift = 56, kKindShift = 48;  // in a Key

class Shrinker {
 public:
  Shrinker(const Plan& plan, const Shrunk& found, const std::function<void()>& progress)
      : plan_(plan), best_(found), progress_(progress) {}

  Shrunk shrink() {
    draw_smaller();
    for (bool smaller = true; smaller && !over();) {
      smaller = fewer_ranks();
      smaller |= fewer_iterations();
      smaller |= fewer_settings();
      smaller |= fewer_delays();
      smaller |= fewer_events();
    }
    small_delays();
    best_.config = plan_.config;
    return best_;
  }

 private:
  using Change = std::function<void(Plan&)>;

  bool over() const { return best_.attempts >= kMostAttempts; }

  // Keeps the change if the run then still fails in the same way and is no longer (or, where asked, is shorter).
  bool attempt(const Change& change, bool shorter = false) {
    if (over()) return false;
    ++best_.attempts;
    progress_();
    Plan plan = plan_;
    change(plan);
    Counts counts;
    Verdict verdict;
    try {
      plan.config.schedule.check();
      verdict = judge_(plan, counts);
    } catch (const std::invalid_argument&) {  // no such schedule
      return false;
    }
    if (verdict.kind != best_.verdict.kind || verdict.events + shorter > best_.verdict.events) return false;
    plan_ = std::move(plan);
    best_.verdict = verdict;
    best_.log = judge_.log();
    return true;
  }

  // Whether a rank can be left out often depends on the trees of activations, which are others then. So what happens to as many
  // ranks as there are is drawn again, for the fewest first.
  void draw_smaller() {
    for (int ranks = 1; ranks < plan_.config.schedule.world_size && ranks <= kMostDrawnRanks; ++ranks) {
      for (int i = 0; i < kDraws; ++i) {
        Random random(plan_.seed ^ static_cast<std::uint64_t>(ranks * kDraws + i));
        if (attempt([&](Plan& plan) { redraw(plan, ranks, random); })) return;
      }
    }
  }

  static void redraw(Plan& plan, int ranks, Random& random) {
    Schedule& schedule = plan.config.schedule;
    const bool initiators = schedule.initiators != 0;
    while (schedule.world_size > ranks) drop_rank(plan, random.below(schedule.world_size));
    for (int& iterations : plan.config.iterations) iterations = random.below(iterations + 1);
    if (!schedule.accumulate) schedule.group_size = 1 + random.below(ranks);
    if (initiators) schedule.initiators = 1 + random.below(ranks);
    schedule.seed = random.below(kDraws);
    plan.seed = random.next();
    plan.instant = random.one_in(4);
  }

  // The rank with the highest number goes, or any other; then those behind it move up, and with explicit delays theirs are renamed.
  static void drop_rank(Plan& plan, int rank) {
    const auto r = static_cast<std::ptrdiff_t>(rank);
    Schedule& schedule = plan.config.schedule;
    --schedule.world_size;
    schedule.group_size = schedule.accumulate ? schedule.world_size : std::min(schedule.group_size, schedule.world_size);
    schedule.initiators = std::min(schedule.initiators, schedule.world_size);
    plan.config.iterations.erase(plan.config.iterations.begin() + r);
    plan.pace.erase(plan.pace.begin() + r);
    plan.looks.erase(plan.looks.begin() + r);
    std::erase_if(plan.pauses, [&](const Pause& pause) { return pause.rank == rank; });
    for (Pause& pause : plan.pauses) pause.rank -= pause.rank > rank;
    if (!plan.delays) return;
    std::unordered_map<Key, Delay> left;
    for (const auto& [key, delay] : *plan.delays) {
      const int of = static_cast<int>(key >> kRankShift);
      if (of != rank) left.emplace(of > rank ? key - (Key{1} << kRankShift) : key, delay);
    }
    plan.delays = std::move(left);
  }

  bool fewer_ranks() {
    bool any = false;
    for (bool halved = true; halved;) {
      const int ranks = plan_.config.schedule.world_size;
      halved = ranks > 3 && attempt([&](Plan& plan) {
                 for (int rank = ranks - 1; rank >= (ranks + 1) / 2; --rank) drop_rank(plan, rank);
               });
      any |= halved;
    }
    for (int rank = plan_.config.schedule.world_size - 1; rank >= 0; --rank) {
      if (plan_.config.schedule.world_size > 1) any |= attempt([&](Plan& plan) { drop_rank(plan, rank); });
    }
    return any;
  }

  bool fewer_iterations() {
    bool any = false;
    const auto most = [&] { return *std::max_element(plan_.config.iterations.begin(), plan_.config.iterations.end()); };
    for (bool fewer = true; fewer && most() > 0;) {
      const int n = most();
      const auto limit = [&](int to) {
        return attempt([&](Plan& plan) {
          for (int& iterations : plan.config.iterations) iterations = std::min(iterations, to);
        });
      };
      fewer = limit(n / 2) || limit(n - 1);
      any |= fewer;
    }
    for (std::size_t rank = 0; rank < plan_.config.iterations.size(); ++rank) {
      const auto limit = [&](int to) { return attempt([&](Plan& plan) { plan.config.iterations[rank] = to; }); };
      if (plan_.config.iterations[rank] > 0 && limit(0)) any = true;
      while (plan_.config.iterations[rank] > 0 && limit(plan_.config.iterations[rank] - 1)) any = true;
    }
    return any;
  }

  // Tries the change unless it changes nothing.
  template <class T>
  bool set(T& (*place)(Plan&), T value) {
    return place(plan_) != value && attempt([&](Plan& plan) { place(plan) = value; });
  }

  bool fewer_settings() {
    bool any = set<bool>([](Plan& p) -> bool& { return p.config.merge_once; }, false);
    any |= set<bool>([](Plan& p) -> bool& { return p.config.resident; }, false);
    any |= set<bool>([](Plan& p) -> bool& { return p.config.schedule.fixed; }, false);
    any |= set<bool>([](Plan& p) -> bool& { return p.config.schedule.accumulate; }, false);
    any |= set<bool>([](Plan& p) -> bool& { return p.config.schedule.grouped; }, true);
    any |= set<bool>([](Plan& p) -> bool& { return p.reads_end_early; }, false);
    any |= set<int>([](Plan& p) -> int& { return p.config.schedule.initiators; }, 0);
    any |= set<std::int64_t>([](Plan& p) -> std::int64_t& { return p.config.schedule.seed; }, 0);
    Schedule& schedule = plan_.config.schedule;
    for (Version period = 0; period < schedule.sync_period; ++period) {
      if (attempt([&](Plan& plan) { plan.config.schedule.sync_period = period; })) any = true;
    }
    for (int size = 1; !schedule.accumulate && size < schedule.group_size; ++size) {
      if (attempt([&](Plan& plan) { plan.config.schedule.group_size = size; })) any = true;
    }
    return any;
  }

  // From now on the plan says each delay that there is, those by slow progress threads and pauses included. In a run in which nothing
  // is delayed, events happen in the order in which they come about.
  bool fewer_delays() {
    if (!plan_.delays) {
      Counts counts;
      judge_(plan_, counts);
      if (!attempt([&](Plan& plan) { plan.delays = judge_.delays(); })) return false;
    }
    std::vector<Key> delayed;
    for (const auto& [key, delay] : *plan_.delays) {
      if (delay != Delay{}) delayed.push_back(key);
    }
    std::sort(delayed.begin(), delayed.end());  // the map has no order to rely on
    const auto before = delayed.size();
    for (std::size_t parts = 1; !delayed.empty() && !over();) {
      const std::size_t length = (delayed.size() + parts - 1) / parts;
      bool removed = false;
      for (std::size_t from = 0; from < delayed.size();) {
        const auto begin = delayed.begin() + static_cast<std::ptrdiff_t>(from);
        const std::vector<Key> part(begin, begin + static_cast<std::ptrdiff_t>(std::min(length, delayed.size() - from)));
        const auto none = [&](Plan& plan) {
          for (const Key key : part) plan.delays->erase(key);
        };
        if (attempt(none)) {
          delayed.erase(begin, begin + static_cast<std::ptrdiff_t>(part.size()));
          removed = true;
        } else {
          from += part.size();
        }
      }
      if (length == 1 && !removed) break;
      parts = removed && length == 1 ? parts : parts * 2;
    }
    return delayed.size() < before;
  }

  // An application may come after everything else: then what it does is no part of the trace.
  bool fewer_events() {
    if (!plan_.delays) return false;
    Counts counts;
    judge_(plan_, counts);
    std::set<Key> known;
    for (const auto& [key, delay] : judge_.delays()) {
      const auto kind = static_cast<Event::Kind>(key >> kKindShift & 0xFF);
      if (is_application(kind) && delay.ticks < kNever) known.insert(key);
    }
    bool any = false;
    for (const Key key : known) any |= attempt([&](Plan& plan) { (*plan.delays)[key] = {kNever, 0, 0}; }, true);
    return any;
  }

  // What has to be delayed, by as little as can be: 1, 2, 3, ... in the order of the delays that were.
  void small_delays() {
    if (!plan_.delays) return;
    std::set<Ticks> values;
    for (const auto& [key, delay] : *plan_.delays) {
      if (delay.ticks != 0 && delay.ticks < kNever) values.insert(delay.ticks);
    }
    attempt([&](Plan& plan) {
      for (auto& [key, delay] : *plan.delays) {
        delay.order = delay.tie = 0;
        if (const auto found = values.find(delay.ticks); found != values.end()) {
          delay.ticks = 1 + static_cast<Ticks>(std::distance(values.begin(), found));
        }
      }
    });
  }

  Plan plan_;
  Shrunk best_;
  const std::function<void()>& progress_;
  Judge judge_;
};

}  // namespace

Shrunk shrink(const Plan& plan, const Shrunk& found, const std::function<void()>& progress) {
  return Shrinker(plan, found, progress).shrink();
}

}  // namespace wagma::tools
