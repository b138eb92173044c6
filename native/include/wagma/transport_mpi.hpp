// Ranks as MPI processes, over any communicator: reduce-scatter and allgather by direct messages between the members, so that
// any group length works. Part of the module _native_mpi, never of the kernel.
//
// Matching. Two members exchange one message (or a fixed series of them) per version, phase and direction, and both execute the
// versions they share in the same order, so MPI's order of messages between two ranks is enough; the tag carries version and
// phase so that a defect becomes a visible mismatch rather than a wrong sum. A fast member may be versions ahead in other groups.
#pragma once

#include <mpi.h>

#include <array>
#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "wagma/transport.hpp"

namespace wagma {

// Longer slices travel as several messages: MPI counts are int, and some providers copy very long messages badly.
inline constexpr std::size_t kLongestMessage = std::size_t{1} << 30;

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
  void begin(const Execution& execution) override;
  Progress progress() override;
  std::vector<int> missing() override;
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
  struct Transfer {  // a set of messages; requests[i] is with rank peers[i]
    std::vector<MPI_Request> requests;
    std::vector<int> peers;
    std::size_t open = 0;  // not yet complete
  };
  enum class Stage { idle, gathering, spreading };

  MpiTransport(MPI_Comm parent, Clock::time_point deadline, std::size_t longest_message);
  ~MpiTransport() override = default;

  void check(int code, const char* call) const;
  MPI_Comm duplicate(MPI_Comm parent, Clock::time_point deadline) const;
  void post_send(Transfer& transfer, const std::byte* data, std::size_t bytes, int to, int tag);
  void post_receive(Transfer& transfer, std::byte* data, std::size_t bytes, int from, int tag);
  void test(Transfer& transfer);
  void reduce();
  void take_messages();
  void forget_sent();
  void stop_listening();
  void note_activity();

  int rank_ = 0;
  int world_size_ = 0;
  const std::size_t longest_message_;
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

  // The execution under way.
  Execution execution_;
  Stage stage_ = Stage::idle;
  bool summed_ = false;
  Slice own_{};
  // begun_in_: an empty message from each member that has begun. It tells a late member, for whom one sleeps and whom errors
  // name, from data that is moving.
  Transfer begun_in_, contributions_in_, results_in_, out_;
  std::vector<std::byte> scratch_;  // the others' contributions to the own slice, one after the other
  std::vector<int> completed_;      // for MPI_Testsome

  // Sleeping. `mutex_` protects `woken_`: without it a wake between the last look and the sleep would be lost for a nap.
  std::mutex mutex_;
  std::condition_variable rouse_;
  bool woken_ = false;
  Clock::time_point active_;  // last time that something happened; how long ago decides between spinning and sleeping
};

}  // namespace wagma
