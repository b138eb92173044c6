// One execution at a time over MPI: carries out the plan of each block (exchange_plan.hpp), a window of blocks at once.
//
// Bits. Every addition is that of the association tree, left part first, in the accumulation type; which blocks it goes through shows
// in no bit. First contributions travel in the model's own type, and a null contribution as an empty message; partial and complete
// sums travel in the accumulation type, because members want different things of one sum (Execution::divisor).
//
// Memory. Sums lie in the target, which no peer reads; only what is to be added to them is received elsewhere, into one of a few
// rooms. A block is made the finished model in place, once all of its messages are through. Contribution and target must not overlap.
// Who does the sums, and when a block may go on behind one that a device does: exchange_sums_mpi.hpp.
//
// Matching. Two members execute the versions they share in the same order. Within a version and a block, each sends the other one
// message to add up and one that spreads a sum, at most; blocks overtake each other, and a member may begin a version, or be finished
// with it, earlier than its peers, so version, place of the block in the window and kind are told apart by the tag. A place is
// taken again by a later block, and tags repeat after kTagVersions versions, but only when the earlier one is over for this member:
// then MPI's order of messages between two ranks is enough, since the peer takes them in the same order. (A fast member may
// be versions ahead in other groups, but not of a peer that it shares them with: every version needs something from everyone.)
//
// No deadlock. What a block waits for is an earlier step of the same block at another member, a room, or its turn in the window; rooms
// and turns are taken in the order of the blocks, so the first block that is not over anywhere can always go on.
#pragma once

#include <mpi.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "wagma/exchange_plan.hpp"
#include "wagma/exchange_sums_mpi.hpp"
#include "wagma/transport.hpp"

namespace wagma {

// Throws TransportError, naming rank and call, unless `code` is MPI_SUCCESS.
void check_mpi(int rank, int code, const char* call);

// Cancels a receive that is given up. One that a message has met already completes some time later, into memory that must never be
// freed; sends cannot be taken back at all. Errors are of no interest any more.
void take_back(MPI_Request& request) noexcept;

// Owned by a transport and used by one thread at a time, which the engine ensures; begin, progress, missing and standing are Transport's.
class MpiExchange {
 public:
  MpiExchange(MPI_Comm comm, int rank, std::unique_ptr<ExchangeSums> sums) : comm_(comm), rank_(rank), sums_(std::move(sums)) {}

  // Makes room for executions of models of that many bytes, as accumulators, by groups of up to so many members, so that none of them has to
  // ask for memory: where it is a device's, that could wait for the application's kernels.
  void reserve(std::size_t bytes, int members);

  void begin(const Execution& execution);
  Progress progress();
  std::vector<int> missing();
  std::string standing() const;
  void abandon() noexcept;

  bool running() const { return running_; }
  bool all_begun() const { return to_begin_ == 0; }
  bool moving() const { return unused_.size() < requests_.size(); }  // messages are under way
  bool computing() const { return running_ && (adding_up_ > 0 || completing_); }  // a device is at work
  Clock::time_point active() const { return active_; }  // last time that something happened
  std::size_t additions() const { return additions_; }
  // What this exchange holds for data, beyond contribution and target. From any thread: it is a number for reports, so its order
  // with anything else does not matter.
  std::size_t scratch_bytes() const { return scratch_bytes_.load(std::memory_order_relaxed); }

 private:
  static constexpr int kNoRoom = -1;

  struct Block {  // in the window, at place number % window
    std::size_t number = 0;
    std::size_t step = 0;  // first those that add up, then the same ones backwards
    int room = kNoRoom;
    int receiving = 0;     // messages of the step
    int sending = 0;       // messages of all steps
    int lending = 0;       // of these, those that read partial sums; what is spread is received where they lie
    bool posted = false;   // the receives of the step
    bool summing = false;  // the step's sum is under way, until `mark`
    Mark mark = 0;
  };
  enum class Kind { begun_in, begun_out, receive, send, lend };
  struct Message {  // what requests_[i] is about
    Kind kind = Kind::send;
    std::size_t place = 0;
    int move = 0;
    int peer = 0;              // its rank
    std::size_t expected = 0;  // bytes to be received
  };

  // Of an execution (exchange_mpi.cpp):
  void lay_out();
  std::vector<int> adding() const;
  void post_begun();
  void test();
  void completed(const Message& message, const MPI_Status& status);
  MPI_Request* add(const Message& message);
  bool enter_blocks();
  void finish_blocks();
  bool complete();
  void make_scratch(std::size_t bytes);
  void note_activity();

  // Of a block (exchange_blocks_mpi.cpp):
  bool advance(std::size_t place);
  void next_step(std::size_t place);
  bool take_room(Block& block);
  void post_receives(std::size_t place);
  void post_sends(std::size_t place);
  void receive(std::size_t place, int move);
  void send(std::size_t place, int move);
  void add_up(Block& block);

  const std::vector<Step>& plan(const Block& block) const { return block.number + 1 < plans_.cut.blocks ? plans_.full : plans_.last; }
  bool adding(const Block& block) const { return block.step < plan(block).size(); }
  bool over(const Block& block) const { return block.step == plan(block).size() * (plans_.cut.whole ? 1 : 2); }
  const Step& step(const Block& block) const;
  Slice placed(const Block& block, Slice part) const;  // of a block, in the model
  std::byte* room(const Block& block, int move) const;

  const MPI_Comm comm_;
  const int rank_;
  const std::unique_ptr<ExchangeSums> sums_;
  Clock::time_point active_;

  // The execution under way.
  Execution execution_;
  bool running_ = false, summed_ = false;
  int adding_up_ = 0;        // blocks whose sums are under way
  std::size_t additions_ = 0;  // sums so far, of all executions
  bool completing_ = false;  // all blocks are finished, or will be at this mark
  Mark complete_ = 0;
  Plans plans_;
  std::vector<Block> window_;
  // Blocks [0, finished_) are in the target as the member wants them, [finished_, entered_) in the window; those before roomed_ have
  // got a room, if they need one.
  std::size_t finished_ = 0, roomed_ = 0, entered_ = 0;
  std::vector<int> free_rooms_;
  // From and to each other member that it has begun, and whether it is fresh: they tell a late member, for whom one sleeps and whom errors
  // name, from data that is moving. How many are under way:
  int to_begin_ = 0, begun_out_ = 0;
  std::vector<char> fresh_;   // by member
  bool laid_out_ = false;     // plans and rooms are this execution's

  std::vector<MPI_Request> requests_;
  std::vector<Message> messages_;
  std::vector<int> unused_;  // places of requests_
  std::vector<char> null_;   // by room and move: an empty message came

  std::byte* scratch_ = nullptr;
  std::atomic<std::size_t> scratch_bytes_{0};

  // For calls, so that none of them allocates.
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  std::vector<const void*> sources_;
};

}  // namespace wagma
