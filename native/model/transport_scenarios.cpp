// The transport alone: one task a rank executes version after version, and sleeps when it has nothing to do.
#include <memory>
#include <vector>

#include "board.hpp"
#include "scenarios.hpp"
#include "scheduler.hpp"
#include "wagma/transport_node.hpp"

namespace wagma::check {

namespace {

struct Course {
  int ranks;
  int chunks;
  std::vector<std::vector<Group>> versions;  // the groups of each
  bool activated = false;  // ranks begin when an activation has come; version v is activated by rank v modulo P
  int cores = 1;
  bool null_contributions = false;
  Version first = 0;
};

const Group& group_of(const std::vector<Group>& groups, int rank) {
  for (const Group& group : groups) {
    for (const int member : group) {
      if (member == rank) return group;
    }
  }
  violated("a rank in no group");
}

class Rank {
 public:
  Rank(const Course& course, std::shared_ptr<Node> node, int rank) : course_(course), rank_(rank), transport_(std::move(node), rank) {}

  void run() {
    for (std::size_t i = 0; i < course_.versions.size(); ++i) {
      const Version version = course_.first + static_cast<Version>(i);
      if (course_.activated) await_activation(version);
      execute(version, group_of(course_.versions[i], rank_));
    }
    // As whoever leaves does: what was posted is rung for.
    transport_.announce(Sleeper::progress);
  }

 private:
  // Looks, announces, looks once more, sleeps: as Engine::drive_until does.
  template <class Look>
  void wait_until(Look look) {
    while (!look()) {
      const auto since = transport_.announce(Sleeper::application);
      const bool there = look();
      if (!there) transport_.sleep(Sleeper::application, since, {});
      transport_.awake();
      if (there) return;
    }
  }

  void forward(Version version, int lowest) {
    for (int dimension = lowest; dimension < dimensions(course_.ranks); ++dimension) {
      transport_.send_activation(neighbour(course_.ranks, rank_, dimension), {version, dimension});
    }
  }

  void await_activation(Version version) {
    if (version % course_.ranks == rank_) {
      activated_ = std::max(activated_, version);
      forward(version, 0);
      return;
    }
    wait_until([&] {
      while (const auto activation = transport_.poll_activation()) {
        forward(activation->version, activation->dimension + 1);
        activated_ = std::max(activated_, activation->version);
      }
      return activated_ >= version;
    });
  }

  void execute(Version version, const Group& members) {
    Board& board = Board::present();
    const int buffers = transport_.buffers();
    const int contribution = static_cast<int>((version + rank_) % buffers), target = (contribution + 1) % buffers;
    board.publish(transport_.buffer(contribution), course_.chunks, static_cast<std::uint64_t>(version * 16 + rank_ + 1));
    Execution execution;
    execution.version = version;
    execution.members = members;
    const bool null = course_.null_contributions && (version + rank_) % 2;
    execution.contribution = null ? nullptr : transport_.buffer(contribution);
    execution.target = transport_.buffer(target);
    execution.count = elements(course_.chunks);
    execution.divisor = (version + rank_) % 2 ? 1 : static_cast<int>(members.size());
    board.enter(rank_, version, contribution, target);
    transport_.begin(execution);
    wait_until([&] { return transport_.progress().released; });
    board.leave(rank_, course_.chunks);
    claim(board.read(transport_.buffer(target), course_.chunks) == expected(version, members), "the sum is not that of the contributions");
  }

  std::uint64_t expected(Version version, const Group& members) const {
    std::uint64_t sum = 0;
    for (const int member : members) {
      const bool null = course_.null_contributions && (version + member) % 2;
      const std::uint64_t content = null ? 0 : static_cast<std::uint64_t>(version * 16 + member + 1);
      sum = (sum ^ content) * 0x100000001B3u + content % 1009;
    }
    return sum;
  }

  const Course& course_;
  const int rank_;
  NodeTransport transport_;
  Version activated_ = -1;
};

Scenario scenario(const char* name, Course course, int deviations = -1, int long_deviations = -1, bool only_long = false) {
  const auto shared = std::make_shared<const Course>(std::move(course));
  const auto setup = [shared] {
    pretend_cores(shared->cores);
    const auto node = Node::in_process({shared->ranks, 3, kChunks * kChunkElements * sizeof(float)});
    new Board(node, true);
    for (int rank = 0; rank < shared->ranks; ++rank) {
      auto* own = new Rank(*shared, node, rank);  // the arena forgets both
      spawn([own] { own->run(); });
    }
  };
  return {name, setup, deviations, long_deviations, only_long};
}

}  // namespace

std::vector<Scenario> transport_scenarios() {
  const std::vector<Group> both{{0, 1}}, turned{{1, 0}}, alone{{0}, {1}}, three{{0, 1, 2}}, left{{0, 1}, {2}}, right{{0}, {2, 1}};
  constexpr Version kWrap = (Version{1} << 32) - 3;
  return {
      scenario("2 ranks, 1 chunk, 2 versions", {2, 1, {both, both}}, 3, -1),
      scenario("2 ranks, 2 chunks, 1 version", {2, 2, {both}}),
      scenario("2 ranks, another leader", {2, 1, {both, turned}}, 3, -1),
      scenario("2 ranks, alone in between", {2, 1, {both, alone, turned}}, 2, 5),
      scenario("2 ranks, null contributions", {.ranks = 2, .chunks = 1, .versions = {both, turned}, .null_contributions = true}, 2, 5),
      scenario("2 ranks, activated", {.ranks = 2, .chunks = 1, .versions = {both, both}, .activated = true}, 3, 4),
      scenario("2 ranks, activated, a core each", {.ranks = 2, .chunks = 1, .versions = {both, both}, .activated = true, .cores = 2}, 2, 4),
      scenario("2 ranks, 2 chunks, 3 versions, the tag wraps", {.ranks = 2, .chunks = 2, .versions = {both, turned, both, both}, .first = kWrap}, 2, 3),
      scenario("3 ranks, 1 chunk", {3, 1, {three}}, 2, 4),
      scenario("3 ranks, 2 chunks, groups change", {3, 2, {left, three, right}}, 1, 2),
      scenario("2 ranks, 3 chunks, 2 versions", {2, 3, {both, turned}}, 2, 3, true),
      scenario("3 ranks, 3 chunks, 2 versions, activated", {.ranks = 3, .chunks = 3, .versions = {three, three}, .activated = true}, 1, 2, true),
  };
}

}  // namespace wagma::check
