// The application's stream on an emulated device, for tests and for development without a GPU: work of which the application waits for
// nothing, as a training step's.
#pragma once

#include <functional>

#include "wagma/device.hpp"

namespace wagma {

class EmulatedStream {
 public:
  explicit EmulatedStream(int device = 0);  // throws DeviceError if there is none
  ~EmulatedStream();                         // what it was given is still done
  EmulatedStream(const EmulatedStream&) = delete;
  EmulatedStream& operator=(const EmulatedStream&) = delete;

  Stream handle() const { return handle_; }
  int device() const { return device_; }

  // In the stream's order. None of these waits.
  void run(std::function<void()> work);  // must not throw
  void sleep(double seconds);
  void fill(void* data, std::size_t count, DType dtype, double value);
  void fail();  // as a kernel with an illegal access: the device answers everything with an error from then on

  void synchronize();  // waits for all of it

 private:
  const int device_;
  Stream handle_ = 0;
};

}  // namespace wagma
