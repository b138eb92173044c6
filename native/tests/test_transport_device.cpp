// Ranks whose models are on devices (src/transport_device.cpp), on the emulated one and without engines: the bits of their sums, who
// reduces for whom, stamps, and the end.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>

#include "../device/emulated/settings.hpp"
#include "ranks.hpp"
#include "wagma/reduce.hpp"
#include "wagma/transport_device.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

using Bytes = std::vector<std::byte>;
constexpr double kLimitS = 20;

template <class Done>
void poll(const char* what, Transport& transport, Done done) {
  const auto deadline = Clock::now() + std::chrono::duration<double>(kLimitS);
  while (!done()) {
    if (const auto failure = transport.poll_failure()) throw PeerFailed(failure->rank, failure->message);
    if (Clock::now() > deadline) throw std::logic_error(std::string(what) + " is not over");
    const std::uint32_t since = transport.announce(Sleeper::application);
    transport.sleep(Sleeper::application, since, Clock::now() + std::chrono::milliseconds(1));
    transport.awake();
  }
}

// Ranks as threads of this process.
struct Ranks {
  Ranks(int number, int buffers, std::size_t buffer_bytes) : hub(number) {
    std::vector<std::string> addresses;
    for (int rank = 0; rank < number; ++rank) {
      memory.push_back(std::make_shared<DeviceBuffers>(emulated_device(0), buffers, buffer_bytes));
      addresses.push_back(memory.back()->address());
    }
    for (int rank = 0; rank < number; ++rank) transports.push_back(hub.device_transport(rank, memory[rank], addresses));
  }
  ~Ranks() {
    for (const auto& transport : transports) transport->drain();  // else each would wait a while for the others to leave
  }
  std::int64_t& stamp(int rank, int buffer) {
    return *reinterpret_cast<std::int64_t*>(memory[rank]->buffer(buffer) + memory[rank]->stamp_offset());
  }

  LocalHub hub;
  std::vector<std::shared_ptr<DeviceBuffers>> memory;
  std::vector<std::shared_ptr<Transport>> transports;
};

// `body` in a thread for each rank; throws what the first of them threw.
void in_threads(int number, const std::function<void(int)>& body) {
  std::vector<std::string> errors(number);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < number; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
}

// Numbers from 1 to 2 whose sums round in every type.
void fill(std::byte* at, DType dtype, std::size_t count, std::uint64_t seed) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t bits = draw(7, seed, i);
    if (dtype == DType::float64) {
      const std::uint64_t number = 0x3FF0000000000000u | bits >> 12;
      std::memcpy(at + i * 8, &number, 8);
    } else if (dtype == DType::float32) {
      const std::uint32_t number = 0x3F800000u | static_cast<std::uint32_t>(bits >> 41);
      std::memcpy(at + i * 4, &number, 4);
    } else {
      const auto number = static_cast<std::uint16_t>(dtype == DType::float16 ? 0x3C00 | bits >> 54 : 0x3F80 | bits >> 57);
      std::memcpy(at + i * 2, &number, 2);
    }
  }
}

Execution execution_of(const Group& members, int rank, DType dtype, std::size_t count, Version version) {
  Execution execution;
  execution.version = version;
  execution.members = members;
  execution.index = static_cast<int>(std::find(members.begin(), members.end(), rank) - members.begin());
  execution.count = count;
  execution.dtype = dtype;
  return execution;
}

// -- bits ---------------------------------------------------------------------------------------------------------------

// Which part a member plays in a version: drawn, so that over a few versions all mixtures come up.
enum class Part { present, passive, null };

struct Case {
  int members;
  std::size_t count;
  DType dtype;
};

Part part_of(const Case& now, int rank, Version version) {
  if (version == 0) return Part::passive;  // a version that nobody waits for
  return static_cast<Part>(draw(11, static_cast<std::uint64_t>(rank) + 100 * now.members, static_cast<std::uint64_t>(version)) % 3);
}
int divisor_of(const Case& now, int rank, Version version) {
  return draw(12, static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(version)) % 2 == 0 ? 1 : now.members + rank % 2;
}

