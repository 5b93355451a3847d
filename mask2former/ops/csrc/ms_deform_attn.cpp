// Multi-scale deformable attention on a CPU, forward and backward, behind a plain C interface: it needs no headers of
// torch or Python, so one binary serves all their versions. mask2former/ops/cpu.py calls it.
//
// Shapes: B images, S cells of all maps of an image, Lq queries, L levels, P points, D channels of a head.
//
// How the time is kept short:
// - The points of a group of heads are placed together by loops over points (points.h); then each point is sampled by
//   loops over channels, 32, 8 or 1 at a time. Both kinds vectorize.
// - Forward, and the gradients of points and weights, are parallel over queries. The gradient of the value is a pass
//   of its own, in which one thread owns what it adds to: some heads and, with more threads than heads, some rows of
//   each map. To each cell is added in the order of the queries, so no result depends on the number of threads.
// - The functions that are cloned for several instruction sets hold whole blocks of queries, because the compiler does
//   not clone OpenMP's loops.

#include <type_traits>

#include "points.h"

#if defined(_OPENMP) && defined(__clang__) && !defined(__APPLE__)
#error "clang's OpenMP needs a runtime that torch does not bring here: build without OpenMP"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(__x86_64__) || !defined(__linux__) || defined(__clang__) || defined(ONE_INSTRUCTION_SET)
#define CLONED
#elif __GNUC__ >= 12
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif

namespace {

enum ValueType : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
enum Status : int32_t { kOk = 0, kBadProblem = 1, kNoMemory = 2 };

constexpr int32_t kInterface = 1;  // raised with every change of `Problem` or of a function's arguments
constexpr int64_t kQueryBlock = 64;

template <int N>
struct Channels {
  static constexpr int count = N;
};

// Calls body(Channels<N>, first channel) until all channels had their turn.
template <class Body>
INLINE void for_channels(int64_t channels, Body body) {
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) body(Channels<32>{}, c);
  for (; c + 8 <= channels; c += 8) body(Channels<8>{}, c);
  for (; c < channels; ++c) body(Channels<1>{}, c);
}

// The N channels of a head of one image, cell by cell.
template <class T>
struct Map {
  T* first;
  int64_t stride;  // from cell to cell

  INLINE T* at(const Place& p, Corner corner) const { return first + p.tile->cell[corner][p.lane] * stride; }
};

template <int N, class T>
INLINE void sample(const Map<const T>& map, const Points& points, int64_t k, int64_t end, T* out) {
  float sum[N] = {};
  for (; k < end; ++k) {
    const Place at = points.at(k);
    if (!at.tile->inside[at.lane]) continue;
    const T *a = map.at(at, kTopLeft), *b = map.at(at, kTopRight);
    const T *c = map.at(at, kBottomLeft), *d = map.at(at, kBottomRight);
    const float wa = at.tile->weight[kTopLeft][at.lane], wb = at.tile->weight[kTopRight][at.lane];
    const float wc = at.tile->weight[kBottomLeft][at.lane], wd = at.tile->weight[kBottomRight][at.lane];
#pragma omp simd
    for (int j = 0; j < N; ++j) {
      float s = sum[j] + wa * load(a[j]);
      s += wb * load(b[j]);
      s += wc * load(c[j]);
      sum[j] = s + wd * load(d[j]);
    }
  }
  for (int j = 0; j < N; ++j) store(out + j, sum[j]);
}

// Vectors of 16 bytes are everywhere.
typedef float Sums __attribute__((vector_size(16)));

// Four partial sums of the product of N channels.
template <int N, class T>
INLINE Sums dot(const float* a, const T* b) {
  if constexpr (N == 1) {
    return Sums{a[0] * load(b[0]), 0, 0, 0};
  } else {
    constexpr int lanes = N < 16 ? N : 16;
    float products[lanes];
#pragma omp simd
    for (int j = 0; j < lanes; ++j) products[j] = a[j] * load(b[j]);
    for (int c = lanes; c < N; c += lanes)
#pragma omp simd
      for (int j = 0; j < lanes; ++j) products[j] += a[c + j] * load(b[c + j]);
    Sums part[lanes / 4];
    std::memcpy(part, products, sizeof products);
    if constexpr (lanes == 16) return (part[0] + part[1]) + (part[2] + part[3]);
    return part[0] + part[1];
  }
}

