// Version after version between buffers on the emulated device, beyond what test_transport_device.cpp has of single ones: threads that sleep
// while kernels run, groups and buffers that change roles, engines as processes, one of which dies with chunks on its device; and memory that
// may not be freed.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "device_ranks.hpp"
#include "processes.hpp"
#include "wagma/digest.hpp"
#include "wagma/transport_device.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

constexpr std::size_t kFloatsOfChunk = (std::size_t{1} << 20) / sizeof(float);

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Clock::time_point in(int milliseconds) { return Clock::now() + std::chrono::milliseconds(milliseconds); }

// Each operation of a device begins up to so much later.
class Slow {
 public:
  explicit Slow(unsigned us) { emulated::settings().delay_us = us; }
  ~Slow() { emulated::settings().delay_us = 0; }
};

// Transports without engines, whose buffers the test writes and reads itself.
class Ranks {
 public:
  Ranks(int count, std::size_t buffer_bytes, int buffers = 2) : node_(Node::in_process({count, 0, 0})) {
    std::vector<std::string> addresses;
    for (int rank = 0; rank < count; ++rank) {
      buffers_.push_back(std::make_shared<DeviceBuffers>(emulated_device(0), buffers, buffer_bytes));
      addresses.push_back(buffers_.back()->address());
    }
    for (int rank = 0; rank < count; ++rank) {
      transports_.push_back(std::make_unique<DeviceNodeTransport>(node_, rank, buffers_[rank], addresses));
    }
  }
  DeviceNodeTransport& operator[](int rank) { return *transports_[rank]; }
  std::int64_t& stamp(int rank, int buffer) {
    return *reinterpret_cast<std::int64_t*>(buffers_[rank]->buffer(buffer) + buffers_[rank]->stamp_offset());
  }
  void begin(int rank, const Group& members, Version version, Version stamp, std::size_t count, int from = 0, int to = 1) {
    Execution execution;
    execution.version = version;
    execution.members = members;
    execution.contribution = (*this)[rank].buffer(from);
    execution.target = (*this)[rank].buffer(to);
    execution.stamp = this->stamp(rank, from) = stamp;
    execution.count = count;
    (*this)[rank].begin(execution);
  }
  void drop(int rank) {
    buffers_[rank].reset();
    transports_[rank].reset();
  }

 private:
  const std::shared_ptr<Node> node_;
  std::vector<std::shared_ptr<DeviceBuffers>> buffers_;
  std::vector<std::unique_ptr<DeviceNodeTransport>> transports_;
};

