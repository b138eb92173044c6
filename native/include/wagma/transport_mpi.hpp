// Ranks as MPI processes, over any communicator: activations, failures, the end, and sleeping; exchange_mpi.hpp moves and reduces.
// Part of the module _native_mpi, never of the kernel.
//
// Two communicators of its own, duplicates of the caller's: activations, which must not wait, share no queue with the data.
//
// Polling. MPI cannot be waited for together with a wake from the application, so whoever is responsible for the rank looks, naps and
// looks again. A look is one MPI_Testsome over everything that may come: it is the call, not what it asks for, that costs, because
// each looks at the network first. A nap is a part of the time since something last happened, so polling adds at most that part to any
// delay of a peer, up to a longest nap: the longer, the less an idle rank costs, and the later it hears of an activation.
//
// Buffers may lie on a device, whose memory the MPI library then has to take (cuda_support): the data go from device to device, and
// sums are made there (exchange_sums_mpi.hpp). Activations and all else are the host's, as always.
#pragma once

#include <mpi.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "wagma/doorbell.hpp"
#include "wagma/exchange_mpi.hpp"
#include "wagma/transport.hpp"

namespace wagma {

struct MpiOptions {
  int buffers = 0;                // that the engine needs, and the size of each
  std::size_t buffer_bytes = 0;
  double timeout_s = 300.0;       // for all ranks to come
  double longest_nap_s = 0.002;   // measured: an idle rank then costs less than 1 % of a core
  std::shared_ptr<DeviceBuffers> device_buffers = nullptr;  // of that number and size; nullptr: in host memory
  void check(int rank) const;     // throws std::invalid_argument
};

// Whether the library says that it takes memory of CUDA devices, as it was built and as it is set for this run. After MPI_Init.
bool cuda_support();

class MpiTransport final : public Transport {
 public:
  // Collective over `parent`, which is duplicated and can be used freely afterwards. Throws TransportError if MPI was not
  // initialised for threads that call it at any time (MPI_THREAD_MULTIPLE), CollectiveTimeout if a rank does not come.
  //
  // A transport that did not leave in order (drain) is never freed: MPI may still write into its memory, and requests to
  // a failed peer cannot be taken back.
  static std::shared_ptr<MpiTransport> connect(MPI_Comm parent, const MpiOptions& options);
  ~MpiTransport() override = default;

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  const char* name() const override { return name_; }
  std::byte* buffer(int index) const override;
  int buffers() const override { return options_.buffers; }
  std::size_t buffer_bytes() const override { return options_.buffer_bytes; }

  void send_activation(int to, Activation activation) override;
  std::optional<Activation> poll_activation() override;
  void begin(const Execution& execution) override;
  Progress progress() override;
  std::vector<int> missing() override { return exchange_->missing(); }
  std::string standing() override { return exchange_->standing(); }
  void announce_close(Version last_arrived) override;
  std::optional<Version> poll_all_closed() override;
  bool drain() override;
  void announce_failure(const std::string& message) override;
  bool failure_delivered() override;
  std::optional<Failure> poll_failure() override;
  void abandon() noexcept override;

  std::uint32_t announce(Sleeper who) override;
  std::uint32_t wakes() const override { return bell_.count(); }
  void sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) override;
  void awake() override { responsible_.store(kNobody); }
  void wake() override { bell_.ring_all(); }
  bool news() const override { return false; }  // announce() wakes whoever has to look from now on
  Clock::duration patience() const override;
  void pause(Clock::duration idle) override;

  // What the exchange holds for data beyond the buffers.
  std::size_t scratch_bytes() const { return exchange_->scratch_bytes(); }
  std::size_t additions() const { return exchange_->additions(); }  // of parts of blocks; by whoever has the right to drive
  const DeviceBuffers* device_buffers() const { return options_.device_buffers.get(); }

 private:
  static constexpr int kReceives = 8;  // posted for activations; more that come at once wait inside MPI
  static constexpr int kFailure = kReceives, kClosing = kReceives + 1, kLeaving = kReceives + 2, kRequests = kReceives + 3;
  static constexpr std::size_t kLongestText = 1000;
  static constexpr std::size_t kAlignment = 64;  // no two buffers share a cache line

  using Message = std::array<std::int64_t, 3>;  // version, dimension, solo
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
  };

  MpiTransport(MPI_Comm parent, const MpiOptions& options);

  void make_buffers();
  void check_device() const;
  MPI_Comm duplicate(MPI_Comm parent, Clock::time_point deadline) const;
  void listen();
  void look();
  void completed(int request, const MPI_Status& status);
  void note_exchange();
  void forget_sent();
  void stop_listening();
  void note_activity() { active_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed); }

  const MpiOptions options_;
  int rank_ = 0;
  int world_size_ = 0;
  const char* name_ = "MPI";
  MPI_Comm control_ = MPI_COMM_NULL;  // activations, failures, the end
  MPI_Comm data_ = MPI_COMM_NULL;
  std::size_t stride_ = 0;
  std::unique_ptr<std::byte, Free> memory_;  // of the buffers, unless they lie on a device

  // What one look asks for: receives from any source, posted beforehand, and the collectives of the end.
  std::array<MPI_Request, kRequests> requests_;
  bool looked_ = false;       // for failures; the activations of the same look have not been asked for yet
  bool about_to_nap_ = false;  // the look after announce() is for transports whose peers ring; here it would find what the last one did
  std::array<Message, kReceives> inbox_{};
  std::deque<Activation> arrived_;
  std::vector<char> failure_in_;
  std::optional<Failure> failure_;

  // Sends under way; a payload must stay where it is until MPI is done with it. Places are used again.
  std::deque<Message> sent_;
  std::vector<MPI_Request> sending_;
  std::vector<int> unused_, sent_now_;
  std::string failure_text_;
  std::vector<MPI_Request> failures_out_;

  // The end.
  std::int64_t own_last_ = 0, all_last_ = 0;
  bool close_announced_ = false, leaving_ = false, left_ = false;

  std::optional<MpiExchange> exchange_;  // from the constructor's end on

  // Sleeping. A thread in sleep() has no right to drive, so what it reads is atomic. It decides who naps, how long, and whether at all,
  // nothing else is read by it: a stale value costs a nap too short or too long, and announce() rings when another one is responsible.
  Doorbell bell_;
  static constexpr std::uint32_t kNobody = 0;         // who sleeps: somebody is awake and looks
  std::atomic<std::uint32_t> responsible_{kNobody};   // else a Sleeper
  std::atomic<Clock::rep> active_{0};  // when something last happened
  std::atomic<Clock::rep> spin_{0};    // for how long after that looking goes on without naps
  std::atomic<bool> computing_{false};  // a device is at work, which rings for nobody
};

}  // namespace wagma
