// Ranks as MPI processes, over any communicator: activations, failures, the end, and sleeping; exchange_mpi.hpp moves and reduces.
// Part of the module _native_mpi, never of the kernel.
#pragma once

#include <mpi.h>

#include <array>
#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "wagma/exchange_mpi.hpp"
#include "wagma/transport.hpp"

namespace wagma {

class MpiTransport final : public Transport {
 public:
  // Collective over `parent`, which is duplicated and can be used freely afterwards. Throws TransportError if MPI was not
  // initialised for threads that call it at any time (MPI_THREAD_MULTIPLE), CollectiveTimeout if a rank does not come.
  //
  // A transport that did not leave in order (drain) is never freed: MPI may still write into its memory, and requests to
  // a failed peer cannot be taken back.
  static std::shared_ptr<Transport> connect(MPI_Comm parent, double timeout_s, std::size_t longest_message = kLongestMessage);

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  void send_activation(int to, Activation activation) override;
  std::optional<Activation> poll_activation() override;
  void begin(const Execution& execution) override { exchange_->begin(execution); }
  Progress progress() override { return exchange_->progress(); }
  std::vector<int> missing() override { return exchange_->missing(); }
  void announce_close(Version last_arrived) override;
  std::optional<Version> poll_all_closed() override;
  bool drain() override;
  void announce_failure(const std::string& message) override;
  bool failure_delivered() override;
  std::optional<Failure> poll_failure() override;
  void abandon() noexcept override;
  void wait(Clock::time_point deadline) override;
  void wake() override;

 private:
  static constexpr int kReceives = 8;  // posted for activations; more that come at once wait inside MPI
  static constexpr std::size_t kLongestText = 1000;

  struct Sent {  // an activation under way: the payload must stay where it is until MPI is done with it
    std::array<std::int64_t, 2> payload;
    MPI_Request request;
  };

  MpiTransport(MPI_Comm parent, Clock::time_point deadline, std::size_t longest_message);
  ~MpiTransport() override = default;

  MPI_Comm duplicate(MPI_Comm parent, Clock::time_point deadline) const;
  void take_messages();
  void forget_sent();
  void stop_listening();
  void note_activity();

  int rank_ = 0;
  int world_size_ = 0;
  MPI_Comm control_ = MPI_COMM_NULL;  // activations, failures, the end
  MPI_Comm data_ = MPI_COMM_NULL;

  // Activations and failures. Receives are posted beforehand from any source.
  std::array<std::array<std::int64_t, 2>, kReceives> inbox_{};
  std::array<MPI_Request, kReceives> receives_;
  std::deque<Activation> arrived_;
  std::list<Sent> sent_;
  std::string failure_text_;
  std::vector<char> failure_in_;
  std::vector<MPI_Request> failures_out_;
  MPI_Request failure_receive_ = MPI_REQUEST_NULL;
  std::optional<Failure> failure_;

  // The end.
  std::int64_t own_last_ = 0, all_last_ = 0;
  MPI_Request closing_ = MPI_REQUEST_NULL, leaving_ = MPI_REQUEST_NULL;
  bool all_closed_ = false, leaving_posted_ = false, left_ = false;

  std::optional<MpiExchange> exchange_;  // from the constructor's end on

  // Sleeping. `mutex_` protects `woken_`: without it a wake between the last look and the sleep would be lost for a nap.
  std::mutex mutex_;
  std::condition_variable rouse_;
  bool woken_ = false;
  Clock::time_point active_;  // last time that something happened; how long ago decides between spinning and sleeping
};

}  // namespace wagma
