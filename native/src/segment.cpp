#include "wagma/segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "wagma/transport.hpp"

namespace wagma {

namespace {

[[noreturn]] void refuse(const char* call, int code) {
  throw TransportError(std::string("shared memory: ") + call + ": " + std::strerror(code));
}

std::string in_megabytes(std::size_t bytes) { return std::to_string((bytes + 999999) / 1000000) + " MB"; }

}  // namespace

std::shared_ptr<Segment> Segment::in_process(std::size_t bytes) { return std::shared_ptr<Segment>(new Segment(-1, bytes)); }

std::shared_ptr<Segment> Segment::create(std::size_t bytes) {
  const int descriptor = ::memfd_create("wagma", MFD_CLOEXEC);
  if (descriptor < 0) refuse("memfd_create", errno);
  if (::ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) {
    const int code = errno;
    ::close(descriptor);
    throw TransportError("shared memory: " + in_megabytes(bytes) + " cannot be had: " + std::strerror(code) +
                         " (limits of files' sizes and of memory apply: ulimit -f, control groups)");
  }
  return std::shared_ptr<Segment>(new Segment(descriptor, bytes));
}

std::shared_ptr<Segment> Segment::open(long process, int descriptor, std::size_t bytes, unsigned long long identity) {
  const std::string path = "/proc/" + std::to_string(process) + "/fd/" + std::to_string(descriptor);
  const int own = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (own < 0) throw TransportError("shared memory: " + path + " cannot be opened: " + std::strerror(errno));
  // Looked at before it is mapped: the first touch beyond the end of a shorter one would kill the process (SIGBUS), and what is no memory
  // at all (no seals) must not be written to.
  struct stat status {};
  if (::fstat(own, &status) != 0 || static_cast<unsigned long long>(status.st_ino) != identity || ::fcntl(own, F_GET_SEALS) < 0 ||
      static_cast<std::size_t>(status.st_size) != bytes) {
    const auto found = static_cast<std::size_t>(status.st_size);
    ::close(own);
    throw TransportError("shared memory: " + path + " of " + std::to_string(found) + " bytes is not what its creator made: must be memory of " +
                         std::to_string(bytes));
  }
  return std::shared_ptr<Segment>(new Segment(own, bytes));
}

Segment::Segment(int descriptor, std::size_t bytes) : descriptor_(descriptor), bytes_(bytes) {
  const int flags = descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, descriptor, 0);
  if (data == MAP_FAILED) {
    const int code = errno;
    if (descriptor >= 0) ::close(descriptor);
    throw TransportError("shared memory: " + in_megabytes(bytes) + " cannot be mapped: " + std::strerror(code));
  }
  data_ = static_cast<std::byte*>(data);
}

Segment::~Segment() {
  ::munmap(data_, bytes_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

unsigned long long Segment::identity() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) refuse("fstat", errno);
  return static_cast<unsigned long long>(status.st_ino);
}

void Segment::reserve(std::size_t offset, std::size_t bytes) const {
  if (descriptor_ < 0 || bytes == 0) return;
  int code = 0;
  do {
    code = ::posix_fallocate(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (code == EINTR);
  if (code != 0) {
    throw TransportError("shared memory: " + in_megabytes(bytes) + " for the buffers cannot be had: " + std::strerror(code));
  }
}

}  // namespace wagma