Bytes expected(const Case& now, Version version, int divisor) {
  std::vector<Bytes> contributions(now.members, Bytes(now.count * item_size(now.dtype)));
  std::vector<const void*> sources;
  for (int rank = 0; rank < now.members; ++rank) {
    fill(contributions[rank].data(), now.dtype, now.count, static_cast<std::uint64_t>(100 * version + rank));
    sources.push_back(part_of(now, rank, version) == Part::null ? nullptr : contributions[rank].data());
  }
  Bytes result(now.count * (divisor == 1 ? accumulator_size(now.dtype) : item_size(now.dtype)));
  void* const target = result.data();
  reduce(now.dtype, sources.data(), now.members, &target, &divisor, 1, now.count, Stores::cached);
  return result;
}

void test_bits(const Case& now) {
  constexpr Version kVersions = 4;
  Ranks ranks(now.members, 2, now.count * accumulator_size(now.dtype));
  Group members;
  for (int rank = 0; rank < now.members; ++rank) members.push_back(rank);
  in_threads(now.members, [&](int rank) {
    Transport& own = *ranks.transports[rank];
    for (Version version = 0; version < kVersions; ++version) {
      auto execution = execution_of(members, rank, now.dtype, now.count, version);
      const Part part = part_of(now, rank, version);
      fill(own.buffer(0), now.dtype, now.count, static_cast<std::uint64_t>(100 * version + rank));
      execution.stamp = ranks.stamp(rank, 0) = part == Part::present ? version : version - 1;
      if (part != Part::null) execution.contribution = own.buffer(0);
      execution.target = own.buffer(1);
      execution.divisor = divisor_of(now, rank, version);
      own.begin(execution);
      poll("a version", own, [&] { return own.progress().released; });
      const Bytes sum = expected(now, version, execution.divisor);
      WAGMA_CHECK(std::memcmp(own.buffer(1), sum.data(), sum.size()) == 0);
      WAGMA_CHECK(ranks.stamp(rank, 1) == version);
    }
    poll("the end", own, [&] { return own.drain(); });
  });
}

// -- who reduces for whom ------------------------------------------------------------------------------------------------

// A passive member begins, and then does nothing at all any more, as one whose threads and whose device are busy.
void test_a_passive_member_is_needed_for_nothing() {
  constexpr std::size_t kCount = 900'000;  // several chunks for each
  Ranks ranks(3, 2, kCount * 4);
  const Group members{0, 1, 2};
  for (int rank = 0; rank < 3; ++rank) {
    auto execution = execution_of(members, rank, DType::float32, kCount, 0);
    Transport& own = *ranks.transports[rank];
    execution.contribution = own.buffer(0);
    execution.stamp = ranks.stamp(rank, 0) = rank == 1 ? -1 : 0;
    execution.target = own.buffer(1);
    own.begin(execution);
  }
  Transport &first = *ranks.transports[0], &third = *ranks.transports[2];
  bool done = false;
  poll("a version with a passive member", first, [&] {
    third.progress();
    return done = done || first.progress().released;
  });
  // It finds the sum there when it looks again, and has launched nothing.
  const Progress progress = ranks.transports[1]->progress();
  WAGMA_CHECK(progress.released && !progress.moved);
}

// Nor is one that is present and late in looking.
void test_one_present_member_does_all() {
  constexpr std::size_t kCount = 900'000;
  Ranks ranks(2, 2, kCount * 4);
  for (int rank = 0; rank < 2; ++rank) {
    auto execution = execution_of({0, 1}, rank, DType::float32, kCount, 3);
    Transport& own = *ranks.transports[rank];
    execution.contribution = own.buffer(0);
    execution.stamp = ranks.stamp(rank, 0) = 3;
    execution.target = own.buffer(1);
    own.begin(execution);
  }
  Transport& first = *ranks.transports[0];
  poll("a version of one that looks", first, [&] { return first.progress().released; });
}

