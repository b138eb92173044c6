// How an MpiTransport comes to be, and how it sleeps; what it carries is in transport_mpi.cpp.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "wagma/device_buffers.hpp"
#include "wagma/transport_mpi.hpp"

namespace wagma {

namespace {

// A nap is an eighth of the time since something last happened, between these bounds.
constexpr int kNapFraction = 8;
constexpr auto kShortestNap = std::chrono::microseconds(20);
constexpr double kLongestNap_s = 1.0;
// While a device is at work: what it does takes some ten microseconds where it is free, and peers wait for it.
constexpr auto kComputingNap = std::chrono::microseconds(50);

const char* thread_level(int level) {
  switch (level) {
    case MPI_THREAD_SINGLE:
      return "MPI_THREAD_SINGLE";
    case MPI_THREAD_FUNNELED:
      return "MPI_THREAD_FUNNELED";
    case MPI_THREAD_SERIALIZED:
      return "MPI_THREAD_SERIALIZED";
    default:
      return "an unknown level";
  }
}

// Linux rounds naps up by 50 us, unless a thread asks otherwise for itself: as much as the shortest naps and more. Long naps keep
// the default, so that the kernel can end several at once. The thread is the application's as often as not, so it gets its own
// value back.
class SharpTimer {
 public:
  explicit SharpTimer([[maybe_unused]] Clock::duration nap) {
#ifdef __linux__
    if (nap >= kBlunt) return;
    before_ = ::prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    if (before_ > kSlack_ns) ::prctl(PR_SET_TIMERSLACK, kSlack_ns, 0, 0, 0);
#endif
  }
  ~SharpTimer() {
#ifdef __linux__
    if (before_ > kSlack_ns) ::prctl(PR_SET_TIMERSLACK, before_, 0, 0, 0);
#endif
  }
  SharpTimer(const SharpTimer&) = delete;
  SharpTimer& operator=(const SharpTimer&) = delete;

