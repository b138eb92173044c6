// A side stream: marks as events, orders between streams, and what reductions have found.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "kernels.hpp"
#include "runtime_device.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

class RuntimeQueue final : public Queue {
 public:
  RuntimeQueue(std::shared_ptr<RuntimeDevice> device, bool urgent);
  ~RuntimeQueue() override;

  void follow(Stream caller) override;
  void lead(Stream caller) override;
  void follow(Queue& other, Mark mark) override;
  Mark mark() override;
  bool reached(Mark mark) override;
  void wait(Mark mark, double limit_s) override;
  std::optional<WrongStamp> wrong_stamp() override;

  // queue_work.cpp
  void publish(const Parts& parts, std::size_t begin, std::size_t count, std::byte* to, std::int64_t* stamp, Version version) override;
  void reduce(const Reduction& reduction) override;
  void merge(Parts& parts, std::size_t begin, std::size_t count, const std::byte* total, int own_weight, int divisor) override;
  void take(Parts& parts, std::size_t begin, std::size_t count, const std::byte* items) override;
  void add(Parts& parts, std::size_t begin, std::size_t count, const std::byte* items) override;
  void merge_into(DType dtype, std::byte* destination, const std::byte* own, const std::byte* total, int divisor, std::size_t count) override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void write_stamp(std::int64_t* stamp, Version version) override;

 private:
  struct Pending {
    Mark mark;
    cudaEvent_t event;
  };
  struct Looking {  // a reduction that may find something
    Mark mark;      // the first one behind it
    Finding* finding;
  };

  const std::string& label() const { return device_->label(); }
  Current current() const { return Current(device_->index(), label()); }
  cudaEvent_t event();
  void order(cudaStream_t behind, cudaStream_t before, const char* what);
  void refuse_capture(cudaStream_t caller) const;
  void refuse_unknown(Mark mark) const;
  void add_findings();
  Finding* finding();
  void collect();
  void end() noexcept;
  const class RuntimeParts& placed(const Parts& parts, std::size_t begin, std::size_t count, const char* what) const;
  Room room() const;
  template <class With>
  void start(const char* what, std::size_t count, With with);

  const std::shared_ptr<RuntimeDevice> device_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t between_ = nullptr;  // for order(): who was made to wait for it waits for what it stood for then
  RuntimeDevice::Piece ticket_;
  Mark last_ = 0, reached_ = 0;
  std::deque<Pending> pending_;      // marks that were not seen reached, in order
  std::vector<cudaEvent_t> spare_;  // of marks that were
  std::vector<RuntimeDevice::Piece> findings_;
  std::vector<Finding*> free_findings_;
  std::deque<Looking> looking_;
  std::deque<WrongStamp> wrong_;
};

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
