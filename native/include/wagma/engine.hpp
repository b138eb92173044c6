// One rank's engine: the decision machine, its buffers, and two threads that take turns in driving them.
//
// Whoever waits drives. Driving is feeding the machine what comes from peers and carrying out what it decided, in its order. While the
// application waits (arrive, close) it drives by itself: nothing has to be handed from thread to thread, which costs more than a small
// reduction does. Otherwise the progress thread does, asleep until a peer rings, so that an idle rank costs nothing.
//
// Who may touch which buffer follows from the machine's roles (docs/protocol.md), so the data needs no lock of its own:
//   live       written by the application until it arrives; then its role changes under the mutex
//   reading    read by members between Start and `released`
//   target     written by members between Start and `summed`
//   merging    read by the application between Complete and merge_done
#pragma once

#include <array>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "wagma/concurrency.hpp"
#include "wagma/models.hpp"
#include "wagma/protocol.hpp"
#include "wagma/records.hpp"
#include "wagma/transport.hpp"

namespace wagma {

struct EngineConfig {
  Schedule schedule;
  std::size_t count = 0;  // elements of the model
  DType dtype = DType::float32;
  bool merge_once = false;
  bool resident = false;         // the application's model lives in the engine's buffers: see Engine::live
  bool mean_when_fresh = false;  // a fresh rank wants sum / |G| (W algorithm 2), which members then write straight into its result
  double timeout_s = 300.0;      // limit of every wait
  double watchdog_s = 60.0;      // after so long without anything that moves, where something is due, say what stands; 0: never
  bool record = false;           // keep records for the trace
  bool digests = false;          // of all that is published and merged, in the records

  void check() const;  // throws std::invalid_argument
  // What the transport has to provide at each rank.
  int buffers() const;
  std::size_t buffer_bytes() const { return count * accumulator_size(dtype); }
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

  // `initial` holds config.count elements in host memory: the model with stamp schedule.begin - 1. `models` says what `own` is below, and how
  // it gets into the transport's buffers; nullptr: arrays in host memory.
  Engine(const EngineConfig& config, std::shared_ptr<Transport> transport, const void* initial, std::shared_ptr<Models> models = nullptr);
  ~Engine();  // an engine that was not closed is aborted: it never waits for peers
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Of a run that is resumed: the first iteration is `begin`, and `initial` is what is contributed until the first arrival. Every rank calls
  // it before any of them arrives, and the caller sees to it that none does before all have called. Throws ProtocolError after an arrival.
  void begin_at(Version begin, const void* initial);
  // Publishes `own` for `version` and waits until there is something to merge. Throws CollectiveTimeout, PeerFailed,
  // TransportError, ProtocolError. After an Outcome with group_length > 0 exactly one of the next two has to follow.
  // Where the model is resident, published is what lies in live(), and `own` here and below is nullptr, or on a device an OnDevice whose
  // stream is the one that the application works on it in.
  Outcome arrive(Version version, const void* own, const Tick& tick = {});
  // The same and what follows: copy_result at a sync, else the rule of W algorithm 2, sum / |G| fresh and (sum + own) / (|G| + 1) late.
  Outcome average(Version version, void* own, const Tick& tick = {});
  // own = (result + own_weight * own) / divisor; with mean_when_fresh that is the rule of W algorithm 2, and no other is allowed.
  void merge(void* own, int own_weight, int divisor, const Tick& tick = {});
  // own = result; at a sync the result is the mean.
  void copy_result(void* own, const Tick& tick = {});
  // The application's buffer, where the model is resident; another one after each arrive and merge or copy_result.
  void* live();
  int live_index();
  // Where contributions accumulate: own += what no version has taken yet, before each arrive. Returns whether there was something.
  bool retract(void* own, const Tick& tick = {});

  // The application will not arrive again. Serves the other ranks until all have closed; the limit counts from the last sign
  // of life of the run. After a CollectiveTimeout it may be called again. `model`: where contributions accumulate and there are
  // syncs, what this rank brings to those that are left.
  void close(const Tick& tick = {}, const void* model = nullptr);
  // Tells the peers and stops, without waiting for anyone longer than a fraction of a second.
  void abort(const std::string& message);

  Records take_records();
  // Whether no device works any more on what this engine was handed; waits for it for so long. Otherwise (a wait that was ended: by its limit,
  // by Ctrl-C, by a peer's failure) neither the tensors nor their Parts may be freed.
  bool settled(double limit_s) noexcept { return models_->settled(limit_s); }
  int rank() const { return rank_; }
  const EngineConfig& config() const { return config_; }
  const Transport& transport() const { return *transport_; }
  const Models& models() const { return *models_; }

 private:
  struct Aborted : ProtocolError {  // by this rank itself
    using ProtocolError::ProtocolError;
  };
  struct Result {  // how a result was written: a raw sum of accumulators, or finished, as a model
    int divisor = 1;
    bool finished = false;
    bool in_model = false;  // it is in the application's array already
  };
  struct Completed {
    Complete complete;
    Result result;
    int own;  // the buffer with what this rank has published
  };
  struct Activated {  // all versions <= version were activated here at `at_ns`, later ones not yet
    Version version;
    std::int64_t at_ns;
    bool by_arrival;
  };
  struct Begun {  // an execution under way, until it is released
    Start start;
    ExecutionRecord record;
    Result result;
    Version stamp = kNone;       // of what lies in the contribution's buffer
    std::byte* model = nullptr;  // the application's array, which the transport takes the contribution from
    bool behind = false;         // nor has this rank arrived for the version before
  };

