// Ranks of one process whose models are on the emulated device, as settings for run_in (ranks.hpp).
#pragma once

#include <atomic>
#include <chrono>
#include <cstring>

#include "emulated/application.hpp"
#include "emulated/settings.hpp"
#include "ranks.hpp"
#include "wagma/device_buffers.hpp"
#include "wagma/models.hpp"

namespace wagma::testing {

// A model on a device, and a stream in whose order the application works on it: nothing here waits for that stream but items().
class Items {
 public:
  virtual ~Items() = default;
  virtual void* own() = 0;
  virtual void set(const void* items) = 0;
  virtual std::vector<std::byte> items() = 0;
};

// Tensors with gaps between them, which together are a model.
class Tensors final : public Items {
 public:
  Tensors(std::shared_ptr<Device> device, EmulatedStream& stream, DType dtype, std::size_t count)
      : device_(std::move(device)), stream_(stream), item_(item_size(dtype)), count_(count) {
    const std::size_t first = count / 3;
    data_ = device_->allocate((count + kGap) * item_);
    std::vector<Part> parts;
    if (first > 0) parts.push_back({data_, first, dtype});
    parts.push_back({data_ + (first + kGap) * item_, count - first, dtype});
    parts_ = device_->parts(dtype, parts);
    model_ = {parts_.get(), stream.handle()};
  }
  ~Tensors() override {
    try {
      stream_.synchronize();
    } catch (const DeviceError&) {  // of a device that has failed
    }
    parts_.reset();
    device_->release(data_);
  }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  void* own() override { return &model_; }
  void set(const void* items) override {
    const auto* bytes = static_cast<const std::byte*>(items);
    stream_.run([this, given = std::vector<std::byte>(bytes, bytes + count_ * item_)] { each([&](std::byte* at, std::size_t from, std::size_t size) {
      std::memcpy(at, given.data() + from, size);
    }); });
  }
  std::vector<std::byte> items() override {
    std::vector<std::byte> found(count_ * item_);
    stream_.run([&] { each([&](const std::byte* at, std::size_t from, std::size_t size) { std::memcpy(found.data() + from, at, size); }); });
    stream_.synchronize();
    return found;
  }

 private:
  static constexpr std::size_t kGap = 3;

  template <class Use>
  void each(Use use) const {
    const std::size_t first = count_ / 3 * item_;
    if (first > 0) use(data_, 0, first);
    use(data_ + first + kGap * item_, first, count_ * item_ - first);
  }

  const std::shared_ptr<Device> device_;
  EmulatedStream& stream_;
  const std::size_t item_, count_;
  std::byte* data_ = nullptr;
  std::unique_ptr<Parts> parts_;
  OnDevice model_;
};

// In the buffers of an engine, which may not be there yet: then it begins with what this is set to.
class ResidentItems final : public Items {
 public:
  ResidentItems(Engine* const& engine, EmulatedStream& stream, std::size_t bytes) : engine_(engine), stream_(stream), bytes_(bytes) {
    model_.stream = stream.handle();
  }
  void* own() override { return &model_; }
  void set(const void* items) override {
    if (!engine_) return;
    const auto* bytes = static_cast<const std::byte*>(items);
    stream_.run([at = engine_->live(), given = std::vector<std::byte>(bytes, bytes + bytes_)] { std::memcpy(at, given.data(), given.size()); });
  }
  std::vector<std::byte> items() override {
    std::vector<std::byte> found(bytes_);
    stream_.run([&, at = engine_->live()] { std::memcpy(found.data(), at, found.size()); });
    stream_.synchronize();
    return found;
  }

 private:
  Engine* const& engine_;
  EmulatedStream& stream_;
  const std::size_t bytes_;
  OnDevice model_;
};

class DeviceModel final : public Model {
 public:
  DeviceModel(std::unique_ptr<Items> items, const std::vector<double>& values) : items_(std::move(items)) { set(values); }
  void* own() override { return items_->own(); }
  void set(const std::vector<double>& values) override { items_->set(values.data()); }
  std::vector<double> values() override {
    const std::vector<std::byte> items = items_->items();
    std::vector<double> values(items.size() / sizeof(double));
    std::memcpy(values.data(), items.data(), items.size());
    return values;
  }

