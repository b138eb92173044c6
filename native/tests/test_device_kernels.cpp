// The kernels of native/device, run block by block on the host, have the bits of wagma/reduce.hpp: in every type, for any number of
// members, any cut into tensors, any alignment and odd counts; with null contributions, denormals, infinities and NaNs. Blocks are run in
// a random order, as a GPU may do it. (What nvcc makes of the same source is run by tests/test_device_ptx.py.)
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../device/emulated/run_block.hpp"
#include "../device/kernels.hpp"
#include "wagma/reduce.hpp"

namespace {

using wagma::Device;
using wagma::DType;
using wagma::Reduction;
using wagma::Stores;
using wagma::Version;
namespace kernels = wagma::emulated;

constexpr DType kTypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16};
constexpr Version kBefore = -77;

int failures = 0;
std::mt19937 draws(1);

void expect(bool condition, const std::string& what, DType dtype, std::size_t n, std::size_t count) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s (%s, n = %zu, count = %zu)\n", what.c_str(), wagma::dtype_name(dtype), n, count);
}

DType sum_of(DType dtype) { return dtype == DType::float64 ? dtype : DType::float32; }

// `count` items, `skip` items behind an address that 64 divides, between bytes that nobody may touch.
class Items {
 public:
  Items(DType dtype, std::size_t count, std::size_t skip = 0)
      : size_(wagma::item_size(dtype)), bytes_((count + skip) * size_ + 256, std::byte{0x5a}), count_(count) {
    begin_ = -reinterpret_cast<std::uintptr_t>(bytes_.data()) % 64 + 64 + skip * size_;
  }
  std::byte* data() { return bytes_.data() + begin_; }
  const std::byte* data() const { return bytes_.data() + begin_; }
  std::size_t bytes() const { return count_ * size_; }
  void set(std::size_t i, std::uint64_t bits) { std::memcpy(data() + i * size_, &bits, size_); }
  // The same from the first to the last byte, those outside included.
  bool operator==(const Items& other) const {
    return bytes() == other.bytes() && (bytes() == 0 || std::memcmp(data(), other.data(), bytes()) == 0) && intact() && other.intact();
  }

 private:
  bool intact() const {
    const auto touched = [](std::byte byte) { return byte != std::byte{0x5a}; };
    const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(begin_);
    return std::none_of(bytes_.begin(), begin, touched) &&
           std::none_of(begin + static_cast<std::ptrdiff_t>(bytes()), bytes_.end(), touched);
  }
  std::size_t size_;
  std::vector<std::byte> bytes_;
  std::size_t count_, begin_ = 0;
};

// Magnitudes in which almost every other order of additions rounds differently, ties, denormals, signed zeros, the largest numbers; NaNs
// with all kinds of payloads and infinities, but in no element two NaNs with different bits: which one is kept is not defined.
// Element `at` of the model, of contribution `source` of n.
std::uint64_t item(DType dtype, std::size_t at, std::size_t source, std::size_t n) {
  const int bits = static_cast<int>(8 * wagma::item_size(dtype));
  const int digits = dtype == DType::float64 ? 52 : dtype == DType::float32 ? 23 : dtype == DType::float16 ? 10 : 7;
  const std::uint64_t top = (std::uint64_t{1} << (bits - 1 - digits)) - 1, random = std::uint64_t{draws()} << 32 | draws();
  const std::uint64_t sign = random >> 63 << (bits - 1);
  std::uint64_t mantissa = random & ((std::uint64_t{1} << digits) - 1), exponent = top / 2 - 4 + random / 64 % 8 % (top / 2);
  if (at % 97 == 5) {
    if (at / 97 % n != source) return sign | exponent << digits | mantissa;
    return sign | top << digits | std::max<std::uint64_t>(mantissa, 1);
  }
  if (at % 83 == 11) return std::uint64_t{1} << (bits - 1);  // -0 from all: stays -0, unless something is added that is not there
  if (at % 89 == 7 && draws() % 3 == 0) return sign | top << digits;
  switch (draws() % 16) {
    case 0: return sign | mantissa;
    case 1: return sign;
    case 2: return sign | ((top << digits) - 1);
    case 3: exponent = random / 4096 % top; break;
    case 4: mantissa &= mantissa << digits / 2; break;
  }
  return sign | exponent << digits | mantissa;
}

