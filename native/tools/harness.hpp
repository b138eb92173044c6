// One rank under test: the production decision machine, a model application on top of it, and what its buffers hold.
// The explorer and the fuzzer drive ranks of this kind and differ only in who chooses the next event.
// Every event is checked against the promises of the collective, with bookkeeping of the harness' own: what was
// published, what is being read, what each result contains. A promise that is broken throws Violation.
//
// What buffers hold is abstract: contents.hpp. Where gradients accumulate, each is accounted for: all up to `delivered_` have
// been taken by a version or are in a sync's model, once; all after it are published or in the application's hands.
#pragma once

#include <array>
#include <utility>

#include "contents.hpp"
#include "planted.hpp"

namespace wagma::tools {

class Rank {
 public:
  enum Phase { computing, waiting, merging, closed };

  Rank(const Case& config, int rank)
      : case_(&config),
        machine_(rank, believed(config), config.merge_once, config.resident),
        defects_(config.mutation, machine_),
        contents_(machine_.buffers(), config.mutation == Mutation::single_buffer),
        end_(config.version_of(config.iterations[static_cast<std::size_t>(rank)])) {
    published_tag_ = accumulate() ? kNothing : kInitial;
    if (!accumulate()) contents_[machine_.published()] = kInitial;
    live_ = machine_.live();
    contents_[live_] = kDirty;
    merging_buffer_ = reading_buffer_ = target_buffer_ = result_buffer_ = model_buffer_ = -1;
  }

  Event application_event() const {  // what happens next at the application
    if (phase_ == merging) return {Event::merge_done};
    const Version next = case_->schedule.next(arrived_);
    if (next > end_) return {Event::close};
    const bool undelivered = accumulate() && machine_.published() != kNone;
    if (undelivered && case_->mutation != Mutation::no_retract) return {Event::retract};
    return {Event::arrive, next};
  }
  // It arrives with the live buffer, or hands its last model in there (gradients), and may have to wait for one.
  bool application_ready() const {
    if (phase_ != computing) return phase_ == merging;
    if (machine_.live() != kNone) return true;
    const Event::Kind next = application_event().kind;
    return next == Event::retract || (next == Event::close && !accumulate());
  }

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
    defects_.before(machine_);
    Outputs outputs = react(event);
    defects_.after(machine_, outputs);
    for (const Output& output : outputs) {
      if (const auto* start = std::get_if<Start>(&output)) on_start(*start);
      if (const auto* complete = std::get_if<Complete>(&output)) on_complete(*complete);
    }
    check_buffers();
    check_end();
    return outputs;
  }

  Rank at_rank(int rank) const {  // the same state, of another rank
    Rank other = *this;
    (other.machine_ = Machine(rank, machine_.schedule(), case_->merge_once, case_->resident)).restore(machine_.state());
    return other;
  }

  // All that distinguishes two of them.
  std::vector<Version> state() const {
    std::vector<Version> state = machine_.state();
    state.insert(state.end(), {phase_, retracting_, arrived_, started_, executed_, finished_, published_tag_,
                               published_stamp_, undelivered_, delivered_, solo_from_, reading_buffer_, reading_tag_,
                               target_buffer_, result_buffer_, merging_buffer_, merging_tag_, model_buffer_, model_tag_,
                               expected_fresh_, expected_merge_, contributed_, merged_, in_place_});
    state.insert(state.end(), contents_.tags().begin(), contents_.tags().end());
    return state;
  }

