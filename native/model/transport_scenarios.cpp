// The transport alone: one task a rank executes version after version, and sleeps when it has nothing to do.
#include <algorithm>
#include <array>
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
  bool models = false;         // ranks come with their application's array: the direct way, where they have cores
  int late = -1;               // this rank does not, at odd versions: it has not arrived
  int withdraws = -1;          // this rank's application wants its array back, at each version, after so many looks for progress
  int looks = 0;
  bool publishes_mean = false;
  std::int64_t look_ns = 12000;  // each look at the clock; much less than the grace, and ranks go to sleep before it is over
};

const Group& group_of(const std::vector<Group>& groups, int rank) {
  for (const Group& group : groups) {
    for (const int member : group) {
      if (member == rank) return group;
    }
  }
  violated("a rank in no group");
}

constexpr std::uint64_t kTakenBack = ~std::uint64_t{0};

class Rank {
 public:
  Rank(const Course& course, std::shared_ptr<Node> node, int rank)
      : course_(course), rank_(rank), transport_(std::move(node), rank), model_(array_words(course.chunks)) {}

  void run() {
    for (std::size_t i = 0; i < course_.versions.size(); ++i) {
      const Version version = course_.first + static_cast<Version>(i);
      if (course_.activated) await_activation(version);
      execute(version, group_of(course_.versions[i], rank_));
    }
    // As whoever leaves does: what was posted is rung for.
    transport_.announce(Sleeper::progress);
    over_ = 1;
    transport_.wake();
  }

  // The progress thread's, as far as it has no right to drive.
  void keep_time() {
    for (;;) {
      const auto since = transport_.wakes();
      if (over_ != 0) return;
      transport_.sleep(Sleeper::progress, since, Clock::time_point::max());
    }
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
    const auto content = static_cast<std::uint64_t>(version * 16 + rank_ + 1);
    const bool present = course_.models && !(rank_ == course_.late && version % 2);
    if (present) {
      for (int chunk = 0; chunk < course_.chunks; ++chunk) model_[chunk * kApart] = content;
    } else {
      board.publish(transport_.buffer(contribution), course_.chunks, content);
    }
    Execution execution;
    execution.version = version;
    execution.members = members;
    const bool null = course_.null_contributions && (version + rank_) % 2;
    execution.contribution = null ? nullptr : transport_.buffer(contribution);
    execution.target = transport_.buffer(target);
    execution.count = elements(course_.chunks);
    execution.divisor = (version + rank_) % 2 ? 1 : static_cast<int>(members.size());
    if (present) {
      execution.model = reinterpret_cast<std::byte*>(model_.data());
      execution.publishes_mean = course_.publishes_mean;
    }
    board.enter(rank_, version, contribution, target);
    transport_.begin(execution);
    int looks = 0;
    Progress progress;
    wait_until([&] {
      progress = transport_.progress();
      if (rank_ == course_.withdraws && ++looks == course_.looks && !progress.released) take_back(execution);
      return progress.released;
    });
    board.leave(rank_, course_.chunks, !present);
    const std::uint64_t sum = expected(version, members);
    if (present && looks >= course_.looks && rank_ == course_.withdraws) {
      for (int chunk = 0; chunk < course_.chunks; ++chunk) {
        claim(model_[chunk * kApart] == (progress.in_model ? sum : kTakenBack), "the application's array is touched after it was taken back");
      }
    }
    if (progress.in_model) {
      for (int chunk = 0; chunk < course_.chunks; ++chunk) claim(model_[chunk * kApart] == sum, "the average is not that of the contributions");
    }
    if (!progress.in_model || course_.publishes_mean) {
      claim(board.read(transport_.buffer(target), course_.chunks) == sum, "the sum is not that of the contributions");
    }
    claim(board.read(transport_.buffer(contribution), course_.chunks) == content, "the contribution is not what was published");
  }

  // As the engine does when a wait ends early: what the array held comes back, and the application goes on with it.
  void take_back(const Execution& execution) {
    if (!transport_.withdraw()) return;
    const std::size_t bytes = execution.count * sizeof(float);
    copy(model_.data(), execution.contribution, bytes, Stores::cached);
    const auto content = static_cast<std::uint64_t>(execution.version * 16 + rank_ + 1);
    for (int chunk = 0; chunk < course_.chunks; ++chunk) {
      claim(model_[chunk * kApart] == content, "the application gets another array back");
      model_[chunk * kApart] = kTakenBack;
    }
  }

