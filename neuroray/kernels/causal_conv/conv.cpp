// The causal convolution with SiLU on CPUs: what is read comes from memory once, in long rows, and so does what is
// written.
//
// Tokens are cut into strips, one task each. Within a strip, columns of 16 channels go through a few tokens at a time,
// all columns of those tokens before the next: so memory is walked along its rows. Backward makes the gradient g before
// SiLU anew from x, keeps its last taps - 1 rows for the columns' next tokens, and walks taps - 1 tokens beyond the
// strip, as they see its last ones. Each strip sums its own gradient of the weights; these are added in the order of
// strips, whose length is fixed, so that no number depends on how many threads there are. From the last token on, it is
// the same code with negative strides.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include <omp.h>

#include "../selective_scan/scan_memory.h"

namespace neuroray {

// All that one call reads and writes, every field 8 bytes long; what is not wanted is null.
struct ConvCall {
  int64_t batch, tokens, channels, taps, silu, reverse, threads;
  Rows x, out;
  const float* weights;  // `tap column`, then a row of biases; columns are channels filled up to whole vectors.
  // Backward only.
  Rows grad_out, grad_x;
  float* grad_weights;  // As `weights`.
};

namespace {

constexpr int kFewTokens = 8;  // That a column takes at once: each is a row of memory that the processor follows.
constexpr int64_t kStrip = 128;

// Rows of one batch entry, as pointers to the first channel of a column.
template <typename Format>
typename Format::Stored* find_row(const Rows& rows, int64_t entry, int64_t token, int64_t channel) {
  auto* data = reinterpret_cast<typename Format::Stored*>(rows.data);
  return data + entry * rows.batch_stride + token * rows.token_stride + channel;
}

// Up to 16 channels; the last column may have fewer, which are 0 when read.
template <typename Format, bool kFull>
Vec read_column(const typename Format::Stored* from, int64_t lanes) {
  if (kFull) return Format::unpack(from);
  typename Format::Stored some[kLanes] = {};
  std::memcpy(some, from, lanes * sizeof *from);
  return Format::unpack(some);
}

template <typename Format, bool kFull>
void write_column(typename Format::Stored* to, Vec value, int64_t lanes) {
  if (kFull) return Format::pack(to, value);
  typename Format::Stored some[kLanes];
  Format::pack(some, value);
  std::memcpy(to, some, lanes * sizeof *to);
}

// Where a column's few tokens lie.
struct Piece {
  int64_t entry, first_token, channel, lanes;
  int num_tokens;
};

class Convolution {
 public:
  explicit Convolution(const ConvCall& call) : call_(call) {
    columns_ = (call.channels + kLanes - 1) / kLanes;
    strips_ = (call.tokens + kStrip - 1) / kStrip;
    if (!call.reverse) return;
    for (Rows* rows : {&call_.x, &call_.out, &call_.grad_out, &call_.grad_x}) turn(*rows, call.tokens);
  }

  template <typename Format, int kTaps>
  bool run_forward() const;
  template <typename Format, int kTaps>
  bool run_backward() const;

 private:
  int64_t row_floats() const { return columns_ * kLanes; }
  int64_t weight_floats() const { return (call_.taps + 1) * row_floats(); }
  int count_threads() const {
    return static_cast<int>(std::max<int64_t>(1, std::min(call_.threads, call_.batch * strips_)));
  }

  template <int kTaps>
  void read_weights(int64_t channel, Vec (&weights)[kTaps + 1]) const {
    for (int k = 0; k <= kTaps; ++k) weights[k] = load(call_.weights + k * row_floats() + channel);
  }

  // The taps - 1 tokens before a piece.
  template <typename Format, int kTaps, bool kFull>
  void read_history(const Piece& piece, Vec (&history)[kTaps - 1]) const {
    for (int k = 0; k < kTaps - 1; ++k) {
      const int64_t token = piece.first_token - (kTaps - 1) + k;
      history[k] = Vec{};
      if (token >= 0)
        history[k] = read_column<Format, kFull>(find_row<Format>(call_.x, piece.entry, token, piece.channel), piece.lanes);
    }
  }

