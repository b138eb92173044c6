// One rank under test: the production decision machine, a model application on top of it, and what its buffers hold.
// The explorer and the fuzzer drive ranks of this kind and differ only in who chooses the next event.
//
// Every event is checked against the promises of the collective, with bookkeeping of the harness' own: what was
// published, what is being read, what each result contains. A promise that is broken throws Violation.
//
// Contents are abstract. A buffer holds one of: the initial model; the model published for version v; the result of
// version v; something that the application is writing; a sum that is being reduced for version v. So a torn or stale
// read shows as a wrong tag.
#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "wagma/protocol.hpp"

namespace wagma::tools {

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Deliberate defects of the environment, to show that the checks find them.
enum class Mutation {
  none,
  drop_second_activation,  // an activation of a version that is known already is not handled, so it is not forwarded
  no_forward,              // a rank that is activated by others tells nobody
  single_buffer,           // all roles share one buffer
  early_read_done,         // the end of the peers' reading is reported at the start
  no_fence,                // the machine believes that no version is a sync
};

inline Mutation mutation_of(const std::string& name) {
  static const std::vector<std::pair<std::string, Mutation>> names{
      {"none", Mutation::none},
      {"drop-second-activation", Mutation::drop_second_activation},
      {"no-forward", Mutation::no_forward},
      {"single-buffer", Mutation::single_buffer},
      {"early-read-done", Mutation::early_read_done},
      {"no-fence", Mutation::no_fence},
  };
  for (const auto& [known, mutation] : names) {
    if (known == name) return mutation;
  }
  throw std::invalid_argument("mutation '" + name + "' is not known");
}

struct Case {
  Schedule schedule;
  std::vector<int> iterations;  // arrivals of each rank
  bool merge_once = false;
  Mutation mutation = Mutation::none;

  // The version of the n-th arrival; kNone for none.
  Version version_of(int arrivals) const {
    Version version = kNone;
    for (int i = 0; i < arrivals; ++i) version = schedule.next(version);
    return version;
  }

  Version last() const {
    int most = 0;
    for (const int n : iterations) most = std::max(most, n);
    return version_of(most);
  }

  // Agreement, the part that the schedule alone decides: the groups of a version are disjoint and cover all ranks, and
  // all members name the same group. Together with each member starting a version once, they all mean the same
  // contributions.
  void check_groups() const {
    for (Version version = schedule.first(); version <= last(); version = schedule.next(version)) {
      std::vector<Group> groups;
      for (int rank = 0; rank < schedule.world_size; ++rank) groups.push_back(schedule.group(rank, version));
      for (int rank = 0; rank < schedule.world_size; ++rank) {
        bool member = false;
        for (const int other : groups[rank]) {
          member |= other == rank;
          if (groups[other] != groups[rank]) throw Violation("agreement: members name different groups");
        }
        if (!member) throw Violation("agreement: a rank is not in its own group");
      }
    }
  }
};

struct Event {
  enum Kind { arrive, activation, exec_done, read_done, merge_done, close, finish };
  Kind kind;
  Version version = kNone;
  int dimension = -1;

  static const char* name(Kind kind) {
    static const char* const names[] = {"arrive",     "activation", "exec_done", "read_done",
                                        "merge_done", "close",      "finish"};
    return names[kind];
  }

  std::string text() const {
    std::string result = name(kind);
    if (version != kNone) result += " " + std::to_string(version);
    if (dimension != -1) result += " over " + std::to_string(dimension);
    return result;
  }
};

class Rank {
 public:
  enum Phase { computing, waiting, merging, closed };

  Rank(const Case& config, int rank)
      : case_(&config),
        machine_(rank, believed_schedule(config), config.merge_once),
        end_(config.version_of(config.iterations[rank])) {
    contents_.fill(kJunk);
    contents_[at(machine_.published())] = kInitial;
    contents_[at(machine_.live())] = kDirty;
    merging_buffer_ = reading_buffer_ = target_buffer_ = result_buffer_ = -1;
  }

