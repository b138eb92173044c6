// Models on a device whose buffers are in its memory, too: one kernel publishes, one merges.
//
// Two queues, since each is for one thread at a time: the application's, which follows the stream that the caller works in and which that
// stream follows afterwards; and one for whoever drives, which asks nothing of that stream, so that a rank whose application keeps its
// device busy still answers for it.
//
// A resident model is a buffer of the transport's, another one after each collective (docs/protocol.md), so there is nothing to copy. What
// keeps its readers and writers apart:
//   the application's kernels before the call   publish() follows their stream and stamps the buffer; the rank arrives when that is done, on
//                                               the device. So whoever reads this contribution, or its stamp, reads behind all of them.
//   peers that read or write a buffer           the machine gives a buffer another role when their executions are over, and a member counts
//                                               its chunk as done only when its kernel's mark is reached (transport_device.hpp; over MPI,
//                                               when the messages are through and the mark behind the sums is reached). So the buffer that
//                                               becomes the application's has no reader and no writer left on any device.
//   the application's kernels after the call    of a fresh rank: launched when the host has seen that the reduction into that buffer is over.
//                                               Else behind merge() or take(), which its stream was made to follow.
//   its old kernels, and those two              these follow its stream, too; they write a buffer that was free, never one that was its own
//                                               since its last arrival, whose contents others may read.
// Stamps. publish() writes that of the model which arrives, the reduction that of the version whose mean the buffer now holds. While the
// application works in a buffer that keeps what it had, so that its stamp says nothing: that nobody reads it is up to the roles alone.
#include <atomic>
#include <mutex>

#include "on_device.hpp"

namespace wagma {

namespace {

class DeviceModels final : public Models {
 public:
  DeviceModels(std::shared_ptr<Device> device, DType dtype, std::size_t count, std::size_t stamp_offset, double limit_s, std::size_t chunk_bytes)
      : device_(std::move(device)), dtype_(dtype), count_(count), stamp_offset_(stamp_offset), queue_(device_->queue(true)),
        ferry_(device_, *queue_, std::min(chunk_bytes, count * accumulator_size(dtype)), limit_s), driver_queue_(device_->queue(true)),
        driver_ferry_(device_, *driver_queue_, std::min(chunk_bytes, count * accumulator_size(dtype)), limit_s),
        limit_s_(limit_s) {}
  ~DeviceModels() override {  // before the ferries' memory goes: a queue's end waits for what it was given
    queue_.reset();
    driver_queue_.reset();
  }

  bool are_host_arrays() const override { return false; }
  bool can_be_resident() const override { return true; }
  void* resident(const void* handed, std::byte* buffer) override {
    resident_ = {nullptr, static_cast<const OnDevice*>(handed)->stream, buffer};
    return &resident_;
  }

  void publish(std::byte* buffer, const void* own, Version stamp) override {
    begin(own, [&](const OnDevice& model) {
      if (model.buffer) {
        queue_->write_stamp(stamp_of(buffer), stamp);
      } else {
        queue_->publish(*model.parts, 0, count_, buffer, stamp_of(buffer), stamp);
      }
    });
  }
  void merge(void* own, const void* published, const std::byte* total, int own_weight, int divisor) override {
    begin(own, [&](const OnDevice& model) {
      if (model.buffer) {
        const auto* mine = own_weight ? static_cast<const std::byte*>(published) : nullptr;
        queue_->merge_into(dtype_, model.buffer, mine, total, divisor, count_);
      } else {
        queue_->merge(*model.parts, 0, count_, total, own_weight, divisor);
      }
    });
  }
  void take(void* own, const std::byte* source) override {
    begin(own, [&](const OnDevice& model) {
      if (model.buffer) {
        queue_->copy(model.buffer, source, count_ * item_size(dtype_));
      } else {
        queue_->take(*model.parts, 0, count_, source);
      }
    });
  }
  void add(void* own, const std::byte* taken) override {  // gradients, which are never resident
    begin(own, [&](const OnDevice& model) { queue_->add(*model.parts, 0, count_, taken); });
  }
  bool done() override {
    if (under_way_ && queue_->reached(mark_)) under_way_ = false;
    return !under_way_;
  }
  std::uint64_t digest_own(const void* own) override {
    const OnDevice& model = model_of(own, dtype_, count_);
    queue_->follow(model.stream);
    return model.buffer ? ferry_.digest(model.buffer, count_ * item_size(dtype_)) : ferry_.digest(*model.parts);
  }

  void fill(std::byte* buffer, const void* initial, Version stamp) override {
    drive([&] {
      driver_ferry_.to_device(buffer, static_cast<const std::byte*>(initial), count_ * item_size(dtype_));
      driver_queue_->write_stamp(stamp_of(buffer), stamp);
      driver_queue_->wait(driver_queue_->mark(), limit_s_);
    });
  }
  std::uint64_t digest(const std::byte* buffer, std::size_t bytes) override {
    std::uint64_t value = 0;
    drive([&] { value = driver_ferry_.digest(buffer, bytes); });
    return value;
  }
  void finish(std::byte* target, Version stamp) override {
    drive([&] {
      driver_ferry_.finish(dtype_, target, count_);
      driver_queue_->write_stamp(stamp_of(target), stamp);
      driver_queue_->wait(driver_queue_->mark(), limit_s_);
    });
  }

  bool settled(double limit_s) noexcept override { return is_idle(*queue_, limit_s) && (!left_ || driver_settled(limit_s)); }

 private:
  std::int64_t* stamp_of(std::byte* buffer) const { return reinterpret_cast<std::int64_t*>(buffer + stamp_offset_); }

  template <class Enqueue>
  void begin(const void* own, Enqueue enqueue) {
    const OnDevice& model = model_of(own, dtype_, count_);
    queue_->follow(model.stream);
    enqueue(model);
    // Now, not when it is done: then it holds also where nobody waits for that any more.
    queue_->lead(model.stream);
    mark_ = queue_->mark();
    under_way_ = true;
  }

  template <class Work>
  void drive(Work work) {
    std::lock_guard lock(driver_);
    left_ = true;
    work();
    left_ = false;  // else its wait has failed, and it may go on
  }
  bool driver_settled(double limit_s) noexcept {
    const std::unique_lock lock(driver_, std::try_to_lock);
    return !lock || is_idle(*driver_queue_, limit_s);  // of what goes on there just now the engine's end asks again
  }

  const std::shared_ptr<Device> device_;
  const DType dtype_;
  const std::size_t count_, stamp_offset_;

  // Of the application.
  std::unique_ptr<Queue> queue_;
  Ferry ferry_;
  OnDevice resident_;
  Mark mark_ = 0;
  bool under_way_ = false;

  // Of whoever drives, and of the application for digests: who has driver_ has the queue and the ferry. Without it both threads would
  // write the same chunks. Held while a device works, by nobody who holds another lock of the engine's but drive_.
  std::mutex driver_;
  std::unique_ptr<Queue> driver_queue_;
  Ferry driver_ferry_;
  const double limit_s_;
  // Something was begun there, and has not been seen to be over. Atomic, since the application asks while another thread drives.
  std::atomic<bool> left_{false};
};

}  // namespace

std::shared_ptr<Models> device_models(std::shared_ptr<Device> device, DType dtype, std::size_t count, std::size_t stamp_offset, double limit_s,
                                      std::size_t chunk_bytes) {
  return std::make_shared<DeviceModels>(std::move(device), dtype, count, stamp_offset, limit_s, chunk_bytes);
}

}  // namespace wagma
