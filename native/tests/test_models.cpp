// How models get from a device into buffers and back: with the bits of arrays in host memory, in whatever order streams come to their work,
// through chunks and in one piece, and what is left behind when a wait is given up.
#include <bit>
#include <thread>

#include "device_ranks.hpp"
#include "wagma/digest.hpp"

using namespace wagma;
using namespace wagma::testing;

namespace {

constexpr double kLimit = 30.0;

// Any bits but those of NaNs and infinities, whose arithmetic is the kernels' tests' matter.
std::vector<std::byte> items_of(DType dtype, std::size_t count, std::uint64_t seed) {
  std::vector<std::byte> items(count * item_size(dtype));
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t drawn = draw(seed, static_cast<std::uint64_t>(dtype), i);
    const auto put = [&](auto value) { std::memcpy(items.data() + i * sizeof value, &value, sizeof value); };
    const double value = static_cast<double>(drawn % 2000003) / 1000.0 - 1000.0;
    switch (dtype) {
      case DType::float64: put(value); break;
      case DType::float32: put(static_cast<float>(value)); break;
      case DType::bfloat16: put(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16)); break;
      case DType::float16: put(static_cast<std::uint16_t>(drawn % 0x7C00 | (drawn >> 20 & 1) << 15)); break;
    }
  }
  return items;
}

std::vector<std::byte> sums_of(DType dtype, std::size_t count, std::uint64_t seed) {
  return items_of(dtype == DType::float64 ? DType::float64 : DType::float32, count, seed);
}

// Buffers as a transport has them, where they belong for the models in question, and both ways to look at them.
struct Bench {
  std::shared_ptr<Device> device = emulated_device(0);
  std::shared_ptr<Models> models;
  std::byte* buffer = nullptr;
  std::int64_t* stamp = nullptr;  // none in host memory
  DType dtype;
  std::size_t count;
  std::shared_ptr<LocalHub> hub;

  static std::size_t stamp_offset(DType dtype, std::size_t count) { return (count * accumulator_size(dtype) + 255) / 256 * 256; }

  Bench(bool on_device, DType type, std::size_t elements, std::size_t chunk_bytes = kChunkBytes) : dtype(type), count(elements) {
    const std::size_t bytes = count * accumulator_size(dtype);
    if (on_device) {
      const std::size_t offset = stamp_offset(dtype, count);
      buffer = device->allocate(offset + 256);
      stamp = reinterpret_cast<std::int64_t*>(buffer + offset);
      models = device_models(device, dtype, count, offset, kLimit, chunk_bytes);
    } else {
      hub = std::make_shared<LocalHub>(1);
      const auto transport = hub->transport(0, 2, bytes);
      buffer = transport->buffer(1);
      models = staged_models(device, dtype, count, transport, kLimit, chunk_bytes);
    }
  }
  ~Bench() {
    if (!models->settled(kLimit)) std::abort();
    models.reset();
    if (stamp) device->release(buffer);
  }
  void wait() const {
    const auto limit = Clock::now() + std::chrono::duration<double>(kLimit);
    while (!models->done()) {
      if (Clock::now() > limit) throw std::logic_error("the device has not done it");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  // Device memory of the emulation is the host's; whoever looks waits for the device first.
  void put(const std::vector<std::byte>& bytes) const { std::memcpy(buffer, bytes.data(), bytes.size()); }
  bool holds(const std::vector<std::byte>& bytes) const { return std::memcmp(buffer, bytes.data(), bytes.size()) == 0; }
};

void there_and_back(bool on_device, DType dtype, std::size_t count, std::size_t chunk_bytes) {
  const Bench bench(on_device, dtype, count, chunk_bytes);
  EmulatedStream stream;
  Tensors tensors(bench.device, stream, dtype, count);
  const auto own = items_of(dtype, count, 1), other = items_of(dtype, count, 2), total = sums_of(dtype, count, 3);
  Models& models = *bench.models;

  tensors.set(own.data());
  models.publish(bench.buffer, tensors.own(), 7);
  if (count * item_size(dtype) > chunk_bytes) bench.wait();  // chunks may have yet to be begun
  tensors.set(other.data());                                 // in the stream behind what publishing reads, although nobody has waited
  bench.wait();
  WAGMA_CHECK(bench.holds(own) && (!bench.stamp || *bench.stamp == 7));
  WAGMA_CHECK(models.digest(bench.buffer, own.size()) == digest(own.data(), own.size()));
  WAGMA_CHECK(models.digest_own(tensors.own()) == digest(other.data(), other.size()));

  for (const auto& [weight, divisor] : {std::pair{1, 3}, {0, 2}, {0, 1}}) {
    auto merged = own;
    tensors.set(own.data());
    bench.put(total);
    models.merge(tensors.own(), tensors.own(), bench.buffer, weight, divisor);
    bench.wait();
    merge_into(dtype, merged.data(), own.data(), total.data(), weight, divisor, count);
    WAGMA_CHECK(tensors.items() == merged);
  }
  bench.put(other);
  models.take(tensors.own(), bench.buffer);
  bench.wait();
  WAGMA_CHECK(tensors.items() == other);

  auto added = own;
  tensors.set(own.data());
  models.add(tensors.own(), bench.buffer);
  bench.wait();
  add_into(dtype, added.data(), other.data(), count);
  WAGMA_CHECK(tensors.items() == added);

  models.fill(bench.buffer, own.data(), -1);
  WAGMA_CHECK(bench.holds(own) && (!bench.stamp || *bench.stamp == -1));
  bench.put(total);
  models.finish(bench.buffer, 9);
  auto finished = own;
  merge_into(dtype, finished.data(), nullptr, total.data(), 0, 1, count);
  WAGMA_CHECK(bench.holds(finished) && (!bench.stamp || *bench.stamp == 9));
}

void all_ways(DType dtype, std::size_t count, std::size_t chunk_bytes = kChunkBytes) {
  there_and_back(true, dtype, count, chunk_bytes);
  there_and_back(false, dtype, count, chunk_bytes);
  emulated::settings().refuse_pin = true;
  there_and_back(false, dtype, count, chunk_bytes);
  emulated::settings().refuse_pin = false;
}

void bits_are_the_hosts() {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    for (const std::size_t count : {1, 2, 1000, 4099}) all_ways(dtype, count);
  }
}

// More chunks than there are slots, and than are begun at once; the last one is not full.
void many_chunks() {
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) all_ways(dtype, 40000, 1024);
  all_ways(DType::float32, 256 * 5, 1024);
}