  // What happens next at the application, from what it has done so far.
  Event application_event() const {
    if (phase_ == merging) return {Event::merge_done};
    const Version next = case_->schedule.next(arrived_);
    if (next <= end_) return {Event::arrive, next};
    return {Event::close};
  }
  bool application_ready() const { return phase_ == computing || phase_ == merging; }

  Phase phase() const { return phase_; }
  Version arrived() const { return arrived_; }
  Version started() const { return started_; }
  bool executing() const { return started_ != executed_; }
  bool being_read() const { return reading_buffer_ != -1; }
  bool finished() const { return finished_; }
  bool waits_in_group_version() const { return phase_ == waiting && !case_->schedule.is_sync(arrived_); }
  const Machine& machine() const { return machine_; }

  // Applies one event and gives the machine's outputs, checked; the caller carries out what concerns other ranks.
  Outputs apply(const Event& event) {
    Outputs outputs = react(event);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (const auto* start = std::get_if<Start>(&outputs[i])) on_start(*start);
      if (const auto* complete = std::get_if<Complete>(&outputs[i])) on_complete(*complete);
    }
    check_buffers();
    check_end();
    return outputs;
  }

  // All that distinguishes two of them.
  std::vector<Version> state() const {
    std::vector<Version> state = machine_.state();
    state.insert(state.end(), {phase_, arrived_, started_, executed_, finished_, published_tag_, published_stamp_,
                               reading_buffer_, reading_tag_, target_buffer_, result_buffer_, merging_buffer_,
                               merging_tag_, expected_fresh_, expected_merge_, contributed_, merged_});
    state.insert(state.end(), contents_.begin(), contents_.end());
    return state;
  }

  // All that can make a difference later on: equal signatures mean equal behaviour up to the names of buffers.
  //
  // Buffers are named in the order of their roles: which free buffer a role gets matters to nobody. Contents need not be
  // listed, since check_buffers() has found in each buffer what the tags say. Left out is what nothing reads any more:
  // the machine's `fresh` and what was expected, unless the application waits (an arrival sets them before anything
  // reads them); which version was merged last, unless merge_once asks.
  std::vector<Version> signature() const {
    static constexpr std::size_t kFresh = 5, kMerged = 7, kLive = 11, kRoles = 6;  // places in Machine::state()
    std::vector<Version> key = machine_.state();
    if (phase_ != waiting) key[kFresh] = 0;
    if (!case_->merge_once) key[kMerged] = kNone;
    key.insert(key.begin() + kLive, {reading_buffer_, target_buffer_, result_buffer_, merging_buffer_});
    const std::vector<Version> roles(key.begin() + kLive, key.begin() + kLive + 4 + kRoles);
    for (std::size_t i = 0; i < roles.size(); ++i) {
      if (roles[i] != kNone) key[kLive + i] = std::find(roles.begin(), roles.end(), roles[i]) - roles.begin();
    }
    key.insert(key.end(), {phase_, arrived_, started_, executed_, finished_, published_tag_, published_stamp_,
                           reading_tag_, merging_tag_, case_->merge_once ? merged_ : kNone});
    if (phase_ == waiting) key.insert(key.end(), {expected_fresh_, expected_merge_, contributed_});
    return key;
  }

 private:
  using Tag = Version;
  static constexpr Tag kJunk = -1, kInitial = 0, kDirty = 1;
  static Tag own(Version version) { return 3 * version + 3; }
  static Tag reducing(Version version) { return 3 * version + 4; }
  static Tag result(Version version) { return 3 * version + 5; }

  static Schedule believed_schedule(const Case& config) {
    Schedule schedule = config.schedule;
    if (config.mutation == Mutation::no_fence) schedule.sync_period = 0;
    return schedule;
  }