 private:
  static constexpr auto kBlunt = std::chrono::microseconds(500);
  static constexpr long kSlack_ns = 1000;
  long before_ = 0;  // 0: it was left alone
};

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

}  // namespace

void MpiOptions::check(int rank) const {
  if (!(std::isfinite(longest_nap_s) && longest_nap_s >= 0 && longest_nap_s <= kLongestNap_s)) {
    throw std::invalid_argument("rank " + std::to_string(rank) + ": longest_nap_s = " + std::to_string(longest_nap_s) +
                                ": must be from 0 to 1");
  }
  if (!device_buffers || (device_buffers->buffers() == buffers && device_buffers->buffer_bytes() == buffer_bytes)) return;
  throw std::invalid_argument("rank " + std::to_string(rank) + ": device_buffers are " + std::to_string(device_buffers->buffers()) + " of " +
                              std::to_string(device_buffers->buffer_bytes()) + " bytes: must be " + std::to_string(buffers) + " of " +
                              std::to_string(buffer_bytes));
}

// MPI_Comm_dup would wait for the last rank for ever. MPI may still write into a duplication that is given up, so it is never freed.
MPI_Comm MpiTransport::duplicate(MPI_Comm parent, Clock::time_point deadline) const {
  struct Duplication {
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  auto* duplication = new Duplication;
  check_mpi(rank_, MPI_Comm_idup(parent, &duplication->comm, &duplication->request), "MPI_Comm_idup");
  for (int done = 0;;) {
    check_mpi(rank_, MPI_Test(&duplication->request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) break;
    if (Clock::now() >= deadline) {
      throw CollectiveTimeout("rank " + std::to_string(rank_) + ": not all " + std::to_string(world_size_) +
                              " ranks of the communicator came to create the collective in time");
    }
    std::this_thread::sleep_for(kShortestNap);
  }
  const MPI_Comm comm = duplication->comm;
  delete duplication;
  return comm;
}

std::shared_ptr<MpiTransport> MpiTransport::connect(MPI_Comm parent, const MpiOptions& options) {
  return {new MpiTransport(parent, options), [](MpiTransport* transport) {
            if (transport->left_) delete transport;
          }};
}

MpiTransport::MpiTransport(MPI_Comm parent, const MpiOptions& options) : options_(options) {
  const auto deadline = Clock::now() + seconds(options.timeout_s);
  requests_.fill(MPI_REQUEST_NULL);
  check_mpi(rank_, MPI_Comm_rank(parent, &rank_), "MPI_Comm_rank");
  check_mpi(rank_, MPI_Comm_size(parent, &world_size_), "MPI_Comm_size");
  options.check(rank_);
  int level = MPI_THREAD_SINGLE;
  check_mpi(rank_, MPI_Query_thread(&level), "MPI_Query_thread");
  if (level != MPI_THREAD_MULTIPLE) {
    throw TransportError("rank " + std::to_string(rank_) + ": MPI was initialised with " + thread_level(level) +
                         ": must be MPI_THREAD_MULTIPLE, the progress thread calls MPI while the application may");
  }
  if (options.device_buffers) {
    check_device();
    name_ = std::strcmp(options.device_buffers->device()->kind(), "cuda") == 0 ? "CUDA-aware MPI" : "MPI on emulated";
  } else {
    make_buffers();
  }
  control_ = duplicate(parent, deadline);
  data_ = duplicate(parent, deadline);
  // Errors come back as codes, which become exceptions that name the rank; the default would end the process without a word.
  check_mpi(rank_, MPI_Comm_set_errhandler(control_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(rank_, MPI_Comm_set_errhandler(data_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  // Not before all ranks have come: one whose device has too little memory must not leave the others waiting for it there.
  exchange_.emplace(data_, rank_, options.device_buffers ? device_sums(rank_, options.device_buffers) : host_sums());
  if (options.device_buffers) exchange_->reserve(options.buffer_bytes, world_size_);
  listen();
}

void MpiTransport::make_buffers() {
  stride_ = (options_.buffer_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const std::size_t bytes = std::max<std::size_t>(1, stride_ * static_cast<std::size_t>(options_.buffers));
  memory_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kAlignment))));
}

// A group that is no power of two adds up in one step. That of a sync has all ranks.
void MpiTransport::check_device() const {
  const bool power = std::has_single_bit(static_cast<unsigned>(world_size_));
  if (power || world_size_ <= Device::kMostMembers) return;
  throw TransportError("rank " + std::to_string(rank_) + ": " + std::to_string(world_size_) +
                       " ranks, whose models lie on devices: must be at most " + std::to_string(Device::kMostMembers) +
                       ", or a power of two");
}

std::byte* MpiTransport::buffer(int index) const {
  if (options_.device_buffers) return options_.device_buffers->buffer(index);
  return memory_.get() + stride_ * static_cast<std::size_t>(index);
}

// -- sleeping -----------------------------------------------------------------------------------------------------------

// No peer rings, so whoever is responsible naps, and the other one sleeps until he is woken. If the responsibility changes, the new
// one may be asleep already: without the ring nobody would look until he wakes by himself. (Sequentially consistent, like the bell:
// a sleeper who has not seen the change has read the count before the ring.)
std::uint32_t MpiTransport::announce(Sleeper who) {
  about_to_nap_ = true;
  const std::uint32_t since = bell_.announce(who);
  if (responsible_.exchange(static_cast<std::uint32_t>(who)) == static_cast<std::uint32_t>(who)) return since;
  bell_.ring();
  return bell_.announce(who);
}

void MpiTransport::sleep(Sleeper who, std::uint32_t since, Clock::time_point deadline) {
  if (responsible_.load() != static_cast<std::uint32_t>(who)) {
    bell_.sleep(who, since, deadline);
    return;
  }
  const auto now = Clock::now();
  const Clock::duration quiet = now.time_since_epoch() - Clock::duration(active_.load(std::memory_order_relaxed));
  if (quiet.count() < spin_.load(std::memory_order_relaxed)) {
    pause(quiet);
    return;
  }
  auto longest = std::max<Clock::duration>(kShortestNap, seconds(options_.longest_nap_s));
  if (computing_.load(std::memory_order_relaxed)) longest = std::min<Clock::duration>(longest, kComputingNap);
  const auto nap = std::clamp<Clock::duration>(quiet / kNapFraction, kShortestNap, longest);
  const SharpTimer sharp(nap);
  bell_.sleep(who, since, std::min(deadline, now + nap));
}

Clock::duration MpiTransport::patience() const { return Clock::duration(spin_.load(std::memory_order_relaxed)); }

void MpiTransport::pause(Clock::duration) { std::this_thread::yield(); }  // peers on the same cores have to run

}  // namespace wagma