// Adds gradient . value of the four corners to the sums of each point.
template <int N, class T>
INLINE void add_dots(const Map<const T>& map, const Points& points, int64_t k, int64_t end, const T* grad) {
  float g[N];
  for (int j = 0; j < N; ++j) g[j] = load(grad[j]);
  for (; k < end; ++k) {
    const Place at = points.at(k);
    if (!at.tile->inside[at.lane]) continue;
    const Sums a = dot<N>(g, map.at(at, kTopLeft)), b = dot<N>(g, map.at(at, kTopRight));
    const Sums c = dot<N>(g, map.at(at, kBottomLeft)), d = dot<N>(g, map.at(at, kBottomRight));
    // Each constructor is one shuffle of two vectors.
    const Sums ab = Sums{a[0], b[0], a[1], b[1]} + Sums{a[2], b[2], a[3], b[3]};
    const Sums cd = Sums{c[0], d[0], c[1], d[1]} + Sums{c[2], d[2], c[3], d[3]};
    const Sums sums = Sums{ab[0], ab[1], cd[0], cd[1]} + Sums{ab[2], ab[3], cd[2], cd[3]};
    for (int j = 0; j < kCorners; ++j) at.tile->sums[at.lane][j] += sums[j];
  }
}

template <int N>
INLINE void add_scaled(float* to, float weight, const float* g) {
#pragma omp simd
  for (int j = 0; j < N; ++j) to[j] += weight * g[j];
}

template <int N, class T>
INLINE void add_to_corners(const Map<float>& map, const Points& points, int64_t k, int64_t end, const T* grad) {
  float g[N];
  for (int j = 0; j < N; ++j) g[j] = load(grad[j]);
  for (; k < end; ++k) {
    const Place at = points.at(k);
    if (!at.tile->inside[at.lane]) continue;
    const int32_t top = at.tile->cell[kTopLeft][at.lane], bottom = at.tile->cell[kBottomLeft][at.lane];
    if (at.tile->first_owned[at.lane] <= top && top < at.tile->end_owned[at.lane]) {
      add_scaled<N>(map.at(at, kTopLeft), at.tile->weight[kTopLeft][at.lane], g);
      add_scaled<N>(map.at(at, kTopRight), at.tile->weight[kTopRight][at.lane], g);
    }
    if (at.tile->first_owned[at.lane] <= bottom && bottom < at.tile->end_owned[at.lane]) {
      add_scaled<N>(map.at(at, kBottomLeft), at.tile->weight[kBottomLeft][at.lane], g);
      add_scaled<N>(map.at(at, kBottomRight), at.tile->weight[kBottomRight][at.lane], g);
    }
  }
}

// ---- passes over queries; [begin, end) are of B * Lq

// The map of a head of the image that query i belongs to, from channel c on.
template <class T>
INLINE Map<T> map_of(const Problem& p, T* maps, int64_t i, int64_t head, int64_t c) {
  const int64_t stride = p.heads * p.channels;
  return {maps + i / p.queries * p.cells * stride + head * p.channels + c, stride};
}

// Calls body(first head, heads) for groups of heads that the workspace holds.
template <class Body>
INLINE void for_head_groups(const Points& points, int64_t begin, int64_t end, Body body) {
  for (int64_t head = begin; head < end; head += points.heads) body(head, smaller(points.heads, end - head));
}

template <class T>
INLINE void attend(const Problem& p, const Points& points, int64_t begin, int64_t end, T* out) {
  for (int64_t i = begin; i < end; ++i) {
    for_head_groups(points, 0, p.heads, [&](int64_t head, int64_t heads) __attribute__((always_inline)) {
      place(p, points, i, head, heads);
      for (int64_t h = 0; h < heads; ++h) {
        for_channels(p.channels, [&](auto n, int64_t c) __attribute__((always_inline)) {
          const auto map = map_of(p, static_cast<const T*>(p.value), i, head + h, c);
          T* row = out + (i * p.heads + head + h) * p.channels + c;
          sample<n.count>(map, points, h * points.in_head, (h + 1) * points.in_head, row);
        });
      }
    });
  }
}

// From the sums of each point's corners to the gradients of its position, in x and y, and of its probability.
INLINE void differentiate_tile(Tile& t, bool in_cells) {
#pragma omp simd
  for (int j = 0; j < kLanes; ++j) {
    const int32_t inside = t.inside[j];
    const bool has_left = inside & kLeft, has_right = inside & kRight;
    const bool has_top = inside & kTop, has_bottom = inside & kBottom;
    const float* sums = t.sums[j];
    float a = sums[kTopLeft], b = sums[kTopRight], c = sums[kBottomLeft], d = sums[kBottomRight];
    a = has_top & has_left ? a : 0.0f;
    b = has_top & has_right ? b : 0.0f;
    c = has_bottom & has_left ? c : 0.0f;
    d = has_bottom & has_right ? d : 0.0f;
    const float right = t.x[j], bottom = t.y[j], left = 1 - right, top = 1 - bottom;
    const float x_scale = in_cells ? 1.0f : t.width[j], y_scale = in_cells ? 1.0f : t.height[j];
    const float in_x = x_scale * t.probability[j] * (top * (b - a) + bottom * (d - c));
    const float in_y = y_scale * t.probability[j] * (left * (c - a) + right * (d - b));
    t.x[j] = inside ? in_x : 0.0f;  // the probability may be NaN
    t.y[j] = inside ? in_y : 0.0f;
    t.gradient[j] = top * (left * a + right * b) + bottom * (left * c + right * d);
  }
}

