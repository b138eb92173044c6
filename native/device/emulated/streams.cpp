// Streams as threads, events as flags.
//
// Who synchronises with whom is the whole point, so nothing here gives an order that CUDA does not give:
//   host -> operation       Operation::followed, of the one before it: push() releases, the worker acquires
//   operation -> the next   the same thread
//   event -> waiting stream, asking host      Point::done, released by the worker that has come to the event, acquired by whoever has found it
//                                             set; one flag for each time an event is recorded, so that nobody is ordered behind a later one
// and nothing goes from a worker to a host but through Point::done. That is why there are no mutexes, no shared_ptr and no libstdc++ waiting
// (each of which would also order the host behind the worker that last had it), but futexes, whose calls no sanitizer sees, a
// queue that only hosts write to, and users of a point counted without acquiring.
#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../../src/futex.hpp"
#include "runtime.hpp"
#include "settings.hpp"

namespace wagma::emulated {

namespace {

constexpr std::uint32_t kAnyone = ~std::uint32_t{0};

Clock::time_point some_time() { return Clock::now() + std::chrono::minutes(1); }  // whoever sleeps looks again then

// What an event stands for since it was last recorded.
struct Point {
  Atomic<std::uint32_t> done{0};
  // Operations that still touch it; the hosts count up, the workers down. Zero: it may be used again. A host that reads zero overwrites
  // `done` with relaxed order; the worker's last look at it comes before its count (release), so it cannot see that.
  std::atomic<int> users{0};

  bool reached() const {
    // Acquires only what it has seen set: an acquire that finds zero would order the caller behind the point's former use.
    return done.load(std::memory_order_relaxed) != 0 && done.load(std::memory_order_acquire) != 0;
  }
  void wait() {
    while (!reached()) futex_wait(done, 0, some_time(), kAnyone);
  }
  void set() {
    done.store(1, std::memory_order_release);
    futex_wake(done, kAnyone);
  }
  void leave() { users.fetch_sub(1, std::memory_order_release); }
  bool is_free() const { return users.load(std::memory_order_relaxed) == 0; }
};

// Points of events that are gone, which streams may still touch. Never destroyed, nor are its points.
struct Left {
  std::mutex mutex;
  std::vector<Point*> points;
};
Left& left() {
  static Left* const only = new Left;
  return *only;
}

struct Operation {
  std::function<void()> work;
  Operation* next = nullptr;              // of the stream, once `followed` says so
  Atomic<std::uint32_t> followed{0};
};

}  // namespace

struct EmulatedEvent {
  int device = 0;
  Point* newest = nullptr;     // nullptr: never recorded, which counts as reached
  std::vector<Point*> points;  // of this event, to be used again

  Point* fresh() {
    for (Point* point : points) {
      if (point->is_free()) return point;
    }
    points.push_back(found());
    return points.back();
  }

 private:
  static Point* found() {
    std::lock_guard lock(left().mutex);
    auto& points = left().points;
    for (Point*& point : points) {
      if (!point->is_free()) continue;
      Point* const taken = point;
      point = points.back();
      points.pop_back();
      return taken;
    }
    return new Point;
  }
};

struct EmulatedWorker {
  EmulatedWorker(int device, std::uint64_t number) : device(device), number(number), first(new Operation), last(first) {}
  ~EmulatedWorker() { delete first; }

  // Of any host thread. The exchange orders hosts that give to the same stream among each other, and nobody else. Each operation has a flag
  // of its own: by one for all of them the worker would be ordered behind what hosts did before they gave it later ones.
  void push(std::function<void()> work) {
    auto* const operation = new Operation;
    operation->work = std::move(work);
    Operation* const before = last.exchange(operation, std::memory_order_acq_rel);
    before->next = operation;
    before->followed.store(1, std::memory_order_release);
    futex_wake(before->followed, kAnyone);  // by its address: the worker may have deleted it by now, and even itself
  }

  void run() {
    for (std::uint64_t taken = 1; !stopped; ++taken) {
      while (first->followed.load(std::memory_order_acquire) == 0) futex_wait(first->followed, 0, some_time(), kAnyone);
      Operation* const operation = first->next;
      delete first;
      first = operation;
      delay(taken);
      operation->work();
      operation->work = nullptr;
    }
    delete this;
  }

  const int device;
  const std::uint64_t number;
  bool stopped = false;  // by an operation

 private:
  void delay(std::uint64_t index) const {
    const unsigned most = settings().delay_us.load(std::memory_order_relaxed);
    if (most == 0) return;
    const std::uint64_t seed = settings().seed.load(std::memory_order_relaxed);
    std::uint64_t x = seed * 0x9E3779B97F4A7C15u + number * 0xBF58476D1CE4E5B9u + index * 0x94D049BB133111EBu;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;  // splitmix64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    std::this_thread::sleep_for(std::chrono::microseconds((x ^ (x >> 31)) % (most + 1u)));
  }