  std::uint64_t expected(Version version, const Group& members) const {
    std::uint64_t sum = 0;
    for (const int member : members) {
      const bool null = course_.null_contributions && (version + member) % 2;
      const std::uint64_t content = null ? 0 : static_cast<std::uint64_t>(version * 16 + member + 1);
      sum = Board::added(sum, content);
    }
    return sum;
  }

  const Course& course_;
  const int rank_;
  NodeTransport transport_;
  std::vector<std::uint64_t> model_;  // the application's array
  Version activated_ = -1;
  Atomic<std::uint32_t> over_{0};
};

Scenario scenario(const char* name, Course course, int deviations = -1, int long_deviations = -1, bool only_long = false) {
  const auto shared = std::make_shared<const Course>(std::move(course));
  const auto setup = [shared] {
    pretend_cores(shared->cores);
    look_takes(shared->look_ns);
    const auto node = Node::in_process({shared->ranks, 3, kChunks * kChunkElements * sizeof(float)});
    new Board(Layout::of(node), true);
    for (int rank = 0; rank < shared->ranks; ++rank) {
      auto* own = new Rank(*shared, node, rank);  // the arena forgets both
      spawn([own] { own->run(); });
      if (shared->activated) spawn([own] { own->keep_time(); });  // nothing is put off without
    }
  };
  return {name, setup, deviations, long_deviations, only_long};
}

// Ringing alone: rank 0 activates the others, version after version, each time as soon as they have taken the last one; its progress thread
// rings for what it has put off.
class Ringing {
 public:
  static constexpr int kRanks = 3;
  explicit Ringing(int versions) : versions_(versions), node_(Node::in_process({kRanks, 2, kChunks * kChunkElements * sizeof(float)})) {
    new Board(Layout::of(node_), false);
    for (int rank = 0; rank < kRanks; ++rank) transports_.push_back(std::make_unique<NodeTransport>(node_, rank));
  }

  void send() {
    NodeTransport& own = *transports_[0];
    Execution execution;  // of nobody else: from here on it knows how many cores there are
    execution.members = {0};
    execution.contribution = own.buffer(0);
    execution.target = own.buffer(1);
    execution.count = 8;
    own.begin(execution);
    claim(own.progress().released, "an execution of one rank is not over at once");
    for (Version version = 1; version <= versions_; ++version) {
      for (int dimension = 0; dimension < dimensions(kRanks); ++dimension) own.send_activation(neighbour(kRanks, 0, dimension), {version, dimension});
      wait_until(own, Sleeper::application, [&] { return std::all_of(taken_.begin() + 1, taken_.end(), [&](auto& taken) { return taken >= version; }); });
    }
    over_ = 1;
    own.wake();
  }

  void keep_time() {
    for (;;) {
      const auto since = transports_[0]->wakes();
      if (over_ != 0) return;
      transports_[0]->sleep(Sleeper::progress, since, Clock::time_point::max());
    }
  }

  void receive(int rank) {
    NodeTransport& own = *transports_[rank];
    for (Version version = 0; version < versions_;) {
      wait_until(own, Sleeper::progress, [&] {
        while (const auto activation = own.poll_activation()) version = activation->version;
        return version > taken_[rank].peek();
      });
      taken_[rank] = version;
      node_->mailbox(0).bell.ring();
    }
  }

 private:
  // Receivers sleep as the progress threads of ranks that compute: whoever sleeps until it is activated is rung for at once.
  template <class Look>
  static void wait_until(NodeTransport& own, Sleeper who, Look look) {
    while (!look()) {
      const auto since = own.announce(who);
      const bool there = look();
      if (!there) own.sleep(who, since, Clock::time_point::max());
      own.awake();
      if (there) return;
    }
  }

  const Version versions_;
  const std::shared_ptr<Node> node_;
  std::vector<std::unique_ptr<NodeTransport>> transports_;
  std::array<Atomic<Version>, kRanks> taken_;
  Atomic<std::uint32_t> over_{0};
};