void test_missing_names_who_is_waited_for() {
  Ranks ranks(3, 2, 400);
  const auto begin = [&](int rank, Version stamp) {
    auto execution = execution_of({0, 1, 2}, rank, DType::float32, 100, 0);
    execution.contribution = ranks.memory[rank]->buffer(0);
    execution.stamp = ranks.stamp(rank, 0) = stamp;
    execution.target = ranks.memory[rank]->buffer(1);
    ranks.transports[rank]->begin(execution);
  };
  begin(0, -1);
  WAGMA_CHECK((ranks.transports[0]->missing() == std::vector<int>{1, 2}));
  begin(2, 0);
  begin(1, -1);
  ranks.transports[0]->progress();
  WAGMA_CHECK((ranks.transports[0]->missing() == std::vector<int>{2}));  // only a present member reduces
}

// -- stamps -------------------------------------------------------------------------------------------------------------

void test_a_wrong_stamp_is_found() {
  Ranks ranks(2, 2, 400);
  for (int rank = 0; rank < 2; ++rank) {
    auto execution = execution_of({0, 1}, rank, DType::float32, 100, 5);
    execution.contribution = ranks.memory[rank]->buffer(0);
    execution.stamp = 5;
    ranks.stamp(rank, 0) = rank == 0 ? 5 : 4;  // rank 1's snapshot is not there
    execution.target = ranks.memory[rank]->buffer(1);
    ranks.transports[rank]->begin(execution);
  }
  std::string said;
  try {
    poll("a version", *ranks.transports[0], [&] { return ranks.transports[0]->progress().released; });
  } catch (const TransportError& error) {
    said = error.what();
  }
  WAGMA_CHECK(said == "rank 0: what rank 1 contributes to version 5 has the stamp 4: must be 5; its buffer was overwritten");
}

// -- the end ------------------------------------------------------------------------------------------------------------

void test_nobody_ends_before_all_have_closed_what_they_opened() {
  Ranks ranks(3, 1, 400);
  WAGMA_CHECK(!ranks.transports[0]->drain());
  WAGMA_CHECK(!ranks.transports[1]->drain());
  WAGMA_CHECK(!ranks.transports[0]->drain());
  WAGMA_CHECK(ranks.transports[2]->drain());
  WAGMA_CHECK(ranks.transports[0]->drain() && ranks.transports[1]->drain());
}

void test_more_ranks_than_a_kernel_adds_up() {
  const int number = Device::kMostMembers + 1;
  LocalHub hub(number);
  const auto memory = std::make_shared<DeviceBuffers>(emulated_device(0), 1, 4);
  std::string said;
  try {
    hub.device_transport(0, memory, std::vector<std::string>(number, memory->address()));
  } catch (const TransportError& error) {
    said = error.what();
  }
  WAGMA_CHECK(said == "rank 0: 129 ranks on one machine: must be at most 128 where models are reduced on devices");
}

