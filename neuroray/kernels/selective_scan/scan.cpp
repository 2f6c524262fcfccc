// The selective scan on CPUs: 16 neighbouring channels in one vector, tokens one after another, in chunks of 64.
//
// Forward keeps the state before each chunk. Backward takes chunks from the last to the first: it runs each again from
// its kept state, holding decays and states of a few state indices in cache, and walks back over them. Sums over
// channels (gradients of B and C) are written per block of 16 channels and added in the order of blocks, so that no
// number depends on how many threads there are. A scan from the last token on is the same code with negative strides.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <omp.h>

#include "scan_walk.h"

namespace neuroray {
namespace {

// One thread's memory.
struct Scratch {
  Vec u[kChunk], delta[kChunk], step[kChunk], input[kChunk], y[kChunk];
  // Backward only.
  Vec slope[kChunk], grad_y[kChunk], grad_z[kChunk], grad_step[kChunk], grad_input[kChunk];
  Vec trace[kChunk * 2 * 4];
};

// Sums over all tokens of one block, a number per lane; in double precision, as there may be 400,000 terms.
struct Totals {
  double *A, *B, *C, *D, *bias;
};

void add(double* total, Vec value) {
  DoubleVec sum;
  std::memcpy(&sum, total, sizeof sum);
  sum += __builtin_convertvector(value, DoubleVec);
  std::memcpy(total, &sum, sizeof sum);
}

// What all blocks of a call share.
class Scan {
 public:
  explicit Scan(const Call& call) : call_(call) {
    blocks_ = (call.channels + kLanes - 1) / kLanes;
    chunks_ = (call.tokens + kChunk - 1) / kChunk;
    per_lane_ = is_split(call.B.groups) || is_split(call.C.groups);
    // Long strips make few waits between threads; beyond 2 MB their parts leave the cache, which costs more.
    const int64_t parts = call.batch * blocks_ * (slots_of(call.B.groups) + slots_of(call.C.groups));
    const int64_t bytes = std::max<int64_t>(1, parts) * kChunk * call.states * sizeof(float);
    strip_tokens_ = kChunk * std::min<int64_t>(8, std::max<int64_t>(1, (int64_t{2} << 20) / bytes));
    if (!call.reverse) return;
    for (Rows* rows : {&call_.u, &call_.delta, &call_.z, &call_.previous, &call_.out, &call_.grad_out, &call_.grad_u,
                       &call_.grad_delta, &call_.grad_z})
      turn(*rows, call.tokens);
    for (Mixing* mixing : {&call_.B, &call_.C, &call_.grad_B, &call_.grad_C}) turn(*mixing, call.tokens);
  }

  bool run_forward() const;
  bool run_backward() const;

 private:
  // Whether lanes of one block may differ in B or C: constant ones have a row per channel.
  bool is_split(int64_t groups) const { return groups == 0 || (groups > 1 && call_.channels / groups % kLanes != 0); }

  // How many groups one block may touch.
  int64_t slots_of(int64_t groups) const {
    if (!is_split(groups)) return 1;
    return groups == 0 ? 0 : std::min<int64_t>(groups, (kLanes - 2) / (call_.channels / groups) + 2);
  }

  // What a chunk of B or C takes, in whole vectors.
  int64_t mixed_floats() const {
    return (kChunk * call_.states * (per_lane_ ? kLanes : 1) + kLanes - 1) / kLanes * kLanes;
  }

  Place place_of(int64_t batch, int64_t block, int64_t chunk) const {
    Place place;
    place.batch = batch, place.first_token = chunk * kChunk, place.channel = block * kLanes;
    place.next_chunk = call_.grad_out.data ? -kChunk : kChunk;
    place.num_tokens = static_cast<int>(std::min(kChunk, call_.tokens - place.first_token));
    place.num_lanes = static_cast<int>(std::min<int64_t>(kLanes, call_.channels - place.channel));
    return place;
  }

  Vec* kept(const Place& place) const {
    const int64_t chunk = place.first_token / kChunk, block = place.channel / kLanes;
    Vec* first = reinterpret_cast<Vec*>(call_.kept_states);
    return first + ((place.batch * chunks_ + chunk) * blocks_ + block) * call_.states;
  }