Items filled(DType dtype, std::size_t begin, std::size_t count, std::size_t source, std::size_t n, std::size_t skip = 0) {
  Items items(dtype, count, skip);
  for (std::size_t i = 0; i < count; ++i) items.set(i, item(dtype, begin + i, source, n));
  return items;
}

// Runs a kernel, its blocks in a random order; `stamp` must be as it was until the last one has run.
struct Launcher {
  const std::int64_t* stamp = nullptr;
  bool early = false;
  std::size_t launches = 0;

  template <class Kernel>
  void operator()(const Kernel& kernel, unsigned blocks) {
    ++launches;
    if (draws() % 2 == 0) blocks = (blocks + 2) / 3;  // any number will do
    std::vector<unsigned> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), draws);
    for (unsigned i = 0; i < blocks; ++i) {
      kernels::run_block(kernel, wagma::Block(order[i], blocks));
      if (stamp && i + 1 != blocks && *stamp != kBefore) early = true;
    }
  }
};

struct Room {
  unsigned ticket = 0;
  kernels::Room room{static_cast<unsigned>(1 + draws() % 3), &ticket};
};

// --- Reductions --------------------------------------------------------------------------------------------------------------------------

enum class Layout { aligned, shifted, scattered };  // at cache lines; all as far behind one; each elsewhere

void check_reduce(DType dtype, int n, std::size_t begin, std::size_t count, bool absent, Layout layout, const std::vector<int>& divisors) {
  const auto skip = [&](std::size_t i) { return layout == Layout::aligned ? 0 : layout == Layout::shifted ? 3 : i % 7; };
  const std::size_t size = begin + count, members = static_cast<std::size_t>(n);
  std::vector<Items> sources;
  for (std::size_t s = 0; s < members; ++s) sources.push_back(filled(dtype, 0, size, s, members, skip(s)));
  std::vector<Version> stamps(members, 40);
  Reduction reduction{dtype, begin, count, {}, {}, std::nullopt};
  std::vector<const void*> given;
  for (std::size_t s = 0; s < members; ++s) {
    const bool null = absent && s % 3 == 1;
    reduction.sources.push_back({null ? nullptr : sources[s].data(), null ? nullptr : &stamps[s], 40});
    given.push_back(null ? nullptr : sources[s].data() + begin * wagma::item_size(dtype));
  }
  std::vector<Items> targets, expected;
  std::vector<void*> wanted;
  std::vector<std::int64_t> target_stamps(divisors.size(), kBefore);
  for (std::size_t j = 0; j < divisors.size(); ++j) {
    const DType kind = divisors[j] == 1 ? sum_of(dtype) : dtype;
    targets.emplace_back(kind, size, skip(j + 1));
    std::memset(targets[j].data(), 0x33, targets[j].bytes());
    expected.push_back(targets[j]);
    reduction.targets.push_back({targets[j].data(), j == 1 ? nullptr : &target_stamps[j], divisors[j]});
  }
  for (std::size_t j = 0; j < divisors.size(); ++j) {
    wanted.push_back(expected[j].data() + begin * wagma::item_size(divisors[j] == 1 ? sum_of(dtype) : dtype));
  }
  wagma::reduce(dtype, given.data(), n, wanted.data(), divisors.data(), static_cast<int>(divisors.size()), count, Stores::cached);
  if (count % 2 == 1) reduction.stamp = 7;
  if (n >= 5) stamps[3] = stamps[4] = 39;
  Room room;
  kernels::Finding finding;
  Launcher launcher{target_stamps.data()};
  kernels::with_reduce(reduction, &finding, room.room, std::ref(launcher));
  for (std::size_t j = 0; j < divisors.size(); ++j) {
    expect(targets[j] == expected[j], "reduce, target " + std::to_string(j), dtype, members, count);
    const bool stamped = reduction.stamp && j != 1;
    expect(target_stamps[j] == (stamped ? 7 : kBefore), "a target's stamp", dtype, members, count);
  }
  expect(!launcher.early && launcher.launches == 1 && room.ticket == 0, "stamps come last", dtype, members, count);
  expect(n < 5 ? finding.source == -1 : finding.source == 3 && finding.found == 39, "the first wrong stamp is found", dtype, members, count);
}