  std::size_t at(int buffer) const {
    if (case_->mutation == Mutation::single_buffer) return 0;
    if (buffer < 0 || buffer >= kBuffers) throw Violation("wholeness: no such buffer");
    return static_cast<std::size_t>(buffer);
  }
  Tag content(int buffer) const { return contents_[at(buffer)]; }

  static void check(bool condition, const char* what) {
    if (!condition) throw Violation(what);
  }

  // The harness' own account of the event, then the machine's.
  Outputs react(const Event& event) {
    switch (event.kind) {
      case Event::arrive: return on_arrive(event.version);
      case Event::activation: return on_activation(event);
      case Event::exec_done: return on_exec_done(event.version);
      case Event::read_done: {
        check(content(reading_buffer_) == reading_tag_, "wholeness: a contribution changed while peers read it");
        reading_buffer_ = -1;
        reading_tag_ = kJunk;
        return case_->mutation == Mutation::early_read_done ? Outputs{} : machine_.read_done();
      }
      case Event::merge_done:
        // After a sync the result is what is published; else the own model, which a late rank merges too.
        check(published_tag_ == (case_->schedule.is_sync(arrived_) ? result(arrived_) : own(arrived_)),
              "wholeness: the own model is lost during the merge");
        merging_buffer_ = -1;
        merging_tag_ = kJunk;
        phase_ = computing;
        return machine_.merge_done();
      case Event::close: phase_ = closed; return machine_.close();
      case Event::finish: finished_ = true; return machine_.finish(event.version);
    }
    throw Violation("no such event");
  }

  Outputs on_arrive(Version version) {
    check(content(machine_.live()) == kDirty, "wholeness: the live buffer is not the application's");
    contents_[at(machine_.live())] = published_tag_ = own(version);
    published_stamp_ = arrived_ = version;
    phase_ = waiting;
    expected_fresh_ = version > started_;
    // Late: the execution in progress at this instant, else the newest one; both are the last one started.
    expected_merge_ = expected_fresh_ ? version : started_;
    Outputs outputs = machine_.arrive(version);
    contents_[at(machine_.live())] = kDirty;
    return outputs;
  }

  Outputs on_activation(const Event& event) {
    const bool known = event.version <= machine_.activated();
    if (case_->mutation == Mutation::drop_second_activation && known) return {};
    Outputs outputs = machine_.activation(event.version, event.dimension);
    if (case_->mutation == Mutation::no_forward) {
      std::erase_if(outputs, [](const Output& output) { return std::holds_alternative<Forward>(output); });
    }
    return outputs;
  }

  Outputs on_exec_done(Version version) {
    check(content(target_buffer_) == reducing(version), "wholeness: something else wrote into a sum");
    contents_[at(target_buffer_)] = result(version);
    result_buffer_ = std::exchange(target_buffer_, -1);
    executed_ = version;
    if (case_->schedule.is_sync(version)) {
      published_tag_ = result(version);
      published_stamp_ = version;
    }
    return machine_.exec_done(version);
  }

  void on_start(const Start& start) {
    const Schedule& schedule = case_->schedule;
    const Version version = start.version;
    check(version == schedule.next(started_), "order: a version starts out of order or twice");
    check(!executing(), "order: a version starts before the last one is executed");
    check(!being_read(), "wholeness: a version starts while peers still read the last contribution");
    if (schedule.is_sync(version) && arrived_ < version) {
      check(phase_ == closed, "fence: a sync starts before the rank's own arrival");
      published_stamp_ = version;
    }
    check(start.stamp == published_stamp_, "agreement: the stamp is not that of the published model");
    const Version bound = schedule.sync_period == 0 ? version + 1 : (version + 1) % schedule.sync_period;
    check(version - start.stamp >= 0 && version - start.stamp <= bound,
          "staleness: a contribution predates the last sync");
    check(content(start.buffer) == published_tag_, "wholeness: a contribution is not the published model");
    reading_buffer_ = start.buffer;
    reading_tag_ = published_tag_;
    target_buffer_ = start.target;
    contents_[at(start.target)] = reducing(version);
    started_ = version;
    if (phase_ == waiting && start.stamp == version) contributed_ = version;
    // The contribution is still being read; only the machine is told otherwise.
    if (case_->mutation == Mutation::early_read_done) machine_.read_done();
  }