  Mixed mix(const Mixing& from, const Place& place, float* to) const;
  void read_rates(const Place& place, Vec* rates) const;
  void prepare(const Place& place, const Vec& bound, Scratch& scratch, bool backward) const;
  struct ThreadMemory;
  void forward_blocks(int64_t entry, int64_t first, int64_t count, const ThreadMemory& memory) const;
  void forward_chunk(const Place& place, const Walk& walk, Vec* state, Scratch& scratch) const;
  void prepare_gate(const Place& place, Scratch& scratch) const;
  void finish(const Place& place, Scratch& scratch, Totals& totals) const;
  void gather_lanes(const Place& place, int64_t groups, const float* lanes, double* constant, float* slots) const;
  void add_blocks(const Mixing& to, const float* partial, int64_t entry, int64_t token) const;
  struct Workspace;
  void retreat_through_strip(int64_t strip, int64_t entry, int64_t block, int thread, Workspace& memory) const;
  void write_weights(int64_t block, const Workspace& memory) const;
  template <bool kPerLane>
  void trace_and_retreat(const Walk& walk, const Back& back, Vec* state, Scratch& scratch) const;

  Call call_;
  int64_t blocks_, chunks_;
  int64_t strip_tokens_;  // Tokens that backward takes all blocks through before it adds their parts of B and C.
  bool per_lane_;
};

// Copies a chunk of B or C, so that the loops over tokens find it contiguous and in cache.
Mixed Scan::mix(const Mixing& from, const Place& place, float* to) const {
  const int64_t states = call_.states;
  if (from.groups == 0) {
    read_states(from.data, place, states, reinterpret_cast<Vec*>(to));
    return {to, 0};
  }
  const float* row = from.data + place.batch * from.batch_stride + place.first_token * from.token_stride;
  const int64_t group_channels = call_.channels / from.groups;
  if (!per_lane_) {
    row += place.channel / group_channels * from.group_stride;
    for (int t = 0; t < place.num_tokens; ++t, row += from.token_stride)
      std::copy_n(row, states, to + t * states);
    return {to, states};
  }
  int64_t offsets[kLanes];
  for (int i = 0; i < kLanes; ++i)
    offsets[i] = std::min(place.channel + i, call_.channels - 1) / group_channels * from.group_stride;
  for (int t = 0; t < place.num_tokens; ++t, row += from.token_stride)
    for (int64_t n = 0; n < states; ++n)
      for (int i = 0; i < kLanes; ++i) to[(t * states + n) * kLanes + i] = row[offsets[i] + n];
  return {to, states * kLanes};
}

void Scan::read_rates(const Place& place, Vec* rates) const {
  read_states(call_.A, place, call_.states, rates);
  for (int64_t n = 0; n < call_.states; ++n) {
    // Beyond 1e30 every step that a float can tell from 0 gives 0 or infinity; infinity times 0 would be NaN.
    rates[n] = at_most(at_least(rates[n] * kLogE2, spread(-1e30f)), spread(1e30f));
  }
}

// Reads u and delta and makes steps and inputs of them; `y` starts as D u, or 0.
void Scan::prepare(const Place& place, const Vec& bound, Scratch& scratch, bool backward) const {
  read_rows(call_.u, place, scratch.u);
  read_rows(call_.delta, place, scratch.delta);
  const Vec bias = read_weights(call_.bias, place), skip = read_weights(call_.D, place);
  for (int t = 0; t < place.num_tokens; ++t) {
    Vec step = scratch.delta[t] + bias;
    if (call_.softplus) {
      const Vec v = exp_of_minus_abs(step);
      if (backward) scratch.slope[t] = sigmoid(step, v);
      step = softplus(step, v);
    }
    scratch.delta[t] = step;
    scratch.step[t] = at_most(at_least(step, -bound), bound);
    scratch.input[t] = step * scratch.u[t];
    scratch.y[t] = call_.D ? skip * scratch.u[t] : Vec{};
  }
}

template <bool kPerLane, bool kOutput>
void advance_all(const Walk& walk, Vec* state, Vec* y) {
  int64_t n = 0;
  for (; n + 4 <= walk.states; n += 4) advance<kPerLane, 4, kOutput, false>(walk, n, state, y, nullptr);
  if (n + 2 <= walk.states) advance<kPerLane, 2, kOutput, false>(walk, n, state, y, nullptr), n += 2;
  if (n < walk.states) advance<kPerLane, 1, kOutput, false>(walk, n, state, y, nullptr);
}

void Scan::forward_chunk(const Place& place, const Walk& walk, Vec* state, Scratch& scratch) const {
  if (call_.kept_states) std::copy_n(state, call_.states, kept(place));
  if (per_lane_)
    advance_all<true, true>(walk, state, scratch.y);
  else
    advance_all<false, true>(walk, state, scratch.y);
  if (call_.previous.data) {
    read_rows(call_.previous, place, scratch.u);
    for (int t = 0; t < place.num_tokens; ++t) scratch.y[t] += scratch.u[t];
  }
  if (call_.z.data) {
    read_rows(call_.z, place, scratch.u);
    for (int t = 0; t < place.num_tokens; ++t) {
      const Vec z = scratch.u[t];
      scratch.y[t] *= z * sigmoid(z, exp_of_minus_abs(z));
    }
  }
  write_rows(call_.out, place, scratch.y);
}

// One thread's memory in a forward pass, where it takes up to kMaxWidth neighbouring blocks through the tokens at once.
struct Scan::ThreadMemory {
  static constexpr int64_t kMaxWidth = 8;
  Scratch* scratch;
  Vec *state, *rates;
  float *B, *C;
};

// Takes `count` blocks from `first` on through all tokens, chunk by chunk: neighbours share pages of memory.
void Scan::forward_blocks(int64_t entry, int64_t first, int64_t count, const ThreadMemory& memory) const {
  const int64_t states = call_.states, entry_states = entry * call_.channels * states;
  Vec bounds[ThreadMemory::kMaxWidth];
  for (int64_t i = 0; i < count; ++i) {
    const Place place = place_of(entry, first + i, 0);
    const float* begin = call_.initial_state ? call_.initial_state + entry_states : nullptr;
    read_states(begin, place, states, memory.state + i * states);
    read_rates(place, memory.rates + i * states);
    bounds[i] = bound_steps(memory.rates + i * states, states);
  }
  for (int64_t chunk = 0; chunk < chunks_; ++chunk)
    for (int64_t i = 0; i < count; ++i) {
      const Place place = place_of(entry, first + i, chunk);
      prepare(place, bounds[i], *memory.scratch, false);
      const Walk walk = {place.num_tokens, states, memory.scratch->step, memory.scratch->input,
                         memory.rates + i * states, mix(call_.B, place, memory.B), mix(call_.C, place, memory.C)};
      forward_chunk(place, walk, memory.state + i * states, *memory.scratch);
    }
  for (int64_t i = 0; i < count; ++i)
    write_states(call_.last_state + entry_states, place_of(entry, first + i, 0), states, memory.state + i * states);
}

bool Scan::run_forward() const {
  const int64_t states = call_.states;
  // As many neighbours together as leave work for every thread.
  const int64_t share = call_.batch * blocks_ / (call_.threads * 2);
  const int64_t width = std::max<int64_t>(1, std::min({ThreadMemory::kMaxWidth, share, blocks_}));
  const int64_t tasks_per_entry = (blocks_ + width - 1) / width, tasks = tasks_per_entry * call_.batch;
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min(call_.threads, tasks)));
  const Memory<Scratch> scratch(threads);
  const Memory<Vec> vectors(threads * 2 * width * states);
  const Memory<float> mixed(threads * 2 * mixed_floats());
  if (!scratch || !vectors || !mixed) return false;
  if (!call_.previous.data) ask_for_large_pages(call_.out, call_.batch, call_.tokens);
  if (call_.kept_states)
    ask_for_large_pages(call_.kept_states, call_.batch * chunks_ * blocks_ * states * int64_t{sizeof(Vec)});
#pragma omp parallel num_threads(threads)
  {
    const SubnormalsAreZero guard;
    const int thread = omp_get_thread_num();
    Vec* state = vectors.get() + thread * 2 * width * states;
    float* B = mixed.get() + thread * 2 * mixed_floats();
    const ThreadMemory memory = {&scratch[thread], state, state + width * states, B, B + mixed_floats()};
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t first = task % tasks_per_entry * width;
      forward_blocks(task / tasks_per_entry, first, std::min(width, blocks_ - first), memory);
    }
  }
  return true;
}