  // Under mutex_:
  void apply(const Outputs& outputs, bool by_arrival = false);
  void note_activated(bool by_arrival);
  Begun begun_of(const Start& start);
  void finish_iteration();
  void require_running() const;
  Clock::duration lateness(Version version) const;

  struct Moving {  // what a device has been given to do, and for which of the application's iterations
    const char* what;
    Version iteration;
  };

  // Of the application (engine.cpp):
  void fill(const Machine& machine, const void* initial);
  int live_buffer(const Tick& tick);
  Outcome arrive_with(Version version, const void* own, std::byte* model, const Tick& tick);
  // Of the application, with its models (engine_models.cpp):
  void require_model(const void* own) const;
  void publish(Version version, const void* own, int live, std::byte* model, const Tick& tick);
  const std::byte* begin_merge(const char* call, const void* own);
  void* destination(void* own);
  void keep_model(const void* own, int published, const Tick& tick);
  void stop_if_resident(Version version);
  void finish_merge(const void* model);
  void publish_last(int live, const void* model, const Tick& tick);
  template <class Work>
  void move(const Moving& moving, const Tick& tick, Work work);
  void nap_until_moved(const Moving& moving, const Tick& tick);
  std::uint64_t digest_own(const void* own, Version iteration);
  [[noreturn]] void rethrow_named(const std::string& about) const;
  void keep_what_moves();

  // Driving (engine_drive.cpp). Whoever calls these holds drive_.
  class Turn;
  template <class Ready>
  void drive_until(const Tick& tick, bool extend, Ready ready);
  template <class Ready, class GivenUp>
  void drive_until(const Tick& tick, bool extend, Ready ready, GivenUp given_up);
  template <class Ready>
  void drive(const Tick& tick, bool extend, Ready ready);
  void hand_over(std::unique_lock<Mutex>& drive);
  bool serve();
  bool carry_out();
  bool take_activations();
  bool advance_execution();
  bool advance_end();
  void begin(const Begun& begun);
  void tell_peers(const std::string& message);
  bool guarded_serve();
  void stop_with(std::exception_ptr failure);
  bool ended();
  void watch();
  std::string standing();
  std::string timeout_message();
  bool is_pending();  // under mutex_
  void run();  // of the progress thread
  void join();

  const EngineConfig config_;
  const std::shared_ptr<Transport> transport_;
  const std::shared_ptr<Models> models_;
  const int rank_;

  // The right to drive: to call the transport, but for sleep and wake. Without it both threads would begin the same execution, or take an
  // activation twice. The progress thread holds it only while there is work, and gives it up between two pieces of work when the
  // application wants it. Lock order: drive_ before mutex_.
  Mutex drive_;
  Atomic<bool> application_wants_{false};  // a hint: a stale value costs one more piece of work
  // ---- what drive_ protects
  std::optional<Begun> running_;
  bool close_announced_ = false;
  bool finishing_ = false;  // all have closed: further activations would tell nobody anything
  // ---- end of what drive_ protects

  // Protects everything up to the end mark. Without it an arrival and a start could interleave: the machine would call a model
  // fresh that the sum has missed, and hand one buffer to two roles. No transport call is made under it, and no data is moved.
  Mutex mutex_;
  Machine machine_;
  std::deque<Output> outbox_;         // Forward, Solo and Start in the machine's order, for whoever drives
  Begun starting_;                    // of the Start in the outbox; one execution at a time, so there is one at most
  std::optional<Completed> complete_;  // for the application
  Result result_;                     // the newest one
  std::byte* model_ = nullptr;        // the application's array: what it arrives with has yet to be copied out of it
  std::array<Version, kBuffers> stamps_{};  // of what lies in each buffer as a model; others know of it what the transport tells them
  std::optional<Moving> moving_;      // what the application's device has to do, also if it was given up; only the application writes it
  std::exception_ptr failure_;        // why the engine has stopped; rethrown to the application
  std::optional<std::string> abort_;  // this rank gives up, with this message
  bool closing_ = false;              // the application has closed
  bool finished_ = false;             // ended in order
  Clock::time_point completed_at_;    // when result_ was there
  Clock::time_point last_sign_;       // last event from a peer, completed execution, arrival
  Clock::time_point since_;           // when the application began what it does now
  bool merging_pending_ = false;      // it has been released, and has not merged yet
  Clock::time_point reported_at_;     // when the watchdog spoke last
  unsigned reports_asked_ = 0;        // signals that were answered
  std::deque<Activated> activated_;
  Records records_;
  std::int64_t sequence_ = 0;
  // ---- end of what mutex_ protects

  // Application only.
  IterationRecord iteration_;  // being written
  std::optional<Completed> merging_;  // what is to be merged

  Thread thread_;
  // Whoever joins thread_ holds it. Without it two threads of the program could join at once, of which one closes and another one aborts
  // after an error elsewhere, or Ctrl-C: that is undefined, and hangs. Held for nothing else, and never taken under drive_ or mutex_, which
  // the joined thread may still want. Nobody waits for it longer than for that thread's end, which whoever joins has brought about.
  Mutex join_;
};

}  // namespace wagma
