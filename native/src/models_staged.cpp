// Models on a device whose buffers are in host memory: in chunks, of which some are on the bus while kernels work on others.
//
//   publish, digest    kernels_: tensors -> scratch      copies_: scratch -> host
//   merge, take, add   copies_:  host -> scratch         kernels_: scratch -> tensors
//
// Neither queue waits for the host where the buffers are pinned, but for each other: the second one for a chunk's first step, the first one
// for the slot of scratch memory to be free. Where a system does not permit pinning them, chunks go through pinned memory of our own, and the
// host copies each on, or has copied it before: that is what done() does then, which the application's thread asks again and again.
#include <deque>
#include <functional>

#include "on_device.hpp"

namespace wagma {

namespace {

constexpr std::size_t kSlots = 4;
// Chunks that are enqueued before the first one is done: a driver's queue is not endless, and whoever enqueues into a full one waits in there.
constexpr std::size_t kAhead = 32;

class StagedModels final : public Models {
 public:
  StagedModels(std::shared_ptr<Device> device, DType dtype, std::size_t count, std::shared_ptr<Transport> transport, double limit_s,
               std::size_t chunk_bytes)
      : device_(std::move(device)), transport_(std::move(transport)), dtype_(dtype), count_(count),
        chunk_(std::min(count, chunk_bytes / accumulator_size(dtype))), host_(host_models(dtype, count, Stores::cached)),
        kernels_(device_->queue(true)), copies_(device_->queue(true)), ferry_(device_, *kernels_, std::min(chunk_bytes, count * accumulator_size(dtype)), limit_s),
        scratch_(device_, Allocation::on_device, kSlots * slot_bytes()) {
    if (transport_->buffers() == 0) return;
    std::byte* first = transport_->buffer(0);
    const std::byte* end = transport_->buffer(transport_->buffers() - 1) + transport_->buffer_bytes();
    if (device_->pin(first, static_cast<std::size_t>(end - first))) {
      pinned_ = first;
    } else {
      bounce_ = Allocation(device_, Allocation::on_host, kSlots * slot_bytes());
    }
  }
  ~StagedModels() override {
    kernels_.reset();  // before the memory that they use
    copies_.reset();
    if (pinned_) device_->unpin(pinned_);
  }

  bool are_host_arrays() const override { return false; }
  bool can_be_resident() const override { return false; }
  void* resident(const void*, std::byte*) override { throw std::logic_error("a model on a device is in no buffer of the host"); }
  std::string suffix() const override { return pinned_ ? ", through pinned host memory" : ", through pinned host memory chunk by chunk"; }

  void publish(std::byte* buffer, const void* own, Version) override {
    Parts& parts = *model_of(own, dtype_, count_).parts;
    begin(own, {true, buffer, nullptr, item_size(dtype_), [this, &parts](std::size_t first, std::size_t count, std::byte* scratch) {
                  kernels_->publish(parts, first, count, scratch, nullptr, 0);
                }});
  }
  void merge(void* own, const void*, const std::byte* total, int own_weight, int divisor) override {
    Parts& parts = *model_of(own, dtype_, count_).parts;
    begin(own, {false, nullptr, total, accumulator_size(dtype_), [=, this, &parts](std::size_t first, std::size_t count, const std::byte* scratch) {
                  kernels_->merge(parts, first, count, scratch, own_weight, divisor);
                }});
  }
  void take(void* own, const std::byte* model) override {
    Parts& parts = *model_of(own, dtype_, count_).parts;
    begin(own, {false, nullptr, model, item_size(dtype_), [this, &parts](std::size_t first, std::size_t count, const std::byte* scratch) {
                  kernels_->take(parts, first, count, scratch);
                }});
  }
  void add(void* own, const std::byte* taken) override {
    Parts& parts = *model_of(own, dtype_, count_).parts;
    begin(own, {false, nullptr, taken, item_size(dtype_), [this, &parts](std::size_t first, std::size_t count, const std::byte* scratch) {
                  kernels_->add(parts, first, count, scratch);
                }});
  }
  bool done() override {
    if (!under_way_) return true;
    retire();
    while (begun_ < chunks() && begun_ - retired_ < (pinned_ ? kAhead : kSlots)) begin_chunk();
    under_way_ = retired_ < chunks();
    return !under_way_;
  }
  std::uint64_t digest_own(const void* own) override {
    const OnDevice& model = model_of(own, dtype_, count_);
    kernels_->follow(model.stream);
    return ferry_.digest(*model.parts);
  }

  void fill(std::byte* buffer, const void* initial, Version stamp) override { host_->fill(buffer, initial, stamp); }
  std::uint64_t digest(const std::byte* buffer, std::size_t bytes) override { return host_->digest(buffer, bytes); }
  void finish(std::byte* target, Version stamp) override { host_->finish(target, stamp); }