template <bool kPerLane>
void Scan::trace_and_retreat(const Walk& walk, const Back& back, Vec* state, Scratch& scratch) const {
  // The output is wanted only for the gradient by the gate.
  const bool output = call_.z.data;
  const auto go = [&](auto constant, int64_t n) {
    constexpr int kStates = decltype(constant)::value;
    if (output)
      advance<kPerLane, kStates, true, true>(walk, n, state, scratch.y, scratch.trace);
    else
      advance<kPerLane, kStates, false, true>(walk, n, state, scratch.y, scratch.trace);
    retreat<kPerLane, kStates>(walk, back, n, scratch.trace);
  };
  int64_t n = 0;
  for (; n + 4 <= walk.states; n += 4) go(std::integral_constant<int, 4>{}, n);
  if (n + 2 <= walk.states) go(std::integral_constant<int, 2>{}, n), n += 2;
  if (n < walk.states) go(std::integral_constant<int, 1>{}, n);
}

// Gradients by y and by z of one chunk; the latter still lacks the factor y.
void Scan::prepare_gate(const Place& place, Scratch& scratch) const {
  read_rows(call_.grad_out, place, scratch.grad_y);
  if (!call_.z.data) return;
  read_rows(call_.z, place, scratch.grad_z);
  for (int t = 0; t < place.num_tokens; ++t) {
    const Vec z = scratch.grad_z[t], s = sigmoid(z, exp_of_minus_abs(z)), grad_out = scratch.grad_y[t];
    scratch.grad_y[t] = grad_out * (z * s);
    scratch.grad_z[t] = grad_out * (s + z * (s - s * s));
  }
}

