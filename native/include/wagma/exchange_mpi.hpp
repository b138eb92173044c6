// One execution at a time over MPI: reduce-scatter and allgather by direct messages between the members, so that any group length
// works and the association tree decides the order of additions.
//
// Matching. Two members exchange one message (or a fixed series of them) per version, phase and direction, and both execute the
// versions they share in the same order, so MPI's order of messages between two ranks is enough; the tag carries version and
// phase so that a defect becomes a visible mismatch rather than a wrong sum. A fast member may be versions ahead in other groups.
#pragma once

#include <mpi.h>

#include <string>
#include <vector>

#include "wagma/transport.hpp"

namespace wagma {

// Longer slices travel as several messages: MPI counts are int, and some providers copy very long messages badly.
inline constexpr std::size_t kLongestMessage = std::size_t{1} << 30;

// Throws TransportError, naming rank and call, unless `code` is MPI_SUCCESS.
void check_mpi(int rank, int code, const char* call);

// Cancels a receive that is given up. One that a message has met already completes some time later, into memory that must never be
// freed; sends cannot be taken back at all. Errors are of no interest any more.
void take_back(MPI_Request& request) noexcept;

// Owned by a transport and used by its progress thread only; begin, progress and missing are Transport's.
class MpiExchange {
 public:
  MpiExchange(MPI_Comm comm, int rank, std::size_t longest_message)
      : comm_(comm), rank_(rank), longest_message_(longest_message) {}

  void begin(const Execution& execution);
  Progress progress();
  std::vector<int> missing();
  void abandon() noexcept;

  bool running() const { return stage_ != Stage::idle; }
  bool all_begun() const { return begun_in_.open == 0; }
  Clock::time_point active() const { return active_; }  // last time that something happened

 private:
  struct Transfer {  // a set of messages; requests[i] is with rank peers[i]
    std::vector<MPI_Request> requests;
    std::vector<int> peers;
    std::size_t open = 0;  // not yet complete
  };
  enum class Stage { idle, gathering, spreading };

  void post_send(Transfer& transfer, const std::byte* data, std::size_t bytes, int to, int tag);
  void post_receive(Transfer& transfer, std::byte* data, std::size_t bytes, int from, int tag);
  void test(Transfer& transfer);
  void reduce();
  void note_activity();

  const MPI_Comm comm_;
  const int rank_;
  const std::size_t longest_message_;
  Clock::time_point active_;

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
};

}  // namespace wagma
