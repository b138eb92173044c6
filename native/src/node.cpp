#include "wagma/node.hpp"

#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>

namespace wagma {

namespace {

// Buffers begin on pages of their own: each rank reserves, and first touches, its own memory.
constexpr std::size_t kPage = 4096;
constexpr Version kNoVersion = -1;

std::size_t rounded(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Buffers whose sizes are multiples of a large power of two would lie at the same place of every cache set; a few lines between them
// keep the streams of a reduction apart.
std::size_t stride_of(const Node::Plan& plan) { return rounded(plan.buffer_bytes, kPage) + kPage; }

std::size_t head_of(const Node::Plan& plan, std::size_t header) {
  return rounded(rounded(header, 64) + plan.world_size * (sizeof(Mailbox) + sizeof(Desk)), kPage);
}

}  // namespace

std::size_t Node::bytes(const Plan& plan) {
  return head_of(plan, sizeof(Header)) + stride_of(plan) * static_cast<std::size_t>(plan.world_size) * plan.buffers;
}

Node::Node(const Plan& plan, std::shared_ptr<Segment> segment) : plan_(plan), segment_(std::move(segment)), stride_(stride_of(plan)) {
  std::byte* at = segment_->data();
  header_ = reinterpret_cast<Header*>(at);
  at += rounded(sizeof(Header), 64);
  mailboxes_ = reinterpret_cast<Mailbox*>(at);
  at += plan_.world_size * sizeof(Mailbox);
  desks_ = reinterpret_cast<Desk*>(at);
  buffers_ = segment_->data() + head_of(plan_, sizeof(Header));
}

void Node::initialise() {
  new (header_) Header{};
  header_->last = kNoVersion;
  for (int rank = 0; rank < plan_.world_size; ++rank) {
    auto* mailbox = new (mailboxes_ + rank) Mailbox{};
    for (int dimension = 0; dimension < Mailbox::kDimensions; ++dimension) {
      mailbox->activated[dimension] = kNoVersion;
      mailbox->rung[dimension] = kNoVersion;
      mailbox->taken[dimension] = kNoVersion;
      mailbox->solo_from[dimension] = std::numeric_limits<Version>::max();
    }
    auto* desk = new (desks_ + rank) Desk{};
    desk->begun = kNoVersion;
    desk->filled = desk->next_chunk = desk->chunks_done = ~std::uint64_t{0};
  }
}

std::shared_ptr<Node> Node::in_process(const Plan& plan) {
  if (plan.world_size < 1) throw std::invalid_argument("world_size = " + std::to_string(plan.world_size) + ": must be at least 1");
  std::shared_ptr<Node> node(new Node(plan, Segment::in_process(bytes(plan))));
  node->initialise();
  return node;
}

std::shared_ptr<Node> Node::create(const Plan& plan) {
  auto segment = Segment::create(bytes(plan));
  segment->reserve(0, head_of(plan, sizeof(Header)));
  std::shared_ptr<Node> node(new Node(plan, std::move(segment)));
  node->initialise();
  return node;
}

std::shared_ptr<Node> Node::join(const Plan& plan, std::shared_ptr<Segment> segment) {
  return std::shared_ptr<Node>(new Node(plan, std::move(segment)));
}

std::byte* Node::buffer(int rank, int index) const {
  return buffers_ + stride_ * (static_cast<std::size_t>(rank) * plan_.buffers + index);
}

void Node::enter(int rank) {
  segment_->reserve(static_cast<std::size_t>(buffer(rank, 0) - segment_->data()), stride_ * plan_.buffers);
  desks_[rank].process = static_cast<std::int32_t>(::getpid());
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (::sched_getaffinity(0, sizeof cores, &cores) != 0) return;
  for (int core = 0; core < std::min(CPU_SETSIZE, 64 * kCoreWords); ++core) {
    if (CPU_ISSET(core, &cores)) header_->cores[core / 64].fetch_or(std::uint64_t{1} << core % 64);
  }
}

bool Node::is_gone(int rank) const {
  const std::int32_t process = desks_[rank].process.load();
  return process != 0 && ::kill(process, 0) != 0 && errno == ESRCH;
}

int Node::cores() const {
  int number = 0;
  for (const auto& word : header_->cores) number += std::popcount(word.load());
  return std::max(1, number);
}

void Node::close(Version last_arrived) {
  Version last = header_->last.load();
  while (last < last_arrived && !header_->last.compare_exchange_weak(last, last_arrived)) {
  }
  if (header_->closed.fetch_add(1) + 1 == plan_.world_size) ring_all();
}

std::optional<Version> Node::all_closed() const {
  return header_->closed.load() == plan_.world_size ? std::optional(header_->last.load()) : std::nullopt;
}

void Node::fail(int rank, const std::string& message) {
  std::int32_t expected = Failing::none;
  if (!header_->failing.compare_exchange_strong(expected, Failing::writing)) return;
  header_->failed_rank = rank;
  const std::size_t length = std::min(message.size(), kLongestText - 1);
  std::memcpy(header_->failure_text, message.data(), length);
  header_->failure_text[length] = '\0';
  header_->failing.store(Failing::written);
  ring_all();
}

std::optional<Failure> Node::failure() const {
  if (!has_failed()) return std::nullopt;
  return Failure{header_->failed_rank, header_->failure_text};
}

void Node::ring_all() const {
  for (int rank = 0; rank < plan_.world_size; ++rank) mailboxes_[rank].bell.ring_all();
}

}  // namespace wagma