  // All that can make a difference later on: equal signatures mean equal behaviour up to the names of buffers.
  //
  // Buffers are named in the order of their roles: which free buffer a role gets matters to nobody. Contents need not be
  // listed, since check_buffers() has found in each buffer what the tags say. Left out is what nothing reads any more:
  // the machine's `fresh` and what was expected, unless the application waits (an arrival sets them before anything
  // reads them); which version was merged last, unless merge_once asks.
  std::vector<Version> signature() const {
    static constexpr std::size_t kFresh = 5, kMerged = 7, kRoles = 7;  // places in Machine::state(), from kLive on
    std::vector<Version> key = machine_.state();
    if (phase_ != waiting) key[kFresh] = 0;
    if (!case_->merge_once) key[kMerged] = kNone;
    const std::array own{reading_buffer_, target_buffer_, result_buffer_, merging_buffer_, model_buffer_};
    key.insert(key.begin() + kLive, own.begin(), own.end());
    const std::vector<Version> roles(key.begin() + kLive, key.begin() + kLive + own.size() + kRoles);
    for (std::size_t i = 0; i < roles.size(); ++i) {
      if (roles[i] != kNone) key[kLive + i] = std::find(roles.begin(), roles.end(), roles[i]) - roles.begin();
    }
    key.insert(key.end(), {phase_, retracting_, arrived_, started_, executed_, finished_, published_tag_, published_stamp_,
                           undelivered_, delivered_, solo_from_, reading_tag_, merging_tag_, model_tag_,
                           case_->merge_once ? merged_ : kNone, in_place_});
    if (phase_ == waiting) key.insert(key.end(), {expected_fresh_, expected_merge_, contributed_});
    return key;
  }

 private:
  bool accumulate() const { return case_->schedule.accumulate; }

  // An event that does not come from the application.
  template <class... Arguments>
  Outputs of_system(Outputs (Machine::*event)(Arguments...), Arguments... arguments) {
    defects_.before_system_event(machine_);
    Outputs outputs = (machine_.*event)(arguments...);
    defects_.after_system_event(machine_);
    return outputs;
  }

  // The harness' own account of the event, then the machine's.
  Outputs react(const Event& event) {
    switch (event.kind) {
      case Event::arrive: return on_arrive(event.version);
      case Event::activation: return on_activation(event);
      case Event::solo:
        if (solo_from_ == kNone || event.version < solo_from_) solo_from_ = event.version;
        return by_who_may(machine_.solo(event.version, event.dimension));
      case Event::exec_done: return on_exec_done(event.version);
      case Event::read_done:
        check(contents_[reading_buffer_] == reading_tag_, "wholeness: a contribution changed while peers read it");
        reading_buffer_ = -1;
        reading_tag_ = kJunk;
        return case_->mutation == Mutation::early_read_done ? Outputs{} : of_system(&Machine::read_done);
      case Event::merge_done: return on_merge_done();
      case Event::retract: return on_retract();
      case Event::close: return on_close();
      case Event::finish: finished_ = true; return machine_.finish(event.version);
    }
    throw Violation("no such event");
  }

  Outputs on_arrive(Version version) {
    check(contents_[machine_.live()] == kDirty, "wholeness: the live buffer is not the application's");
    published_tag_ = own(version);
    if (accumulate() && case_->schedule.is_sync(version)) {
      delivered_ = version;  // the model contains what was in the application's hands, and the gradient of this iteration
      undelivered_ = kNone;
    } else if (accumulate()) {
      if (undelivered_ == kNone) undelivered_ = version;
      published_tag_ = gradients(undelivered_, version);
    }
    contents_[machine_.live()] = published_tag_;
    published_stamp_ = arrived_ = version;
    phase_ = waiting;
    expected_fresh_ = version > started_;
    // Late: the execution in progress at this instant, else the newest one; both are the last one started.
    expected_merge_ = expected_fresh_ ? version : started_;
    return by_who_may(machine_.arrive(version));
  }

  // Whoever begins an activation, at its arrival or told of a closed rank later, is a candidate, or one has closed before that version.
  Outputs by_who_may(Outputs outputs) const {
    const bool may = case_->schedule.may_activate(machine_.rank(), arrived_) || (solo_from_ != kNone && solo_from_ <= arrived_);
    for (const Output& o : outputs) check(may || !std::holds_alternative<Forward>(o), "initiators: one activates that is none");
    return outputs;
  }

