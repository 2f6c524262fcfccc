// What a call of the selective scan reads and writes, and how 16 channels of one chunk get into vectors and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "scan_vector.h"

namespace neuroray {

constexpr int64_t kChunk = 64;  // Tokens.

// `batch token channel` in memory, neighbouring channels next to each other; strides in numbers, not bytes.
struct Rows {
  char* data;
  int64_t kind;
  int64_t batch_stride;
  int64_t token_stride;
};

// B or C, or a gradient of one: `batch token group state`, or with no groups `channel state`; neighbouring states next
// to each other.
struct Mixing {
  float* data;
  int64_t groups;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t group_stride;
};

// All that one call reads and writes, every field 8 bytes long; what is not wanted is null. Weights are contiguous.
struct Call {
  int64_t batch, tokens, channels, states, softplus, reverse, threads;
  Rows u, delta, z;
  Rows previous;  // Added to the output before the gate.
  Rows out;
  const float *A, *D, *bias, *initial_state;
  Mixing B, C;
  float* last_state;
  float* kept_states;  // `batch chunk block state lane`
  // Backward only.
  int64_t add_to_u, add_to_delta, add_to_z;  // Whether these gradients are added to what is there.
  Rows grad_out, grad_u, grad_delta, grad_z;
  const float* grad_last_state;
  float *grad_A, *grad_D, *grad_bias, *grad_initial_state;
  Mixing grad_B, grad_C;
};

namespace {

// An array aligned to a vector and not initialised; false where there is no memory for it.
template <typename T>
class Memory {
 public:
  explicit Memory(int64_t count = 0) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    if (count) data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    empty_ = count == 0;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { std::free(data_); }

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  explicit operator bool() const { return data_ || empty_; }

 private:
  T* data_ = nullptr;
  bool empty_;
};

int64_t bytes_of(int64_t kind) { return kind == kFloat ? 4 : 2; }

// The same rows, read from the last token on.
void turn(Rows& rows, int64_t tokens) {
  if (!rows.data) return;
  rows.data += (tokens - 1) * rows.token_stride * bytes_of(rows.kind);
  rows.token_stride = -rows.token_stride;
}

void turn(Mixing& mixing, int64_t tokens) {
  if (!mixing.data || !mixing.groups) return;
  mixing.data += (tokens - 1) * mixing.token_stride;
  mixing.token_stride = -mixing.token_stride;
}

// Where a block's tokens lie: one batch entry, one chunk, up to 16 channels.
struct Place {
  int64_t batch, first_token, channel;
  int64_t next_chunk;  // Tokens to the chunk that is read after this one.
  int num_tokens, num_lanes;
};

template <typename Format>
typename Format::Stored* find(const Rows& rows, const Place& place) {
  auto* data = reinterpret_cast<typename Format::Stored*>(rows.data);
  return data + place.batch * rows.batch_stride + place.first_token * rows.token_stride + place.channel;
}

template <typename Format>
void read_as(const Rows& rows, const Place& place, Vec* to) {
  const typename Format::Stored* from = find<Format>(rows, place);
  if (place.num_lanes == kLanes) {
    for (int t = 0; t < place.num_tokens; ++t, from += rows.token_stride) {
      // Rows lie a page apart, which no hardware prefetcher follows: the next chunk's are asked for now.
      __builtin_prefetch(from + place.next_chunk * rows.token_stride, 0, 2);
      to[t] = Format::unpack(from);
    }
    return;
  }
  typename Format::Stored some[kLanes] = {};
  for (int t = 0; t < place.num_tokens; ++t, from += rows.token_stride) {
    std::memcpy(some, from, place.num_lanes * sizeof *from);
    to[t] = Format::unpack(some);
  }
}

template <typename Format>
void write_as(const Rows& rows, const Place& place, const Vec* from) {
  typename Format::Stored* to = find<Format>(rows, place);
  if (place.num_lanes == kLanes) {
    for (int t = 0; t < place.num_tokens; ++t, to += rows.token_stride) Format::pack(to, from[t]);
    return;
  }
  typename Format::Stored some[kLanes];
  for (int t = 0; t < place.num_tokens; ++t, to += rows.token_stride) {
    Format::pack(some, from[t]);
    std::memcpy(to, some, place.num_lanes * sizeof *to);
  }
}

void read_rows(const Rows& rows, const Place& place, Vec* to) {
  if (rows.kind == kFloat) return read_as<Float32>(rows, place, to);
  if (rows.kind == kBfloat) return read_as<Bfloat16>(rows, place, to);
  read_as<Float16>(rows, place, to);
}

void write_rows(const Rows& rows, const Place& place, const Vec* from) {
  if (rows.kind == kFloat) return write_as<Float32>(rows, place, from);
  if (rows.kind == kBfloat) return write_as<Bfloat16>(rows, place, from);
  write_as<Float16>(rows, place, from);
}

// Adds to what is there: `from` is overwritten with the sum.
void add_rows(const Rows& rows, const Place& place, Vec* from, bool add) {
  if (add) {
    Vec there[kChunk];
    read_rows(rows, place, there);
    for (int t = 0; t < place.num_tokens; ++t) from[t] += there[t];
  }
  write_rows(rows, place, from);
}

// One number per channel of a block; other lanes, and all where there are none, get 0.
Vec read_weights(const float* from, const Place& place, int64_t stride = 1) {
  float lanes[kLanes] = {};
  if (from)
    for (int i = 0; i < place.num_lanes; ++i) lanes[i] = from[(place.channel + i) * stride];
  return load(lanes);
}

// Number of the last dimension's states of a block, `channel state` in memory, one vector per state.
void read_states(const float* from, const Place& place, int64_t states, Vec* to) {
  for (int64_t n = 0; n < states; ++n) to[n] = read_weights(from ? from + n : nullptr, place, states);
}

void write_states(float* to, const Place& place, int64_t states, const Vec* from) {
  float lanes[kLanes];
  for (int64_t n = 0; n < states; ++n) {
    store(lanes, from[n]);
    for (int i = 0; i < place.num_lanes; ++i) to[(place.channel + i) * states + n] = lanes[i];
  }
}

// Asks for large pages under memory that was just allocated: a page fault for every 4 kB costs as much as the scan.
void ask_for_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  // A refusal changes nothing but the time it takes.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// The same for contiguous rows.
void ask_for_large_pages(const Rows& rows, int64_t batch, int64_t tokens) {
  const int64_t size = bytes_of(rows.kind);
  // Of rows that are turned, the last token's address is the lowest.
  char* begin = rows.data + std::min<int64_t>(0, (tokens - 1) * rows.token_stride * size);
  if (rows.data) ask_for_large_pages(begin, batch * rows.batch_stride * size);
}

}  // namespace
}  // namespace neuroray