// Turns what the walk back gathered into gradients of u, delta and z, and writes them.
void Scan::finish(const Place& place, Scratch& scratch, Totals& totals) const {
  const Vec skip = read_weights(call_.D, place);
  Vec total_D = {}, total_bias = {};
  for (int t = 0; t < place.num_tokens; ++t) {
    const Vec u = scratch.u[t], grad_y = scratch.grad_y[t], grad_input = scratch.grad_input[t];
    Vec grad_delta = scratch.grad_step[t] * static_cast<float>(kLn2) + grad_input * u;
    if (call_.softplus) grad_delta *= scratch.slope[t];
    total_D += grad_y * u;
    total_bias += grad_delta;
    scratch.u[t] = grad_input * scratch.delta[t] + (call_.D ? skip * grad_y : Vec{});
    scratch.grad_step[t] = grad_delta;
  }
  add(totals.D, total_D);
  add(totals.bias, total_bias);
  if (call_.grad_u.data) add_rows(call_.grad_u, place, scratch.u, call_.add_to_u);
  if (call_.grad_delta.data) add_rows(call_.grad_delta, place, scratch.grad_step, call_.add_to_delta);
  if (!call_.grad_z.data) return;
  for (int t = 0; t < place.num_tokens; ++t) scratch.grad_z[t] *= scratch.y[t];
  add_rows(call_.grad_z, place, scratch.grad_z, call_.add_to_z);
}

// Sums the lanes of a chunk's gradient of B or C, one group after another; constant ones over tokens instead.
void Scan::gather_lanes(const Place& place, int64_t groups, const float* lanes, double* constant, float* slots) const {
  const int64_t states = call_.states;
  if (groups == 0) {
    for (int64_t n = 0; n < states; ++n) {
      Vec total = {};
      for (int t = 0; t < place.num_tokens; ++t) total += load(lanes + (t * states + n) * kLanes);
      add(constant + n * kLanes, total);
    }
    return;
  }
  const int64_t group_channels = call_.channels / groups, first_group = place.channel / group_channels;
  const int64_t stride = strip_tokens_ * states;
  for (int64_t slot = 0; slot < slots_of(groups); ++slot)
    std::fill_n(slots + slot * stride, place.num_tokens * states, 0.f);
  for (int i = 0; i < place.num_lanes; ++i) {
    float* slot = slots + ((place.channel + i) / group_channels - first_group) * stride;
    for (int64_t row = 0; row < place.num_tokens * states; ++row) slot[row] += lanes[row * kLanes + i];
  }
}

// Adds what the blocks of each group gave to the gradient of B or C of one token, in the order of blocks.
void Scan::add_blocks(const Mixing& to, const float* partial, int64_t entry, int64_t token) const {
  const int64_t states = call_.states, group_channels = call_.channels / to.groups, slots = slots_of(to.groups);
  for (int64_t group = 0; group < to.groups; ++group) {
    float* sum = to.data + entry * to.batch_stride + token * to.token_stride + group * to.group_stride;
    std::fill_n(sum, states, 0.f);
    const int64_t last = ((group + 1) * group_channels - 1) / kLanes;
    for (int64_t block = group * group_channels / kLanes; block <= last; ++block) {
      const int64_t slot = group - block * kLanes / group_channels;
      const int64_t row = ((entry * blocks_ + block) * slots + slot) * strip_tokens_ + token % strip_tokens_;
      for (int64_t n = 0; n < states; ++n) sum[n] += partial[row * states + n];
    }
  }
}

