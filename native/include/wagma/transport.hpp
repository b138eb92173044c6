// What an engine needs from the world to execute what its decision machine decided: send activations, move and reduce one
// execution at a time, agree on the end, tell peers of a failure, sleep. One file implements one transport; nothing else knows which.
//
// Threads: one at a time, whoever drives the rank (engine.hpp), but for the calls that say otherwise. None of them may block for a
// peer: what is not there yet is polled again later. So a rank can always be stopped, whatever its peers do.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "wagma/doorbell.hpp"
#include "wagma/reduce.hpp"
#include "wagma/schedule.hpp"

namespace wagma {

struct Activation {
  Version version;
  int dimension;      // over which it arrives
  bool solo = false;  // instead: a rank has closed, from `version` on everybody may activate
};

// One execution at one rank. Both pointers are into buffers of the transport.
struct Execution {
  Version version = 0;
  Group members;  // in association order
  int index = 0;  // of this rank among the members
  const std::byte* contribution = nullptr;  // elements of `dtype`; nullptr: the null contribution, zeros
  std::byte* target = nullptr;
  Version stamp = -1;  // of what lies in `contribution`: the version that it was published for, or a sync's if it is that one's mean
  std::size_t count = 0;
  DType dtype = DType::float32;
  // 1: the target receives the raw sum, in the accumulation type. Else sum / divisor, rounded once to `dtype`: a finished model, at
  // a sync and for a member that has arrived for this version. Members of one version may differ in it.
  int divisor = 1;
  // The caller's array, where the transport takes it: the contribution has yet to be filled from it, and sum / divisor may be written into
  // it instead of into the target. It is left alone after `released`, and after withdraw().
  std::byte* model = nullptr;
  // With `model`: the rank publishes the mean next (a sync), for whichever version comes, so it has to be in the target, too.
  bool publishes_mean = false;
};

// Failure of another rank of the run.
struct PeerFailed : std::runtime_error {
  PeerFailed(int peer, const std::string& message)
      : std::runtime_error("rank " + std::to_string(peer) + " failed: " + message), rank(peer) {}
  int rank;
};

// A wait reached its limit; the message says which rank waited in which version for whom.
struct CollectiveTimeout : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Failure of the transport itself; the message names the rank and the call.
struct TransportError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Failure {
  int rank;
  std::string message;
};

// How far the execution under way is. `summed`: the target holds the result. `released`: no peer reads the contribution or
// the target any more on this rank's behalf. Each turns true once, `released` never before `summed`.
struct Progress {
  bool summed = false;
  bool released = false;
  bool moved = false;     // something was done, if not all: looking again soon is worth it
  bool in_model = false;  // with `summed`: sum / divisor is in the model and not in the target
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  virtual const char* name() const = 0;  // for messages and reports
  // Buffer `index` of this rank, of the number and size that the transport was made with, 64-byte aligned. It lives as long as the
  // transport, and for as long as peers (shared memory) or a network library (after a failure) may still touch it.
  virtual std::byte* buffer(int index) const = 0;
  virtual int buffers() const = 0;
  virtual std::size_t buffer_bytes() const = 0;

  virtual void send_activation(int to, Activation activation) = 0;
  // How long after the end of a version that began without this rank its application came for it: zero if it came before, max() if the
  // next one has begun without it, too. Peers may go by it in when they wake this rank; nothing else depends on it. From any thread.
  virtual void note_lateness(Clock::duration) {}
  virtual std::optional<Activation> poll_activation() = 0;

  // One execution at a time: begin() only after the last one was released.
  virtual void begin(const Execution& execution) = 0;
  virtual Progress progress() = 0;
  // Whether executions of so many members may come with a `model`.
  virtual bool takes_models(std::size_t) const { return false; }
  // The caller wants its model back: the contribution is filled from it, and from here on it is left alone. Returns false if there was none
  // in use; else a part of it may be averaged already, and what it held stands in the contribution.
  virtual bool withdraw() { return false; }
  // Members of the execution under way whose part this rank still lacks; for messages.
  virtual std::vector<int> missing() = 0;
  virtual std::string standing() { return ""; }  // how far it is, for reports; "" if there is nothing to say

  // Says that this rank will not arrive after `last_arrived` (the schedule's begin - 1: it never did); once.
  virtual void announce_close(Version last_arrived) = 0;
  // The largest of all ranks' last arrivals once every rank has closed, after that always the same.
  virtual std::optional<Version> poll_all_closed() = 0;
  // After the last execution: true once nothing sent to this rank is under way any more, so that it may stop listening.
  virtual bool drain() = 0;

  // Tells all peers, best effort; true once they all have it (poll again), at the latest the caller gives up.
  virtual void announce_failure(const std::string& message) = 0;
  virtual bool failure_delivered() = 0;
  virtual std::optional<Failure> poll_failure() = 0;
  // The engine stops after a failure and calls nothing any more: take back what can be taken back.
  virtual void abandon() noexcept = 0;

  // Sleeping, in two steps (doorbell.hpp): after `announce` the caller looks once more for work, then sleeps. `sleep` ends when something
  // may have happened, at wake(), or at `deadline`, or before; it needs no right to drive. A wake() since
  // `announce` makes it return at once: without that memory a wake between look and sleep would be lost.
  virtual std::uint32_t announce(Sleeper who) = 0;
  virtual std::uint32_t wakes() const = 0;  // what `announce` returns, from any thread, without announcing anything
  virtual void sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) = 0;
  virtual void awake() = 0;  // this thread looks by itself from now on
  virtual void wake() = 0;   // both sleepers; from any thread
  // Whether something has come for which no peer will ring any more, if the caller stops looking after `announce`.
  virtual bool news() const = 0;
  // For how long it pays to look again and again before sleeping, and one pause between two looks.
  virtual Clock::duration patience() const = 0;
  virtual void pause(Clock::duration idle) = 0;  // after so long without anything to do
};

}  // namespace wagma
