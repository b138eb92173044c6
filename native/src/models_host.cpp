// Models that are arrays in host memory, as a transport's buffers are: nothing is under way when a call returns.
#include <cstring>

#include "wagma/digest.hpp"
#include "wagma/models.hpp"

namespace wagma {

namespace {

class HostModels final : public Models {
 public:
  HostModels(DType dtype, std::size_t count, Stores stores) : dtype_(dtype), count_(count), stores_(stores) {}

  bool are_host_arrays() const override { return true; }
  bool can_be_resident() const override { return true; }
  void* resident(const void*, std::byte* buffer) override { return buffer; }

  void publish(std::byte* buffer, const void* own, Version) override { copy(buffer, own, bytes(), stores_); }
  void merge(void* own, const void* published, const std::byte* total, int own_weight, int divisor) override {
    merge_into(dtype_, own, published, total, own_weight, divisor, count_, stores_);
  }
  void take(void* own, const std::byte* model) override { copy(own, model, bytes(), stores_); }
  void add(void* own, const std::byte* taken) override { add_into(dtype_, own, taken, count_); }
  std::uint64_t digest_own(const void* own) override { return wagma::digest(own, bytes()); }

  void fill(std::byte* buffer, const void* initial, Version) override { std::memcpy(buffer, initial, bytes()); }
  std::uint64_t digest(const std::byte* buffer, std::size_t bytes) override { return wagma::digest(buffer, bytes); }
  void finish(std::byte* target, Version) override { merge_into(dtype_, target, nullptr, target, 0, 1, count_); }

 private:
  std::size_t bytes() const { return count_ * item_size(dtype_); }

  const DType dtype_;
  const std::size_t count_;
  const Stores stores_;
};

}  // namespace

std::shared_ptr<Models> host_models(DType dtype, std::size_t count, Stores stores) { return std::make_shared<HostModels>(dtype, count, stores); }

}  // namespace wagma