void check_reductions(DType dtype) {
  for (const int n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33, 56, 100, 127, 128}) {
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{40}, std::size_t{n > 9 ? 1101u : 3333u}}) {
      const auto layout = static_cast<Layout>((static_cast<std::size_t>(n) + count) % 3);
      check_reduce(dtype, n, 0, count, false, Layout::aligned, {n, n});
      check_reduce(dtype, n, 256, count, n % 2 == 0, layout, {1, n, 3, 1, n});
      check_reduce(dtype, n, 11, count, true, Layout::shifted, {7, 1});
    }
  }
  check_reduce(dtype, 4, 0, 1101, false, Layout::aligned, std::vector<int>(20, 4));
  check_reduce(dtype, 2, 5, 20001, false, Layout::aligned, {2, 2});
  check_reduce(dtype, 128, 5, 333, true, Layout::aligned, std::vector<int>(128, 128));
}

// --- Parts -------------------------------------------------------------------------------------------------------------------------------

// Items of one part as the model holds them, and back, by the functions of wagma/reduce.hpp.
Items to_model(DType model, DType part, const Items& items, std::size_t count) {
  Items held(model, count);
  if (count == 0) return held;
  if (model == part) {
    std::memcpy(held.data(), items.data(), held.bytes());
    return held;
  }
  std::vector<float> sums(count);
  const void* const source = items.data();
  void* const target = sums.data();
  const int divisor = 1;
  wagma::reduce(part, &source, 1, &target, &divisor, 1, count, Stores::cached);
  if (model == DType::float32) std::memcpy(held.data(), sums.data(), held.bytes());
  const std::vector<double> wide(sums.begin(), sums.end());
  if (model == DType::float64) std::memcpy(held.data(), wide.data(), held.bytes());
  return held;
}

void to_part(DType model, DType part, const std::byte* items, std::byte* to, std::size_t count) {
  if (model == part) {
    std::memcpy(to, items, count * wagma::item_size(part));
    return;
  }
  std::vector<float> narrow(count);
  std::vector<double> wide(count);
  if (model == DType::float32) std::memcpy(narrow.data(), items, count * 4);
  if (model == DType::float64) {
    std::memcpy(wide.data(), items, count * 8);
    std::copy(wide.begin(), wide.end(), narrow.begin());
  }
  wagma::merge_into(part, to, nullptr, narrow.data(), 0, 1, count);
}

