// Where the points of a query lie: softmax, arithmetic of locations, and the four corners that each point reads.
//
// Points are kept in tiles of 16, every quantity of a tile together. So each loop has 16 turns, which are whole
// vectors on every machine, any number of points fits, and a point's quantities are at constant distances.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "sixteen_bit.h"

namespace {

// Everything is contiguous. mask2former/ops/cpu.py mirrors this struct.
struct Problem {
  int64_t batch, cells, queries, heads, levels, points, channels;
  int64_t reference_batch, reference_levels;  // 1, or `batch` and `levels`
  int64_t value_type, threads;
  const int64_t* shapes;   // H_0, W_0, H_1, W_1, ...
  const void* value;       // (B, S, heads, D)
  const float* positions;  // (B, Lq, heads, L, P, 2): locations in [0, 1], or, with a reference, offsets in cells
  const float* weights;    // (B, Lq, heads, L, P): probabilities, or, with a reference, logits
  const float* reference;  // (1 or B, Lq, 1 or L, 2); null in the plain form
};

enum Corner { kTopLeft, kTopRight, kBottomLeft, kBottomRight, kCorners };
enum Inside : int32_t { kLeft = 1, kRight = 2, kTop = 4, kBottom = 8 };

constexpr int kLanes = 16;
constexpr int64_t kGroupPoints = 128;  // placed together: many enough for whole tiles, few enough for the L1 cache

struct alignas(64) Tile {
  // Of the level:
  float width[kLanes], height[kLanes];  // -2, which no point is left of, where the map is empty
  int32_t columns[kLanes], rows[kLanes], start[kLanes], reference[kLanes];
  int32_t first_owned[kLanes], end_owned[kLanes];  // cells that this thread may add to
  // Of the point:
  float x[kLanes], y[kLanes];  // as read, then in cells, then the fraction of a cell
  float probability[kLanes];
  int32_t inside[kLanes];  // which rows and columns of the corners lie in the map; 0: the point reads nothing
  int32_t cell[kCorners][kLanes];  // of the image; outside of the map, that of a corner inside,
  float weight[kCorners][kLanes];  // with weight 0
  float gradient[kLanes];          // of the probability
  float sums[kLanes][kCorners];    // gradient . value, over the channels, of each corner
};

// A point in its tile.
struct Place {
  Tile* tile;
  uint64_t lane;
};

// Tiles for the points of a group of heads, L * P of each head in turn. Each thread has its own.
class Points {
 public:
  const int64_t in_head, heads;  // points of a head; heads of a group
  float *terms, *of_head;        // numbers of the points, one after the other

  explicit Points(const Problem& p);
  ~Points() { std::free(tiles_); }
  Points(const Points&) = delete;

  bool usable() const { return tiles_; }
  INLINE Place at(int64_t point) const {
    const uint64_t k = static_cast<uint64_t>(point);  // divided by a shift
    return {tiles_ + k / kLanes, k % kLanes};
  }
  INLINE Tile* begin() const { return tiles_; }
  INLINE Tile* end(int64_t points) const { return tiles_ + (points + kLanes - 1) / kLanes; }