INLINE void write_lanes(const Tile& t, float* positions, float* weights, int64_t lanes) {
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    positions[2 * j] = t.x[j];
    positions[2 * j + 1] = t.y[j];
    weights[j] = t.gradient[j];
  }
}

INLINE void write_gradients(const Problem& p, const Points& points, int64_t heads, float* positions, float* weights) {
  const int64_t count = heads * points.in_head, rest = count % kLanes;
  Tile *const begin = points.begin(), *const end = points.end(count);
  for (Tile* t = begin; t < end; ++t) differentiate_tile(*t, p.reference);
  if (p.reference) {
    for (Tile* t = begin; t < end; ++t)
      for (int j = 0; j < kLanes; ++j) points.terms[kLanes * (t - begin) + j] = t->probability[j] * t->gradient[j];
    reduce_heads(points, heads, points.terms, [&](const float* of_head) __attribute__((always_inline)) {
      float mean = 0;
      for (int64_t k = 0; k < points.in_head; ++k) mean += of_head[k];
      return mean;
    });
    for (Tile* t = begin; t < end; ++t) {
      const float* const mean = points.of_head + kLanes * (t - begin);
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) t->gradient[j] = t->probability[j] * (t->gradient[j] - mean[j]);
    }
  }
  for (int64_t k = 0; k + kLanes <= count; k += kLanes)
    write_lanes(begin[k / kLanes], positions + 2 * k, weights + k, kLanes);
  if (rest) write_lanes(end[-1], positions + 2 * (count - rest), weights + count - rest, rest);
}

template <class T>
INLINE void differentiate_points(const Problem& p, const Points& points, int64_t begin, int64_t end, const T* grad,
                                 float* grad_positions, float* grad_weights) {
  for (int64_t i = begin; i < end; ++i) {
    for_head_groups(points, 0, p.heads, [&](int64_t head, int64_t heads) __attribute__((always_inline)) {
      place(p, points, i, head, heads);
      for (Tile* t = points.begin(); t < points.end(heads * points.in_head); ++t)
        std::memset(t->sums, 0, sizeof t->sums);
      for (int64_t h = 0; h < heads; ++h) {
        for_channels(p.channels, [&](auto n, int64_t c) __attribute__((always_inline)) {
          const auto map = map_of(p, static_cast<const T*>(p.value), i, head + h, c);
          const T* row = grad + (i * p.heads + head + h) * p.channels + c;
          add_dots<n.count>(map, points, h * points.in_head, (h + 1) * points.in_head, row);
        });
      }
      const int64_t first = (i * p.heads + head) * points.in_head;
      write_gradients(p, points, heads, grad_positions + 2 * first, grad_weights + first);
    });
  }
}

// What one thread owns of the value's gradient in one image: rows band / bands to (band + 1) / bands of each map.
struct Share {
  int64_t image, head, end_head, band, bands;
};

template <class T>
INLINE void differentiate_value(const Problem& p, const Points& points, const Share& share, const T* grad, float* out) {
  for (Tile* t = points.begin(); t < points.end(points.heads * points.in_head); ++t)
    for (int j = 0; j < kLanes; ++j) {
      const int64_t first = t->rows[j] * share.band / share.bands, end = t->rows[j] * (share.band + 1) / share.bands;
      t->first_owned[j] = static_cast<int32_t>(t->start[j] + first * t->columns[j]);
      t->end_owned[j] = static_cast<int32_t>(t->start[j] + end * t->columns[j]);
    }
  for (int64_t i = share.image * p.queries; i < (share.image + 1) * p.queries; ++i) {
    const auto add = [&](int64_t head, int64_t heads) __attribute__((always_inline)) {
      place(p, points, i, head, heads);
      for (int64_t h = 0; h < heads; ++h) {
        for_channels(p.channels, [&](auto n, int64_t c) __attribute__((always_inline)) {
          const T* row = grad + (i * p.heads + head + h) * p.channels + c;
          const auto map = map_of(p, out, i, head + h, c);
          add_to_corners<n.count>(map, points, h * points.in_head, (h + 1) * points.in_head, row);
        });
      }
    };
    for_head_groups(points, share.head, share.end_head, add);
  }
}

