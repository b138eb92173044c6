// What a queue is given to do: launches of the kernels, and copies.
#include <stdexcept>

#include "parts.hpp"
#include "queue.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

// Each kernel that any call can come to, by the functions that choose among them: for tasks of one element, with addresses that nobody uses.
void load_kernels(const std::string& label) {
  const Room room{};
  const auto load = [&](const auto& kernel, unsigned) { check(load_kernel(kernel), label, "cudaFuncGetAttributes"); };
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    PartsTable table;
    for (const bool alike : {true, false}) {
      table.alike = alike;
      with_publish(dtype, table, 0, 1, nullptr, nullptr, 0, room, load);
      with_merge(dtype, table, 0, 1, nullptr, 1, 1, room, load);
      with_take(dtype, table, 0, 1, nullptr, room, load);
      with_add(dtype, table, 0, 1, nullptr, room, load);
    }
    with_merge_into(dtype, nullptr, nullptr, nullptr, 1, 1, room, load);
    for (std::size_t n = 1; n <= kLeaves + 1; ++n) {  // beyond that many there is one kernel for all
      const Reduction reduction{dtype, 0, 1, std::vector<Reduction::Source>(n), {{nullptr, nullptr, 1}}, {}};
      with_reduce(reduction, nullptr, room, load);
    }
  }
  with_write_stamp(nullptr, 0, load);
}

Room RuntimeQueue::room() const { return {device_->processors(), reinterpret_cast<unsigned*>(ticket_.data)}; }

// `with` is called with the function that launches a kernel in this stream.
template <class With>
void RuntimeQueue::start(const char* what, std::size_t count, With with) {
  const Current current = this->current();
  with([&](const auto& kernel, unsigned blocks) {
    check(launch(kernel, blocks, stream_), label(), "launch", [&] {
      return std::string(what) + " (" + std::to_string(count) + " elements, " + std::to_string(blocks) + " blocks)";
    });
  });
}

// Checks the range, and orders this stream behind the table.
const RuntimeParts& RuntimeQueue::placed(const Parts& parts, std::size_t begin, std::size_t count, const char* what) const {
  const auto* const mine = dynamic_cast<const RuntimeParts*>(&parts);
  if (mine == nullptr || &mine->device() != device_.get()) throw std::invalid_argument(std::string(what) + ": the parts must be of the same device");
  if (begin > mine->count() || count > mine->count() - begin) {
    throw std::invalid_argument(std::string(what) + ": elements " + std::to_string(begin) + " to " + std::to_string(begin + count) +
                                ": must be within the model's " + std::to_string(mine->count()));
  }
  const Current current = this->current();
  mine->ready_for(stream_);
  return *mine;
}

void RuntimeQueue::publish(const Parts& parts, std::size_t begin, std::size_t count, std::byte* to, std::int64_t* stamp, Version version) {
  const RuntimeParts& mine = placed(parts, begin, count, "publish");
  if (count == 0) {
    if (stamp != nullptr) write_stamp(stamp, version);
    return;
  }
  start("publish", count, [&](auto launch) { with_publish(mine.dtype(), mine.table(), begin, count, to, stamp, version, room(), launch); });
}

void RuntimeQueue::reduce(const Reduction& reduction) {
  bool stamped = false;
  for (const auto& source : reduction.sources) stamped = stamped || source.stamp != nullptr;
  if (reduction.count == 0 && !reduction.stamp && !stamped) return;
  Finding* const looking = stamped ? finding() : nullptr;
  start("reduce", reduction.count, [&](auto launch) { with_reduce(reduction, looking, room(), launch); });
}

void RuntimeQueue::merge(Parts& parts, std::size_t begin, std::size_t count, const std::byte* total, int own_weight, int divisor) {
  const RuntimeParts& mine = placed(parts, begin, count, "merge");
  if (own_weight != 0 && own_weight != 1) throw std::invalid_argument("own_weight = " + std::to_string(own_weight) + ": must be 0 or 1");
  if (count == 0) return;
  start("merge", count, [&](auto launch) { with_merge(mine.dtype(), mine.table(), begin, count, total, own_weight, divisor, room(), launch); });
}

void RuntimeQueue::take(Parts& parts, std::size_t begin, std::size_t count, const std::byte* items) {
  const RuntimeParts& mine = placed(parts, begin, count, "take");
  if (count == 0) return;
  start("take", count, [&](auto launch) { with_take(mine.dtype(), mine.table(), begin, count, items, room(), launch); });
}

void RuntimeQueue::add(Parts& parts, std::size_t begin, std::size_t count, const std::byte* items) {
  const RuntimeParts& mine = placed(parts, begin, count, "add");
  if (count == 0) return;
  start("add", count, [&](auto launch) { with_add(mine.dtype(), mine.table(), begin, count, items, room(), launch); });
}

void RuntimeQueue::merge_into(DType dtype, std::byte* destination, const std::byte* own, const std::byte* total, int divisor, std::size_t count) {
  if (count == 0) return;
  start("merge_into", count, [&](auto launch) { with_merge_into(dtype, destination, own, total, divisor, count, room(), launch); });
}

void RuntimeQueue::copy(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  const Current current = this->current();
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), label(), "cudaMemcpyAsync", [&] { return std::to_string(bytes) + " bytes"; });
}

void RuntimeQueue::write_stamp(std::int64_t* stamp, Version version) {
  start("write_stamp", 1, [&](auto launch) { with_write_stamp(stamp, version, launch); });
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