template <class Done>
void until(const char* what, Done done) {
  const auto deadline = Clock::now() + std::chrono::duration<double>(kLimitS);
  while (!done()) {
    if (Clock::now() > deadline) throw std::logic_error(std::string(what) + " has not come");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// What two processes of a test tell each other; no device is used before they are two.
struct Told {
  std::atomic<int> ready[2];
  std::atomic<int> seen;
  char address[2][1000];
};

std::shared_ptr<DeviceNodeTransport> transport_of(const std::shared_ptr<Node>& node, Told& told, int rank, std::size_t bytes) {
  auto memory = std::make_shared<DeviceBuffers>(emulated_device(0), 2, bytes);
  std::strncpy(told.address[rank], memory->address().c_str(), sizeof told.address[rank] - 1);
  told.ready[rank] = 1;
  until("the other process", [&] { return told.ready[1 - rank] != 0; });
  return std::make_shared<DeviceNodeTransport>(node, rank, memory, std::vector<std::string>{told.address[0], told.address[1]});
}

void begin_version(DeviceNodeTransport& own, std::size_t count, Version version) {
  auto execution = execution_of({0, 1}, own.rank(), DType::float32, count, version);
  fill(own.buffer(0), DType::float32, count, static_cast<std::uint64_t>(own.rank()));
  *reinterpret_cast<std::int64_t*>(own.buffer(0) + (own.buffer(1) - own.buffer(0)) - 256) = version;
  execution.contribution = own.buffer(0);
  execution.stamp = version;
  execution.target = own.buffer(1);
  execution.divisor = 2;
  own.begin(execution);
}

// Two processes map each other's buffers; the second one dies with a chunk in its hands, and the first one says so.
void test_processes_and_one_that_dies() {
  constexpr std::size_t kCount = 600'000;
  auto* told = static_cast<Told*>(::mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  WAGMA_CHECK(told != MAP_FAILED);
  const auto node = Node::create({2, 0, 0});
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      const auto own = transport_of(node, *told, 1, kCount * 4);
      begin_version(*own, kCount, 0);
      poll("the first version", *own, [&] { return own->progress().released; });
      emulated::settings().delay_us = 60'000'000;
      begin_version(*own, kCount, 1);
      poll("a chunk to take", *own, [&] { return own->progress().moved; });
      told->seen = 1;
      ::pause();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "rank 1: %s\n", error.what());
    }
    ::_exit(1);
  }
  const auto own = transport_of(node, *told, 0, kCount * 4);
  begin_version(*own, kCount, 0);
  poll("the first version", *own, [&] { return own->progress().released; });
  Bytes contributions[2] = {Bytes(kCount * 4), Bytes(kCount * 4)}, mean(kCount * 4);
  for (int rank = 0; rank < 2; ++rank) fill(contributions[rank].data(), DType::float32, kCount, static_cast<std::uint64_t>(rank));
  const void* const sources[] = {contributions[0].data(), contributions[1].data()};
  void* const target = mean.data();
  const int divisor = 2;
  reduce(DType::float32, sources, 2, &target, &divisor, 1, kCount, Stores::cached);
  WAGMA_CHECK(std::memcmp(own->buffer(1), mean.data(), mean.size()) == 0);
  begin_version(*own, kCount, 1);
  until("a chunk on the other's device", [&] { return told->seen != 0; });
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  std::string said;
  try {
    poll("a version of one that died", *own, [&] { return own->progress().released; });
  } catch (const PeerFailed& failure) {
    said = failure.what();
  }
  WAGMA_CHECK(said == "rank 1 failed: its process has ended without a word");
  until("the end", [&] { return own->drain(); });  // the dead keep nothing open
  ::munmap(told, sizeof(Told));
}

void test_bits_of_all_types() {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    for (const int members : {1, 2, 3, 5}) {
      for (const std::size_t count : {std::size_t{1}, std::size_t{1003}}) test_bits({members, count, dtype});
    }
    test_bits({3, 1'200'001, dtype});
  }
}

void test_bits_on_a_slow_device() {
  emulated::settings().delay_us = 300;
  test_bits({3, 600'001, DType::float32});
  emulated::settings().delay_us = 0;
}

}  // namespace

int main() {
  return run_tests({
      // First: it forks, which no thread may have been started before.
      {"processes, and one that dies", test_processes_and_one_that_dies},
      {"bits of all types", test_bits_of_all_types},
      {"bits on a slow device", test_bits_on_a_slow_device},
      {"a passive member is needed for nothing", test_a_passive_member_is_needed_for_nothing},
      {"one present member does all", test_one_present_member_does_all},
      {"missing names who is waited for", test_missing_names_who_is_waited_for},
      {"a wrong stamp is found", test_a_wrong_stamp_is_found},
      {"nobody ends before all have closed what they opened", test_nobody_ends_before_all_have_closed_what_they_opened},
      {"more ranks than a kernel adds up", test_more_ranks_than_a_kernel_adds_up},
  });
}