  template <typename Format, int kTaps, bool kFull>
  void forward_piece(const Piece& piece) const;
  template <typename Format, int kTaps, bool kFull>
  void backward_piece(const Piece& piece, int64_t first_written, bool adds, float* later, float* sums) const;

  template <typename Run>
  void walk_strip(int64_t entry, int64_t first, int64_t end, const Run& run) const {
    for (int64_t token = first; token < end; token += kFewTokens)
      for (int64_t column = 0; column < columns_; ++column) {
        const int64_t channel = column * kLanes, lanes = std::min<int64_t>(kLanes, call_.channels - channel);
        run(Piece{entry, token, channel, lanes, static_cast<int>(std::min<int64_t>(kFewTokens, end - token))});
      }
  }

  ConvCall call_;
  int64_t columns_, strips_;
};

// Bias and taps over a token and those before it, which move on by one.
template <int kTaps>
inline Vec weigh(const Vec (&weights)[kTaps + 1], Vec present, Vec (&history)[kTaps - 1]) {
  Vec total = weights[kTaps] + weights[kTaps - 1] * present;
  for (int k = 0; k < kTaps - 1; ++k) total += weights[k] * history[k];
  return total;
}

template <int kCount>
inline void move_on(Vec (&history)[kCount], Vec present) {
  for (int k = 0; k + 1 < kCount; ++k) history[k] = history[k + 1];
  history[kCount - 1] = present;
}

template <typename Format, int kTaps, bool kFull>
void Convolution::forward_piece(const Piece& piece) const {
  Vec weights[kTaps + 1], history[kTaps - 1];
  read_weights<kTaps>(piece.channel, weights);
  read_history<Format, kTaps, kFull>(piece, history);
  const auto* from = find_row<Format>(call_.x, piece.entry, piece.first_token, piece.channel);
  auto* to = find_row<Format>(call_.out, piece.entry, piece.first_token, piece.channel);
  for (int t = 0; t < piece.num_tokens; ++t, from += call_.x.token_stride, to += call_.out.token_stride) {
    const Vec present = read_column<Format, kFull>(from, piece.lanes);
    Vec total = weigh<kTaps>(weights, present, history);
    move_on(history, present);
    if (call_.silu) total *= sigmoid(total, exp_of_minus_abs(total));
    write_column<Format, kFull>(to, total, piece.lanes);
  }
}

// Takes a column through a few tokens. `later` holds g of the taps - 1 tokens before them, and then of their last ones;
// `sums` the strip's gradient of the weights, to which they add where `adds` says so. With g of a token, the gradient by
// x of the token taps - 1 before it is whole, and is written unless another strip writes it.
template <typename Format, int kTaps, bool kFull>
void Convolution::backward_piece(const Piece& piece, int64_t first_written, bool adds, float* later, float* sums) const {
  Vec weights[kTaps + 1], history[kTaps - 1], g[kTaps - 1], totals[kTaps + 1];
  read_weights<kTaps>(piece.channel, weights);
  read_history<Format, kTaps, kFull>(piece, history);
  for (int k = 0; k < kTaps - 1; ++k) g[k] = load(later + k * row_floats() + piece.channel);
  for (int k = 0; k <= kTaps; ++k) totals[k] = load(sums + k * row_floats() + piece.channel);
  for (int t = 0; t < piece.num_tokens; ++t) {
    const int64_t token = piece.first_token + t;
    Vec gradient = {};
    if (token < call_.tokens) {
      const auto* from = find_row<Format>(call_.x, piece.entry, token, piece.channel);
      const Vec present = read_column<Format, kFull>(from, piece.lanes);
      gradient = read_column<Format, kFull>(find_row<Format>(call_.grad_out, piece.entry, token, piece.channel), piece.lanes);
      if (call_.silu) {
        const Vec total = weigh<kTaps>(weights, present, history), s = sigmoid(total, exp_of_minus_abs(total));
        gradient *= s + total * (s - s * s);
      }
      if (adds) {
        for (int k = 0; k < kTaps - 1; ++k) totals[k] += gradient * history[k];
        totals[kTaps - 1] += gradient * present;
        totals[kTaps] += gradient;
      }
      move_on(history, present);
    }
    const int64_t written = token - (kTaps - 1);
    if (call_.grad_x.data && written >= first_written) {
      Vec total = weights[0] * gradient;
      for (int k = 1; k < kTaps; ++k) total += weights[k] * g[kTaps - 1 - k];
      write_column<Format, kFull>(find_row<Format>(call_.grad_x, piece.entry, written, piece.channel), total, piece.lanes);
    }
    move_on(g, gradient);
  }
  for (int k = 0; k < kTaps - 1; ++k) store(later + k * row_floats() + piece.channel, g[k]);
  if (!adds) return;
  for (int k = 0; k <= kTaps; ++k) store(sums + k * row_floats() + piece.channel, totals[k]);
}

template <typename Format, int kTaps>
bool Convolution::run_forward() const {
  ask_for_large_pages(call_.out, call_.batch, call_.tokens);
#pragma omp parallel num_threads(count_threads())
  {
    const SubnormalsAreZero guard;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < call_.batch * strips_; ++task) {
      const int64_t first = task % strips_ * kStrip;
      walk_strip(task / strips_, first, std::min(first + kStrip, call_.tokens), [this](const Piece& piece) {
        if (piece.lanes == kLanes)
          forward_piece<Format, kTaps, true>(piece);
        else
          forward_piece<Format, kTaps, false>(piece);
      });
    }
  }
  return true;
}

template <typename Format, int kTaps>
bool Convolution::run_backward() const {
  const int64_t tasks = call_.batch * strips_, later_floats = (kTaps - 1) * row_floats();
  const int threads = count_threads();
  const Memory<float> sums(tasks * weight_floats()), later(threads * later_floats);
  if (!sums || !later) return false;
  if (call_.grad_x.data) ask_for_large_pages(call_.grad_x, call_.batch, call_.tokens);
#pragma omp parallel num_threads(threads)
  {
    const SubnormalsAreZero guard;
    float* own = later.get() + omp_get_thread_num() * later_floats;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t first = task % strips_ * kStrip, end = std::min(first + kStrip, call_.tokens);
      float* strip_sums = sums.get() + task * weight_floats();
      std::fill_n(own, later_floats, 0.f);
      std::fill_n(strip_sums, weight_floats(), 0.f);
      const auto walk = [&](int64_t from, int64_t to, bool adds) {
        walk_strip(task / strips_, from, to, [&](const Piece& piece) {
          if (piece.lanes == kLanes)
            backward_piece<Format, kTaps, true>(piece, first, adds, own, strip_sums);
          else
            backward_piece<Format, kTaps, false>(piece, first, adds, own, strip_sums);
        });
      };
      walk(first, end, true);
      walk(end, end + kTaps - 1, false);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < weight_floats(); i += kLanes) {
      DoubleVec sum = {};
      for (int64_t task = 0; task < tasks; ++task)
        sum += __builtin_convertvector(load(&sums[task * weight_floats() + i]), DoubleVec);
      store(call_.grad_weights + i, __builtin_convertvector(sum, Vec));
    }
  }
  return true;
}

template <typename Format, int kTaps = 2>
bool run_taps(const ConvCall& call) {
  if constexpr (kTaps <= 8) {
    if (call.taps != kTaps) return run_taps<Format, kTaps + 1>(call);
    const Convolution convolution(call);
    return call.grad_out.data ? convolution.run_backward<Format, kTaps>() : convolution.run_forward<Format, kTaps>();
  }
  return false;
}

bool run(const ConvCall& call) {
  if (call.x.kind == kFloat) return run_taps<Float32>(call);
  if (call.x.kind == kBfloat) return run_taps<Bfloat16>(call);
  return run_taps<Float16>(call);
}

}  // namespace
}  // namespace neuroray

extern "C" {

// For the caller to see that both sides mean the same structure.
int64_t neuroray_conv_call_bytes() { return sizeof(neuroray::ConvCall); }

// Forward, or backward where there is a gradient of the output. Returns 0, or 1 where there is not enough memory.
int64_t neuroray_conv(const neuroray::ConvCall* call) { return neuroray::run(*call) ? 0 : 1; }
}