// Memory of one backward pass, for all blocks or for all threads.
struct Scan::Workspace {
  int64_t total_doubles, lane_floats, floats_B, floats_C;
  Memory<Scratch> scratch;
  Memory<Vec> adjoints, vectors;
  Memory<double> totals;
  Memory<float> parts_B, parts_C, mixed, lanes;

  Workspace(const Scan& scan, int64_t threads, int64_t states, int64_t units)
      : total_doubles((states * 3 + 2) * kLanes),
        lane_floats(scan.per_lane_ ? kChunk * states * kLanes : 0),
        floats_B(units * scan.slots_of(scan.call_.B.groups) * scan.strip_tokens_ * states),
        floats_C(units * scan.slots_of(scan.call_.C.groups) * scan.strip_tokens_ * states),
        scratch(threads),
        adjoints(units * states),
        vectors(threads * 3 * states),
        totals(units * total_doubles),
        parts_B(2 * floats_B),
        parts_C(2 * floats_C),
        mixed(threads * 2 * scan.mixed_floats()),
        lanes(threads * 2 * lane_floats) {}

  bool is_whole() const {
    return scratch && adjoints && vectors && totals && parts_B && parts_C && mixed && lanes;
  }

  // What blocks give to B and C of one strip. Neighbouring strips have memory of their own, so that one thread may go
  // on to the next strip while another still adds up the one before.
  float* strip_B(int64_t strip) const { return parts_B.get() + strip % 2 * floats_B; }
  float* strip_C(int64_t strip) const { return parts_C.get() + strip % 2 * floats_C; }

  Totals totals_of(int64_t unit, int64_t states) const {
    double* first = totals.get() + unit * total_doubles;
    return {first, first + states * kLanes, first + states * 2 * kLanes, first + states * 3 * kLanes,
            first + (states * 3 + 1) * kLanes};
  }
};

// Takes one block back through the chunks of a strip.
void Scan::retreat_through_strip(int64_t strip, int64_t entry, int64_t block, int thread, Workspace& memory) const {
  const int64_t states = call_.states, unit = entry * blocks_ + block;
  Scratch& scratch = memory.scratch[thread];
  Vec* rates = memory.vectors.get() + thread * 3 * states;
  Vec *state = rates + states, *grad_A = state + states;
  float* mixed = memory.mixed.get() + thread * 2 * mixed_floats();
  float* lanes = memory.lanes.get() + thread * 2 * memory.lane_floats;
  float* partial_B = memory.strip_B(strip) + unit * slots_of(call_.B.groups) * strip_tokens_ * states;
  float* partial_C = memory.strip_C(strip) + unit * slots_of(call_.C.groups) * strip_tokens_ * states;
  Totals totals = memory.totals_of(unit, states);
  read_rates(place_of(entry, block, 0), rates);
  const Vec bound = bound_steps(rates, states);
  const int64_t first_chunk = strip * (strip_tokens_ / kChunk);
  for (int64_t chunk = std::min(first_chunk + strip_tokens_ / kChunk, chunks_) - 1; chunk >= first_chunk; --chunk) {
    const Place place = place_of(entry, block, chunk);
    prepare(place, bound, scratch, true);
    prepare_gate(place, scratch);
    std::fill_n(scratch.grad_step, place.num_tokens, Vec{});
    std::fill_n(scratch.grad_input, place.num_tokens, Vec{});
    const Walk walk = {place.num_tokens, states, scratch.step, scratch.input, rates,
                       mix(call_.B, place, mixed), mix(call_.C, place, mixed + mixed_floats())};
    const int64_t row = (place.first_token - first_chunk * kChunk) * states;
    const Back back = {scratch.grad_y, kept(place), memory.adjoints.get() + unit * states, grad_A, scratch.grad_step,
                       scratch.grad_input, per_lane_ ? lanes : partial_B + row,
                       per_lane_ ? lanes + memory.lane_floats : partial_C + row};
    std::copy_n(back.before, states, state);
    if (per_lane_)
      trace_and_retreat<true>(walk, back, state, scratch);
    else
      trace_and_retreat<false>(walk, back, state, scratch);
    for (int64_t n = 0; n < states; ++n) add(totals.A + n * kLanes, grad_A[n]);
    if (per_lane_) {
      gather_lanes(place, call_.B.groups, back.grad_B, totals.B, partial_B + row);
      gather_lanes(place, call_.C.groups, back.grad_C, totals.C, partial_C + row);
    }
    finish(place, scratch, totals);
  }
}

