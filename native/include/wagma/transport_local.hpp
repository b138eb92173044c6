// Ranks as threads of one process: members reduce straight out of each other's published buffers, each its own slice, and
// write it into every member's target. Neither MPI nor Python; every sleep ends by a wake, nothing is polled by time.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "wagma/transport.hpp"

namespace wagma {

class LocalTransport;

// What the ranks of one run share. Create one hub per run, and one transport per rank from it.
class LocalHub : public std::enable_shared_from_this<LocalHub> {
 public:
  explicit LocalHub(int world_size);  // at least 1, else std::invalid_argument
  int world_size() const { return static_cast<int>(mailboxes_.size()); }
  // Throws std::invalid_argument for a rank out of range or one that was handed out before.
  std::shared_ptr<Transport> transport(int rank);
  // Every rank's engine stops with PeerFailed, also if the rank that failed can no longer be asked; from any thread.
  void fail(int rank, const std::string& message);

 private:
  friend class LocalTransport;

  // Where all that concerns one rank arrives. `mutex` protects the whole mailbox; without it a wake between a look into the
  // deque and the sleep would be lost, and the rank would sleep through an activation.
  struct Mailbox {
    std::mutex mutex;
    std::condition_variable arrived;
    std::deque<Activation> activations;
    bool woken = false;
  };

  // The members of one version of one group. `mutex` protects the counters and `parts`; it also orders memory: a member
  // reads others' contributions after it saw begun == n under it, and its result after it saw summed == n under it. The
  // data itself is moved outside the lock, between those two points each slice has exactly one writer.
  struct Meeting {
    std::mutex mutex;
    std::vector<Execution> parts;  // by index of the member
    std::vector<char> present;     // whether parts[i] is there
    std::size_t begun = 0;
    std::size_t summed = 0;  // slices that are in every target
    std::size_t left = 0;
  };

  void wake(int rank);
  void wake_all();
  std::shared_ptr<Meeting> join(const Execution& execution);
  void leave(const Execution& execution, Meeting& meeting);

  std::deque<Mailbox> mailboxes_;
  // Protects everything below. Lock order: never two of hub, meeting and mailbox at once.
  std::mutex mutex_;
  std::vector<char> handed_out_;
  std::map<std::pair<Version, int>, std::shared_ptr<Meeting>> meetings_;  // groups are disjoint: the first member names it
  int closed_ = 0;
  Version last_ = -1;
  std::optional<Failure> failure_;  // the first one; later ones are its consequences
};

}  // namespace wagma
