#include "model_device.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "arena.hpp"
#include "futex.hpp"
#include "scheduler.hpp"

namespace wagma::check {

namespace {

constexpr std::size_t kBufferBytes = kChunks * kDeviceChunk;
constexpr std::uint32_t kStop = 1u << 31;
constexpr int kMostRanks = 4;
constexpr std::uint32_t kGhosts = 64;  // slots from here on
Machinery* machinery = nullptr;

}  // namespace

// Behind a queue, which may be gone before its task is: never given back.
struct Work {
  explicit Work(int rank) : rank(rank) {}
  const int rank;  // whose device it is
  std::vector<Reduction> given_items;
  Atomic<std::uint32_t> given{0}, done{0};  // how many; the upper bit of `given`: there will be no more
  std::vector<WrongStamp> wrong;

  void give(const Reduction& reduction) {
    given_items.push_back(reduction);
    given.store(static_cast<std::uint32_t>(given_items.size()));
    futex_wake(given, 1);
  }
  void stop() {
    given.fetch_or(kStop);
    futex_wake(given, 1);
  }
  void run() {
    for (std::uint32_t over = 0;;) {
      const std::uint32_t until = given.load();
      if ((until & ~kStop) == over) {
        if (until & kStop) return;
        futex_wait(given, until, {}, 1);
        continue;
      }
      if (machinery->held_up_ == rank) {
        while (machinery->free_.load() == 0) futex_wait(machinery->free_, 0, {}, 1);
      }
      carry_out(given_items[over]);
      done.store(++over);
      futex_wake(done, 1);
    }
  }
  bool is_using(const std::byte* begin, std::size_t bytes) const {
    for (std::size_t i = done.peek(); i < given_items.size(); ++i) {
      for (const auto& source : given_items[i].sources) {
        if (source.data && source.data >= begin && source.data < begin + bytes) return true;
      }
      for (const auto& target : given_items[i].targets) {
        if (target.data >= begin && target.data < begin + bytes) return true;
      }
    }
    return false;
  }

 private:
  void carry_out(const Reduction& reduction) {
    std::vector<const void*> sources;
    std::vector<void*> targets;
    for (std::size_t i = 0; i < reduction.sources.size(); ++i) {
      const Reduction::Source& source = reduction.sources[i];
      sources.push_back(source.data ? source.data + reduction.begin * sizeof(float) : nullptr);
      if (!source.data) continue;
      const Version found = machinery->stamp(source.stamp).load();
      if (found != source.expected) wrong.push_back({static_cast<int>(i), found});
    }
    for (const Reduction::Target& target : reduction.targets) targets.push_back(target.data + reduction.begin * sizeof(float));
    Board::present().reduce(sources.data(), static_cast<int>(sources.size()), targets.data(), static_cast<int>(targets.size()));
    if (!reduction.stamp) return;
    for (const Reduction::Target& target : reduction.targets) machinery->stamp(target.stamp).store(*reduction.stamp);
  }
};

namespace {

class ModelQueue final : public Queue {
 public:
  explicit ModelQueue(int rank, std::vector<Work*>& queues) : work_(*new Work(rank)) {
    queues.push_back(&work_);
    spawn([work = &work_] { work->run(); });
  }
  ~ModelQueue() override { work_.stop(); }

  void reduce(const Reduction& reduction) override { work_.give(reduction); }
  Mark mark() override { return work_.given_items.size(); }
  bool reached(Mark mark) override { return work_.done.load() >= mark; }
  void wait(Mark mark, double) override {
    for (std::uint32_t over = work_.done.load(); over < mark; over = work_.done.load()) futex_wait(work_.done, over, {}, 1);
  }
  std::optional<WrongStamp> wrong_stamp() override {
    if (work_.wrong.empty()) return std::nullopt;
    const WrongStamp found = work_.wrong.back();
    work_.wrong.pop_back();
    return found;
  }

  // Of models, which are the host's here.
  void follow(Stream) override { std::abort(); }
  void lead(Stream) override { std::abort(); }
  void follow(Queue&, Mark) override { std::abort(); }
  void publish(const Parts&, std::size_t, std::size_t, std::byte*, std::int64_t*, Version) override { std::abort(); }
  void merge(Parts&, std::size_t, std::size_t, const std::byte*, int, int) override { std::abort(); }
  void take(Parts&, std::size_t, std::size_t, const std::byte*) override { std::abort(); }
  void add(Parts&, std::size_t, std::size_t, const std::byte*) override { std::abort(); }
  void merge_into(DType, std::byte*, const std::byte*, const std::byte*, int, std::size_t) override { std::abort(); }
  void copy(void*, const void*, std::size_t) override { std::abort(); }
  void write_stamp(std::int64_t*, Version) override { std::abort(); }

 private:
  Work& work_;
};

}  // namespace

// A rank's. Its one allocation lies at a place that follows from the rank.
class ModelDevice final : public Device {
 public:
  explicit ModelDevice(int rank) : rank_(rank) {}
  const char* kind() const override { return "model"; }
  int index() const override { return rank_; }
  std::string name() const override { return "model"; }
  std::string identity() const override { return std::to_string(rank_); }

