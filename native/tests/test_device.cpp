// Devices, queues and parts on the emulated runtime: orders and marks, what happens with too little memory, refusals and broken devices,
// what a reduction finds, several threads on one device. The bits of the kernels are test_device_kernels'; memory of other processes is
// test_device_sharing's; that a missing order would be seen is device_races'.
#include <malloc.h>

#include <array>
#include <cmath>

#include "../device/emulated/application.hpp"
#include "../device/emulated/runtime.hpp"
#include "../device/emulated/settings.hpp"
#include "device_ranks.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

constexpr double kLimit = 20.0;
constexpr std::size_t kMiB = std::size_t{1} << 20;

template <class Error, class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const Error& error) {
    WAGMA_CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

double seconds_of(const std::function<void()>& call) {
  const auto begun = Clock::now();
  call();
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

struct Allocated {
  Allocated(std::shared_ptr<Device> of, std::size_t bytes) : device(std::move(of)), data(device->allocate(bytes)) {}
  ~Allocated() { device->release(data); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  std::shared_ptr<Device> device;
  std::byte* data;
};

void devices_are_counted() {
  WAGMA_CHECK(emulated_devices() == 2);
  const auto device = emulated_device(1);
  WAGMA_CHECK(device->kind() == std::string("emulated") && device->index() == 1 && device->name() == "emulated");
  WAGMA_CHECK(emulated_device(1) == device);  // ranks that are threads share it
  WAGMA_CHECK(emulated_device(0)->identity() != device->identity());
  const std::string text = refusal<DeviceError>([] { emulated_device(2); });
  WAGMA_CHECK(text == "device emulated:2: this process sees 2 devices, numbers 0 to 1");
  WAGMA_CHECK(has(refusal<DeviceError>([] { emulated_device(-1); }), "numbers 0 to 1"));
}

void marks_come_in_order() {
  const auto device = emulated_device(0);
  const auto queue = device->queue(false);
  EmulatedStream application;
  const Mark first = queue->mark();
  Gate gate(application);
  queue->follow(application.handle());
  const Mark second = queue->mark(), third = queue->mark();
  WAGMA_CHECK(first < second && second < third);
  queue->wait(first, kLimit);
  WAGMA_CHECK(!queue->reached(third));  // asking does not wait: it would not come back
  const std::string text = refusal<DeviceError>([&] { queue->wait(third, 0.02); });
  WAGMA_CHECK(text == "device emulated:0: mark 3 of 3 was not reached within 0.02 s; the last one that was is 1");
  gate.open();
  queue->wait(third, kLimit);
  WAGMA_CHECK(queue->reached(first) && queue->reached(second) && queue->reached(third));
  WAGMA_CHECK(has(refusal<std::invalid_argument>([&] { queue->reached(4); }), "mark 4: must be at most 3"));
}

// As a training step has it: tensors of the application's stream, published, averaged and put back, with random delays everywhere.
void streams_are_in_order(int rounds) {
  const auto device = emulated_device(0);
  const auto own = device->queue(false), urgent = device->queue(true);
  EmulatedStream application;
  constexpr std::size_t kCount = 3000;
  const Allocated tensors(device, kCount * 4), buffers(device, 8 * kMiB);
  std::byte *const published = buffers.data, *const total = buffers.data + 4 * kMiB;
  auto* const stamp = reinterpret_cast<std::int64_t*>(buffers.data + 2 * kMiB);
  const auto parts = device->parts(DType::float32, {{tensors.as<float>(), 1000, DType::float32}, {tensors.as<float>() + 1000, 2000, DType::float32}});
  for (int round = 0; round < rounds; ++round) {
    application.fill(tensors.data, kCount, DType::float32, round);
    own->follow(application.handle());
    own->publish(*parts, 0, kCount, published, stamp, round);
    const Mark whole = own->mark();
    urgent->follow(*own, whole);
    const Reduction::Source model{published, stamp, round}, nothing{};
    const Reduction reduction{DType::float32, 0, kCount, {model, model, nothing}, {{total, nullptr, 1}}, {}};
    urgent->reduce(reduction);
    const Mark summed = urgent->mark();
    own->follow(*urgent, summed);
    own->merge(*parts, 0, kCount, total, 1, 3);
    own->lead(application.handle());
    float sum = 0;
    application.run([&sum, data = tensors.as<float>()] {
      for (std::size_t i = 0; i < kCount; ++i) sum += data[i];
    });
    application.synchronize();
    WAGMA_CHECK(sum == static_cast<float>(round) * kCount);  // (2 r + r) / 3
    own->wait(own->mark(), kLimit);
    WAGMA_CHECK(*stamp == round && urgent->reached(summed) && !urgent->wrong_stamp());
  }
}

void tensors_may_move() {
  const auto device = emulated_device(0);
  const auto queue = device->queue(false);
  const Allocated memory(device, kMiB);
  float* const data = memory.as<float>();
  for (int i = 0; i < 12; ++i) data[i] = static_cast<float>(i);
  float* const model = data + 64;
  const auto parts = device->parts(DType::float32, {{data, 2, DType::float32}, {nullptr, 1, DType::float32}, {data + 4, 3, DType::float32}});
  WAGMA_CHECK(parts->count() == 6 && parts->dtype() == DType::float32);
  const auto published = [&](std::array<float, 6> expected) {
    queue->publish(*parts, 0, 6, reinterpret_cast<std::byte*>(model), nullptr, 0);
    queue->wait(queue->mark(), kLimit);
    for (int i = 0; i < 6; ++i) WAGMA_CHECK(model[i] == expected[i]);
  };
  published({0, 1, 0, 4, 5, 6});
  parts->place({data + 8, data + 2, nullptr});
  published({8, 9, 2, 0, 0, 0});
  for (int i = 0; i < 50; ++i) parts->place({data + i % 2, data, data});  // each is behind the one before
  published({1, 2, 0, 0, 1, 2});
  WAGMA_CHECK(has(refusal<std::invalid_argument>([&] { parts->place({data}); }), "1 addresses: must be 3, one for each tensor"));
  const auto odd = reinterpret_cast<std::byte*>(data) + 2;
  WAGMA_CHECK(has(refusal<std::invalid_argument>([&] { parts->place({data, odd, data}); }), "tensor 1: its address must be a multiple of 4"));
  const auto too_wide = [&] { device->parts(DType::bfloat16, {{data, 2, DType::bfloat16}, {data, 2, DType::float32}}); };
  WAGMA_CHECK(has(refusal<std::invalid_argument>(too_wide), "tensor 1 is float32: a model of bfloat16 does not hold all of its values"));
  const auto beyond = [&] { queue->publish(*parts, 4, 3, reinterpret_cast<std::byte*>(model), nullptr, 0); };
  WAGMA_CHECK(has(refusal<std::invalid_argument>(beyond), "publish: elements 4 to 7: must be within the model's 6"));
  const auto none = device->parts(DType::float16, {});
  queue->publish(*none, 0, 0, reinterpret_cast<std::byte*>(model), reinterpret_cast<std::int64_t*>(data), 77);
  queue->wait(queue->mark(), kLimit);
  WAGMA_CHECK(*memory.as<std::int64_t>() == 77);
}

// Each once, in order, and not before the mark behind it: more of them than findings are made at a time.
void wrong_stamps_are_found() {
  const auto device = emulated_device(0);
  const auto queue = device->queue(true);
  const Allocated memory(device, kMiB);
  auto* const stamps = memory.as<std::int64_t>();
  std::byte *const data = memory.data + 4096, *const target = memory.data + 8192;
  for (int i = 0; i < 3; ++i) stamps[i] = 10 + i;
  const auto reduce = [&](Version expected) {
    Reduction reduction{DType::float32, 0, 8, {}, {{target, nullptr, 3}}, {}};
    for (int i = 0; i < 3; ++i) reduction.sources.push_back({data, stamps + i, i == 1 ? expected : 10 + i});
    queue->reduce(reduction);
  };
  for (int i = 0; i < 150; ++i) reduce(i % 2 ? 11 : 40 + i);
  const Mark mark = queue->mark();
  queue->wait(mark, kLimit);
  for (int i = 0; i < 75; ++i) {
    const auto found = queue->wrong_stamp();
    WAGMA_CHECK(found && found->source == 1 && found->found == 11);
  }
  WAGMA_CHECK(!queue->wrong_stamp());
  reduce(99);
  const Mark last = queue->mark();
  WAGMA_CHECK(!queue->wrong_stamp());  // nobody has seen that mark reached
  queue->wait(last, kLimit);
  WAGMA_CHECK(queue->wrong_stamp() && !queue->wrong_stamp());
}

void memory_ends() {
  const auto device = emulated_device(0);
  const std::size_t before = emulated::settings().memory;
  const auto [free, total] = device->memory();
  WAGMA_CHECK(total == before && free <= total);
  emulated::settings().memory = total - free + 5 * kMiB;
  {
    const Allocated two(device, 1), three(device, kMiB + 1);  // whole 2 MiB each: what is shared shows nothing else
    WAGMA_CHECK(device->memory().free == kMiB && reinterpret_cast<std::uintptr_t>(two.data) % 256 == 0);
    const std::string text = refusal<OutOfDeviceMemory>([&] { device->allocate(3 * kMiB); });
    WAGMA_CHECK(text == "device emulated:0: cudaMalloc of 4194304 bytes, with 1048576 of " + std::to_string(emulated::settings().memory) +
                            " free: out of memory (cudaErrorMemoryAllocation, 2)");
    WAGMA_CHECK(has(refusal<OutOfDeviceMemory>([&] { device->allocate(~std::size_t{0}); }), "cannot be had"));
  }
  const Allocated again(device, 4 * kMiB);
  for (std::size_t i = 0; i < 4 * kMiB; ++i) WAGMA_CHECK(again.data[i] == std::byte{0});
  emulated::settings().memory = before;
}

void host_memory_is_pinned() {
  const auto device = emulated_device(0);
  std::vector<std::byte> plain(10000);
  WAGMA_CHECK(device->pin(plain.data(), plain.size()));
  device->unpin(plain.data());
  emulated::settings().refuse_pin = true;
  WAGMA_CHECK(!device->pin(plain.data(), plain.size()));
  WAGMA_CHECK(emulated::cudaGetLastError() == emulated::cudaSuccess);  // no error is left for the application to find
  emulated::settings().refuse_pin = false;
  std::byte* const pinned = device->allocate_host(10000);
  const Allocated memory(device, 10000);
  const auto queue = device->queue(false);
  for (int i = 0; i < 10000; ++i) pinned[i] = static_cast<std::byte>(i);
  queue->copy(memory.data, pinned, 10000);
  queue->copy(plain.data(), memory.data, 10000);
  queue->wait(queue->mark(), kLimit);
  for (int i = 0; i < 10000; ++i) WAGMA_CHECK(plain[i] == static_cast<std::byte>(i));
  device->release_host(pinned);
}

// Each call is on its own device whichever is the thread's, and leaves that as it was.
void devices_are_current() {
  int now = 0;
  WAGMA_CHECK(emulated::cudaSetDevice(1) == emulated::cudaSuccess);
  const auto zero = emulated_device(0), one = emulated_device(1);
  marks_come_in_order();
  tensors_may_move();
  WAGMA_CHECK(emulated::cudaGetDevice(&now) == emulated::cudaSuccess && now == 1);
  WAGMA_CHECK(emulated::cudaSetDevice(0) == emulated::cudaSuccess);
  const auto here = zero->queue(false), there = one->queue(false);
  WAGMA_CHECK(has(refusal<std::invalid_argument>([&] { here->follow(*there, there->mark()); }), "must be a queue of the same device"));
  EmulatedStream other(1);
  const auto elsewhere = [&] { here->follow(other.handle()); };
  WAGMA_CHECK(has(refusal<DeviceError>(elsewhere), "cudaEventRecord of the application's stream: invalid resource handle"));
  WAGMA_CHECK(has(refusal<DeviceError>([&] { here->follow(12345); }), "invalid resource handle"));
}

// The application's default stream: on the emulated device what it does is done when it says so.
void default_stream_counts() {
  const auto device = emulated_device(0);
  const auto queue = device->queue(false);
  const Allocated memory(device, 64);
  memory.as<float>()[0] = 3;
  queue->follow(Stream{0});
  queue->copy(memory.data + 4, memory.data, 4);
  queue->lead(0);
  queue->follow(Stream{0});
  queue->wait(queue->mark(), kLimit);
  WAGMA_CHECK(memory.as<float>()[1] == 3);
}

// Ranks that are threads: all of them make, use and end queues, parts and memory of one device at once.
void threads_share_a_device() {
  emulated::settings().delay_us = 100;
  streams_are_in_order(10);
  std::vector<std::thread> threads;
  std::array<std::string, 4> errors;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      try {
        for (int i = 0; i < 3; ++i) {
          streams_are_in_order(3);
          const auto device = emulated_device(t % 2);
          const Allocated memory(device, 100);
          const std::string text = device->share(memory.data);
          std::byte* const opened = emulated_device(0)->open(text);
          WAGMA_CHECK(opened == memory.data);
          emulated_device(0)->close(opened);
        }
      } catch (const std::exception& error) {
        errors[t] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  emulated::settings().delay_us = 0;
  for (const auto& error : errors) {
    if (!error.empty()) throw std::logic_error(error);
  }
}

// Ten thousand times the calls of a collective: everything is used again.
void nothing_grows() {
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  streams_are_in_order(100);
  const std::size_t before = ::mallinfo2().uordblks;
  streams_are_in_order(3000);
  const std::size_t grown = ::mallinfo2().uordblks - before;
  WAGMA_CHECK(grown < 100'000 || grown > ~std::size_t{0} / 2);
#endif
}

// What a kernel does to its device comes out wherever somebody asks; ends stay short, and say nothing more.
void broken_devices_say_so() {
  const auto device = emulated_device(1);
  auto queue = device->queue(false);
  const Mark before = queue->mark();
  queue->wait(before, kLimit);
  auto application = std::make_unique<EmulatedStream>(1);
  queue->follow(application->handle());
  application->fail();
  const auto ask = [&] {
    for (int i = 0; i < 1000; ++i) {
      queue->reached(queue->mark());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  const std::string text = refusal<DeviceError>(ask);
  WAGMA_CHECK(has(text, "device emulated:1: ") && has(text, "an illegal memory access was encountered (cudaErrorIllegalAddress, 700)"));
  WAGMA_CHECK(has(refusal<DeviceError>([&] { device->allocate(1); }), "illegal memory access"));
  WAGMA_CHECK(seconds_of([&] { queue.reset(); }) < 1.0);
}

}  // namespace

int main() {
  ::setenv("WAGMA_EMULATED_DEVICES", "2", 1);
  return run_tests({{"devices_are_counted", devices_are_counted},
                    {"marks_come_in_order", marks_come_in_order},
                    {"streams_are_in_order", [] { streams_are_in_order(20); }},
                    {"tensors_may_move", tensors_may_move},
                    {"wrong_stamps_are_found", wrong_stamps_are_found},
                    {"memory_ends", memory_ends},
                    {"host_memory_is_pinned", host_memory_is_pinned},
                    {"devices_are_current", devices_are_current},
                    {"default_stream_counts", default_stream_counts},
                    {"nothing_grows", nothing_grows},
                    {"threads_share_a_device", threads_share_a_device},
                    {"broken_devices_say_so", broken_devices_say_so}});
}
