// Work of an application's stream, two queues and the host, each behind the other. `device_races MODE` leaves one of the orders out; then
// ThreadSanitizer has to see a data race, also where the values happen to be right: the emulated streams may give no order that a GPU does
// not give. Nothing left out ("none"): no race, and the right values.
#include <cstdio>
#include <cstring>
#include <string>

#include "../device/emulated/application.hpp"
#include "ranks.hpp"

using namespace wagma;

namespace {

constexpr std::size_t kCount = 1000;
constexpr std::size_t kBytes = kCount * sizeof(float);
constexpr double kLimit = 20.0;

bool all_are(const float* data, float value) {
  for (std::size_t i = 0; i < kCount; ++i) {
    if (data[i] != value) return false;
  }
  return true;
}

// x -> y by queue `first`, y -> z by queue `second`, z += 1 by the application, which has written x and is slow.
bool run(const std::string& missing) {
  const auto device = emulated_device(0);
  EmulatedStream application, busy;
  const auto first = device->queue(true), second = device->queue(false);
  auto* const x = reinterpret_cast<float*>(device->allocate(3 * kBytes));
  float* const y = x + kCount;
  float* const z = y + kCount;

  application.sleep(0.03);
  application.run([x] {
    for (std::size_t i = 0; i < kCount; ++i) x[i] = 1;
  });
  const Mark before = first->mark();  // reached at once
  if (missing != "follow") first->follow(application.handle());
  first->copy(y, x, kBytes);
  const Mark copied = first->mark();

  if (missing == "lead" || missing == "end") busy.sleep(0.05);  // without the others the second queue has to be early
  second->follow(busy.handle());
  if (missing != "queue") second->follow(*first, missing == "early" ? before : copied);
  second->copy(z, y, kBytes);
  if (missing != "lead") second->lead(application.handle());
  application.run([z] {
    for (std::size_t i = 0; i < kCount; ++i) z[i] += 1;
  });

  if (missing == "asked") first->reached(copied);  // asking is not waiting
  if (missing != "host" && missing != "asked") first->wait(copied, kLimit);
  bool right = all_are(y, 1);
  if (missing != "end") application.synchronize();
  right = all_are(z, 2) && right;

  application.synchronize();
  second->wait(second->mark(), kLimit);
  device->release(reinterpret_cast<std::byte*>(x));
  return right;
}

}  // namespace

int main(int, char** arguments) {
  const std::string missing = arguments[1] ? arguments[1] : "none";
  try {
    if (run(missing)) return 0;
    std::puts("wrong values");
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
  return 1;
}