// Tensors of `sizes` elements; the dtypes that the model can hold take turns if they are mixed. Every seventh has no data if some are absent.
struct Model {
  Model(DType dtype, const std::vector<std::size_t>& sizes, bool mixed, bool absent, bool shifted) : dtype(dtype) {
    for (std::size_t p = 0; p < sizes.size(); ++p) {
      DType kind = dtype;
      if (mixed) kind = kTypes[p % 4];
      if (!kernels::can_hold(dtype, kind)) kind = dtype;
      parts.push_back(filled(kind, count, sizes[p], 1, 2, shifted ? p % 5 : 0));
      dtypes.push_back(static_cast<std::uint8_t>(kind));
      data.push_back(absent && p % 7 == 3 ? nullptr : parts.back().data());
      count += sizes[p];
      ends.push_back(count);
    }
    before = parts;
    for (std::size_t p = 0; p < parts.size(); ++p) data[p] = data[p] ? parts[p].data() : nullptr;
  }
  kernels::PartsTable table() {
    const bool alike = std::all_of(dtypes.begin(), dtypes.end(), [&](auto kind) { return kind == static_cast<std::uint8_t>(dtype); });
    return {ends.data(), data.data(), dtypes.data(), static_cast<std::uint32_t>(parts.size()), alike};
  }
  // All of it as the model's dtype has it; zeros where there is no data.
  Items whole() const {
    Items all(dtype, count);
    if (count != 0) std::memset(all.data(), 0, all.bytes());
    for (std::size_t p = 0; p < parts.size(); ++p) {
      if (!data[p]) continue;
      const std::size_t size = ends[p] - begin(p);
      const Items held = to_model(dtype, static_cast<DType>(dtypes[p]), parts[p], size);
      if (size != 0) std::memcpy(all.data() + begin(p) * wagma::item_size(dtype), held.data(), held.bytes());
    }
    return all;
  }
  // Whether elements [first, last) are these, and all others as they were. Then all is as before.
  bool became(const Items& model, std::size_t first, std::size_t last) {
    auto expected = before;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      const std::size_t from = std::max(first, begin(p)), to = std::min<std::size_t>(last, ends[p]);
      if (from >= to || !data[p]) continue;
      const auto kind = static_cast<DType>(dtypes[p]);
      std::byte* const at = expected[p].data() + (from - begin(p)) * wagma::item_size(kind);
      to_part(dtype, kind, model.data() + from * wagma::item_size(dtype), at, to - from);
    }
    bool same = true;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      same &= parts[p] == expected[p];
      if (before[p].bytes() != 0) std::memcpy(parts[p].data(), before[p].data(), before[p].bytes());
    }
    return same;
  }
  std::size_t begin(std::size_t p) const { return p == 0 ? 0 : ends[p - 1]; }

  DType dtype;
  std::size_t count = 0;
  std::vector<Items> parts, before;
  std::vector<std::uint64_t> ends;
  std::vector<void*> data;
  std::vector<std::uint8_t> dtypes;
};

void check_parts(Model& model, std::size_t begin, std::size_t count, std::size_t skip) {
  const DType dtype = model.dtype;
  const std::size_t size = wagma::item_size(dtype), n = model.parts.size();
  const kernels::PartsTable table = model.table();
  const Items own = model.whole();
  Room room;

  Items published(dtype, count, skip), wanted(dtype, count, skip);
  if (count != 0) std::memcpy(wanted.data(), own.data() + begin * size, wanted.bytes());
  std::int64_t stamp = kBefore;
  Launcher launcher{&stamp};
  kernels::with_publish(dtype, table, begin, count, published.data(), skip == 2 ? nullptr : &stamp, 12, room.room, std::ref(launcher));
  expect(published == wanted && model.became(own, 0, 0), "publish", dtype, n, count);
  expect(stamp == (skip == 2 ? kBefore : 12) && !launcher.early && room.ticket == 0, "publish's stamp comes last", dtype, n, count);

  const Items items = filled(dtype, begin, count, 0, 2, skip);
  Items taken = own;
  if (count != 0) std::memcpy(taken.data() + begin * size, items.data(), items.bytes());
  kernels::with_take(dtype, table, begin, count, items.data(), room.room, Launcher{});
  expect(model.became(taken, begin, begin + count), "take", dtype, n, count);

  Items added = own;
  wagma::add_into(dtype, added.data() + begin * size, items.data(), count);
  kernels::with_add(dtype, table, begin, count, items.data(), room.room, Launcher{});
  expect(model.became(added, begin, begin + count), "add", dtype, n, count);

  const Items total = filled(sum_of(dtype), begin, count, 0, 2, skip);
  for (const int own_weight : {0, 1}) {
    for (const int divisor : {1, 2, 5}) {
      Items merged = own;
      std::byte* const at = merged.data() + begin * size;
      wagma::merge_into(dtype, at, at, total.data(), own_weight, divisor, count);
      kernels::with_merge(dtype, table, begin, count, total.data(), own_weight, divisor, room.room, Launcher{});
      expect(model.became(merged, begin, begin + count), "merge", dtype, n, count);
    }
  }
}

