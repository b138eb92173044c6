#include "wagma/exchange_sums_mpi.hpp"

#include <limits>
#include <string>
#include <utility>

#include "wagma/device_buffers.hpp"

namespace wagma {

namespace {

class HostSums final : public ExchangeSums {
 public:
  bool spares_passive() const override { return false; }
  std::size_t most_sources() const override { return std::numeric_limits<std::size_t>::max(); }

  std::byte* scratch(std::size_t bytes) override {
    scratch_.reset(new std::byte[bytes]);  // left as it is: touched first by the message that it is for
    return scratch_.get();
  }

  Mark add_up(DType dtype, const std::vector<const void*>& sources, std::byte* target, std::size_t count) override {
    void* const targets[] = {target};
    const int raw[] = {1};
    reduce(dtype, sources.data(), static_cast<int>(sources.size()), targets, raw, 1, count,
           Stores::cached);  // what is summed here is sent next
    return 0;
  }

  void divide(DType dtype, std::byte* model, const std::byte* sums, int divisor, std::size_t count) override {
    merge_into(dtype, model, model, sums, 0, divisor, count);
  }

  Mark complete(std::byte*, Version) override { return 0; }
  bool done(Mark) override { return true; }

 private:
  std::unique_ptr<std::byte[]> scratch_;
};

// What a device refuses names itself, but not whose it is.
template <class Call>
auto named(int rank, Call call) {
  const auto text = [&](const std::exception& error) { return "rank " + std::to_string(rank) + ": " + error.what(); };
  try {
    return call();
  } catch (const OutOfDeviceMemory& error) {
    throw OutOfDeviceMemory(text(error));
  } catch (const DeviceError& error) {
    throw DeviceError(text(error));
  }
}

class DeviceSums final : public ExchangeSums {
 public:
  DeviceSums(int rank, std::shared_ptr<DeviceBuffers> buffers)
      : rank_(rank), buffers_(std::move(buffers)), queue_(buffers_->device()->queue(true)) {
    stamp_ = reinterpret_cast<Version*>(buffers_->device()->allocate_host(sizeof(Version)));
  }

  ~DeviceSums() override {
    queue_.reset();  // before the memory that its kernels used
    if (scratch_) buffers_->device()->release(scratch_);
    buffers_->device()->release_host(reinterpret_cast<std::byte*>(stamp_));
  }

  bool spares_passive() const override { return true; }
  std::size_t most_sources() const override { return Device::kMostMembers; }

  std::byte* scratch(std::size_t bytes) override {
    if (scratch_) buffers_->device()->release(std::exchange(scratch_, nullptr));
    return scratch_ = buffers_->device()->allocate(bytes);
  }

  Mark add_up(DType dtype, const std::vector<const void*>& sources, std::byte* target, std::size_t count) override {
    reduction_.dtype = dtype;
    reduction_.count = count;
    reduction_.sources.clear();
    for (const void* source : sources) reduction_.sources.push_back({static_cast<const std::byte*>(source)});
    reduction_.targets.assign(1, {target});
    return named(rank_, [&] {
      queue_->reduce(reduction_);
      return queue_->mark();
    });
  }

  void divide(DType dtype, std::byte* model, const std::byte* sums, int divisor, std::size_t count) override {
    named(rank_, [&] { queue_->merge_into(dtype, model, nullptr, sums, divisor, count); });
  }

  Mark complete(std::byte* target, Version version) override {
    *stamp_ = version;  // the last one has long been copied
    return named(rank_, [&] {
      queue_->copy(target + buffers_->stamp_offset(), stamp_, sizeof(Version));
      return queue_->mark();
    });
  }

  bool done(Mark mark) override {
    return named(rank_, [&] { return queue_->reached(mark); });
  }

 private:
  const int rank_;
  const std::shared_ptr<DeviceBuffers> buffers_;
  std::unique_ptr<Queue> queue_;
  std::byte* scratch_ = nullptr;
  Version* stamp_ = nullptr;  // pinned
  Reduction reduction_;  // its vectors are used again
};

}  // namespace

std::unique_ptr<ExchangeSums> host_sums() { return std::make_unique<HostSums>(); }

std::unique_ptr<ExchangeSums> device_sums(int rank, std::shared_ptr<DeviceBuffers> buffers) {
  return std::make_unique<DeviceSums>(rank, std::move(buffers));
}

}  // namespace wagma