Scenario ringing(const char* name, int versions, int deviations, int long_deviations) {
  const auto setup = [versions] {
    pretend_cores(1);
    auto* ringing = new Ringing(versions);  // the arena forgets it
    spawn([ringing] { ringing->send(); });
    spawn([ringing] { ringing->keep_time(); });
    for (int rank = 1; rank < Ringing::kRanks; ++rank) spawn([ringing, rank] { ringing->receive(rank); });
  };
  return {name, setup, deviations, long_deviations, false};
}

}  // namespace

std::vector<Scenario> transport_scenarios() {
  const std::vector<Group> both{{0, 1}}, turned{{1, 0}}, alone{{0}, {1}}, three{{0, 1, 2}}, left{{0, 1}, {2}}, right{{0}, {2, 1}};
  constexpr Version kWrap = (Version{1} << 32) - 3;
  return {
      scenario("2 ranks, 1 chunk, 2 versions", {2, 1, {both, both}}, 3, -1),
      scenario("2 ranks, 2 chunks, 1 version", {2, 2, {both}}, 4, -1),
      scenario("2 ranks, another leader", {2, 1, {both, turned}}, 3, -1),
      scenario("2 ranks, alone in between", {2, 1, {both, alone, turned}}, 2, 5),
      scenario("2 ranks, null contributions", {.ranks = 2, .chunks = 1, .versions = {both, turned}, .null_contributions = true}, 2, 5),
      scenario("2 ranks, activated", {.ranks = 2, .chunks = 1, .versions = {both, both}, .activated = true}, 2, 3),
      scenario("2 ranks, activated, a core each", {.ranks = 2, .chunks = 1, .versions = {both, both}, .activated = true, .cores = 2}, 2, 3),
      scenario("2 ranks, activated, in the time of grace", {.ranks = 2, .chunks = 1, .versions = {both, both}, .activated = true, .cores = 2, .look_ns = 1000}, 2, 3),
      ringing("3 ranks, put off once", 1, 3, 5),
      ringing("3 ranks, put off again", 3, 2, 3),
      scenario("2 ranks, 2 chunks, 3 versions, the tag wraps", {.ranks = 2, .chunks = 2, .versions = {both, turned, both, both}, .first = kWrap}, 2, 3),
      scenario("3 ranks, 1 chunk", {3, 1, {three}}, 2, 4),
      scenario("3 ranks, 2 chunks, groups change", {3, 2, {left, three, right}}, 1, 2),
      scenario("2 ranks, 3 chunks, 2 versions", {2, 3, {both, turned}}, 2, 3, true),
      scenario("3 ranks, 3 chunks, 2 versions, activated", {.ranks = 3, .chunks = 3, .versions = {three, three}, .activated = true}, 1, 2, true),
      scenario("2 ranks, 2 chunks, filled after the beginning", {.ranks = 2, .chunks = 2, .versions = {both, turned}, .models = true, .late = 1}, 2, 4),
      scenario("direct: 2 ranks, 1 chunk, 1 version", {.ranks = 2, .chunks = 1, .versions = {both}, .cores = 2, .models = true}),
      scenario("direct: 2 ranks, 2 versions", {.ranks = 2, .chunks = 1, .versions = {both, turned}, .cores = 2, .models = true}, 3, 5),
      scenario("direct: 2 ranks, 2 chunks, 1 version", {.ranks = 2, .chunks = 2, .versions = {both}, .cores = 2, .models = true}, 3, -1),
      scenario("direct: more chunks than the window", {.ranks = 2, .chunks = 6, .versions = {both}, .cores = 2, .models = true}, 2, 4),
      scenario("direct: one late, 2 chunks", {.ranks = 2, .chunks = 2, .versions = {both, turned, both}, .cores = 2, .models = true, .late = 1}, 2, 3),
      scenario("direct: the array taken back", {.ranks = 2, .chunks = 2, .versions = {both, turned}, .cores = 2, .models = true, .withdraws = 1, .looks = 1}, 2, 4),
      scenario("direct: taken back later, a sync",
               {.ranks = 2, .chunks = 2, .versions = {both, turned}, .cores = 2, .models = true, .withdraws = 0, .looks = 2, .publishes_mean = true}, 2, 4),
      scenario("direct: 3 ranks, one late", {.ranks = 3, .chunks = 2, .versions = {three, three}, .cores = 3, .models = true, .late = 2}, 1, 2),
  };
}

}  // namespace wagma::check