void check_models(DType dtype) {
  std::vector<std::size_t> small;
  for (std::size_t p = 0; p < 1500; ++p) small.push_back(p % 6);
  const std::vector<std::vector<std::size_t>> cuts = {{1},    {7, 0, 0, 3}, {9001}, {4096, 4096, 24}, {10, 5000, 1, 1, 4099, 0, 2500, 300, 0},
                                                      small};
  for (std::size_t c = 0; c < cuts.size(); ++c) {
    for (const bool mixed : {false, true}) {
      if (mixed && wagma::item_size(dtype) == 2) continue;
      Model model(dtype, cuts[c], mixed, c >= 4, mixed != (c % 2 == 0));
      check_parts(model, 0, model.count, 0);
      check_parts(model, model.count / 3, model.count / 2, c % 4);
      check_parts(model, model.count - 1, 1, 1);
      check_parts(model, 0, 0, 2);
    }
  }
}

// --- Plain arrays ------------------------------------------------------------------------------------------------------------------------

void check_merge_into(DType dtype, std::size_t count, std::size_t skip, bool with_own, int divisor) {
  const Items own = filled(dtype, 0, count, 0, 2, skip), sums = filled(sum_of(dtype), 0, count, 1, 2, skip);
  for (const int place : {0, 1, 2}) {  // apart, over own, over the total
    Items total = sums, mine = own, apart(dtype, count, skip);
    std::byte* const to = place == 0 ? apart.data() : place == 1 ? mine.data() : total.data();
    Items expected_total = sums, expected_mine = own, expected_apart(dtype, count, skip);
    std::byte* const wanted = place == 0 ? expected_apart.data() : place == 1 ? expected_mine.data() : expected_total.data();
    wagma::merge_into(dtype, wanted, with_own ? own.data() : nullptr, sums.data(), with_own, divisor, count);
    Room room;
    kernels::with_merge_into(dtype, to, with_own ? mine.data() : nullptr, total.data(), divisor, count, room.room, Launcher{});
    const std::string what = "merge_into, place " + std::to_string(place);
    // In place the total's end is what it was.
    expect(mine == expected_mine && apart == expected_apart && total == expected_total, what, dtype, skip, count);
  }
}

void check_refusals() {
  const auto refused = [](auto call) {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      return std::string(error.what()).find("must be") != std::string::npos;
    }
    return false;
  };
  for (const std::size_t n : {std::size_t{0}, std::size_t{Device::kMostMembers + 1}}) {
    const Reduction reduction{DType::float32, 0, 0, std::vector<Reduction::Source>(n), {}, std::nullopt};
    expect(refused([&] { kernels::with_reduce(reduction, nullptr, {}, Launcher{}); }), "sources are counted", DType::float32, n, 0);
  }
  const bool weighed = refused([] { kernels::with_merge(DType::float32, {}, 0, 0, nullptr, 2, 3, {}, Launcher{}); });
  expect(weighed, "own_weight 2 is refused", DType::float32, 0, 0);
  std::int64_t stamp = 0;
  kernels::with_write_stamp(&stamp, -5, Launcher{});
  expect(stamp == -5, "write_stamp", DType::float32, 0, 0);
}

}  // namespace

int main() {
  for (const DType dtype : kTypes) {
    check_reductions(dtype);
    check_models(dtype);
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{5}, std::size_t{3001}, std::size_t{40001}}) {
      for (const std::size_t skip : {std::size_t{0}, std::size_t{3}}) {
        for (const int divisor : {1, 3}) {
          for (const bool with_own : {false, true}) check_merge_into(dtype, count, skip, with_own, divisor);
        }
      }
    }
  }
  check_refusals();
  return failures ? 1 : 0;
}