// As engines do, until the version under way is over.
void complete(DeviceNodeTransport& own) {
  const auto limit = in(30'000);
  while (!own.progress().released) {
    const auto since = own.announce(Sleeper::application);
    if (own.progress().released) return;
    own.sleep(Sleeper::application, since, in(1000));
    own.awake();
    WAGMA_CHECK(Clock::now() < limit);
  }
}

// -- one after the other --------------------------------------------------------------------------------------------------

constexpr int kRanks = 4, kBuffers = 3;
constexpr Version kVersions = 25;
constexpr std::size_t kCount = 2 * kFloatsOfChunk + 100;

float value(int rank, Version version) { return static_cast<float>(draw(3, rank, version) % 1000); }

Group group_of(int rank, Version version) {
  const int cut = 1 + static_cast<int>(draw(4, 0, version) % kRanks);
  Group group;
  for (int member = 0; member < kRanks; ++member) {
    if ((member < cut) == (rank < cut)) group.push_back(member);
  }
  if (version % 2) std::reverse(group.begin(), group.end());
  return group;
}

void take_part(Ranks& ranks, int rank) {
  DeviceNodeTransport& own = ranks[rank];
  const auto all_are = [&](int buffer, std::size_t count, float expected) {
    const auto* const items = reinterpret_cast<const float*>(own.buffer(buffer));
    return std::count(items, items + count, expected) == static_cast<std::ptrdiff_t>(count);
  };
  for (Version version = 0; version < kVersions; ++version) {
    const Group group = group_of(rank, version);
    const int from = static_cast<int>(version % kBuffers), to = (from + 1) % kBuffers;
    const std::size_t count = version % 5 == 0 ? kCount : 500;
    std::fill_n(reinterpret_cast<float*>(own.buffer(from)), count, value(rank, version));
    ranks.begin(rank, group, version, draw(5, rank, version) % 2 ? version : version - 1, count, from, to);
    complete(own);
    float sum = 0;
    for (const int member : group) sum += value(member, version);
    WAGMA_CHECK(all_are(to, count, sum) && ranks.stamp(rank, to) == version);
    WAGMA_CHECK(all_are(from, count, value(rank, version)));
  }
  const auto limit = in(30'000);
  while (!own.drain()) {
    WAGMA_CHECK(Clock::now() < limit);
    own.sleep(Sleeper::application, own.announce(Sleeper::application), in(1));
  }
}

void versions_follow_each_other() {
  const Slow slow(100);
  Ranks ranks(kRanks, kCount * sizeof(float), kBuffers);
  std::vector<std::string> errors(kRanks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        take_part(ranks, rank);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const std::string& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
}

// Nobody rings when a kernel is over: who sleeps meanwhile looks again by itself.
void sleep_ends_with_a_kernel() {
  const Slow slow(20'000);
  Ranks ranks(1, 4096);
  DeviceNodeTransport& own = ranks[0];
  const auto begun = Clock::now();
  for (Version version = 0; version < 5; ++version) {
    ranks.begin(0, {0}, version, version, 1000);
    while (!own.progress().released) own.sleep(Sleeper::progress, own.announce(Sleeper::progress), in(10'000));
  }
  WAGMA_CHECK(Clock::now() - begun < std::chrono::seconds(5));
  WAGMA_CHECK(own.drain());
}

// -- the end ----------------------------------------------------------------------------------------------------------------

std::size_t free_bytes() { return emulated_device(0)->memory().free; }

void memory_is_freed_when_all_have_left() {
  const std::size_t before = free_bytes();
  bool at_once = false;  // the wait for others takes half a second each time, a machine that is busy otherwise now and then
  for (int attempt = 0; attempt < 5 && !at_once; ++attempt) {
    Ranks ranks(3, 3 << 20);
    const std::size_t with_ranks = free_bytes();
    for (const int rank : {0, 1, 2}) ranks[rank].drain();
    const auto begun = Clock::now();
    for (const int rank : {0, 1, 2}) ranks.drop(rank);
    at_once = Clock::now() - begun < std::chrono::milliseconds(400);
    WAGMA_CHECK(free_bytes() >= with_ranks + 3 * (6u << 20) && free_bytes() <= before);  // what queues have taken stays with the device
  }
  WAGMA_CHECK(at_once);
}

// A peer has it open, and does not say that it goes.
void memory_that_a_peer_uses_stays() {
  Ranks ranks(2, 3 << 20);
  const std::size_t before = free_bytes();
  const auto begun = Clock::now();
  ranks.drop(0);
  WAGMA_CHECK(Clock::now() - begun >= std::chrono::milliseconds(450) && free_bytes() == before);
  ranks.drop(1);  // rank 0 uses nothing any more
  WAGMA_CHECK(free_bytes() >= before + (6u << 20));
}

// A kernel of rank 0's that does not end reads and writes the memory of both.
void memory_that_a_kernel_uses_stays() {
  Ranks ranks(2, 3 << 20);
  const std::size_t before = free_bytes();
  for (const int rank : {0, 1}) ranks.begin(rank, {0, 1}, 1, 1, 1000);
  const auto begun = Clock::now();
  {
    const Slow slow(100'000'000);
    WAGMA_CHECK(ranks[0].progress().moved);
    for (const int rank : {0, 1}) ranks[rank].abandon();
    ranks.drop(0);  // waits for a second, within which its stream has come to the kernel and begun to wait
  }
  ranks.drop(1);
  WAGMA_CHECK(free_bytes() == before && Clock::now() - begun < std::chrono::seconds(4));
}

// -- processes ----------------------------------------------------------------------------------------------------------------

// Where processes tell each other their addresses, and count themselves.
struct Meeting {
  char addresses[kRanks][600];
  std::atomic<int> came, step;

  static Meeting& shared() {
    void* place = ::mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) throw std::runtime_error("mmap");
    return *new (place) Meeting{};
  }
  std::vector<std::string> exchange(int rank, int ranks, const std::string& address) {
    WAGMA_CHECK(address.size() < sizeof(addresses[0]));
    std::strcpy(addresses[rank], address.c_str());
    ++came;
    until(came, ranks);
    return {addresses, addresses + ranks};
  }
  static void until(const std::atomic<int>& counter, int value) {
    for (int i = 0; counter.load() < value; ++i) {
      if (i > 20'000) throw std::logic_error("the other processes have not come");
      ::usleep(1000);
    }
  }
};

void check_processes(Processes& processes, int count, int killed = -1) {
  const auto statuses = processes.wait();
  for (int rank = 0; rank < count; ++rank) {
    if (processes.told(rank).error[0]) throw std::logic_error(processes.told(rank).error);
    WAGMA_CHECK(rank == killed || statuses[rank] == 0);
  }
}

// Rank 1 dies with two of three chunks on its device. The others say how far the version was, find out by themselves, and free their
// memory at once: the dead have nothing open.
void a_rank_is_killed() {
  constexpr int kProcesses = 3;
  constexpr std::size_t kItems = 3 * kFloatsOfChunk;
  Meeting& meeting = Meeting::shared();
  const auto node = Node::create({kProcesses, 0, 0});
  Processes processes(kProcesses);
  processes.start([&](int rank) {
    auto buffers = std::make_shared<DeviceBuffers>(emulated_device(0), 2, kItems * sizeof(float));
    auto own = std::make_unique<DeviceNodeTransport>(node, rank, buffers, meeting.exchange(rank, kProcesses, buffers->address()));
    Execution execution;
    execution.members = {0, 1, 2};
    execution.contribution = buffers->buffer(0);
    execution.target = buffers->buffer(1);
    execution.stamp = execution.version = 0;
    execution.count = kItems;
    own->begin(execution);
    if (rank == 1) {
      emulated::settings().delay_us = 100'000'000;
      while (!has(own->standing(), "its device has 2 of them")) own->progress();
      ++meeting.step;
      ::pause();
    }
    Meeting::until(meeting.step, 2);  // it has been killed
    own->progress();
    const auto limit = in(10'000);
    while (!own->poll_failure()) {
      WAGMA_CHECK(!own->progress().summed && Clock::now() < limit);
      own->sleep(Sleeper::application, own->announce(Sleeper::application), in(50));
    }
    WAGMA_CHECK(own->poll_failure()->rank == 1 && own->poll_failure()->message == "its process has ended without a word");
    WAGMA_CHECK(has(own->standing(), "of 3 chunks are reduced, "));
    own->abandon();
    ++meeting.step;
    Meeting::until(meeting.step, 4);  // the other one has left, too: nobody is waited for but the dead
    const std::size_t before = emulated_device(0)->memory().free;
    buffers.reset();
    own.reset();
    WAGMA_CHECK(emulated_device(0)->memory().free >= before + 2 * kItems * sizeof(float));
  });
  Meeting::until(meeting.step, 1);
  processes.kill(1);
  processes.reap(1);
  ++meeting.step;
  check_processes(processes, kProcesses, 1);
}

// Rank 3's application keeps its stream busy for longer than the others' iterations take. After the last sync all have one model.
void engines_in_processes() {
  const auto config = config_of(kRanks, 2, 5, 5000);
  Meeting& meeting = Meeting::shared();
  const auto node = Node::create({kRanks, 0, 0});
  Processes processes(kRanks);
  processes.start([&](int rank) {
    const auto device = emulated_device(0);
    emulated::settings().delay_us = 50;
    const auto buffers = std::make_shared<DeviceBuffers>(device, config.buffers(), config.buffer_bytes());
    const auto addresses = meeting.exchange(rank, kRanks, buffers->address());
    EmulatedStream stream;
    std::vector<double> values(config.count);
    DeviceModel model(std::make_unique<Tensors>(device, stream, DType::float64, values.size()), values);
    Engine engine(config, std::make_shared<DeviceNodeTransport>(node, rank, buffers, addresses), values.data(),
                  device_models(device, config.dtype, config.count, buffers->stamp_offset(), config.timeout_s));
    for (Version t = 0; t < 20; ++t) {
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(draw(8, rank, t * values.size() + i)) / 7;
      if (rank == 3) stream.sleep(0.01);
      model.set(values);
      if (rank == 3 && t == 1) Meeting::until(meeting.step, 3);  // the others have returned from version 1, without it
      if (!engine.average(t, model.own()).fresh) ++processes.told(rank).numbers[1];
      if (rank != 3 && t == 1) ++meeting.step;
    }
    values = model.values();
    processes.told(rank).numbers[0] = static_cast<std::int64_t>(digest(values.data(), values.size() * sizeof(double)));
    engine.close();
  });
  check_processes(processes, kRanks);
  for (int rank = 1; rank < kRanks; ++rank) WAGMA_CHECK(processes.told(rank).numbers[0] == processes.told(0).numbers[0]);
  WAGMA_CHECK(processes.told(3).numbers[1] > 0);  // it was late, and was not waited for
}

}  // namespace

// A process forked from one that has used a device has none: those first.
int main() {
  return run_tests({{"a rank is killed", a_rank_is_killed},
                    {"engines in processes", engines_in_processes},
                    {"versions follow each other", versions_follow_each_other},
                    {"sleep", sleep_ends_with_a_kernel},
                    {"memory is freed", memory_is_freed_when_all_have_left},
                    {"memory that a peer uses", memory_that_a_peer_uses_stays},
                    {"memory that a kernel uses", memory_that_a_kernel_uses_stays}});
}