  std::unique_ptr<Queue> queue(bool) override { return std::make_unique<ModelQueue>(rank_, machinery->queues_); }
  std::byte* allocate(std::size_t bytes) override {
    if (bytes > Machinery::bytes_of_rank()) std::abort();
    return Machinery::pool() + rank_ * Machinery::bytes_of_rank();
  }
  void release(std::byte* allocated) noexcept override {
    claim(machinery->open_[rank_].peek() == 0, "memory of rank " + std::to_string(rank_) + " is freed while it is open elsewhere");
    for (const Work* work : machinery->queues_) {
      claim(!work->is_using(allocated, Machinery::bytes_of_rank()), "memory of rank " + std::to_string(rank_) + " is freed under a kernel");
    }
    machinery->freed_[rank_] = 1;
    ghost(kGhosts + static_cast<std::uint32_t>(rank_), 1);
  }
  std::string share(std::byte*) override { return std::to_string(rank_); }
  std::byte* open(const std::string& shared) override {
    const int rank = std::stoi(shared);
    machinery->open_[rank].fetch_add(1);
    return Machinery::pool() + rank * Machinery::bytes_of_rank();
  }
  void close(std::byte* opened) noexcept override {
    const auto rank = static_cast<int>((opened - Machinery::pool()) / static_cast<std::ptrdiff_t>(Machinery::bytes_of_rank()));
    claim(machinery->freed_[rank] == 0 && machinery->open_[rank].peek() > 0, "memory is closed that is not open");
    machinery->open_[rank].fetch_add(~std::uint32_t{0});
  }

  std::unique_ptr<Parts> parts(DType, const std::vector<Part>&) override { std::abort(); }
  Memory memory() const override { std::abort(); }
  std::byte* allocate_host(std::size_t) override { std::abort(); }
  void release_host(std::byte*) noexcept override { std::abort(); }
  bool pin(std::byte*, std::size_t) noexcept override { std::abort(); }
  void unpin(std::byte*) noexcept override { std::abort(); }

 private:
  const int rank_;
};

namespace {

class StampedModels final : public Models {
 public:
  explicit StampedModels(std::size_t count) : count_(count) {}
  bool are_host_arrays() const override { return true; }
  bool can_be_resident() const override { return false; }
  void* resident(const void*, std::byte*) override { std::abort(); }
  void publish(std::byte* buffer, const void* own, Version stamp) override {
    copy(buffer, own, count_ * sizeof(float), Stores::cached);
    fill(buffer, nullptr, stamp);
  }
  void merge(void* own, const void* published, const std::byte* total, int own_weight, int divisor) override {
    merge_into(DType::float32, own, published, total, own_weight, divisor, count_);
  }
  void take(void* own, const std::byte* model) override { copy(own, model, count_ * sizeof(float), Stores::cached); }
  void add(void*, const std::byte*) override { std::abort(); }
  std::uint64_t digest_own(const void*) override { std::abort(); }
  void fill(std::byte* buffer, const void*, Version stamp) override { machinery->stamp(buffer + kBufferBytes).store(stamp); }  // with zeros
  std::uint64_t digest(const std::byte*, std::size_t) override { std::abort(); }
  void finish(std::byte*, Version) override { std::abort(); }

 private:
  const std::size_t count_;
};

}  // namespace

std::shared_ptr<Models> stamped_models(std::size_t count) { return std::make_shared<StampedModels>(count); }

Machinery::Machinery(int ranks, bool roles_known) : ranks_(ranks), freed_(ranks, 0) {
  if (ranks > kMostRanks) std::abort();
  open_ = std::make_unique<Atomic<std::uint32_t>[]>(ranks);
  stamps_ = std::make_unique<Atomic<Version>[]>(ranks * kDeviceBuffers);
  machinery = this;
  const std::size_t stride = bytes_of_rank() / kDeviceBuffers;
  new Board({ranks, kDeviceBuffers, [stride](int rank, int buffer) { return pool() + rank * bytes_of_rank() + buffer * stride; }, kDeviceChunk}, roles_known);
}

Machinery& Machinery::present() { return *machinery; }

// Never touched.
std::byte* Machinery::pool() {
  static std::byte* const memory = mapped(kMostRanks * bytes_of_rank());
  return memory;
}

std::size_t Machinery::bytes_of_rank() { return kDeviceBuffers * (kBufferBytes + 256); }

void Machinery::release() {
  free_.store(1);
  futex_wake(free_, 1);
}

std::shared_ptr<DeviceBuffers> Machinery::buffers(int rank) {
  return std::make_shared<DeviceBuffers>(std::make_shared<ModelDevice>(rank), kDeviceBuffers, kBufferBytes);
}

Atomic<Version>& Machinery::stamp(const void* at) {
  const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(at) - pool());
  const std::size_t stride = bytes_of_rank() / kDeviceBuffers;
  claim(offset % stride == kBufferBytes && offset / stride < static_cast<std::size_t>(ranks_ * kDeviceBuffers), "a stamp where none is");
  return stamps_[offset / stride];
}

}  // namespace wagma::check