  Outputs on_activation(const Event& event) {
    if (case_->mutation == Mutation::drop_second_activation && event.version <= machine_.activated()) return {};
    Outputs outputs = of_system(&Machine::activation, event.version, event.dimension);
    if (case_->mutation == Mutation::no_forward) {
      std::erase_if(outputs, [](const Output& output) { return std::holds_alternative<Forward>(output); });
    }
    return outputs;
  }

  Outputs on_exec_done(Version version) {
    check(contents_[target_buffer_] == reducing(version), "wholeness: something else wrote into a sum");
    contents_[target_buffer_] = result(version);
    result_buffer_ = std::exchange(target_buffer_, -1);
    executed_ = version;
    const bool sync = case_->schedule.is_sync(version);
    if (sync && accumulate() && phase_ == closed) {
      model_tag_ = result(version);
      model_buffer_ = result_buffer_;
    } else if (sync && !accumulate()) {
      published_tag_ = result(version);
      published_stamp_ = version;
    }
    Outputs outputs = of_system(&Machine::exec_done, version);
    if (sync && case_->mutation == Mutation::keeps_model) force(machine_, {{kPublished, result_buffer_}, {kStamp, version}});
    return outputs;
  }

  Outputs on_merge_done() {
    // After a sync the result is what is published; else the own model, which a late rank merges too.
    check(accumulate() || published_tag_ == (case_->schedule.is_sync(arrived_) ? result(arrived_) : own(arrived_)),
          "wholeness: the own model is lost during the merge");
    if (in_place_) contents_[merging_buffer_] = kDirty;  // from here on the application writes it
    merging_buffer_ = -1;
    merging_tag_ = kJunk;
    retracting_ = in_place_ = 0;
    phase_ = computing;
    return machine_.merge_done();
  }

  Outputs on_retract() {
    const Outputs outputs = machine_.retract();
    check(outputs.empty() == (published_tag_ == kNothing), "gradients: what no version has taken is not taken back");
    if (outputs.empty()) return outputs;  // a version has taken it since the application decided to ask
    const auto* retracted = &std::get<Retracted>(outputs[0]);
    check(contents_[retracted->buffer] == published_tag_, "gradients: something else is taken back");
    check(retracted->stamp == published_stamp_ && retracted->oldest == undelivered_, "gradients: wrong stamps");
    merging_buffer_ = retracted->buffer;
    merging_tag_ = std::exchange(published_tag_, kNothing);
    retracting_ = 1;
    phase_ = merging;
    if (case_->mutation == Mutation::loses_gradients) {
      force(machine_, {{kOldest, kNone}});
      undelivered_ = kNone;
    }
    return outputs;
  }

  Outputs on_close() {
    phase_ = closed;
    if (accumulate()) {
      model_buffer_ = machine_.live();
      contents_[model_buffer_] = model_tag_ = kLastModel;
    }
    Outputs outputs = machine_.close();
    if (case_->mutation == Mutation::no_solo) {
      std::erase_if(outputs, [](const Output& output) { return std::holds_alternative<Solo>(output); });
    }
    if (case_->mutation == Mutation::no_last_model && accumulate()) force(machine_, {{kModel, kNone}});
    return outputs;
  }

  void on_start(const Start& start) {
    const Schedule& schedule = case_->schedule;
    const Version version = start.version;
    check(version == schedule.next(started_), "order: a version starts out of order or twice");
    check(!executing(), "order: a version starts before the last one is executed");
    check(!being_read(), "wholeness: a version starts while peers still read the last contribution");
    const bool passive_sync = schedule.is_sync(version) && arrived_ < version;
    check(!passive_sync || phase_ == closed, "fence: a sync starts before the rank's own arrival");
    if (accumulate()) {
      contribute_gradients(start, passive_sync);
    } else {
      if (passive_sync) published_stamp_ = version;
      const bool same = start.stamp == published_stamp_ && start.oldest == start.stamp;
      check(same, "agreement: the stamp is not that of the published model");
      contribute(start, published_tag_, start.stamp, schedule.sync_period == 0 ? version + 1 : since_sync(version));
    }
    result_buffer_ = -1;  // a late arrival waits for this execution, and merges nothing older
    target_buffer_ = start.target;
    contents_[start.target] = reducing(version);
    started_ = version;
    if (phase_ == waiting && start.stamp == version) contributed_ = version;
    if (case_->mutation == Mutation::early_read_done && being_read()) machine_.read_done();  // which only the machine believes
  }

