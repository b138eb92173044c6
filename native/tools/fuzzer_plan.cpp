#include "fuzzer_plan.hpp"

#include <algorithm>

namespace wagma::tools {
namespace {

constexpr int kLargestScale = 20;      // a million ticks: six orders of magnitude between the kinds of events
constexpr int kSpread = 5;             // and each event has three of its own
constexpr int kHeldUp = 13;            // some come four later than all that
constexpr int kOften = 24, kSleep = 12, kFrequent = 8;

// Only two ranks out of seven activate, and any activation may come last: the smallest case in which a rank is stranded
// if a second activation is dropped. Drawn cases rarely look like this, so some seeds run it.
Case two_activators_of_seven() { return {{.world_size = 7, .group_size = 7}, {1, 0, 0, 0, 1, 0, 0}}; }

Case draw_case(Random& random) {
  static constexpr int kMostRanks[] = {2, 4, 8, 16, 64};
  Case config;
  Schedule& schedule = config.schedule;
  schedule.world_size = 1 + random.below(kMostRanks[random.below(5)]);
  schedule.group_size = 1 + random.below(schedule.world_size);
  schedule.sync_period = random.below(random.one_in(8) ? 33 : 9);
  schedule.grouped = schedule.sync_period == 0 || !random.one_in(8);
  schedule.fixed = random.one_in(8);
  config.merge_once = random.one_in(3);
  schedule.initiators = random.one_in(2) ? 0 : 1 + random.below(schedule.world_size);
  schedule.seed = static_cast<std::int64_t>(random.next() >> 1);
  if (schedule.grouped && random.one_in(2)) {  // eager
    schedule.accumulate = true;
    schedule.group_size = schedule.world_size;
  }
  config.resident = !schedule.accumulate && random.one_in(2);
  const int iterations = schedule.world_size <= 8 && random.one_in(8) ? random.below(41) : random.below(13);
  const bool uneven = random.one_in(2);
  for (int rank = 0; rank < schedule.world_size; ++rank) config.iterations.push_back(uneven ? random.below(iterations + 1) : iterations);
  return config;
}

Ticks magnitude(Random& random, int power) { return power < 0 ? 0 : (Ticks{1} << power) + random.next() % (Ticks{1} << power); }

void draw_timing(Plan& plan, Random& random) {
  const int ranks = plan.config.schedule.world_size;
  for (int& scale : plan.scale) scale = random.between(0, kLargestScale);
  plan.instant = random.one_in(16);
  plan.reads_end_early = random.one_in(2);
  const bool sleepers = random.one_in(4);  // ranks that are away for many versions, always
  const bool looks = random.one_in(2), every_rank = random.one_in(2);
  const int seldom = random.between(kFrequent, kLargestScale + kSpread);
  for (int rank = 0; rank < ranks; ++rank) {
    plan.pace.push_back(random.between(-3, 3) + (sleepers && random.one_in(3) ? kSleep : 0));
    const bool slow = looks && (every_rank || random.one_in(3));
    const auto order = static_cast<Looks::Order>(random.below(3));
    plan.looks.push_back(slow ? Looks{magnitude(random, seldom + random.between(-2, 2)), order} : Looks{});
  }
  for (int pauses = random.one_in(4) ? random.between(1, 3) : 0; pauses > 0; --pauses) {
    const int rank = random.below(ranks);
    const Ticks from = magnitude(random, random.between(0, kLargestScale + kSpread));
    plan.pauses.push_back({rank, from, magnitude(random, random.between(kSpread, kLargestScale + kHeldUp))});
  }
}

// Planted, to show that the comparison of two runs sees it: what is left over from the runs before.
std::uint64_t leftover() {
  static thread_local std::uint64_t calls = 0;
  return ++calls % 97 == 0 ? calls % 1009 : 0;
}

}  // namespace

Plan draw_plan(std::uint64_t seed, Mutation mutation, bool two_activators) {
  Random random(seed);
  Plan plan;
  plan.config = draw_case(random);
  if (two_activators || random.one_in(16)) plan.config = two_activators_of_seven();
  plan.config.mutation = mutation;
  plan.seed = random.next();
  draw_timing(plan, random);
  return plan;
}

Delay Plan::delay(int rank, Event::Kind kind, Key key, Ticks now) const {
  Delay delay;
  if (delays) {
    if (const auto found = delays->find(key); found != delays->end()) delay = found->second;
  } else {
    delay = drawn(rank, kind, key);
    const Ticks came = now + delay.ticks;
    const Ticks happens = is_application(kind) ? thawed(rank, came) : handled(rank, came);
    if (happens != came && !is_application(kind)) {  // it waited for the progress thread, with others
      const Looks::Order order = looks[static_cast<std::size_t>(rank)].order;
      delay.order = order == Looks::as_it_came ? came : order == Looks::newest_first ? ~came : 0;
    }
    delay.ticks = happens - now;
  }
  if (leaks) delay.ticks += leftover();
  return delay;
}

Delay Plan::drawn(int rank, Event::Kind kind, Key key) const {
  Random random(seed ^ detail::mix64(key));
  int power = scale[kind] + random.between(-kSpread, kSpread);
  if (is_application(kind)) power += pace[static_cast<std::size_t>(rank)];
  if (random.one_in(kOften)) power += kHeldUp;
  const bool none = random.one_in(kOften) || instant;
  return {none ? 0 : magnitude(random, power), 0, random.next()};
}

Ticks Plan::handled(int rank, Ticks came) const {
  const Ticks period = looks[static_cast<std::size_t>(rank)].period;
  if (period == 0) return thawed(rank, came);
  const auto look = [&](Ticks n) {
    return n * period + detail::mix64(seed ^ detail::mix64(n << 8 | static_cast<std::uint64_t>(rank))) % period;
  };
  const Ticks now = came / period, first = look(now);
  return thawed(rank, first >= came ? first : look(now + 1));
}

Ticks Plan::thawed(int rank, Ticks time) const {
  for (bool moved = true; moved;) {
    moved = false;
    for (const Pause& pause : pauses) {
      if (pause.rank != rank || time < pause.from || time >= pause.from + pause.length) continue;
      time = pause.from + pause.length;
      moved = true;
    }
  }
  return time;
}

std::string text_of(const Case& config) {
  const Schedule& schedule = config.schedule;
  std::string text = "ranks " + std::to_string(schedule.world_size) + ", group size " + std::to_string(schedule.group_size) +
                     ", sync period " + std::to_string(schedule.sync_period) + (schedule.grouped ? "" : ", syncs only") +
                     (schedule.fixed ? ", fixed groups" : "") + (config.merge_once ? ", merge once" : "") +
                     (config.resident ? ", resident" : "") + (schedule.accumulate ? ", accumulate" : "");
  if (schedule.selective()) {
    text += ", initiators " + std::to_string(schedule.initiators) + " of seed " + std::to_string(schedule.seed);
  }
  text += ", iterations";
  for (const int n : config.iterations) text.append(" ").append(std::to_string(n));
  return text;
}

}  // namespace wagma::tools
