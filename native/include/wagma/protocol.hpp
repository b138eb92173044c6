// The decision machine of one rank, for production: the very object that the progress thread runs. wagma/core/protocol.py is its
// readable specification, with the rules and the reasons; every edge that the explorer finds here must be reproduced there.
//
// It knows no time and moves no data; it is not thread-safe: whoever owns it feeds it one event at a time, under one lock, and
// carries out the outputs in order.
#pragma once

#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "wagma/schedule.hpp"

namespace wagma {

inline constexpr Version kNone = -1;
inline constexpr Version kNotFinishing = -2;
inline constexpr int kBuffers = 4;  // the most that any machine needs; Machine::buffers() says how many one does

struct Forward {
  Version version;
  int dimension;
  int rank;
  bool operator==(const Forward&) const = default;
};

struct Start {
  Version version;
  int buffer;  // kNone: the null contribution, which nobody reads
  int target;
  Version stamp;
  Version oldest;  // where gradients accumulate, of the oldest in the sum; else the same as `stamp`
  bool operator==(const Start&) const = default;
};

struct Complete {
  Version version;
  bool fresh;
  Version merged_version;  // kNone: nothing to merge (merge_once)
  int buffer;
  bool operator==(const Complete&) const = default;
};

struct Retracted {
  int buffer;
  Version stamp;
  Version oldest;
  bool operator==(const Retracted&) const = default;
};

struct Solo {
  Version version;
  int dimension;
  int rank;
  bool operator==(const Solo&) const = default;
};

using Output = std::variant<Forward, Start, Complete, Retracted, Solo>;
using Outputs = std::vector<Output>;

// An event that the state does not allow; the state is then unchanged.
struct ProtocolError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Machine {
 public:
  Machine(int rank, Schedule schedule, bool merge_once = false, bool resident = false);

  Outputs arrive(Version version);
  Outputs activation(Version version, int dimension);
  Outputs solo(Version version, int dimension);
  Outputs exec_done(Version version);
  Outputs read_done();
  Outputs merge_done();
  Outputs retract();
  Outputs close();
  Outputs finish(Version version);

  bool done() const;
  int rank() const { return rank_; }
  const Schedule& schedule() const { return schedule_; }
  bool resident() const { return resident_; }             // the application's model lives in the buffers
  int buffers() const { return buffers_of(resident_); }  // how many whoever runs it has to provide
  static constexpr int buffers_of(bool resident) { return resident ? kBuffers : kBuffers - 1; }

  // The order of wagma.core.protocol.Machine.STATE, then forwarded[0], forwarded[1], ..., told[0], told[1], ...
  std::vector<Version> state() const;
  void restore(const std::vector<Version>& state);

  // What the engine and the watchdog look at.
  Version next_version() const { return next_version_; }
  Version executing() const { return executing_; }
  Version activated() const { return activated_; }
  Version arrived() const { return arrived_; }
  Version waiting() const { return waiting_; }
  bool closed() const { return closed_; }
  bool fresh() const { return fresh_ != 0; }  // whether the last arrival was: before its version started here
  // kNone: there is none, so that the application must not arrive (nor close, where gradients accumulate) until read_done.
  // Resident: kNone exactly while the application waits.
  int live() const { return static_cast<int>(live_); }
  // There is no live buffer, and only peers that read are in the way of the next arrival: wait for read_done. Else arrive() says
  // at once what is wrong with it.
  bool awaits_readers() const { return live_ == kNone && waiting_ == kNone && merging_ == kNone && !closed_; }
  int published() const { return static_cast<int>(published_); }  // kNone: nothing, where gradients accumulate
  int model() const { return static_cast<int>(model_); }
  int merging() const { return static_cast<int>(merging_); }  // == live(): the result is in place, resident only

 private:
  bool activates(Version version) const;
  void forward(Version version, int lowest, Outputs& outputs);
  void tell(Version version, int lowest, Outputs& outputs);
  void start(Outputs& outputs);
  void complete(Version version, Outputs& outputs);
  void reserve();
  Version spare_buffer() const;
  Version free_buffer() const;
  [[noreturn]] void reject(const char* event, Version version, const std::string& why) const;

  int rank_;
  Schedule schedule_;
  bool merge_once_, resident_;
  // Everything below is `state`; meanings stand beside the same names in protocol.py.
  Version next_version_, executing_ = kNone, activated_ = kNone, arrived_ = kNone, waiting_ = kNone, fresh_ = 0;
  Version merge_at_ = kNone, merged_ = kNone, stamp_ = kNone, oldest_ = kNone, closed_ = 0, last_ = kNotFinishing;
  Version solo_from_ = kNone;
  Version live_ = 0, published_ = 1, reading_ = kNone, target_ = kNone, result_ = kNone, merging_ = kNone;
  Version model_ = kNone;
  std::vector<Version> forwarded_, told_;
};

}  // namespace wagma
