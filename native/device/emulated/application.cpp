#include "application.hpp"

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "../device.hpp"
#include "../runtime.hpp"
#include "wagma/reduce.hpp"

namespace wagma {

using namespace emulated;

namespace {

cudaStream_t of(Stream handle) { return reinterpret_cast<cudaStream_t>(handle); }
std::string named(int device) { return device_label(device, "emulated"); }

}  // namespace

EmulatedStream::EmulatedStream(int device) : device_(make_device(device)->index()) {
  const Current current(device_, named(device_));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, 0), named(device_), "cudaStreamCreateWithPriority");
  handle_ = reinterpret_cast<Stream>(stream);
}

EmulatedStream::~EmulatedStream() { cudaStreamDestroy(of(handle_)); }

void EmulatedStream::run(std::function<void()> work) {
  const Current current(device_, named(device_));
  check(enqueue(of(handle_), std::move(work)), named(device_), "enqueue");
}

void EmulatedStream::sleep(double seconds) {
  run([seconds] { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); });
}

void EmulatedStream::fill(void* data, std::size_t count, DType dtype, double value) {
  run([=] {
    const float narrow = static_cast<float>(value);
    const void* accumulator = dtype == DType::float64 ? static_cast<const void*>(&value) : &narrow;
    std::byte item[8];
    merge_into(dtype, item, nullptr, accumulator, 0, 1, 1);  // rounds
    const std::size_t size = item_size(dtype);
    for (std::size_t i = 0; i < count; ++i) std::memcpy(static_cast<std::byte*>(data) + i * size, item, size);
  });
}

void EmulatedStream::fail() {
  const Current current(device_, named(device_));
  check(enqueue_fault(of(handle_), cudaErrorIllegalAddress), named(device_), "enqueue");
}

void EmulatedStream::synchronize() {
  const Current current(device_, named(device_));
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), named(device_), "cudaEventCreateWithFlags");
  cudaError_t code = cudaEventRecord(event, of(handle_));
  if (code == cudaSuccess) code = cudaEventSynchronize(event);
  cudaEventDestroy(event);
  check(code, named(device_), "cudaEventSynchronize");
}

}  // namespace wagma
