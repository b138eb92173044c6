// The kernels of a device: with which of their variants, and in how many blocks, each call of a Queue is answered.
//
// Each with_...() calls launch(kernel, blocks) at least once, in order. `kernel` is an object that is handed to the device by value, as
// const __grid_constant__, and run in blocks of kThreads. Parameters are those of Queue.
#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel_parts.hpp"
#include "kernel_reduce.hpp"

namespace wagma {
namespace WAGMA_RUNTIME {

// What a kernel needs beside its task.
struct Room {
  unsigned processors = 1;     // multiprocessors of the device
  unsigned* ticket = nullptr;  // in the device's memory, zero; kernels of one stream can share it
};

struct WriteStamp {
  std::int64_t* stamp;
  Version version;
  WAGMA_DEVICE void operator()(const Block& block) const {
    block.each([&](unsigned thread) {
      if (thread == 0) *stamp = version;
    });
  }
};

// Whether a tensor of this dtype can be a part of a model of that one: the model's holds all of its values.
constexpr bool can_hold(DType model, DType part) {
  return model == part || model == DType::float64 || (model == DType::float32 && part != DType::float64);
}

template <class Function>
void with_type(DType dtype, Function function) {
  switch (dtype) {
    case DType::float32: return function(Float32{});
    case DType::float64: return function(Float64{});
    case DType::float16: return function(Float16{});
    case DType::bfloat16: return function(Bfloat16{});
  }
}

// `array`: of the element `begin`.
template <class Operation, class Array, class Launch>
void with_parts(const Operation& operation, const PartsTable& parts, std::size_t begin, std::size_t count, Array* array,
                std::int64_t* stamp, Version version, const Room& room, Launch launch) {
  const auto go = [&](auto alike) {
    using Kernel = OverParts<Operation, decltype(alike)::value>;
    auto* const items = reinterpret_cast<typename Operation::Array*>(const_cast<std::byte*>(array));
    const Tiles<Kernel::kTile> tiles{count, phase_of(items, Kernel::kWidth)};
    launch(Kernel{operation, parts, items, begin, tiles, stamp, version, room.ticket}, blocks_for(tiles, room.processors));
  };
  if constexpr (std::is_same_v<typename Operation::Type, Float32> || std::is_same_v<typename Operation::Type, Float64>) {
    if (!parts.alike) return go(std::false_type{});
  }
  go(std::true_type{});
}

template <class Launch>
void with_publish(DType model, const PartsTable& parts, std::size_t begin, std::size_t count, std::byte* to, std::int64_t* stamp,
                  Version version, const Room& room, Launch launch) {
  with_type(model, [&](auto type) { with_parts(Publish<decltype(type)>{}, parts, begin, count, to, stamp, version, room, launch); });
}

template <class Launch>
void with_merge(DType model, const PartsTable& parts, std::size_t begin, std::size_t count, const std::byte* total, int own_weight,
                int divisor, const Room& room, Launch launch) {
  if (own_weight != 0 && own_weight != 1) {
    throw std::invalid_argument("merge with own_weight " + std::to_string(own_weight) + ": must be 0 or 1");
  }
  with_type(model, [&](auto type) {
    using T = decltype(type);
    const Merge<T> merge{own_weight == 1, static_cast<typename T::Sum>(divisor)};
    with_parts(merge, parts, begin, count, total, nullptr, 0, room, launch);
  });
}

template <class Launch>
void with_take(DType model, const PartsTable& parts, std::size_t begin, std::size_t count, const std::byte* items, const Room& room,
               Launch launch) {
  with_type(model, [&](auto type) { with_parts(Take<decltype(type)>{}, parts, begin, count, items, nullptr, 0, room, launch); });
}

template <class Launch>
void with_add(DType model, const PartsTable& parts, std::size_t begin, std::size_t count, const std::byte* items, const Room& room,
              Launch launch) {
  with_type(model, [&](auto type) { with_parts(Add<decltype(type)>{}, parts, begin, count, items, nullptr, 0, room, launch); });
}

// Targets of sums first. (No template: each kernel would have sorting compiled for itself.)
inline std::vector<Reduction::Target> by_divisor(std::vector<Reduction::Target> targets) {
  std::stable_sort(targets.begin(), targets.end(), [](const auto& a, const auto& b) { return a.divisor < b.divisor; });
  return targets;
}

// Whoever launches it: this is compiled once for each kernel.
template <class Body, class T>
Reduce<T, Body> kernel_of(const Reduction& reduction, Finding* finding, const Room& room) {
  using Kernel = Reduce<T, Body>;
  using Item = typename T::Item;
  Kernel kernel{};
  Body& body = kernel.body;
  body.n = static_cast<int>(reduction.sources.size());
  body.m = static_cast<int>(reduction.targets.size());
  std::size_t phases = 0;  // a set of them
  for (std::size_t s = 0; s < reduction.sources.size(); ++s) {
    const auto& source = reduction.sources[s];
    const Item* const data = source.data ? reinterpret_cast<const Item*>(source.data) + reduction.begin : nullptr;
    body.sources[s] = {data, source.stamp, source.expected};
    if (data) phases |= std::size_t{1} << phase_of(data, Kernel::kWidth);
  }
  std::size_t written = 0;
  const auto add = [&](const Reduction::Target& target) {
    const auto place = [&](auto* data) {
      phases |= std::size_t{1} << phase_of(data + reduction.begin, Kernel::kWidth);
      body.targets[written++] = {data + reduction.begin, target.stamp, target.divisor};
    };
    if (target.divisor == 1) {
      place(reinterpret_cast<typename T::Sum*>(target.data));
    } else {
      place(reinterpret_cast<Item*>(target.data));
    }
  };
  for (const auto& target : by_divisor(reduction.targets)) add(target);
  kernel.wide = (phases & (phases - 1)) == 0;
  unsigned phase = 0;
  while (phases >> phase > 1) ++phase;
  kernel.tiles = {reduction.count, kernel.wide ? phase : 0};
  kernel.stamped = reduction.stamp.has_value();
  kernel.version = reduction.stamp.value_or(0);
  kernel.finding = finding;
  kernel.ticket = room.ticket;
  return kernel;
}

template <class Launch>
void with_reduce(const Reduction& reduction, Finding* finding, const Room& room, Launch launch) {
  const std::size_t n = reduction.sources.size(), m = reduction.targets.size();
  if (n < 1 || n > Device::kMostMembers || m > Device::kMostMembers) {
    throw std::invalid_argument("reduce of " + std::to_string(n) + " sources to " + std::to_string(m) + " targets: must be from 1 to " +
                                std::to_string(Device::kMostMembers) + " sources and at most as many targets");
  }
  with_type(reduction.dtype, [&](auto type) {
    using T = decltype(type);
    const auto go = [&](auto body) {
      const auto kernel = kernel_of<decltype(body), T>(reduction, finding, room);
      launch(kernel, blocks_for(kernel.tiles, room.processors));
    };
    switch (m > kLeaves ? 0 : n) {
      case 1: return go(Few<T, 1>{});
      case 2: return go(Few<T, 2>{});
      case 3: return go(Few<T, 3>{});
      case 4: return go(Few<T, 4>{});
      case 8: return go(Few<T, 8>{});
      default: return go(Many<T>{});
    }
  });
}

template <class Launch>
void with_merge_into(DType dtype, std::byte* destination, const std::byte* own, const std::byte* total, int divisor, std::size_t count,
                     const Room& room, Launch launch) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    using Kernel = MergeInto<T>;
    const auto merge = [&](std::size_t begin, std::size_t end, bool doubling) {
      auto* const to = reinterpret_cast<typename T::Item*>(destination) + begin;
      const auto* const mine = own ? reinterpret_cast<const typename T::Item*>(own) + begin : nullptr;
      const auto* const sums = reinterpret_cast<const typename T::Sum*>(total) + begin;
      const unsigned phase = phase_of(to, Kernel::kWidth);
      const bool wide = phase == phase_of(sums, Kernel::kWidth) && (!mine || phase == phase_of(mine, Kernel::kWidth));
      const Tiles<Kernel::kTile> tiles{end - begin, wide ? phase : 0};
      const auto divides = static_cast<typename T::Sum>(divisor);
      launch(Kernel{to, mine, sums, divides, tiles, wide, doubling}, doubling ? 1u : blocks_for(tiles, room.processors));
    };
    constexpr bool narrower = sizeof(typename T::Item) < sizeof(typename T::Sum);
    if (!narrower || destination != total) return merge(0, count, false);
    std::size_t done = std::min<std::size_t>(count, 2 * Kernel::kTile);
    merge(0, done, true);
    for (; done < count; done = std::min(count, 2 * done)) merge(done, std::min(count, 2 * done), false);
  });
}

template <class Launch>
void with_write_stamp(std::int64_t* stamp, Version version, Launch launch) {
  launch(WriteStamp{stamp, version}, 1u);
}

}  // namespace WAGMA_RUNTIME
}  // namespace wagma
