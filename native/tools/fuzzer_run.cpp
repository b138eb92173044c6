#include "fuzzer_run.hpp"

#include <algorithm>
#include <limits>

namespace wagma::tools {
namespace {

constexpr int kEventWords = 5;

std::string short_text(const std::int64_t* f) {
  const auto n = [&](int i) { return std::to_string(f[i]); };
  switch (f[0]) {
    case 0: return "forward " + n(1) + " over " + n(2) + " to rank " + n(3);
    case 1: return "start " + n(1) + (f[2] == kNone ? " with nothing" : " with stamp " + n(4));
    case 2: return "complete " + n(1) + (f[2] ? " fresh" : f[3] == kNone ? " late" : " late with " + n(3));
    case 3: return "take back " + n(3) + " to " + n(2);
    default: return "solo " + n(1) + " over " + n(2) + " to rank " + n(3);
  }
}

constexpr int kOutputWords[] = {4, 6, 5, 4, 4};  // by the output's place in the variant, that included

}  // namespace

void Log::event(Ticks now, int rank, const Event& event) {
  events_.push_back(words_.size());
  words_.insert(words_.end(), {static_cast<std::int64_t>(now), rank, event.kind, event.version, event.dimension});
}

void Log::output(const Output& output) {
  words_.push_back(static_cast<std::int64_t>(output.index()));
  if (const auto* f = std::get_if<Forward>(&output)) words_.insert(words_.end(), {f->version, f->dimension, f->rank});
  if (const auto* s = std::get_if<Start>(&output)) {
    words_.insert(words_.end(), {s->version, s->buffer, s->target, s->stamp, s->oldest});
  }
  if (const auto* c = std::get_if<Complete>(&output)) words_.insert(words_.end(), {c->version, c->fresh, c->merged_version, c->buffer});
  if (const auto* r = std::get_if<Retracted>(&output)) words_.insert(words_.end(), {r->buffer, r->stamp, r->oldest});
  if (const auto* s = std::get_if<Solo>(&output)) words_.insert(words_.end(), {s->version, s->dimension, s->rank});
}

// After the last event, and no event itself.
void Log::state(const std::vector<Version>& state) {
  if (states_ == 0) states_ = words_.size();
  words_.insert(words_.end(), state.begin(), state.end());
}

std::size_t Log::end(std::size_t index) const {
  if (index + 1 < size()) return events_[index + 1];
  return states_ != 0 ? states_ : words_.size();
}

std::vector<std::int64_t> Log::words(std::size_t index) const { return {&words_[events_[index]], words_.data() + end(index)}; }

std::string Log::text(std::size_t index) const {
  if (index >= size()) return "the ranks' states at the end";
  const std::size_t end = this->end(index);
  const std::int64_t* word = &words_[events_[index]];
  const Event event{static_cast<Event::Kind>(word[2]), word[3], static_cast<int>(word[4])};
  std::string text = std::to_string(word[0]) + " rank " + std::to_string(word[1]) + ": " + event.text();
  for (std::size_t i = events_[index] + kEventWords; i < end; i += static_cast<std::size_t>(kOutputWords[words_[i]])) {
    text += (i == events_[index] + kEventWords ? " -> " : ", ") + short_text(&words_[i]);
  }
  return text;
}

std::size_t Log::first_difference(const Log& other) const {
  const std::size_t common = std::min(words_.size(), other.words_.size());
  const auto differs = static_cast<std::size_t>(
      std::mismatch(words_.begin(), words_.begin() + static_cast<std::ptrdiff_t>(common), other.words_.begin()).first - words_.begin());
  const auto after = std::upper_bound(events_.begin(), events_.end(), differs) - events_.begin();
  if (states_ != 0 && differs >= states_ && other.states_ == states_) return size();
  return after == 0 ? 0 : static_cast<std::size_t>(after) - 1;
}

Run::Run(const Plan& plan, Counts& counts, Log& log) : plan_(plan), counts_(counts), log_(log) {
  const Case& config = plan_.config;
  config.check_groups();
  const auto size = static_cast<std::size_t>(config.schedule.world_size);
  ranks_.reserve(size);
  for (std::size_t rank = 0; rank < size; ++rank) ranks_.emplace_back(config, static_cast<int>(rank));
  const auto versions = static_cast<std::size_t>(config.last() + 1);
  stamps_.assign(versions, std::vector<std::optional<Version>>(size));
  executed_.assign(versions, std::vector<char>(size));
  newest_.assign(size * static_cast<std::size_t>(dimensions(config.schedule.world_size)), kNone);
}

void Run::run() {
  for (int rank = 0; rank < plan_.config.schedule.world_size; ++rank) schedule_application(rank);
  while (!queue_.empty()) {
    const Pending pending = queue_.top();
    queue_.pop();
    now_ = pending.time;
    const bool application = is_application(pending.event.kind);
    if (!application) {
      --system_pending_;
      count_message(pending.rank, pending.event);
    }
    // Applications are the only ones left that can do anything: whoever waits now would wait for them.
    if (application && system_pending_ == 0) check_quiet();
    ++counts_.events;
    log_.event(now_, pending.rank, pending.event);
    step(pending.rank, pending.event);
  }
  check_quiet();
  for (const Rank& rank : ranks_) {
    check(rank.machine().done(), "deadlock: nothing can happen and a rank is not done");
    log_.state(rank.machine().state());
  }
  counts_.wide += longest_ / shortest_ >= 1'000'000;
}

// version: the event's own, or the iteration that it belongs to.
void Run::schedule(int rank, const Event& event, Version version, int dimension) {
  const Key key = key_of(rank, event.kind, version, dimension);
  const Delay delay = plan_.delay(rank, event.kind, key, now_);
  drawn_.emplace_back(key, delay);
  if (delay.ticks != 0) {
    shortest_ = std::min(shortest_, delay.ticks);
    longest_ = std::max(longest_, delay.ticks);
  }
  if (!is_application(event.kind)) ++system_pending_;
  queue_.push({std::min(now_ + delay.ticks, 2 * kNever), delay.order, delay.tie, scheduled_++, rank, event});
}

void Run::schedule_application(int rank, bool taken_back) {
  if (!at(rank).application_ready()) return;
  const Event event = at(rank).application_event();
  const bool adds_up = taken_back && event.kind == Event::merge_done;  // the second merge of an iteration, of gradients taken back
  schedule(rank, event, event.kind == Event::arrive ? event.version : at(rank).arrived(), adds_up ? 0 : event.dimension);
}

void Run::count_message(int rank, const Event& event) {
  if (plan_.looks[static_cast<std::size_t>(rank)].period != 0) {
    counts_.batched += look_ == std::pair{rank, now_};
    look_ = {rank, now_};
  }
  if (event.kind != Event::activation) return;
  const auto place = rank * dimensions(plan_.config.schedule.world_size) + event.dimension;
  Version& newest = newest_[static_cast<std::size_t>(place)];
  ++counts_.activations;
  counts_.overtaken += event.version < newest;
  newest = std::max(newest, event.version);
}

void Run::step(int rank, const Event& event) {
  const bool was_ready = at(rank).application_ready();
  if (event.kind == Event::arrive && at(rank).started() >= event.version) {
    const auto behind = static_cast<std::uint64_t>(at(rank).started() - event.version) + 1;
    counts_.far += behind >= 8;
    counts_.behind = std::max(counts_.behind, behind);
  }
  const Outputs outputs = at(rank).apply(event);
  for (const Output& output : outputs) log_.output(output);
  if (event.kind == Event::exec_done) on_executed(rank, event.version);
  for (const Output& output : outputs) carry_out(rank, output);
  if (event.kind == Event::close) on_closed();
  if (is_application(event.kind) || (!was_ready && at(rank).application_ready())) {
    schedule_application(rank, event.kind == Event::retract);
  }
}

void Run::carry_out(int rank, const Output& output) {
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

void Run::on_started(int rank, const Start& start) {
  check(start.version <= plan_.config.last(), "order: a version beyond the last starts");
  auto& stamps = stamps_[static_cast<std::size_t>(start.version)];
  auto& stamp = stamps[static_cast<std::size_t>(rank)];
  check(!stamp, "order: a version starts twice");
  stamp = start.stamp;
  ++counts_.starts;
  counts_.passive += start.stamp < start.version;
  counts_.sums += start.oldest < start.stamp;
  counts_.nulls += start.buffer == kNone;
  const Group group = plan_.config.schedule.group(rank, start.version);
  for (const int member : group) {
    if (!stamps[static_cast<std::size_t>(member)]) return;
  }
  bool any = false;
  for (const int member : group) {
    any |= !is_null(member, start.version);
    schedule(member, {Event::exec_done, start.version});
    if (plan_.reads_end_early && !is_null(member, start.version)) schedule(member, {Event::read_done}, start.version, -1);
  }
  check(any, "gradients: nobody contributes to a version");
}

// Nobody reads a null contribution, and its rank may be in a later version by now.
bool Run::is_null(int member, Version version) const {
  return plan_.config.schedule.accumulate &&
         stamps_[static_cast<std::size_t>(version)][static_cast<std::size_t>(member)] == kNone;
}

// The usual end of reading: all members have the sum. Half of the runs let it end at any time after the start instead.
void Run::on_executed(int rank, Version version) {
  auto& executed = executed_[static_cast<std::size_t>(version)];
  executed[static_cast<std::size_t>(rank)] = 1;
  if (plan_.reads_end_early) return;
  const Group group = plan_.config.schedule.group(rank, version);
  for (const int member : group) {
    if (!executed[static_cast<std::size_t>(member)]) return;
  }
  for (const int member : group) {
    if (!is_null(member, version)) schedule(member, {Event::read_done}, version, -1);
  }
}

void Run::on_closed() {
  if (++closed_ < plan_.config.schedule.world_size) return;
  const Version last = plan_.config.last();
  for (int rank = 0; rank < plan_.config.schedule.world_size; ++rank) schedule(rank, {Event::finish, last});
}

// See Explorer::check_quiet for what this proves there; here it is a sample of it.
void Run::check_quiet() {
  ++counts_.quiet;
  Version slowest = std::numeric_limits<Version>::max();
  for (const Rank& rank : ranks_) {
    if (rank.phase() != Rank::closed) slowest = std::min(slowest, rank.arrived());
  }
  for (const Rank& rank : ranks_) {
    check(rank.phase() != Rank::computing || rank.application_ready(),
          "progress: a rank that wants to arrive has no buffer to arrive with");
    if (rank.phase() != Rank::waiting) continue;
    if (rank.waits_in_group_version()) {
      const bool excused = plan_.config.awaits_candidate(
          rank.arrived(), [&](int r) { return at(r).arrived(); }, [&](int r) { return at(r).phase() == Rank::closed; });
      check(excused, "progress: a rank waits in a group version until others arrive");
    } else {
      check(slowest < rank.arrived(), "progress: a rank waits in a sync at which all have arrived");
    }
  }
}

}  // namespace wagma::tools
