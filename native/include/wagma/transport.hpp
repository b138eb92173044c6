// What an engine needs from the world to execute what its decision machine decided: send activations, move and reduce one
// execution at a time, agree on the end, tell peers of a failure. One file implements one transport; nothing else knows which.
//
// Threads: every call but wake() is made by the engine's progress thread, and none of them may block for a peer: what is not
// there yet is polled again later. So the progress thread can always be stopped, whatever the peers do.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "wagma/reduce.hpp"
#include "wagma/schedule.hpp"

namespace wagma {

using Clock = std::chrono::steady_clock;

struct Activation {
  Version version;
  int dimension;  // over which it arrives
};

// One execution at one rank. `owner` keeps both buffers alive for as long as peers (local transport) or a network library
// (after a failure, when requests cannot be taken back) may still touch them; without it an aborted engine would free memory
// that others read and write.
struct Execution {
  Version version = 0;
  Group members;  // in association order
  int index = 0;  // of this rank among the members
  const std::byte* contribution = nullptr;
  std::byte* target = nullptr;
  std::size_t count = 0;
  DType dtype = DType::float32;
  bool mean = false;  // divide the sum by the number of members
  std::shared_ptr<const void> owner;
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
};

// Element range [begin, end) of slice `index` of `slices`: sizes differ by at most one element, rounded to whole cache lines
// where that still leaves work for everyone.
struct Slice {
  std::size_t begin;
  std::size_t end;
  std::size_t size() const { return end - begin; }
};
Slice slice_of(std::size_t count, int slices, int index);

class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  virtual void send_activation(int to, Activation activation) = 0;
  virtual std::optional<Activation> poll_activation() = 0;

  // One execution at a time: begin() only after the last one was released.
  virtual void begin(const Execution& execution) = 0;
  virtual Progress progress() = 0;
  // Members of the execution under way whose part this rank still lacks; for messages.
  virtual std::vector<int> missing() = 0;

  // Says that this rank will not arrive after `last_arrived` (kNone: it never did); once.
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

  // Sleeps until something may have happened, wake() was called, or `deadline`. A wake() that came since the last wait()
  // makes it return at once: without that memory a wake between poll and sleep would be lost.
  virtual void wait(Clock::time_point deadline) = 0;
  virtual void wake() = 0;  // from any thread
};

}  // namespace wagma