 private:
  const std::unique_ptr<Items> items_;
};

// Work on a stream that does not end before it is said to.
class Gate {
 public:
  explicit Gate(EmulatedStream& stream) {
    stream.run([is_open = is_open_] {
      while (!*is_open) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
  }
  ~Gate() { open(); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  void open() { *is_open_ = true; }

 private:
  const std::shared_ptr<std::atomic<bool>> is_open_ = std::make_shared<std::atomic<bool>>(false);
};

// A stream of its own for each rank's application.
class DeviceSetting : public Setting {
 public:
  explicit DeviceSetting(const EngineConfig& config) : device_(emulated_device(0)), hub_(config.schedule.world_size) {
    for (int rank = 0; rank < config.schedule.world_size; ++rank) streams_.push_back(std::make_unique<EmulatedStream>());
  }
  std::unique_ptr<Model> model(int rank, const std::vector<double>& values) override {
    return std::make_unique<DeviceModel>(items(rank, DType::float64, values.size()), values);
  }
  virtual std::unique_ptr<Items> items(int rank, DType dtype, std::size_t count) {
    return std::make_unique<Tensors>(device_, *streams_[rank], dtype, count);
  }
  EmulatedStream& stream(int rank) { return *streams_[rank]; }
  const std::shared_ptr<Device>& device() const { return device_; }

 protected:
  const std::shared_ptr<Device> device_;
  LocalHub hub_;

 private:
  std::vector<std::unique_ptr<EmulatedStream>> streams_;
};

// Through buffers in host memory.
class StagedSetting final : public DeviceSetting {
 public:
  using DeviceSetting::DeviceSetting;
  std::unique_ptr<Engine> engine(const EngineConfig& config, int rank, const void* initial) override {
    const auto transport = hub_.transport(rank, config.buffers(), config.buffer_bytes());
    return std::make_unique<Engine>(config, transport, initial, staged_models(device_, config.dtype, config.count, transport, config.timeout_s));
  }
};

inline std::unique_ptr<Setting> staged(const EngineConfig& config) { return std::make_unique<StagedSetting>(config); }

// Through buffers on the device, which all open.
class SharedSetting : public DeviceSetting {
 public:
  explicit SharedSetting(const EngineConfig& config) : DeviceSetting(config) {
    for (int rank = 0; rank < config.schedule.world_size; ++rank) {
      buffers_.push_back(std::make_shared<DeviceBuffers>(device_, config.buffers(), config.buffer_bytes()));
      addresses_.push_back(buffers_.back()->address());
    }
  }
  std::unique_ptr<Engine> engine(const EngineConfig& config, int rank, const void* initial) override {
    const auto transport = hub_.device_transport(rank, buffers_[rank], addresses_);
    const std::size_t stamp_offset = std::exchange(buffers_[rank], nullptr)->stamp_offset();  // the transport has them now
    return std::make_unique<Engine>(config, transport, initial,
                                    device_models(device_, config.dtype, config.count, stamp_offset, config.timeout_s));
  }

 private:
  std::vector<std::shared_ptr<DeviceBuffers>> buffers_;
  std::vector<std::string> addresses_;
};

inline std::unique_ptr<Setting> shared(const EngineConfig& config) { return std::make_unique<SharedSetting>(config); }

// The models live in those.
class ResidentSetting final : public SharedSetting {
 public:
  explicit ResidentSetting(const EngineConfig& config) : SharedSetting(resident_of(config)), engines_(config.schedule.world_size) {}
  std::unique_ptr<Engine> engine(const EngineConfig& config, int rank, const void* initial) override {
    auto made = SharedSetting::engine(resident_of(config), rank, initial);
    engines_[rank] = made.get();
    return made;
  }
  std::unique_ptr<Items> items(int rank, DType dtype, std::size_t count) override {
    return std::make_unique<ResidentItems>(engines_[rank], stream(rank), count * item_size(dtype));
  }

 private:
  static EngineConfig resident_of(EngineConfig config) {
    config.resident = true;
    return config;
  }

  std::vector<Engine*> engines_;  // by rank; each is its rank's thread's alone
};

inline std::unique_ptr<Setting> resident(const EngineConfig& config) { return std::make_unique<ResidentSetting>(config); }

// Staged, on a system that does not let the host's buffers be pinned.
inline std::unique_ptr<Setting> bounced(const EngineConfig& config) {
  class Refusing final : public Setting {
   public:
    explicit Refusing(const EngineConfig& config) : inner_(config) { emulated::settings().refuse_pin = true; }
    ~Refusing() override { emulated::settings().refuse_pin = false; }
    std::unique_ptr<Engine> engine(const EngineConfig& config, int rank, const void* initial) override {
      return inner_.engine(config, rank, initial);
    }
    std::unique_ptr<Model> model(int rank, const std::vector<double>& values) override { return inner_.model(rank, values); }

   private:
    StagedSetting inner_;
  };
  return std::make_unique<Refusing>(config);
}

}  // namespace wagma::testing
