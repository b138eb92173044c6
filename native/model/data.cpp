// The pieces of the kernel that touch data or the operating system, for the model check.
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstdlib>

#include "board.hpp"
#include "scheduler.hpp"

namespace wagma {

namespace {

constexpr std::size_t kPool = std::size_t{64} << 20;
check::Board* board = nullptr;
int cores_known = 1;

std::string named(const char* what, int rank, Version version) {
  return std::string(what) + " of rank " + std::to_string(rank) + ", version " + std::to_string(version);
}

}  // namespace

// -- memory: the same in every run, never given back -----------------------------------------------------------------------

std::shared_ptr<Segment> Segment::in_process(std::size_t bytes) { return std::shared_ptr<Segment>(new Segment(-1, bytes)); }

Segment::Segment(int descriptor, std::size_t bytes) : descriptor_(descriptor), bytes_(bytes) {
  static void* pool = ::mmap(nullptr, kPool, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pool == MAP_FAILED || bytes > kPool) std::abort();
  data_ = static_cast<std::byte*>(pool);
}

Segment::~Segment() = default;
void Segment::reserve(std::size_t, std::size_t) const {}
std::shared_ptr<Segment> Segment::create(std::size_t bytes) { return in_process(bytes); }
unsigned long long Segment::identity() const { return 0; }

// -- data -------------------------------------------------------------------------------------------------------------------

namespace check {

std::uint64_t averaged_directly = 0;

void pretend_cores(int cores) { cores_known = cores; }

Board::Board(const Layout& layout, bool roles_known) : layout_(layout), roles_known_(roles_known) {
  words_ = std::make_unique<Atomic<std::uint64_t>[]>(layout_.ranks * layout_.buffers * kChunks);
  entered_.assign(layout_.ranks, -1);
  contribution_ = target_ = written_ = std::vector<int>(layout_.ranks, 0);
  board = this;
}

Board& Board::present() { return *board; }

std::optional<Board::Place> Board::find(const void* at) const {
  for (int rank = 0; rank < layout_.ranks; ++rank) {
    for (int buffer = 0; buffer < layout_.buffers; ++buffer) {
      const auto offset = static_cast<const std::byte*>(at) - layout_.at(rank, buffer);
      if (offset < 0 || static_cast<std::size_t>(offset) >= kChunks * layout_.chunk_bytes) continue;
      claim(offset % layout_.chunk_bytes == 0, "a chunk that does not begin where one begins");
      return Place{rank, buffer, static_cast<int>(static_cast<std::size_t>(offset) / layout_.chunk_bytes)};
    }
  }
  return std::nullopt;
}

Board::Place Board::place(const void* at) const {
  const auto found = find(at);
  claim(found.has_value(), "a pointer into no buffer");
  return *found;
}

void Board::show(int rank) {
  ghost(rank, static_cast<std::uint64_t>(entered_[rank] + 1) * 4096 + written_[rank] * 64 + contribution_[rank] * 8 + target_[rank]);
}

void Board::enter(int rank, Version version, int contribution, int target) {
  entered_[rank] = version;
  contribution_[rank] = contribution;
  target_[rank] = target;
  written_[rank] = 0;
  show(rank);
}

void Board::leave(int rank, int chunks, bool through_target) {
  claim(!through_target || written_[rank] == (1 << chunks) - 1, named("complete before all chunks are in the target", rank, entered_[rank]));
  entered_[rank] = -1;
  show(rank);
}

void Board::publish(const std::byte* at, int chunks, std::uint64_t content) {
  const Place first = place(at);
  for (int chunk = 0; chunk < chunks; ++chunk) word({first.rank, first.buffer, first.chunk + chunk}).store(content);
}

std::uint64_t Board::read(const std::byte* at, int chunks) {
  const Place first = place(at);
  const std::uint64_t content = word(first).load();
  for (int chunk = 1; chunk < chunks; ++chunk) {
    claim(word({first.rank, first.buffer, first.chunk + chunk}).load() == content, named("torn: chunks that differ", first.rank, -1));
  }
  return content;
}

// The order of the sources shows in the result, as it would in rounded sums.
void Board::reduce(const void* const* sources, int n, void* const* targets, int m) {
  Version version = -1;
  const auto check_role = [&](const Place& at, const std::vector<int>& role, const char* what) {
    if (!roles_known_) return;
    const Version entered = entered_[at.rank];
    claim(entered >= 0, named(what, at.rank, entered) + ": its owner has left");
    claim(role[at.rank] == at.buffer, named(what, at.rank, entered) + ": another buffer");
    if (version < 0) version = entered;
    claim(entered == version, named(what, at.rank, entered) + ": another version");
  };
  std::uint64_t sum = 0;
  for (int i = 0; i < n; ++i) {
    std::uint64_t content = 0;
    if (sources[i]) {
      const Place at = place(sources[i]);
      content = word(at).load();
      check_role(at, contribution_, "contribution read");
    }
    sum = added(sum, content);
  }
  for (int j = 0; j < m; ++j) {
    if (!holds(targets[j])) {  // the application's own array
      *static_cast<std::uint64_t*>(targets[j]) = sum;
      ++averaged_directly;
      continue;
    }
    const Place at = place(targets[j]);
    word(at).store(sum);
    check_role(at, target_, "target written");
    if (!roles_known_) continue;
    claim((written_[at.rank] >> at.chunk & 1) == 0, named("chunk reduced twice", at.rank, version));
    written_[at.rank] |= 1 << at.chunk;
    show(at.rank);
  }
}

}  // namespace check

void reduce(DType, const void* const* sources, int n, void* const* targets, const int*, int m, std::size_t, Stores) {
  board->reduce(sources, n, targets, m);
}

// The application publishes (into a buffer), or takes a finished mean (out of one): of float32.
void copy(void* destination, const void* source, std::size_t bytes, Stores) {
  const int chunks = board->chunks_of(bytes);
  const bool into = board->holds(destination), from = board->holds(source);
  const std::uint64_t content = from ? board->read(static_cast<const std::byte*>(source), chunks) : *static_cast<const std::uint64_t*>(source);
  if (into) {
    board->publish(static_cast<std::byte*>(destination), chunks, content);
  } else {
    for (int chunk = 0; chunk < chunks; ++chunk) static_cast<std::uint64_t*>(destination)[chunk * check::kApart] = content;
  }
}

void merge_into(DType, void* destination, const void*, const void* total, int, int, std::size_t count, Stores) {
  copy(destination, total, count * sizeof(float), Stores::cached);
}

void add_into(DType, void*, const void*, std::size_t) { check::violated("nothing accumulates in the model"); }

}  // namespace wagma

// What the kernel asks of the operating system and what decides nothing here, thousands of times a second: the scheduler gives way, and no
// rank is a process that could have ended.
extern "C" int sched_yield() noexcept { return 0; }
extern "C" int kill(pid_t, int) noexcept { return 0; }
extern "C" int prctl(int, ...) noexcept { return 0; }

// As many cores as the scenario wants: what the kernel does depends on whether ranks outnumber them.
extern "C" int sched_getaffinity(pid_t, std::size_t bytes, cpu_set_t* cores) {
  CPU_ZERO_S(bytes, cores);
  for (int core = 0; core < wagma::cores_known; ++core) CPU_SET_S(static_cast<std::size_t>(core), bytes, cores);
  return 0;
}