 private:
  Tile* tiles_;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

Points::Points(const Problem& p)
    : in_head(p.levels * p.points),
      heads(in_head < kGroupPoints ? smaller(kGroupPoints / (in_head ? in_head : 1), p.heads) : 1) {
  const int64_t count = (heads * in_head + kLanes - 1) / kLanes;
  const size_t bytes = static_cast<size_t>(count) * (sizeof(Tile) + 2 * kLanes * sizeof(float)) + alignof(Tile);
  tiles_ = static_cast<Tile*>(std::aligned_alloc(alignof(Tile), bytes));
  if (!tiles_) return;
  std::memset(static_cast<void*>(tiles_), 0, bytes);
  terms = reinterpret_cast<float*>(tiles_ + count);
  of_head = terms + count * kLanes;
  for (int64_t k = 0; k < heads * in_head; ++k) {
    const int64_t level = k % in_head / p.points, rows = p.shapes[2 * level], columns = p.shapes[2 * level + 1];
    int64_t start = 0;
    for (int64_t l = 0; l < level; ++l) start += p.shapes[2 * l] * p.shapes[2 * l + 1];
    const auto [tile, j] = at(k);
    const bool empty = rows == 0 || columns == 0;
    tile->height[j] = empty ? -2.0f : static_cast<float>(rows);
    tile->width[j] = empty ? -2.0f : static_cast<float>(columns);
    tile->rows[j] = static_cast<int32_t>(rows);
    tile->columns[j] = static_cast<int32_t>(columns);
    tile->start[j] = static_cast<int32_t>(start);
    tile->reference[j] = p.reference_levels == 1 ? 0 : static_cast<int32_t>(2 * level);
  }
}

// exp of a number up to 0; below -87 it is 0. The polynomial is that of Cephes: relative error 1e-7.
INLINE float exp_of_negative(float x) {
  const float bounded = x > -87.0f ? x : -87.0f;  // NaN as well: converting it to an integer is undefined
  const float power = std::floor(bounded * 1.44269504f + 0.5f);
  const float r = bounded - power * 0.693359375f + power * 2.12194440e-4f;  // ln 2 in two parts
  float e = 1.9875691500e-4f;
  e = e * r + 1.3981999507e-3f;
  e = e * r + 8.3334519073e-3f;
  e = e * r + 4.1665795894e-2f;
  e = e * r + 1.6666665459e-1f;
  e = e * r + 5.0000001201e-1f;
  e = e * r * r + r + 1.0f;
  e *= as_float(static_cast<uint32_t>(static_cast<int32_t>(power) + 127) << 23);
  return x > -87.0f ? e : (x != x ? x : 0.0f);
}

// Puts reduce(its numbers) of each head beside each of its points, so that other loops need not stop at heads.
template <class Reduce>
INLINE void reduce_heads(const Points& points, int64_t heads, const float* numbers, Reduce reduce) {
  for (int64_t first = 0; first < heads * points.in_head; first += points.in_head) {
    const float reduced = reduce(numbers + first);
    for (int64_t k = 0; k < points.in_head; ++k) points.of_head[first + k] = reduced;
  }
}

// From logits to probabilities over the points of each head.
INLINE void softmax(const Points& points, int64_t heads, const float* logits) {
  Tile *const begin = points.begin(), *const end = points.end(heads * points.in_head);
  reduce_heads(points, heads, logits, [&](const float* of_head) __attribute__((always_inline)) {
    float largest = of_head[0];
    for (int64_t k = 1; k < points.in_head; ++k) largest = of_head[k] > largest ? of_head[k] : largest;
    return largest;
  });
  for (Tile* t = begin; t < end; ++t) {
    float* const terms = points.terms + kLanes * (t - begin);
    const float* const largest = points.of_head + kLanes * (t - begin);
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) terms[j] = exp_of_negative(t->probability[j] - largest[j]);
  }
  reduce_heads(points, heads, points.terms, [&](const float* of_head) __attribute__((always_inline)) {
    float sum = 0;
    for (int64_t k = 0; k < points.in_head; ++k) sum += of_head[k];
    return 1 / sum;
  });
  for (Tile* t = begin; t < end; ++t) {
    const float* const terms = points.terms + kLanes * (t - begin);
    const float* const scale = points.of_head + kLanes * (t - begin);
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) t->probability[j] = terms[j] * scale[j];
  }
}

