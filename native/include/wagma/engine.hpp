// One rank's engine: the decision machine, its buffers and a progress thread that answers for the rank while it computes.
//
// Two threads. The application calls arrive, then merge or copy_result, and so on, at last close. The progress thread owns the
// transport: it feeds the machine what comes from peers and carries out what the machine decided, in the machine's order.
//
// Who may touch which buffer follows from the machine's roles, so the data needs no lock of its own:
//   live       written by the application until it arrives; then its role changes under the mutex
//   reading    read by members between Start and `released`
//   target     written by the progress thread (or members) between Start and `summed`
//   merging    read by the application between Complete and merge_done
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "wagma/protocol.hpp"
#include "wagma/records.hpp"
#include "wagma/transport.hpp"

namespace wagma {

struct EngineConfig {
  Schedule schedule;
  std::size_t count = 0;  // elements of the model
  DType dtype = DType::float32;
  bool merge_once = false;
  double timeout_s = 300.0;  // limit of every wait
  bool record = false;       // keep records for the trace
  bool digests = false;      // of all that is published and merged, in the records
  void check() const;        // throws std::invalid_argument
};

struct Outcome {
  bool fresh = false;
  Version merged_version = kNone;
  int group_length = 0;  // of the merged version; 0: nothing to merge
};

class Engine {
 public:
  // Called every few dozen milliseconds while the application waits; what it throws ends the wait (Python: Ctrl-C).
  using Tick = std::function<void()>;

  // `initial` holds config.count elements: the model with stamp -1.
  Engine(const EngineConfig& config, std::shared_ptr<Transport> transport, const void* initial);
  ~Engine();  // an engine that was not closed is aborted: it never waits for peers
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Publishes `own` for `version` and waits until there is something to merge. Throws CollectiveTimeout, PeerFailed,
  // TransportError, ProtocolError. After an Outcome with group_length > 0 exactly one of the next two has to follow.
  Outcome arrive(Version version, const void* own, const Tick& tick = {});
  // own = (result + own_weight * own) / divisor.
  void merge(void* own, int own_weight, int divisor);
  // own = result; at a sync the result is the mean.
  void copy_result(void* own);

  // The application will not arrive again. Serves the other ranks until all have closed; the limit counts from the last sign
  // of life of the run. After a CollectiveTimeout it may be called again.
  void close(const Tick& tick = {});
  // Tells the peers and stops, without waiting for anyone longer than a fraction of a second.
  void abort(const std::string& message);

  Records take_records();
  int rank() const { return rank_; }
  const EngineConfig& config() const { return config_; }

 private:
  class Buffers;
  struct Activated {  // all versions <= version were activated here at `at_ns`, later ones not yet
    Version version;
    std::int64_t at_ns;
    bool by_arrival;
  };

  // Under mutex_:
  void apply(const Outputs& outputs, bool by_arrival = false);
  void note_activated(bool by_arrival);
  ExecutionRecord record_of(const Start& start);
  void finish_iteration();
  void require_running() const;

  // Of the application:
  void finish_merge(const void* own);
  template <class Ready>
  void wait_for(std::unique_lock<std::mutex>& lock, const Tick& tick, bool extend, Ready ready);
  std::string timeout_message(std::unique_lock<std::mutex>& lock);

  // Of the progress thread (engine_progress.cpp):
  void run();
  bool serve();
  bool carry_out();
  bool take_activations();
  bool advance_execution();
  bool advance_end();
  void answer_question();
  void begin(const Start& start);
  void tell_peers(const std::string& message);
  void stop_with(std::exception_ptr failure);

  const EngineConfig config_;
  const std::shared_ptr<Transport> transport_;
  const int rank_;
  const std::shared_ptr<Buffers> buffers_;

  // Protects everything up to the end mark. Without it an arrival and a start could interleave: the machine would call a model
  // fresh that the sum has missed, and hand one buffer to two roles. No transport call is made under it, and no data is moved.
  std::mutex mutex_;
  std::condition_variable released_;  // the application: something it may wait for has changed
  Machine machine_;
  std::deque<Output> outbox_;         // Forward and Start in the machine's order, for the progress thread
  ExecutionRecord starting_;          // of the Start in the outbox; one execution at a time, so there is one at most
  std::optional<Complete> complete_;  // for the application
  std::exception_ptr failure_;        // why the engine has stopped; rethrown to the application
  bool closing_ = false;              // the application has closed
  bool finished_ = false;             // the progress thread has ended in order
  std::optional<std::string> abort_;  // the application gives up, with this message
  bool missing_asked_ = false;        // the application wants to know who is missing, for its error
  std::optional<std::vector<int>> missing_;
  Clock::time_point last_sign_;  // last event from a peer or completed execution
  std::deque<Activated> activated_;
  Records records_;
  std::int64_t sequence_ = 0;
  // ---- end of what mutex_ protects

  // Progress thread only.
  std::optional<ExecutionRecord> running_;  // the execution under way, until it is released
  int target_ = -1;                         // its target
  bool close_announced_ = false;
  bool finishing_ = false;  // all have closed: further activations would tell nobody anything
  // Application only.
  IterationRecord iteration_;  // being written
  int merging_ = -1;           // the buffer to merge

  std::thread thread_;
};

}  // namespace wagma