  bool settled(double limit_s) noexcept override { return is_idle(*kernels_, limit_s) && is_idle(*copies_, limit_s); }

 private:
  struct Journey {
    bool outward = false;             // from the device to the host
    std::byte* to = nullptr;          // outward: the buffer
    const std::byte* from = nullptr;  // inward: the buffer
    std::size_t item = 0;             // bytes of an element on the way
    std::function<void(std::size_t first, std::size_t count, std::byte* scratch)> kernel;
    Stream stream = 0;
  };

  std::size_t slot_bytes() const { return (chunk_ * accumulator_size(dtype_) + 255) / 256 * 256; }  // kernels like them aligned
  std::size_t chunks() const { return (count_ + chunk_ - 1) / chunk_; }
  std::size_t size(std::size_t chunk) const { return std::min(chunk_, count_ - chunk * chunk_); }
  std::byte* scratch(std::size_t chunk) const { return scratch_.data() + chunk % kSlots * slot_bytes(); }
  std::byte* bounce(std::size_t chunk) const { return bounce_.data() + chunk % kSlots * slot_bytes(); }

  void begin(const void* own, Journey journey) {
    journey_ = std::move(journey);
    journey_.stream = static_cast<const OnDevice*>(own)->stream;
    begun_ = retired_ = 0;
    marks_.clear();
    first_mark_ = 0;
    under_way_ = true;
    kernels_->follow(journey_.stream);
    done();  // what can be enqueued at once
  }

  // Notes which chunks are through, and copies on what has come to the bounce.
  void retire() {
    Queue& first = journey_.outward ? *kernels_ : *copies_;
    Queue& last = journey_.outward ? *copies_ : *kernels_;
    while (retired_ < begun_ && last.reached(marks_.front())) {
      if (journey_.outward && !pinned_) {
        std::memcpy(journey_.to + retired_ * chunk_ * journey_.item, bounce(retired_), size(retired_) * journey_.item);
      }
      ++retired_;
      marks_.pop_front();
    }
    first.reached(first_mark_);  // so that a queue forgets its marks of which nobody asks
  }

  void begin_chunk() {
    const std::size_t chunk = begun_, first = chunk * chunk_, bytes = size(chunk) * journey_.item;
    Queue& before = journey_.outward ? *kernels_ : *copies_;
    Queue& after = journey_.outward ? *copies_ : *kernels_;
    // The slot's last chunk has left it; of one that is retired already there is no mark any more, nor a need for one.
    if (chunk >= retired_ + kSlots) before.follow(after, marks_[chunk - kSlots - retired_]);
    if (journey_.outward) {
      journey_.kernel(first, size(chunk), scratch(chunk));
      after.follow(before, first_mark_ = before.mark());
      after.copy(pinned_ ? journey_.to + first * journey_.item : bounce(chunk), scratch(chunk), bytes);
    } else {
      const std::byte* from = journey_.from + first * journey_.item;
      if (!pinned_) from = static_cast<const std::byte*>(std::memcpy(bounce(chunk), from, bytes));
      before.copy(scratch(chunk), from, bytes);
      after.follow(before, first_mark_ = before.mark());
      journey_.kernel(first, size(chunk), scratch(chunk));
    }
    marks_.push_back(after.mark());
    ++begun_;
    kernels_->lead(journey_.stream);  // after each: then it holds also where nobody waits for the rest any more
  }

  const std::shared_ptr<Device> device_;
  const std::shared_ptr<Transport> transport_;  // its buffers stay pinned for as long as they are
  const DType dtype_;
  const std::size_t count_, chunk_;  // elements
  const std::shared_ptr<Models> host_;

  // All of the application's thread.
  std::unique_ptr<Queue> kernels_, copies_;
  Ferry ferry_;
  const Allocation scratch_;
  Allocation bounce_;
  std::byte* pinned_ = nullptr;
  Journey journey_;
  std::size_t begun_ = 0, retired_ = 0;  // chunks
  std::deque<Mark> marks_;                // of the chunks between them, in the queue that has them last
  Mark first_mark_ = 0;                   // of the newest chunk, in the other one
  bool under_way_ = false;
};

}  // namespace

std::shared_ptr<Models> staged_models(std::shared_ptr<Device> device, DType dtype, std::size_t count, std::shared_ptr<Transport> transport,
                                      double limit_s, std::size_t chunk_bytes) {
  return std::make_shared<StagedModels>(std::move(device), dtype, count, std::move(transport), limit_s, chunk_bytes);
}

}  // namespace wagma