  void on_complete(const Complete& complete) {
    check(phase_ == waiting && complete.version == arrived_,
          "completion: the application does not wait in this version");
    check(complete.fresh == (expected_fresh_ != 0), "freshness: not decided at the publish");
    check(complete.fresh == (contributed_ == complete.version),
          "freshness: the own model is in the sum exactly if fresh");
    const bool nothing = case_->merge_once && expected_merge_ <= merged_;
    check(complete.merged_version == (nothing ? kNone : expected_merge_),
          "completion: another version is merged than promised");
    check(complete.fresh || published_tag_ == own(arrived_), "wholeness: the own model is lost before the merge");
    phase_ = computing;
    if (!nothing) {
      check(content(complete.buffer) == result(expected_merge_), "wholeness: the sum to merge is not complete");
      phase_ = merging;
      merging_buffer_ = complete.buffer;
      merging_tag_ = result(expected_merge_);
      merged_ = expected_merge_;
    }
    expected_fresh_ = 0;
    expected_merge_ = contributed_ = kNone;
  }

  // Whoever writes has a buffer to itself; whoever reads finds what was promised. A buffer without a role may hold
  // anything: forgetting its content keeps states equal that nothing can tell apart.
  void check_buffers() {
    const int live = machine_.live(), published = machine_.published();
    const std::array readers{published, reading_buffer_, result_buffer_, merging_buffer_};
    for (const int buffer : readers) {
      if (buffer == -1) continue;
      check(at(buffer) != at(live), "wholeness: the application writes a buffer that is read");
      check(target_buffer_ == -1 || at(buffer) != at(target_buffer_),
            "wholeness: a sum is written into a buffer that is read");
    }
    check(target_buffer_ == -1 || at(live) != at(target_buffer_),
          "wholeness: application and execution write the same buffer");
    check(content(live) == kDirty, "wholeness: the live buffer is not the application's");
    check(content(published) == published_tag_, "wholeness: the published model is not whole");
    check(reading_buffer_ == -1 || content(reading_buffer_) == reading_tag_,
          "wholeness: a contribution changed while peers read it");
    check(result_buffer_ == -1 || content(result_buffer_) == result(executed_),
          "wholeness: the newest result is not whole");
    check(merging_buffer_ == -1 || content(merging_buffer_) == merging_tag_,
          "wholeness: a result changed while it was merged");
    for (int buffer = 0; buffer < kBuffers; ++buffer) {
      const std::array roles{live, published, reading_buffer_, target_buffer_, result_buffer_, merging_buffer_};
      bool used = false;
      for (const int role : roles) used |= role != -1 && at(role) == at(buffer);
      if (!used) contents_[at(buffer)] = kJunk;
    }
  }

  void check_end() const {
    const bool over =
        finished_ && started_ >= case_->last() && !executing() && machine_.executing() == kNone && !being_read();
    if (case_->mutation == Mutation::early_read_done) return;
    check(machine_.done() == over, "end: done exactly if every version is executed and read");
  }

  const Case* case_;
  Machine machine_;
  Version end_;  // of the last arrival
  Phase phase_ = computing;
  Version arrived_ = kNone, started_ = kNone, executed_ = kNone;
  bool finished_ = false;
  Tag published_tag_ = kInitial;
  Version published_stamp_ = kNone;
  int reading_buffer_, target_buffer_, result_buffer_, merging_buffer_;
  Tag reading_tag_ = kJunk, merging_tag_ = kJunk;
  Version expected_fresh_ = 0, expected_merge_ = kNone;  // while the application waits
  Version contributed_ = kNone;                          // the version it waits in, once its own model is in that sum
  Version merged_ = kNone;
  std::array<Tag, kBuffers> contents_;
};

}  // namespace wagma::tools