INLINE void place_corners(Tile& t) {
  for (int j = 0; j < kLanes; ++j) {
    // The range is checked before the conversion to an integer; NaN fails every comparison.
    const bool near = (t.x[j] >= -1.0f) & (t.x[j] < t.width[j]) & (t.y[j] >= -1.0f) & (t.y[j] < t.height[j]);
    const float x = near ? t.x[j] : 0.0f, y = near ? t.y[j] : 0.0f;
    const float right = x - std::floor(x), bottom = y - std::floor(y);
    const int32_t last_x = t.columns[j] - 1, last_y = t.rows[j] - 1;
    int32_t x0 = static_cast<int32_t>(std::floor(x)), y0 = static_cast<int32_t>(std::floor(y));
    x0 = x0 < last_x ? x0 : last_x;  // a side beyond 2**24 may have been rounded up
    y0 = y0 < last_y ? y0 : last_y;
    const bool has_left = x0 >= 0, has_right = x0 < last_x, has_top = y0 >= 0, has_bottom = y0 < last_y;
    const float of_left = has_left ? 1 - right : 0.0f, of_right = has_right ? right : 0.0f;
    const float of_top = has_top ? t.probability[j] * (1 - bottom) : 0.0f;
    const float of_bottom = has_bottom ? t.probability[j] * bottom : 0.0f;
    t.weight[kTopLeft][j] = of_top * of_left;
    t.weight[kTopRight][j] = of_top * of_right;
    t.weight[kBottomLeft][j] = of_bottom * of_left;
    t.weight[kBottomRight][j] = of_bottom * of_right;
    const int32_t x1 = has_right ? x0 + 1 : x0, y1 = has_bottom ? y0 + 1 : y0;
    x0 = has_left ? x0 : 0;
    y0 = has_top ? y0 : 0;
    const int32_t top_row = t.start[j] + y0 * t.columns[j], bottom_row = t.start[j] + y1 * t.columns[j];
    t.cell[kTopLeft][j] = top_row + x0;
    t.cell[kTopRight][j] = top_row + x1;
    t.cell[kBottomLeft][j] = bottom_row + x0;
    t.cell[kBottomRight][j] = bottom_row + x1;
    t.x[j] = right;
    t.y[j] = bottom;
    const int32_t inside =
        (has_left ? kLeft : 0) | (has_right ? kRight : 0) | (has_top ? kTop : 0) | (has_bottom ? kBottom : 0);
    t.inside[j] = near ? inside : 0;
  }
}

INLINE void read_lanes(Tile& t, const float* positions, const float* weights, int64_t lanes) {
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    t.x[j] = positions[2 * j];
    t.y[j] = positions[2 * j + 1];
    t.probability[j] = weights[j];
  }
}

// Places the points of `heads` heads, from `head` on, of query `i` of B * Lq.
INLINE void place(const Problem& p, const Points& points, int64_t i, int64_t head, int64_t heads) {
  const int64_t count = heads * points.in_head, first = (i * p.heads + head) * points.in_head;
  Tile *const begin = points.begin(), *const end = points.end(count);
  for (int64_t k = 0; k + kLanes <= count; k += kLanes)
    read_lanes(begin[k / kLanes], p.positions + 2 * (first + k), p.weights + first + k, kLanes);
  const int64_t rest = count % kLanes, last = first + count - rest;
  if (rest) read_lanes(end[-1], p.positions + 2 * last, p.weights + last, rest);
  if (p.reference) {
    softmax(points, heads, p.weights + first);
    const float* reference = p.reference + 2 * p.reference_levels * (p.reference_batch == 1 ? i % p.queries : i);
    for (Tile* t = begin; t < end; ++t)
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) {
        t->x[j] = reference[t->reference[j]] * t->width[j] + t->x[j] - 0.5f;
        t->y[j] = reference[t->reference[j] + 1] * t->height[j] + t->y[j] - 0.5f;
      }
  } else {
    for (Tile* t = begin; t < end; ++t)
      for (int j = 0; j < kLanes; ++j) {
        t->x[j] = t->x[j] * t->width[j] - 0.5f;
        t->y[j] = t->y[j] * t->height[j] - 0.5f;
      }
  }
  for (Tile* t = begin; t < end; ++t) place_corners(*t);
}

}  // namespace
