// The node and its transport by themselves: memory, its identity and limits, doorbells, mailboxes, the failure slot, the wrap of the
// chunk counters' tags; ranks as threads on mappings of their own, and as processes, one of which is killed.
#include <sys/resource.h>
#include <sys/stat.h>
#include <fcntl.h>

#include <cstdlib>

#include "processes.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

Clock::time_point in(int milliseconds) { return Clock::now() + std::chrono::milliseconds(milliseconds); }

std::shared_ptr<Node> mapped_again(const Node& node) {
  const Segment& segment = node.segment();
  return Node::join(node.plan(), Segment::open(::getpid(), segment.descriptor(), segment.size(), segment.identity()));
}

void segments_are_shared() {
  const auto made = Segment::create(8192);
  const auto opened = Segment::open(::getpid(), made->descriptor(), 8192, made->identity());
  WAGMA_CHECK(opened->data() != made->data() && opened->identity() == made->identity());
  made->data()[5000] = std::byte{7};
  WAGMA_CHECK(opened->data()[5000] == std::byte{7});
}

void what_is_not_the_segment_is_refused() {
  const auto made = Segment::create(8192), other = Segment::create(8192);
  const auto is_refused = [&](int descriptor, std::size_t bytes, unsigned long long identity) {
    const std::string text = refusal([&] { Segment::open(::getpid(), descriptor, bytes, identity); });
    return text.find("is not what its creator made") != std::string::npos && text.find('\n') == std::string::npos;
  };
  WAGMA_CHECK(is_refused(other->descriptor(), 8192, made->identity()));   // another file
  WAGMA_CHECK(is_refused(made->descriptor(), 16384, made->identity()));  // a shorter one: touching its end would kill the process
  char path[] = "/tmp/wagma-test-XXXXXX";
  const int file = ::mkstemp(path);  // the right size and number, but no memory
  WAGMA_CHECK(file >= 0 && ::ftruncate(file, 8192) == 0);
  struct stat status {};
  ::fstat(file, &status);
  const bool is_memory = ::fcntl(file, F_GET_SEALS) >= 0;  // where /tmp lies in memory it cannot be told apart
  WAGMA_CHECK(is_memory || is_refused(file, 8192, status.st_ino));
  ::close(file);
  ::unlink(path);
  WAGMA_CHECK(refusal([&] { Segment::open(::getpid(), 99999, 8192, 1); }).find("cannot be opened: No such file") != std::string::npos);
}

