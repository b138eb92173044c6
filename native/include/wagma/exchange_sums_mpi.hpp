// Who adds up what an exchange over MPI has received: this processor, at once, or the device that the buffers lie on, which is given its
// work and left alone with it.
//
// On a device neither MPI nor kernels know what the other is doing with the same memory. The rules, and what keeps each:
//   - MPI sends nothing that a kernel may still write, and kernels read nothing that MPI may still write. A kernel is given to the device
//     when all messages that it reads are complete, and its block goes on, to be sent, when its mark is reached (MpiExchange::advance).
//     A complete receive on a device means that its data are there for kernels that begin after it; that much MPI promises.
//   - A room takes new messages only when the kernel that adds up what is in it is done: it is given back behind the same mark.
//   - Nothing writes what MPI still sends: sums are spread into a part only when all of the block's messages that lend it are through, and
//     where the sum is made of the very memory that was lent (whole models), the kernel waits for them, too.
//   - Kernels among themselves need no marks: they are in one queue. So the mean of a block may take the place of earlier blocks' sums, and
//     of its own, as soon as its messages are through, while other kernels are still to come; only the end waits, for the last mark.
//   - The contribution was complete before the version began (Models::publish), and it is read until the last block has been added up, which
//     is before the exchange is over. A null contribution is nowhere: it is an empty message, and a source without memory.
// So no call waits for the device, and a rank whose device is busy with the application's kernels goes on answering for everything else.
//
// Nor does a peer wait for what such a device would have to compute: members whose application has not arrived, so that its kernels may
// fill the device, add up nothing if others of the group can (MpiExchange::lay_out). What is left for them are messages, and a stamp, which is
// copied there because copies need none of what kernels occupy.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "wagma/device.hpp"
#include "wagma/reduce.hpp"

namespace wagma {

class DeviceBuffers;

// Of an MpiExchange, with whose thread it is used. What is given to it is in one order.
class ExchangeSums {
 public:
  virtual ~ExchangeSums() = default;

  virtual bool spares_passive() const = 0;  // whether members that are not fresh should add up nothing
  virtual std::size_t most_sources() const = 0;
  // Memory for what is received, as it happens to be. What it returned before is gone; nothing may be under way there.
  virtual std::byte* scratch(std::size_t bytes) = 0;
  // target = the sum of the sources' items along the association tree, as accumulators; nullptr counts as zeros.
  virtual Mark add_up(DType dtype, const std::vector<const void*>& sources, std::byte* target, std::size_t count) = 0;
  // model = sums / divisor, rounded once; what both take may overlap, if the model begins at the sums or before them.
  virtual void divide(DType dtype, std::byte* model, const std::byte* sums, int divisor, std::size_t count) = 0;
  // Behind all of that: `target`, which is a buffer, holds the result of `version`.
  virtual Mark complete(std::byte* target, Version version) = 0;
  virtual bool done(Mark mark) = 0;
};

std::unique_ptr<ExchangeSums> host_sums();
std::unique_ptr<ExchangeSums> device_sums(int rank, std::shared_ptr<DeviceBuffers> buffers);

}  // namespace wagma
