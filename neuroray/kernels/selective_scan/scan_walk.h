// The selective scan of 16 channels over one chunk, a few states at a time: forwards, and back with gradients.
#pragma once

#include "scan_memory.h"

namespace neuroray {

constexpr float kLogE2 = 1.4426950408889634f;  // 1 / ln 2
constexpr double kLn2 = 0.6931471805599453;

namespace {

// B or C of one chunk as the loops over tokens read it: one number per state, shared by all lanes, or one vector.
struct Mixed {
  const float* data;
  int64_t stride;  // Between tokens.
};

template <bool kPerLane>
inline Vec pick(const float* row, int64_t n) {
  if (kPerLane) return load(row + n * kLanes);
  return spread(row[n]);
}

// What a block's walk over one chunk needs beside B and C: one vector per token, or per state.
struct Walk {
  int num_tokens;
  int64_t states;
  const Vec* step;   // dt, bounded so that its product with any A is finite.
  const Vec* input;  // dt u
  const Vec* rate;   // A / ln 2
  Mixed B, C;
};

// Takes kStates states from `first` on through a chunk, adding C h to `y` where that is wanted, and keeping decay and
// state of every token where that is wanted: `trace` holds them as `token, decay or state, state index`.
template <bool kPerLane, int kStates, bool kOutput, bool kTrace>
void advance(const Walk& walk, int64_t first, Vec* state, Vec* y, Vec* trace) {
  Vec h[kStates], rate[kStates];
  for (int i = 0; i < kStates; ++i) h[i] = state[first + i], rate[i] = walk.rate[first + i];
  const int64_t offset = kPerLane ? first * kLanes : first;
  const float* B = walk.B.data + offset;
  const float* C = walk.C.data + offset;
  for (int t = 0; t < walk.num_tokens; ++t, B += walk.B.stride, C += walk.C.stride) {
    const Vec step = walk.step[t], input = walk.input[t];
    Vec sum = kOutput ? y[t] : Vec{};
#pragma GCC unroll 4
    for (int i = 0; i < kStates; ++i) {
      const Vec decay = exp2_fast(step * rate[i]);
      h[i] = decay * h[i] + input * pick<kPerLane>(B, i);
      if (kOutput) sum += h[i] * pick<kPerLane>(C, i);
      if (kTrace) trace[(2 * t) * kStates + i] = decay, trace[(2 * t + 1) * kStates + i] = h[i];
    }
    if (kOutput) y[t] = sum;
  }
  for (int i = 0; i < kStates; ++i) state[first + i] = h[i];
}

// Walks back over a chunk's trace. `adjoint` is the gradient by the state after the chunk, and becomes that by the
// state before it.
struct Back {
  const Vec* grad_y;
  const Vec* before;  // State before the chunk.
  Vec* adjoint;
  Vec* grad_A;
  Vec* grad_step;   // Through the decays, but for the factor ln 2.
  Vec* grad_input;  // By dt u.
  float *grad_B, *grad_C;  // `token state`, or with a vector each where B and C are per lane.
};

template <bool kPerLane, int kStates>
void retreat(const Walk& walk, const Back& back, int64_t first, const Vec* trace) {
  Vec adjoint[kStates], rate[kStates], grad_A[kStates], h[kStates];
  const int last = walk.num_tokens - 1;
  for (int i = 0; i < kStates; ++i) {
    adjoint[i] = back.adjoint[first + i], rate[i] = walk.rate[first + i], grad_A[i] = Vec{};
    h[i] = trace[(2 * last + 1) * kStates + i];
  }
  const int64_t offset = kPerLane ? first * kLanes : first;
  const int64_t row = kPerLane ? walk.states * kLanes : walk.states;
  for (int t = last; t >= 0; --t) {
    const float* B = walk.B.data + t * walk.B.stride + offset;
    const float* C = walk.C.data + t * walk.C.stride + offset;
    const Vec grad_y = back.grad_y[t], step = walk.step[t], input = walk.input[t];
    const Vec* decays = trace + (2 * t) * kStates;
    const Vec* earlier = t ? decays - kStates : back.before + first;
    Vec grad_step = back.grad_step[t], grad_input = back.grad_input[t];
    Vec for_B[kStates], for_C[kStates];
#pragma GCC unroll 4
    for (int i = 0; i < kStates; ++i) {
      adjoint[i] += grad_y * pick<kPerLane>(C, i);
      for_C[i] = grad_y * h[i];
      for_B[i] = adjoint[i] * input;
      grad_input += adjoint[i] * pick<kPerLane>(B, i);
      adjoint[i] *= decays[i];
      h[i] = earlier[i];
      const Vec faded = adjoint[i] * h[i];
      grad_step += faded * rate[i];
      grad_A[i] += faded * step;
    }
    back.grad_step[t] = grad_step, back.grad_input[t] = grad_input;
    float* grad_B = back.grad_B + t * row + offset;
    float* grad_C = back.grad_C + t * row + offset;
    if constexpr (kPerLane) {
      for (int i = 0; i < kStates; ++i) store(grad_B + i * kLanes, for_B[i]), store(grad_C + i * kLanes, for_C[i]);
    } else if constexpr (kStates == 4) {
      sum_lanes_of_eight(for_B, for_C, grad_B, grad_C);
    } else {
      for (int i = 0; i < kStates; ++i) grad_B[i] = sum_of_lanes(for_B[i]), grad_C[i] = sum_of_lanes(for_C[i]);
    }
  }
  for (int i = 0; i < kStates; ++i) back.adjoint[first + i] = adjoint[i], back.grad_A[first + i] = grad_A[i];
}

// The largest step of each channel whose product with every one of its rates is a finite float.
Vec bound_steps(const Vec* rates, int64_t states) {
  Vec largest = spread(1e-30f);
  for (int64_t n = 0; n < states; ++n) largest = at_least(largest, rates[n] < 0.f ? -rates[n] : rates[n]);
  return 3e38f / at_least(largest, spread(1.f));
}

}  // namespace
}  // namespace neuroray
