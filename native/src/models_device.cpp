// Models on a device whose buffers are in its memory, too: one kernel publishes, one merges.
//
// Two queues, since each is for one thread at a time: the application's, which follows the stream that the caller works in and which that
// stream follows afterwards; and one for whoever drives, which asks nothing of that stream, so that a rank whose application keeps its
// device busy still answers for it.
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

  void publish(std::byte* buffer, const void* own, Version stamp) override {
    begin(own, [&](Parts& parts) { queue_->publish(parts, 0, count_, buffer, stamp_of(buffer), stamp); });
  }
  void merge(void* own, const void*, const std::byte* total, int own_weight, int divisor) override {
    begin(own, [&](Parts& parts) { queue_->merge(parts, 0, count_, total, own_weight, divisor); });
  }
  void take(void* own, const std::byte* model) override {
    begin(own, [&](Parts& parts) { queue_->take(parts, 0, count_, model); });
  }
  void add(void* own, const std::byte* taken) override {
    begin(own, [&](Parts& parts) { queue_->add(parts, 0, count_, taken); });
  }
  bool done() override {
    if (under_way_ && queue_->reached(mark_)) under_way_ = false;
    return !under_way_;
  }
  std::uint64_t digest_own(const void* own) override {
    const OnDevice& model = model_of(own, dtype_, count_);
    queue_->follow(model.stream);
    return ferry_.digest(*model.parts);
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
    enqueue(*model.parts);
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
