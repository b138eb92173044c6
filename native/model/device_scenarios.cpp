// The transport between buffers on devices: of each rank a task that executes version after version, and its queue's, which carries out what
// it was given whenever the scheduler likes.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "board.hpp"
#include "model_device.hpp"
#include "scenarios.hpp"
#include "scheduler.hpp"
#include "wagma/transport_device.hpp"

namespace wagma::check {

namespace {

struct Course {
  int ranks;
  int chunks;
  std::vector<std::vector<Group>> versions;  // the groups of each
  std::vector<Group> absent{};  // by version, the ranks whose applications have not come
  int held_up = -1;  // this rank's device does nothing before the other ranks are through with all versions
  int null_contribution = -1;  // this rank's, which has not come either
};

bool is_in(const Group& group, int rank) { return std::find(group.begin(), group.end(), rank) != group.end(); }

const Group& group_of(const std::vector<Group>& groups, int rank) {
  for (const Group& group : groups) {
    if (is_in(group, rank)) return group;
  }
  violated("a rank in no group");
}

class DeviceRank {
 public:
  DeviceRank(const Course& course, std::shared_ptr<Node> node, int rank, Atomic<std::uint32_t>& through)
      : course_(course), rank_(rank), through_(through), buffers_(Machinery::present().buffers(rank)) {
    std::vector<std::string> addresses;
    for (int peer = 0; peer < course.ranks; ++peer) addresses.push_back(std::to_string(peer));
    transport_ = std::make_unique<DeviceNodeTransport>(std::move(node), rank, buffers_, addresses);
  }

  void run() {
    for (std::size_t i = 0; i < course_.versions.size(); ++i) execute(static_cast<Version>(i), group_of(course_.versions[i], rank_));
    if (rank_ != course_.held_up && through_.fetch_add(1) + 2 == static_cast<std::uint32_t>(course_.ranks) && course_.held_up >= 0) {
      Machinery::present().release();
    }
    wait_until([&] { return transport_->drain(); });
    buffers_.reset();
    transport_.reset();  // with the memory
  }

 private:
  // Looks, announces, looks once more, sleeps: as Engine::drive_until does.
  template <class Look>
  void wait_until(Look look) {
    while (!look()) {
      const auto since = transport_->announce(Sleeper::application);
      const bool there = look();
      if (!there) transport_->sleep(Sleeper::application, since, Clock::time_point::max());
      transport_->awake();
      if (there) return;
    }
  }

  std::uint64_t content(int rank, Version version) const {
    return rank == course_.null_contribution ? 0 : static_cast<std::uint64_t>(version * 16 + rank + 1);
  }

  void execute(Version version, const Group& members) {
    Board& board = Board::present();
    const int contribution = static_cast<int>((version + rank_) % kDeviceBuffers), target = (contribution + 1) % kDeviceBuffers;
    const bool present = rank_ != course_.null_contribution &&
                         (version >= static_cast<Version>(course_.absent.size()) || !is_in(course_.absent[version], rank_));
    board.publish(transport_->buffer(contribution), course_.chunks, content(rank_, version));
    Execution execution;
    execution.version = version;
    execution.members = members;
    execution.contribution = rank_ == course_.null_contribution ? nullptr : transport_->buffer(contribution);
    execution.target = transport_->buffer(target);
    execution.stamp = present ? version : version - 1;
    execution.count = device_elements(course_.chunks);
    execution.divisor = (version + rank_) % 2 ? 1 : static_cast<int>(members.size());
    Machinery::present().stamp(rank_, contribution).store(execution.stamp);
    board.enter(rank_, version, contribution, target);
    transport_->begin(execution);
    wait_until([&] { return transport_->progress().released; });
    board.leave(rank_, course_.chunks);
    std::uint64_t sum = 0;
    for (const int member : members) sum = Board::added(sum, content(member, version));
    claim(board.read(transport_->buffer(target), course_.chunks) == sum, "the sum is not that of the contributions");
    claim(Machinery::present().stamp(rank_, target).load() == version, "the sum has another version's stamp");
    claim(board.read(transport_->buffer(contribution), course_.chunks) == content(rank_, version), "the contribution is not what was published");
  }

  const Course& course_;
  const int rank_;
  Atomic<std::uint32_t>& through_;  // ranks
  std::shared_ptr<DeviceBuffers> buffers_;
  std::unique_ptr<DeviceNodeTransport> transport_;
};

Scenario scenario(const char* name, Course course, int deviations, int long_deviations, bool only_long = false) {
  const auto shared = std::make_shared<const Course>(std::move(course));
  const auto setup = [shared] {
    pretend_cores(1);
    auto* machinery = new Machinery(shared->ranks, true);  // the arena forgets it all
    machinery->hold_up(shared->held_up);
    const auto node = Node::in_process({shared->ranks, 0, 0});
    auto* through = new Atomic<std::uint32_t>(0);
    for (int rank = 0; rank < shared->ranks; ++rank) {
      auto* own = new DeviceRank(*shared, node, rank, *through);
      spawn([own] { own->run(); });
    }
  };
  return {name, setup, deviations, long_deviations, only_long};
}

}  // namespace

std::vector<Scenario> device_scenarios() {
  const std::vector<Group> both{{0, 1}}, turned{{1, 0}}, alone{{0}, {1}}, three{{0, 1, 2}}, left{{0, 1}, {2}}, right{{0}, {2, 1}};
  return {
      scenario("devices: 2 ranks, 1 chunk, 2 versions", {2, 1, {both, turned}}, 2, 4),
      scenario("devices: 2 ranks, 3 chunks", {2, 3, {both}}, 2, 3),
      scenario("devices: 2 ranks, alone in between", {2, 1, {both, alone, turned}}, 2, 3),
      scenario("devices: nobody has come", {.ranks = 2, .chunks = 2, .versions = {both, turned}, .absent = {{0, 1}, {0, 1}}}, 2, 3),
      scenario("devices: one after the other has come", {.ranks = 2, .chunks = 2, .versions = {both, turned, both}, .absent = {{0}, {1}, {0, 1}}}, 2, 3),
      scenario("devices: the absent one's is busy", {.ranks = 2, .chunks = 2, .versions = {turned, both}, .absent = {{1}, {1}}, .held_up = 1}, 2, 4),
      scenario("devices: a null contribution", {.ranks = 2, .chunks = 1, .versions = {both, turned}, .null_contribution = 1}, 2, 3),
      scenario("devices: 3 ranks, groups change",
               {.ranks = 3, .chunks = 2, .versions = {left, three, right}, .absent = {{0}, {0, 1}, {1, 2}}}, 1, 2),
      scenario("devices: 3 ranks, the absent one's is busy", {.ranks = 3, .chunks = 2, .versions = {three, three}, .absent = {{1}, {1, 2}}, .held_up = 1}, 1, 2),
  };
}

}  // namespace wagma::check