// Gradients of the weights of one block: sums over batch entries, in their order.
void Scan::write_weights(int64_t block, const Workspace& memory) const {
  const Place place = place_of(0, block, 0);
  const int64_t states = call_.states;
  const auto write = [&](float* to, double* Totals::*which, int64_t count) {
    if (!to) return;
    for (int64_t n = 0; n < count; ++n)
      for (int i = 0; i < place.num_lanes; ++i) {
        double sum = 0;
        for (int64_t entry = 0; entry < call_.batch; ++entry)
          sum += (memory.totals_of(entry * blocks_ + block, states).*which)[n * kLanes + i];
        to[(place.channel + i) * count + n] = static_cast<float>(sum);
      }
  };
  write(call_.grad_A, &Totals::A, states);
  write(call_.grad_D, &Totals::D, 1);
  write(call_.grad_bias, &Totals::bias, 1);
  if (call_.B.groups == 0) write(call_.grad_B.data, &Totals::B, states);
  if (call_.C.groups == 0) write(call_.grad_C.data, &Totals::C, states);
}

bool Scan::run_backward() const {
  const int64_t states = call_.states, units = call_.batch * blocks_;
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min(call_.threads, units)));
  Workspace memory(*this, threads, states, units);
  if (!memory.is_whole()) return false;
  std::fill_n(memory.totals.get(), units * memory.total_doubles, 0.);
  if (!call_.add_to_u) ask_for_large_pages(call_.grad_u, call_.batch, call_.tokens);
  if (!call_.add_to_delta) ask_for_large_pages(call_.grad_delta, call_.batch, call_.tokens);
  if (!call_.add_to_z) ask_for_large_pages(call_.grad_z, call_.batch, call_.tokens);
  const bool varies_B = call_.grad_B.data && call_.B.groups, varies_C = call_.grad_C.data && call_.C.groups;
#pragma omp parallel num_threads(threads)
  {
    const SubnormalsAreZero guard;
    const int thread = omp_get_thread_num();
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      const Place place = place_of(unit / blocks_, unit % blocks_, 0);
      const float* grad = call_.grad_last_state;
      if (grad) grad += place.batch * call_.channels * states;
      read_states(grad, place, states, memory.adjoints.get() + unit * states);
    }
    for (int64_t strip = (call_.tokens - 1) / strip_tokens_; strip >= 0; --strip) {
#pragma omp for schedule(dynamic)
      for (int64_t unit = 0; unit < units; ++unit)
        retreat_through_strip(strip, unit / blocks_, unit % blocks_, thread, memory);
      const int64_t first = strip * strip_tokens_, count = std::min(strip_tokens_, call_.tokens - first);
      if (!varies_B && !varies_C) continue;
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < call_.batch * count; ++i) {
        if (varies_B) add_blocks(call_.grad_B, memory.strip_B(strip), i / count, first + i % count);
        if (varies_C) add_blocks(call_.grad_C, memory.strip_C(strip), i / count, first + i % count);
      }
    }
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks_; ++block) write_weights(block, memory);
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      if (!call_.grad_initial_state) continue;
      const Place place = place_of(unit / blocks_, unit % blocks_, 0);
      write_states(call_.grad_initial_state + place.batch * call_.channels * states, place, states,
                   memory.adjoints.get() + unit * states);
    }
  }
  return true;
}

}  // namespace
}  // namespace neuroray

extern "C" {

// For the caller to see that both sides mean the same structure.
int64_t neuroray_scan_call_bytes() { return sizeof(neuroray::Call); }

// Each returns 0, or 1 where there is not enough memory.
int64_t neuroray_scan_forward(const neuroray::Call* call) { return neuroray::Scan(*call).run_forward() ? 0 : 1; }

int64_t neuroray_scan_backward(const neuroray::Call* call) { return neuroray::Scan(*call).run_backward() ? 0 : 1; }
}