// Operations begin later by random times: order comes from marks, not from luck.
void delayed_streams() {
  emulated::settings().delay_us = 300;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    emulated::settings().seed = seed;
    all_ways(DType::float32, 999);
    all_ways(DType::float32, 3000, 1024);
  }
  emulated::settings().delay_us = 0;
}

// A part without memory reads as zeros; what is written to it is lost. Parts of another type are converted.
void parts_of_other_kinds() {
  for (const bool on_device : {true, false}) {
    constexpr std::size_t kCount = 600;
    const Bench bench(on_device, DType::float64, kCount);
    EmulatedStream stream;
    std::byte* data = bench.device->allocate(200 * 4 + 200 * 8);
    const auto singles = items_of(DType::float32, 200, 4), doubles = items_of(DType::float64, 200, 5);
    std::memcpy(data, singles.data(), singles.size());
    std::memcpy(data + 800, doubles.data(), doubles.size());
    const auto parts = bench.device->parts(DType::float64, {{data, 200, DType::float32}, {nullptr, 200, DType::float32}, {data + 800, 200, DType::float64}});
    OnDevice own{parts.get(), stream.handle()};
    bench.models->publish(bench.buffer, &own, 1);
    bench.wait();
    std::vector<double> expected(kCount);
    for (std::size_t i = 0; i < 200; ++i) {
      float single;
      std::memcpy(&single, singles.data() + 4 * i, 4);
      expected[i] = single;
    }
    std::memcpy(expected.data() + 400, doubles.data(), doubles.size());
    WAGMA_CHECK(std::memcmp(bench.buffer, expected.data(), kCount * 8) == 0);
    WAGMA_CHECK(bench.models->digest_own(&own) == digest(expected.data(), kCount * 8));
    bench.models->take(&own, bench.buffer);
    bench.wait();
    stream.synchronize();
    WAGMA_CHECK(std::memcmp(data, singles.data(), singles.size()) == 0 && std::memcmp(data + 800, doubles.data(), doubles.size()) == 0);
    bench.device->release(data);
  }
}

// The caller's stream does not end: nothing waits for it but who asks, and what was begun is known to be under way.
void a_stream_that_does_not_end() {
  for (const bool on_device : {true, false}) {
    const Bench bench(on_device, DType::float32, 1000);
    EmulatedStream stream;
    Tensors tensors(bench.device, stream, DType::float32, 1000);
    const auto own = items_of(DType::float32, 1000, 6);
    tensors.set(own.data());
    Gate gate(stream);
    bench.models->publish(bench.buffer, tensors.own(), 3);
    WAGMA_CHECK(!bench.models->done() && !bench.models->settled(0.02));
    // Meanwhile whoever drives goes on with what lies in other memory of the device.
    WAGMA_CHECK(bench.models->digest(reinterpret_cast<const std::byte*>(own.data()), own.size()) == digest(own.data(), own.size()));
    gate.open();
    bench.wait();
    WAGMA_CHECK(bench.models->settled(kLimit) && bench.holds(own));
  }
}

void another_model_is_refused() {
  const Bench bench(true, DType::float32, 10);
  EmulatedStream stream;
  Tensors tensors(bench.device, stream, DType::float32, 11);
  try {
    bench.models->publish(bench.buffer, tensors.own(), 0);
  } catch (const std::invalid_argument& error) {
    WAGMA_CHECK(std::string(error.what()) == "the model has 11 elements of float32: must be 10 of float32");
    return;
  }
  WAGMA_CHECK(false);
}

void what_it_is_called() {
  WAGMA_CHECK(Bench(false, DType::float32, 10).models->suffix() == ", through pinned host memory");
  emulated::settings().refuse_pin = true;
  WAGMA_CHECK(Bench(false, DType::float32, 10).models->suffix() == ", through pinned host memory chunk by chunk");
  emulated::settings().refuse_pin = false;
  WAGMA_CHECK(Bench(true, DType::float32, 10).models->suffix().empty());
}

}  // namespace

int main() {
  return run_tests({{"bits_are_the_hosts", bits_are_the_hosts},
                    {"many_chunks", many_chunks},
                    {"delayed_streams", delayed_streams},
                    {"parts_of_other_kinds", parts_of_other_kinds},
                    {"a_stream_that_does_not_end", a_stream_that_does_not_end},
                    {"another_model_is_refused", another_model_is_refused},
                    {"what_it_is_called", what_it_is_called}});
}