  Version since_sync(Version version) const { return (version + 1) % case_->schedule.sync_period; }

  void contribute(const Start& start, Tag tag, Version oldest, Version bound) {
    check(start.version - oldest >= 0 && start.version - oldest <= bound, "staleness: a contribution predates the last sync");
    check(contents_[start.buffer] == tag, "wholeness: a contribution is not what was published");
    reading_buffer_ = start.buffer;
    reading_tag_ = tag;
  }

  // Each gradient is taken once, in order; a model by a sync, and by nothing else.
  void contribute_gradients(const Start& start, bool passive_sync) {
    const Schedule& schedule = case_->schedule;
    if (schedule.is_sync(start.version)) {
      check(start.stamp == start.version && start.oldest == start.version, "agreement: the stamp of a sync is its version");
      contribute(start, passive_sync ? model_tag_ : own(start.version), start.stamp, 0);
      if (!passive_sync) published_tag_ = kNothing;
      return;
    }
    if (published_tag_ == kNothing) {
      check(start.buffer == kNone, "gradients: one is contributed twice, or a model as a gradient");
      check(start.stamp == kNone && start.oldest == kNone, "agreement: the null contribution has a stamp");
      return;
    }
    check(start.buffer != kNone, "gradients: one is published and not contributed");
    check(start.oldest == delivered_ + 1 && start.oldest == undelivered_, "gradients: one is lost or contributed twice");
    check(start.stamp == published_stamp_, "agreement: the stamp is not that of the newest gradient");
    // A closed rank's last ones may have to wait for a sync to pass.
    const bool bounded = schedule.sync_period != 0 && phase_ != closed;
    contribute(start, published_tag_, start.oldest,
               bounded ? since_sync(start.version) - 1 : std::max(start.version, schedule.sync_period));
    delivered_ = std::exchange(published_stamp_, kNone);
    undelivered_ = kNone;
    published_tag_ = kNothing;
    if (case_->mutation == Mutation::not_taken) {
      force(machine_, {{kPublished, start.buffer}, {kStamp, start.stamp}, {kOldest, start.oldest}});
    }
  }

  void on_complete(const Complete& complete) {
    check(phase_ == waiting && complete.version == arrived_, "completion: the application does not wait in this version");
    check(complete.fresh == (expected_fresh_ != 0), "freshness: not decided at the publish");
    check(complete.fresh == (contributed_ == complete.version), "freshness: the own value is in the sum exactly if fresh");
    const bool nothing = case_->merge_once && expected_merge_ <= merged_;
    check(complete.merged_version == (nothing ? kNone : expected_merge_),
          "completion: another version is merged than promised");
    const Tag late = accumulate() ? gradients(undelivered_, arrived_) : own(arrived_);
    check(complete.fresh || published_tag_ == late, "wholeness: the own value is lost before the merge");
    phase_ = computing;
    if (!nothing) {
      check(contents_[complete.buffer] == result(expected_merge_), "wholeness: the sum to merge is not complete");
      phase_ = merging;
      merging_buffer_ = complete.buffer;
      merging_tag_ = result(expected_merge_);
      merged_ = expected_merge_;
      on_place(complete);
    }
    expected_fresh_ = 0, expected_merge_ = contributed_ = kNone;
  }