  Operation* first;              // the worker's: the last one that it has run
  std::atomic<Operation*> last;  // the hosts'
};

namespace {

// All streams that there are, so that a number that is none is an error and not a crash. Read without order: whoever has a handle has it from
// whoever made it.
constexpr std::size_t kMostStreams = 4096;
std::array<std::atomic<EmulatedWorker*>, kMostStreams> streams;
std::array<std::atomic<EmulatedWorker*>, Settings::kMostDevices> default_streams;
std::atomic<std::uint64_t> made{0};

EmulatedWorker* start(int device) {
  auto* worker = new EmulatedWorker(device, made.fetch_add(1, std::memory_order_relaxed));
  for (auto& place : streams) {
    EmulatedWorker* none = nullptr;
    if (!place.compare_exchange_strong(none, worker, std::memory_order_relaxed)) continue;
    std::thread([worker] { worker->run(); }).detach();
    return worker;
  }
  delete worker;
  return nullptr;
}

bool is_default(cudaStream_t stream) { return reinterpret_cast<std::uintptr_t>(stream) <= 2; }  // also cudaStreamLegacy and cudaStreamPerThread

// The default stream of the current device, if it was ever given anything or `start_it`.
EmulatedWorker* default_stream(bool start_it) {
  auto& place = default_streams[current_device()];
  EmulatedWorker* worker = place.load(std::memory_order_acquire);
  if (worker != nullptr || !start_it) return worker;
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  if (place.load(std::memory_order_relaxed) == nullptr) place.store(start(current_device()), std::memory_order_release);
  return place.load(std::memory_order_relaxed);
}

// cudaSuccess and the worker, or what is wrong with the handle.
cudaError_t find(cudaStream_t stream, EmulatedWorker** worker) {
  if (const cudaError_t code = usable(current_device()); code != cudaSuccess) return code;
  if (is_default(stream)) {
    *worker = default_stream(true);
    return *worker == nullptr ? said(cudaErrorMemoryAllocation) : cudaSuccess;
  }
  for (auto& place : streams) {
    if (place.load(std::memory_order_relaxed) != stream) continue;
    *worker = stream;
    return usable(stream->device);
  }
  return said(cudaErrorInvalidResourceHandle);
}

}  // namespace

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  int least = 0, greatest = 0;
  if (const cudaError_t code = cudaDeviceGetStreamPriorityRange(&least, &greatest); code != cudaSuccess) return code;
  if (flags != cudaStreamNonBlocking || priority > least || priority < greatest) return said(cudaErrorInvalidValue);
  *stream = start(current_device());
  return *stream == nullptr ? said(cudaErrorMemoryAllocation) : cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  for (auto& place : streams) {
    if (stream == nullptr || place.load(std::memory_order_relaxed) != stream) continue;
    place.store(nullptr, std::memory_order_relaxed);
    stream->push([stream] { stream->stopped = true; });
    return cudaSuccess;
  }
  return said(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  EmulatedWorker* worker = nullptr;
  return is_default(stream) ? usable(current_device()) : find(stream, &worker);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  thread_local cudaStreamCaptureMode own = cudaStreamCaptureModeGlobal;
  std::swap(own, *mode);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  EmulatedWorker* worker = nullptr;
  if (flags != 0) return said(cudaErrorInvalidValue);
  if (const cudaError_t code = find(stream, &worker); code != cudaSuccess) return code;
  Point* const point = event->newest;
  if (point == nullptr) return cudaSuccess;
  point->users.fetch_add(1, std::memory_order_relaxed);
  worker->push([point] {
    point->wait();
    point->leave();
  });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (const cudaError_t code = usable(current_device()); code != cudaSuccess) return code;
  if (flags != cudaEventDisableTiming) return said(cudaErrorInvalidValue);
  *event = new EmulatedEvent;
  (*event)->device = current_device();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  {
    std::lock_guard lock(left().mutex);
    left().points.insert(left().points.end(), event->points.begin(), event->points.end());
  }
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  EmulatedWorker* worker = nullptr;
  if (!is_default(stream) || default_stream(false) != nullptr) {
    if (const cudaError_t code = find(stream, &worker); code != cudaSuccess) return code;
  } else if (const cudaError_t code = usable(current_device()); code != cudaSuccess) {
    return code;
  }
  if (event->device != (worker == nullptr ? current_device() : worker->device)) return said(cudaErrorInvalidResourceHandle);
  Point* const point = event->fresh();
  event->newest = point;
  if (worker == nullptr) {  // a default stream that was never given anything: all of it is done
    point->done.store(1, std::memory_order_release);
    return cudaSuccess;
  }
  point->done.store(0, std::memory_order_relaxed);
  point->users.store(1, std::memory_order_relaxed);
  worker->push([point] {
    point->set();
    point->leave();
  });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t code = usable(event->device); code != cudaSuccess) return code;
  return said(event->newest == nullptr || event->newest->reached() ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->newest != nullptr) event->newest->wait();
  return usable(event->device);
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  EmulatedWorker* worker = nullptr;
  if (const cudaError_t code = find(stream, &worker); code != cudaSuccess) return code;
  if (worker->device != current_device()) return said(cudaErrorInvalidResourceHandle);
  worker->push(std::move(work));
  return cudaSuccess;
}

cudaError_t enqueue_fault(cudaStream_t stream, cudaError_t code) {
  return enqueue(stream, [device = current_device(), code] { break_device(device, code); });
}

}  // namespace wagma::emulated
