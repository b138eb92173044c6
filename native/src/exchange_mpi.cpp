#include "wagma/exchange_mpi.hpp"

#include <algorithm>

namespace wagma {

namespace {

constexpr int kBegun = 0, kContribution = 1, kResult = 2, kPhases = 3;
constexpr int kTagVersions = 4096;  // the standard guarantees tags up to 32767

int tag_of(Version version, int phase) { return static_cast<int>(version % kTagVersions) * kPhases + phase; }

}  // namespace

void check_mpi(int rank, int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw TransportError("rank " + std::to_string(rank) + ": " + call + ": " + std::string(text, static_cast<std::size_t>(length)));
}

void take_back(MPI_Request& request) noexcept {
  if (request == MPI_REQUEST_NULL) return;
  int done = 0;
  MPI_Cancel(&request);
  MPI_Test(&request, &done, MPI_STATUS_IGNORE);
}

void MpiExchange::note_activity() { active_ = Clock::now(); }

void MpiExchange::post_send(Transfer& transfer, const std::byte* data, std::size_t bytes, int to, int tag) {
  std::size_t at = 0;
  do {
    const std::size_t length = std::min(longest_message_, bytes - at);
    transfer.peers.push_back(to);
    check_mpi(rank_, MPI_Isend(data + at, static_cast<int>(length), MPI_BYTE, to, tag, comm_,
                               &transfer.requests.emplace_back(MPI_REQUEST_NULL)),
              "MPI_Isend");
    ++transfer.open;
    at += length;
  } while (at < bytes);
}

void MpiExchange::post_receive(Transfer& transfer, std::byte* data, std::size_t bytes, int from, int tag) {
  std::size_t at = 0;
  do {
    const std::size_t length = std::min(longest_message_, bytes - at);
    transfer.peers.push_back(from);
    check_mpi(rank_, MPI_Irecv(data + at, static_cast<int>(length), MPI_BYTE, from, tag, comm_,
                               &transfer.requests.emplace_back(MPI_REQUEST_NULL)),
              "MPI_Irecv");
    ++transfer.open;
    at += length;
  } while (at < bytes);
}

void MpiExchange::begin(const Execution& execution) {
  execution_ = execution;
  stage_ = Stage::gathering;
  summed_ = false;
  begun_in_ = contributions_in_ = results_in_ = out_ = {};
  const int members = static_cast<int>(execution.members.size());
  const std::size_t item = item_size(execution.dtype);
  const auto tag = [&](int phase) { return tag_of(execution.version, phase); };
  own_ = slice_of(execution.count, members, execution.index);
  const std::size_t own_bytes = own_.size() * item;
  scratch_.resize(std::max(scratch_.size(), static_cast<std::size_t>(members - 1) * own_bytes));
  std::byte* into = scratch_.data();
  // All receives before the first send: a message that finds its receive posted goes straight to its place.
  for (int i = 0; i < members; ++i) {
    if (i == execution.index) continue;
    const int member = execution.members[i];
    const Slice theirs = slice_of(execution.count, members, i);
    post_receive(begun_in_, nullptr, 0, member, tag(kBegun));
    if (own_bytes > 0) post_receive(contributions_in_, into, own_bytes, member, tag(kContribution));
    if (theirs.size() > 0) {
      post_receive(results_in_, execution.target + theirs.begin * item, theirs.size() * item, member, tag(kResult));
    }
    into += own_bytes;
  }
  for (int step = 1; step < members; ++step) {
    const int i = (execution.index + step) % members;  // each member begins with another one, so that no one is flooded
    const int member = execution.members[i];
    const Slice theirs = slice_of(execution.count, members, i);
    post_send(out_, nullptr, 0, member, tag(kBegun));
    if (theirs.size() == 0) continue;
    post_send(out_, execution.contribution + theirs.begin * item, theirs.size() * item, member, tag(kContribution));
  }
  note_activity();
}

void MpiExchange::test(Transfer& transfer) {
  if (transfer.open == 0) return;
  completed_.resize(std::max(completed_.size(), transfer.requests.size()));
  int count = 0;
  check_mpi(rank_, MPI_Testsome(static_cast<int>(transfer.requests.size()), transfer.requests.data(), &count, completed_.data(),
                     MPI_STATUSES_IGNORE),
        "MPI_Testsome");
  if (count == MPI_UNDEFINED || count == 0) return;
  transfer.open -= static_cast<std::size_t>(count);
  note_activity();
}

// The own slice along the association tree, own contribution at its place among the others'; then to everyone.
void MpiExchange::reduce() {
  const int members = static_cast<int>(execution_.members.size());
  const std::size_t item = item_size(execution_.dtype), bytes = own_.size() * item;
  std::byte* result = execution_.target + own_.begin * item;
  if (bytes == 0) return;
  std::vector<const void*> sources;
  const std::byte* next = scratch_.data();
  for (int i = 0; i < members; ++i) {
    sources.push_back(i == execution_.index ? execution_.contribution + own_.begin * item : next);
    if (i != execution_.index) next += bytes;
  }
  tree_sum(execution_.dtype, result, sources.data(), members, own_.size());
  if (execution_.mean) divide(execution_.dtype, result, members, own_.size());
  for (int step = 1; step < members; ++step) {
    post_send(out_, result, bytes, execution_.members[(execution_.index + step) % members], tag_of(execution_.version, kResult));
  }
  note_activity();
}

Progress MpiExchange::progress() {
  if (stage_ == Stage::idle) return {};
  test(begun_in_);
  test(contributions_in_);
  test(results_in_);
  test(out_);
  if (stage_ == Stage::gathering) {
    if (contributions_in_.open > 0) return {};
    reduce();
    stage_ = Stage::spreading;
  }
  Progress progress;
  if (!summed_ && results_in_.open == 0 && begun_in_.open == 0) progress.summed = summed_ = true;
  // The result is sent out of the target, so the buffers are free only when these sends are through, too.
  if (summed_ && out_.open == 0) {
    progress.released = true;
    stage_ = Stage::idle;
    execution_.owner.reset();
  }
  return progress;
}

std::vector<int> MpiExchange::missing() {
  std::vector<int> ranks;
  if (stage_ == Stage::idle) return ranks;
  const Transfer& transfer = begun_in_.open > 0 ? begun_in_ : contributions_in_.open > 0 ? contributions_in_ : results_in_;
  for (std::size_t i = 0; i < transfer.requests.size(); ++i) {
    if (transfer.requests[i] != MPI_REQUEST_NULL) ranks.push_back(transfer.peers[i]);
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

void MpiExchange::abandon() noexcept {
  for (Transfer* transfer : {&begun_in_, &contributions_in_, &results_in_}) {
    for (MPI_Request& request : transfer->requests) take_back(request);
  }
}

}  // namespace wagma
