// Defects planted into the machine from outside, by its state: the production machine has no switch for any of them.
#pragma once

#include <initializer_list>
#include <utility>
#include <variant>

#include "case.hpp"

namespace wagma::tools {

// What the machine is made to believe.
inline Schedule believed(const Case& config) {
  Schedule schedule = config.schedule;
  if (config.mutation == Mutation::no_fence && schedule.grouped) schedule.sync_period = 0;
  if (config.mutation == Mutation::anybody_activates) schedule.initiators = 0;
  return schedule;
}

// Fields of the machine, by their places in Machine::state().
enum Place : std::size_t { kStamp = 8, kOldest = 9, kLive = 13, kPublished = 14, kTarget = 16, kMerging = 18, kModel = 19 };

inline void force(Machine& machine, std::initializer_list<std::pair<Place, Version>> values) {
  std::vector<Version> state = machine.state();
  for (const auto& [place, value] : values) state[place] = value;
  machine.restore(state);
}

// Defects in the roles of buffers: planted at the beginning, and around each event.
class BufferDefects {
 public:
  BufferDefects(Mutation mutation, Machine& machine) : mutation_(mutation) {
    const bool less = mutation == Mutation::one_buffer_less && !machine.schedule().accumulate;
    if (less) force(machine, {{kModel, machine.buffers() - 1}});  // a role that nothing ends, where models are averaged
  }

  void before(Machine& machine) {
    live_ = machine.live();
    merging_ = machine.merging();
  }

  void before_system_event(Machine& machine) const {
    if (mutation_ == Mutation::merging_is_free && merging_ != kNone) force(machine, {{kMerging, kNone}});
  }

  void after_system_event(Machine& machine) const {
    if (mutation_ == Mutation::merging_is_free && merging_ != kNone) force(machine, {{kMerging, merging_}});
  }

  void after(Machine& machine, Outputs& outputs) const {
    const bool reserved = machine.live() != kNone && machine.live() != live_;
    switch (mutation_) {
      case Mutation::greedy_live:
        if (machine.live() == kNone && !machine.closed() && spare(machine) != kNone) force(machine, {{kLive, spare(machine)}});
        break;
      case Mutation::live_is_published:
        if (reserved && machine.published() != kNone) force(machine, {{kLive, machine.published()}});
        break;
      case Mutation::target_is_live:
        for (Output& output : outputs) {
          auto* start = std::get_if<Start>(&output);
          if (start == nullptr || machine.live() == kNone) continue;
          start->target = machine.live();
          force(machine, {{kTarget, start->target}});
        }
        break;
      case Mutation::always_in_place:
        for (const Output& output : outputs) {
          const auto* complete = std::get_if<Complete>(&output);
          if (complete != nullptr && complete->buffer != kNone) force(machine, {{kLive, complete->buffer}});
        }
        break;
      default: break;
    }
  }

 private:
  static Version spare(const Machine& machine) {
    const std::vector<Version> state = machine.state();
    for (Version buffer = 0; buffer < machine.buffers(); ++buffer) {
      if (std::find(state.begin() + kLive, state.begin() + kModel + 1, buffer) == state.begin() + kModel + 1) return buffer;
    }
    return kNone;
  }

  Mutation mutation_;
  int live_ = kNone, merging_ = kNone;  // before the event
};

}  // namespace wagma::tools
