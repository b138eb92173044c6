#include "queue.hpp"

#include <cstdio>
#include <new>
#include <stdexcept>

#include "waiting.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

namespace {

constexpr double kEndLimit = 3.0;  // seconds that an end waits for the device

cudaStream_t of(Stream caller) { return reinterpret_cast<cudaStream_t>(caller); }

}  // namespace

RuntimeQueue::RuntimeQueue(std::shared_ptr<RuntimeDevice> device, bool urgent) : device_(std::move(device)) {
  const Current current = this->current();
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), label(), "cudaDeviceGetStreamPriorityRange");
  try {
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, urgent ? greatest : least), label(), "cudaStreamCreateWithPriority");
    between_ = event();
    ticket_ = device_->take(sizeof(unsigned), true);
    check(cudaMemsetAsync(ticket_.data, 0, sizeof(unsigned), stream_), label(), "cudaMemsetAsync");
    add_findings();  // now: pinned memory that is allocated in the middle of a training waits for all that the device has to do
  } catch (...) {
    end();
    throw;
  }
}

RuntimeQueue::~RuntimeQueue() {
  bool over = false;
  try {
    over = wait_until(kEndLimit, [this, mark = mark()] { return reached(mark); });
  } catch (const std::exception&) {
    over = true;  // the device is broken, nothing runs on it any more
  }
  if (over) {
    end();
  } else {  // stream, events and pieces stay as they are for good: what is still under way uses them
    device_->abandon();
  }
}

void RuntimeQueue::end() noexcept {
  with_device(device_->index(), [this] {
    for (const auto& [mark, event] : pending_) succeeds(cudaEventDestroy(event));
    for (const cudaEvent_t event : spare_) succeeds(cudaEventDestroy(event));
    if (between_ != nullptr) succeeds(cudaEventDestroy(between_));
    return stream_ == nullptr || succeeds(cudaStreamDestroy(stream_));
  });
  for (const auto& piece : findings_) device_->give(piece);
  device_->give(ticket_);
}

cudaEvent_t RuntimeQueue::event() {
  cudaEvent_t event = nullptr;
  if (spare_.empty()) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), label(), "cudaEventCreateWithFlags");
  } else {
    event = spare_.back();
    spare_.pop_back();
  }
  return event;
}

void RuntimeQueue::order(cudaStream_t behind, cudaStream_t before, const char* what) {
  check(cudaEventRecord(between_, before), label(), "cudaEventRecord", [&] { return std::string(what); });
  check(cudaStreamWaitEvent(behind, between_, 0), label(), "cudaStreamWaitEvent", [&] { return std::string(what); });
}

// A graph would record the order between the streams, and not do it.
void RuntimeQueue::refuse_capture(cudaStream_t caller) const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(caller, &status), label(), "cudaStreamIsCapturing", [] { return std::string("the application's stream"); });
  if (status != cudaStreamCaptureStatusNone) {
    throw DeviceError("device " + label() + ": the application's stream is recording a CUDA graph: a collective cannot be part of one");
  }
}

void RuntimeQueue::follow(Stream caller) {
  const Current current = this->current();
  refuse_capture(of(caller));
  order(stream_, of(caller), "the application's stream");
}

void RuntimeQueue::lead(Stream caller) {
  const Current current = this->current();
  refuse_capture(of(caller));
  order(of(caller), stream_, "the application's stream");
}

void RuntimeQueue::follow(Queue& other, Mark mark) {
  auto* const queue = dynamic_cast<RuntimeQueue*>(&other);
  if (queue == nullptr || queue->device_ != device_) throw std::invalid_argument("follow: must be a queue of the same device");
  queue->refuse_unknown(mark);
  const Current current = this->current();
  for (const auto& pending : queue->pending_) {
    if (pending.mark < mark) continue;
    check(cudaStreamWaitEvent(stream_, pending.event, 0), label(), "cudaStreamWaitEvent");
    return;
  }
  // Seen reached, by this thread or by one that has told it: the host is behind it, and so is what it enqueues.
}

Mark RuntimeQueue::mark() {
  const Current current = this->current();
  const cudaEvent_t event = this->event();
  const cudaError_t code = cudaEventRecord(event, stream_);
  if (code != cudaSuccess) spare_.push_back(event);
  check(code, label(), "cudaEventRecord");
  pending_.push_back({++last_, event});
  return last_;
}

void RuntimeQueue::refuse_unknown(Mark mark) const {
  if (mark <= last_) return;
  throw std::invalid_argument("mark " + std::to_string(mark) + ": must be at most " + std::to_string(last_) + ", the last one of its queue");
}

bool RuntimeQueue::reached(Mark mark) {
  if (mark <= reached_) return true;
  refuse_unknown(mark);
  const Current current = this->current();
  while (!pending_.empty() && pending_.front().mark <= mark) {
    const cudaError_t code = cudaEventQuery(pending_.front().event);
    if (code == cudaErrorNotReady) {
      cudaGetLastError();  // "not ready" must not meet the application's next check
      break;
    }
    check(code, label(), "cudaEventQuery", [&] { return "mark " + std::to_string(pending_.front().mark); });
    reached_ = pending_.front().mark;
    spare_.push_back(pending_.front().event);
    pending_.pop_front();
  }
  collect();
  return mark <= reached_;
}

void RuntimeQueue::wait(Mark mark, double limit_s) {
  if (wait_until(limit_s, [&] { return reached(mark); })) return;
  char limit[32];
  std::snprintf(limit, sizeof(limit), "%g", limit_s);
  throw DeviceError("device " + label() + ": mark " + std::to_string(mark) + " of " + std::to_string(last_) + " was not reached within " + limit +
                    " s; the last one that was is " + std::to_string(reached_));
}

// --- What reductions find ---------------------------------------------------------------------------

// In pinned memory, to which kernels write: reading it costs no copy, and is safe once the kernel is known to be over.
void RuntimeQueue::add_findings() {
  findings_.push_back(device_->take(64 * sizeof(Finding), false));
  for (std::size_t i = 0; i < 64; ++i) free_findings_.push_back(new (findings_.back().data + i * sizeof(Finding)) Finding);
}

Finding* RuntimeQueue::finding() {
  if (free_findings_.empty()) add_findings();
  Finding* const finding = free_findings_.back();
  free_findings_.pop_back();
  *finding = Finding{};
  looking_.push_back({last_ + 1, finding});
  return finding;
}

void RuntimeQueue::collect() {
  while (!looking_.empty() && looking_.front().mark <= reached_) {
    const Finding& finding = *looking_.front().finding;
    if (finding.source >= 0) wrong_.push_back({finding.source, finding.found});
    free_findings_.push_back(looking_.front().finding);
    looking_.pop_front();
  }
}

std::optional<WrongStamp> RuntimeQueue::wrong_stamp() {
  if (wrong_.empty()) return std::nullopt;
  const WrongStamp found = wrong_.front();
  wrong_.pop_front();
  return found;
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