// ---- one function a pass and instruction set, and the threads

// Calls body(pointer of the value's type) with `pointer`.
template <class Pointer, class Body>
INLINE void with_type(const Problem& p, Pointer pointer, Body body) {
  constexpr bool constant = std::is_const_v<std::remove_pointer_t<Pointer>>;
  if (p.value_type == kFloat32) body(static_cast<std::conditional_t<constant, const float, float>*>(pointer));
  if (p.value_type == kFloat16) body(static_cast<std::conditional_t<constant, const Half, Half>*>(pointer));
  if (p.value_type == kBFloat16) body(static_cast<std::conditional_t<constant, const BFloat16, BFloat16>*>(pointer));
}

CLONED void forward_block(const Problem& p, const Points& points, int64_t begin, int64_t end, void* out) {
  with_type(p, out, [&](auto* typed) __attribute__((always_inline)) { attend(p, points, begin, end, typed); });
}

CLONED void points_block(const Problem& p, const Points& points, int64_t begin, int64_t end, const void* grad,
                         float* grad_positions, float* grad_weights) {
  with_type(p, grad, [&](auto* typed) __attribute__((always_inline)) {
    differentiate_points(p, points, begin, end, typed, grad_positions, grad_weights);
  });
}

CLONED void value_share(const Problem& p, const Points& points, const Share& share, const void* grad, float* out) {
  with_type(p, grad, [&](auto* typed) __attribute__((always_inline)) {
    differentiate_value(p, points, share, typed, out);
  });
}

// Calls body(points, task) for each task, on p.threads threads.
template <class Body>
Status in_parallel(const Problem& p, int64_t tasks, Body body) {
  int32_t status = kOk;
#pragma omp parallel num_threads(static_cast<int>(p.threads))
  {
    const Points points(p);
    if (!points.usable()) {
#pragma omp atomic write
      status = kNoMemory;
    }
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task)
      if (points.usable()) body(points, task);
  }
  return static_cast<Status>(status);
}

template <class Body>
Status for_query_blocks(const Problem& p, Body body) {
  const int64_t queries = p.batch * p.queries;
  return in_parallel(p, (queries + kQueryBlock - 1) / kQueryBlock, [&](const Points& points, int64_t block) {
    const int64_t begin = block * kQueryBlock, end = begin + kQueryBlock;
    body(points, begin, end < queries ? end : queries);
  });
}

Status for_shares(const Problem& p, const void* grad, float* grad_value) {
  const int64_t wanted = (p.threads + p.batch - 1) / p.batch;  // shares of an image
  const int64_t groups = wanted < p.heads ? wanted : p.heads, bands = (wanted + groups - 1) / groups;
  return in_parallel(p, p.batch * groups * bands, [&](const Points& points, int64_t task) {
    const int64_t image = task / (groups * bands), group = task / bands % groups;
    const Share share{image, p.heads * group / groups, p.heads * (group + 1) / groups, task % bands, bands};
    value_share(p, points, share, grad, grad_value);
  });
}

bool valid(const Problem& p) {
  int64_t cells = 0;
  for (int64_t l = 0; l < p.levels; ++l) {
    const int64_t height = p.shapes[2 * l], width = p.shapes[2 * l + 1];
    if (height < 0 || width < 0 || (height && width > INT32_MAX / height)) return false;
    cells += height * width;
  }
  return cells == p.cells && cells <= INT32_MAX && p.batch > 0 && p.heads > 0 && p.threads > 0;
}

}  // namespace

EXPORT int32_t mask2former_ops_interface() { return kInterface; }

EXPORT int32_t ms_deform_attn_forward(const Problem* problem, void* out) {
  const Problem& p = *problem;
  if (!valid(p)) return kBadProblem;
  return for_query_blocks(p, [&](const Points& points, int64_t begin, int64_t end) {
    forward_block(p, points, begin, end, out);
  });
}

// Adds to grad_value (float32, all zero at first); writes the other two.
EXPORT int32_t ms_deform_attn_backward(const Problem* problem, const void* grad, float* grad_value,
                                       float* grad_positions, float* grad_weights) {
  const Problem& p = *problem;
  if (!valid(p)) return kBadProblem;
  const Status status = for_query_blocks(p, [&](const Points& points, int64_t begin, int64_t end) {
    points_block(p, points, begin, end, grad, grad_positions, grad_weights);
  });
  return status == kOk ? for_shares(p, grad, grad_value) : status;
}
