// The one implementation of Device, on the runtime of runtime.hpp.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

// All of it may be called by several threads at once: ranks that are threads share one.
class RuntimeDevice final : public Device, public std::enable_shared_from_this<RuntimeDevice> {
 public:
  explicit RuntimeDevice(int index);
  ~RuntimeDevice() override;

  const char* kind() const override { return kKind; }
  int index() const override { return index_; }
  std::string name() const override { return name_; }
  std::string identity() const override { return identity_; }

  std::unique_ptr<Queue> queue(bool urgent) override;
  std::unique_ptr<Parts> parts(DType model, const std::vector<Part>& tensors) override;

  Memory memory() const override;
  std::byte* allocate(std::size_t bytes) override;
  void release(std::byte* allocated) noexcept override;
  std::byte* allocate_host(std::size_t bytes) override;
  void release_host(std::byte* allocated) noexcept override;
  bool pin(std::byte* memory, std::size_t bytes) noexcept override;
  void unpin(std::byte* memory) noexcept override;

  std::string share(std::byte* allocated) override;  // this and the next two: sharing.cpp
  std::byte* open(const std::string& shared) override;
  void close(std::byte* opened) noexcept override;

  // --- for queues and parts -------------------------------------------------------------------------

  const std::string& label() const { return label_; }
  unsigned processors() const { return processors_; }

  // Small pieces of memory that outlive whoever uses them: freeing waits for all that goes on on a device, which no end of a Queue or of
  // Parts may do in the middle of a training. Given back they are kept, for the next who asks for as much.
  struct Piece {
    std::byte* data = nullptr;
    std::size_t bytes = 0;  // a power of two
    bool on_device = true;  // else of the host: pinned, and kernels can write to it
  };
  Piece take(std::size_t bytes, bool on_device);  // 256-byte aligned, with whatever is in it
  void give(const Piece& piece) noexcept;

  // Something is still under way on the device and does not come to an end: no memory is freed from now on, because that would wait for it,
  // or pull it away from under it.
  void abandon() noexcept { abandoned_ = true; }

  // Copies in the order of one stream that is nobody else's, and records `behind`.
  void upload(void* to, const void* from, std::size_t bytes, cudaEvent_t behind);

 private:
  struct Shared;  // sharing.cpp: what the text says

  std::byte* open_here(const Shared& shared, const std::string& what);
  std::byte* open_elsewhere(const Shared& shared, const std::string& what);
  void reach(int peer, const std::string& what);
  bool has(const std::byte* allocated, std::size_t bytes) const;
  void clear(std::byte* allocated, std::size_t bytes);

  const int index_;
  std::string name_, identity_, label_;
  unsigned processors_ = 1;
  cudaStream_t errands_ = nullptr;
  // Set by whoever gives up, on any thread, and never taken back; read where memory is freed. It orders nothing but itself: who has given up has
  // seen the device not end, and whatever it used is freed later by the same owner, on the same thread. Memory of others that is freed
  // beside it, just before they see it, waits for the device, as it would without.
  std::atomic<bool> abandoned_{false};

  // Guards what follows, and the order of calls on errands_. Held around calls of the runtime that do not wait for work of the device.
  mutable std::mutex mutex_;
  std::map<const std::byte*, std::size_t> allocated_;
  std::map<std::byte*, int> opened_;  // by the runtime, of other processes: how often
  std::vector<Piece> pieces_;        // given back
};

// All kernels of queues; while nothing of ours runs. In queue_work.cpp.
void load_kernels(const std::string& label);

// The device `index` of this process if somebody has it.
std::shared_ptr<RuntimeDevice> existing_device(int index);

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