  // Resident: the average of a fresh rank is the result itself, and nobody copies; others get a buffer of their own to write.
  void on_place(const Complete& complete) {
    in_place_ = complete.buffer == machine_.live();
    check(!in_place_ || case_->resident, "wholeness: the application writes a buffer that is read");
    if (!case_->resident || !complete.fresh || case_->schedule.is_sync(complete.version)) return;
    check(in_place_, "completion: a fresh result is not in place");
    result_buffer_ = -1;  // the next arrival is fresh, or a later version has started
  }

  // Whoever writes has a buffer to itself; whoever reads finds what was promised.
  void check_buffers() {
    const int live = machine_.live(), published = machine_.published();
    check_live(live);
    const std::array readers{published, reading_buffer_, result_buffer_, in_place_ ? -1 : merging_buffer_, model_buffer_};
    for (const int buffer : readers) {
      if (buffer == -1) continue;
      check(live == kNone || !contents_.same(buffer, live), "wholeness: the application writes a buffer that is read");
      check(target_buffer_ == -1 || !contents_.same(buffer, target_buffer_),
            "wholeness: a sum is written into a buffer that is read");
    }
    check(target_buffer_ == -1 || live == kNone || !contents_.same(live, target_buffer_),
          "wholeness: application and execution write the same buffer");
    check(live == kNone || contents_[live] == (in_place_ ? merging_tag_ : kDirty),
          "wholeness: the live buffer is not the application's");
    check(published_tag_ == kNothing || contents_[published] == published_tag_, "wholeness: what is published is not whole");
    check(reading_buffer_ == -1 || contents_[reading_buffer_] == reading_tag_,
          "wholeness: a contribution changed while peers read it");
    check(result_buffer_ == -1 || contents_[result_buffer_] == result(executed_), "wholeness: the newest result is not whole");
    check(merging_buffer_ == -1 || contents_[merging_buffer_] == merging_tag_,
          "wholeness: a result changed while it was merged");
    check(model_buffer_ == -1 || contents_[model_buffer_] == model_tag_, "wholeness: a closed rank's model is not whole");
    contents_.keep(std::array{live, published, reading_buffer_, target_buffer_, result_buffer_, merging_buffer_, model_buffer_});
  }

  // The application has a buffer to write, or gets one when peers have read; its own model stays with it, closed or not.
  void check_live(int live) {
    if (live != live_ && live != kNone && !in_place_) contents_[live] = kDirty;
    live_ = live;
    const bool held = case_->resident ? phase_ != waiting : phase_ == computing && !being_read();
    check(!held || live != kNone, "wholeness: the application has no buffer to write");
    check(phase_ != closed || case_->resident || live == kNone, "wholeness: a closed rank has a buffer to write");
  }

  void check_end() const {
    const bool over = finished_ && started_ >= case_->last() && !executing() && machine_.executing() == kNone && !being_read();
    if (case_->mutation == Mutation::early_read_done) return;
    check(machine_.done() == over, "end: done exactly if every version is executed and read");
  }

  const Case* case_;
  Machine machine_;
  BufferDefects defects_;
  Contents contents_;
  Version end_;  // of the last arrival
  Phase phase_ = computing;
  Version retracting_ = 0;  // what is being merged was taken back
  Version in_place_ = 0;    // what is being merged is the application's model
  Version arrived_ = kNone, started_ = kNone, executed_ = kNone;
  bool finished_ = false;
  Tag published_tag_;
  Version published_stamp_ = kNone;
  Version undelivered_ = kNone;  // the oldest gradient that is published or in the application's hands
  Version delivered_ = kNone;
  Version solo_from_ = kNone;
  int live_, reading_buffer_, target_buffer_, result_buffer_, merging_buffer_, model_buffer_;
  Tag reading_tag_ = kJunk, merging_tag_ = kJunk, model_tag_ = kJunk;
  Version expected_fresh_ = 0, expected_merge_ = kNone;  // while the application waits
  Version contributed_ = kNone;                          // the version it waits in, once its own value is in that sum
  Version merged_ = kNone;
};

}  // namespace wagma::tools