void too_little_memory_is_one_line() {
  Processes processes(1);
  processes.start([](int) {
    ::signal(SIGXFSZ, SIG_IGN);  // as Python does; else the system ends the process
    const rlimit limit{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string text = refusal([] { Node::create({4, 4, 10'000'000}); });
    WAGMA_CHECK(text.starts_with("shared memory: 161 MB cannot be had: File too large (") && text.find('\n') == std::string::npos);
  });
  processes.wait();
  if (processes.told(0).error[0]) throw std::logic_error(processes.told(0).error);
}

// A ring between announcing and sleeping is not lost; nobody is rung for who is awake; each thread of a rank sleeps by itself.
void doorbell_rings() {
  Doorbell bell;
  WAGMA_CHECK(!bell.ring() && bell.count() == 0);  // awake
  std::uint32_t since = bell.announce(Sleeper::progress);
  WAGMA_CHECK(bell.ring());
  auto begun = Clock::now();
  bell.sleep(Sleeper::progress, since, in(5000));
  WAGMA_CHECK(Clock::now() - begun < std::chrono::seconds(2));
  begun = Clock::now();
  bell.sleep(Sleeper::progress, bell.count(), in(20));  // nobody rings
  WAGMA_CHECK(Clock::now() - begun >= std::chrono::milliseconds(19));
  since = bell.announce(Sleeper::application);
  begun = Clock::now();
  std::thread application([&] { bell.sleep(Sleeper::application, since, in(5000)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  WAGMA_CHECK(bell.ring());
  application.join();
  WAGMA_CHECK(Clock::now() - begun < std::chrono::seconds(2));
  bell.awake();
  WAGMA_CHECK(!bell.ring());
}

void mailbox_keeps_the_highest() {
  const auto node = Node::in_process({4, 1, 64});
  NodeTransport sender(node, 0), receiver(node, 1);
  WAGMA_CHECK(!receiver.poll_activation() && !receiver.news());
  sender.send_activation(1, {11, 0, true});
  WAGMA_CHECK(receiver.news() && receiver.poll_activation()->solo && !receiver.news());
  sender.send_activation(1, {3, 0});
  sender.send_activation(1, {7, 0});
  sender.send_activation(1, {9, 1, true});
  sender.send_activation(1, {4, 1, true});
  WAGMA_CHECK(receiver.news());
  const auto first = receiver.poll_activation(), second = receiver.poll_activation();
  WAGMA_CHECK(first && first->version == 7 && first->dimension == 0 && !first->solo);
  WAGMA_CHECK(second && second->version == 4 && second->dimension == 1 && second->solo);
  WAGMA_CHECK(!receiver.poll_activation() && !receiver.news());
}

// A sender that expects the receiver soon posts and does not ring; whatever thread of it comes first rings when it is due, if the receiver has
// not looked by then. For one that came late it rings at once, until that is long ago, and for one that
// sleeps until it is activated.
void ringing_is_put_off() {
  const auto node = Node::in_process({2, 2, 64});
  NodeTransport sender(node, 0), receiver(node, 1);
  Execution execution;
  execution.members = {0, 1};
  execution.contribution = sender.buffer(0);
  execution.target = sender.buffer(1);
  execution.count = 8;
  sender.begin(execution);
  sender.send_activation(1, {1, 0});
  WAGMA_CHECK(!receiver.news());
  const auto begun = Clock::now();
  sender.announce(Sleeper::application);
  while (!receiver.news()) {
    sender.sleep(Sleeper::progress, sender.wakes(), in(5000));
    WAGMA_CHECK(Clock::now() - begun < std::chrono::seconds(2));
  }
  WAGMA_CHECK(Clock::now() - begun >= std::chrono::microseconds(20) && receiver.poll_activation()->version == 1);
  sender.send_activation(1, {2, 0});
  WAGMA_CHECK(receiver.poll_activation()->version == 2);  // by itself
  sender.announce(Sleeper::progress);
  WAGMA_CHECK(!receiver.news());
  sender.send_activation(1, {3, 0});
  WAGMA_CHECK(!receiver.news());
  sender.announce(Sleeper::progress);  // computes next: nothing is left
  WAGMA_CHECK(receiver.news() && receiver.poll_activation()->version == 3);
  receiver.note_lateness(std::chrono::milliseconds(10));
  sender.send_activation(1, {4, 0});
  WAGMA_CHECK(receiver.news() && receiver.poll_activation()->version == 4);
  receiver.note_lateness(Clock::duration::zero());  // once, perhaps by chance
  sender.send_activation(1, {5, 0});
  WAGMA_CHECK(receiver.news() && receiver.poll_activation()->version == 5);
  for (int i = 0; i < 10; ++i) receiver.note_lateness(Clock::duration::zero());
  sender.send_activation(1, {6, 0});
  WAGMA_CHECK(!receiver.news() && receiver.poll_activation()->version == 6);
  receiver.announce(Sleeper::application);  // it waits for nothing but an activation
  sender.send_activation(1, {7, 0});
  WAGMA_CHECK(receiver.news() && receiver.poll_activation()->version == 7);
  execution.contribution = receiver.buffer(0);
  execution.target = receiver.buffer(1);
  execution.version = 1;
  receiver.begin(execution);  // and now for the sender, which has not begun this version
  receiver.announce(Sleeper::application);
  sender.send_activation(1, {8, 0});
  WAGMA_CHECK(!receiver.news());
}

void first_failure_stays() {
  const auto node = Node::create({3, 1, 64});
  const auto other = mapped_again(*node);
  WAGMA_CHECK(!other->failure());
  node->fail(2, std::string(5000, 'x'));
  other->fail(1, "a consequence");
  const auto failure = other->failure();
  WAGMA_CHECK(failure && failure->rank == 2 && failure->message.size() > 500 && failure->message.size() < 1000);
}

void ends_agree() {
  const auto node = Node::in_process({3, 1, 64});
  for (const Version last : {Version{4}, kNone, Version{2}}) {
    WAGMA_CHECK(!node->all_closed());
    node->close(last);
  }
  WAGMA_CHECK(node->all_closed() == 4);
}

constexpr std::size_t kCount = 70000;  // three chunks, the last one not full

// One rank through `versions` versions with groups and leaders that change, over the point where the 32 bits of the tag wrap.
void execute_versions(NodeTransport& transport, Version first, int versions) {
  const int rank = transport.rank(), world = transport.world_size();
  for (Version version = first; version < first + versions; ++version) {
    Execution execution;
    execution.version = version;
    for (int i = 0; i < world; ++i) execution.members.push_back(static_cast<int>((version + i) % world));
    const int own = static_cast<int>(version % 2);
    auto* contribution = reinterpret_cast<float*>(transport.buffer(own));
    std::fill(contribution, contribution + kCount, static_cast<float>(version % 1000 * 8 + rank));
    execution.contribution = transport.buffer(own);
    execution.target = transport.buffer(2);
    execution.count = kCount;
    execution.divisor = rank == 0 ? world : 1;
    transport.begin(execution);
    const auto limit = in(20000);
    while (!transport.progress().released) {
      const auto since = transport.announce(Sleeper::application);
      if (!transport.progress().released) {
        transport.sleep(Sleeper::application, since, limit);
        transport.awake();
        WAGMA_CHECK(Clock::now() < limit);
        continue;
      }
      break;
    }
    const float sum = static_cast<float>(version % 1000 * 8 * world + world * (world - 1) / 2);
    const float expected = rank == 0 ? sum / static_cast<float>(world) : sum;
    const auto* target = reinterpret_cast<const float*>(transport.buffer(2));
    WAGMA_CHECK(std::all_of(target, target + kCount, [&](float x) { return x == expected; }));
  }
}

constexpr Version kBeforeWrap = (Version{1} << 32) - 3;

// Each thread has a mapping of its own, at another address: only offsets may be in the node. (The thread sanitizer takes the mappings for
// different memory, and so sees no race across them; that is test_engine's part, where ranks share one mapping.)
void tags_wrap_on_mappings_of_their_own() {
  const auto node = Node::create({3, 3, kCount * sizeof(float)});
  std::vector<std::string> errors(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      errors[rank] = refusal([&] {
        NodeTransport transport(mapped_again(*node), rank);
        execute_versions(transport, kBeforeWrap, 12);
      });
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
}

void tags_wrap_on_one_mapping() {
  const auto node = Node::in_process({2, 3, kCount * sizeof(float)});
  std::string error;
  std::thread other([&] {
    error = refusal([&] {
      NodeTransport transport(node, 1);
      execute_versions(transport, kBeforeWrap, 12);
    });
  });
  NodeTransport transport(node, 0);
  execute_versions(transport, kBeforeWrap, 12);
  other.join();
  if (!error.empty()) throw std::logic_error(error);
}

EngineConfig process_config(int world_size, std::size_t count) {
  auto config = config_of(world_size, 2, 4, count);
  config.digests = config.record = false;
  return config;
}

void processes_average() {
  const auto config = process_config(3, 5000);
  Processes::run_ranks(config, [&](int rank, Engine& engine, Told&) {
    std::vector<double> model(config.count);
    for (Version t = 0; t < 40; ++t) {
      std::fill(model.begin(), model.end(), static_cast<double>(t * 8 + rank));
      if (draw(31, rank, t) % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(draw(32, rank, t) % 1000));
      const Outcome outcome = engine.arrive(t, model.data());
      if (outcome.group_length) engine.copy_result(model.data());
      WAGMA_CHECK(std::all_of(model.begin(), model.end(), [&](double x) { return x == model.front(); }));
      if (config.schedule.is_sync(t)) WAGMA_CHECK(model.front() == static_cast<double>(t * 8 + 1));
    }
    engine.close();
  });
}

// Activations, and even a whole version's desk, may be there before a rank comes.
void late_joiner_is_served() {
  auto config = process_config(2, 1000);
  Processes processes(2);
  const auto node = Node::create({2, config.buffers(), config.buffer_bytes()});
  processes.start([&](int rank) {
    if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(150));
    std::vector<double> model(config.count, 1.0);
    Engine engine(config, std::make_shared<NodeTransport>(node, rank), model.data());
    for (Version t = 0; t < 8; ++t) {
      if (engine.arrive(t, model.data()).group_length) engine.copy_result(model.data());
    }
    engine.close();
  });
  processes.wait();
  for (int rank = 0; rank < 2; ++rank) {
    if (processes.told(rank).error[0]) throw std::logic_error(processes.told(rank).error);
  }
}

// A rank that is killed tells nobody: the others see that its process is gone, or, if its parent does not ask for it, their waits have
// limits. The memory is gone with the last of them. Returns what the others say.
std::vector<std::string> said_after_kill(bool reap) {
  auto config = process_config(3, 20000);
  config.timeout_s = reap ? 20.0 : 1.0;
  Processes processes(3);
  std::weak_ptr<Node> memory;
  {
    const auto node = Node::create({3, config.buffers(), config.buffer_bytes()});
    memory = node;
    processes.start([&](int rank) {
      std::vector<double> model(config.count, 1.0);
      Engine engine(config, std::make_shared<NodeTransport>(node, rank), model.data());
      for (Version t = 0;; ++t) {
        const auto begun = Clock::now();
        try {
          if (engine.arrive(t, model.data()).group_length) engine.copy_result(model.data());
        } catch (const std::exception& error) {
          const bool in_time = Clock::now() - begun < std::chrono::seconds(8);
          engine.abort(error.what());
          throw std::runtime_error((in_time ? "" : "too late: ") + std::string(error.what()));
        }
        processes.told(rank).numbers[0] = t;
      }
    });
  }
  const auto limit = in(20000);
  while (processes.told(1).numbers[0] < 20 && Clock::now() < limit) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  processes.kill(1);
  if (reap) processes.reap(1);
  const auto statuses = processes.wait();
  WAGMA_CHECK(WIFSIGNALED(statuses[1]) && WTERMSIG(statuses[1]) == SIGKILL);
  for (const int rank : {0, 2}) WAGMA_CHECK(statuses[rank] == 0);
  WAGMA_CHECK(memory.expired());
  return {processes.told(0).error, processes.told(2).error};
}

void killed_rank_is_named() {
  for (const std::string& error : said_after_kill(true)) WAGMA_CHECK(error == "rank 1 failed: its process has ended without a word");
}

void killed_rank_leaves_limited_waits() {
  for (const std::string& error : said_after_kill(false)) {
    WAGMA_CHECK(error.find("is not complete after 1 s") != std::string::npos && error.find("too late") == std::string::npos);
  }
}

}  // namespace

int main() {
  return run_tests({{"segments_are_shared", segments_are_shared},
                    {"what_is_not_the_segment_is_refused", what_is_not_the_segment_is_refused},
                    {"too_little_memory_is_one_line", too_little_memory_is_one_line},
                    {"processes_average", processes_average},
                    {"late_joiner_is_served", late_joiner_is_served},
                    {"killed_rank_is_named", killed_rank_is_named},
                    {"killed_rank_leaves_limited_waits", killed_rank_leaves_limited_waits},
                    {"doorbell_rings", doorbell_rings},
                    {"mailbox_keeps_the_highest", mailbox_keeps_the_highest},
                    {"ringing_is_put_off", ringing_is_put_off},
                    {"first_failure_stays", first_failure_stays},
                    {"ends_agree", ends_agree},
                    {"tags_wrap_on_one_mapping", tags_wrap_on_one_mapping},
                    {"tags_wrap_on_mappings_of_their_own", tags_wrap_on_mappings_of_their_own}});
}
