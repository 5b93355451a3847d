// Multi-scale deformable attention on a GPU, forward and backward.
//
// One text for three compilers: nvcc makes a fatbin of the kernels listed at the end, NVRTC makes the one kernel
// that the macro KERNELS names, and a C++ compiler, with a header that stands in for the GPU, makes code that
// tests run. Nothing is included: NVRTC may find no headers where it runs.
//
// A team of lanes, a power of two within a warp, computes one head of one query; each lane owns as many channels
// as one wide load brings. Neighboring teams have neighboring queries of the same head, whose cells mostly
// coincide, so that the L1 cache serves them. Locations and sums are float32 whatever the type of the values.
//
// The grid is (tiles of queries, heads, images). Shapes: L levels, P points of a level, D channels of a head.

constexpr int THREADS = 256;
constexpr int WARP = 32;
constexpr int MAX_LEVELS = 64;
enum Form { plain, fused, either };  // locations and weights; offsets, logits and reference; known at run time
enum Width { scalar, vector };       // channels of a lane: one; as many as one wide access takes

struct Level {
    int height, width;
    int start;  // its first cell
};

// All that a kernel is told. Everything is contiguous, in the shapes of mask2former/ops/operator.py.
struct Problem {
    const void* value;
    const float* points;
    const float* weights;
    const float* reference;  // of the fused form
    void* output;            // of forward; the other four of backward
    const void* grad;
    float* grad_value;  // float32 whatever the type of value, and zero at the start
    float* grad_points;
    float* grad_weights;
    long long reference_image_stride;  // strides in floats; zero where one reference serves all
    int reference_query_stride, reference_level_stride;
    int images, cells, queries, heads, channels, levels, level_points;
    int team;  // lanes that compute one head of one query
    Level level[MAX_LEVELS];
};

// ---- What only a GPU has; the tests' header brings its own. ----

#ifdef __CUDACC__
static __device__ float half_to_float(unsigned short half) {
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(half));
    return number;
}

static __device__ unsigned short float_to_half(float number) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(number));
    return half;
}

static __device__ float reciprocal(float number) { return __fdividef(1.0f, number); }

// Of numbers up to 0; relative errors grow from 1e-7 to 1e-5 where the result is next to nothing.
static __device__ float exponential(float number) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(number * 1.44269504f));
    return power;
}

static __device__ void atomic_add(float* target, const float (&number)[1]) { atomicAdd(target, number[0]); }

static __device__ void atomic_add(float* target, const float (&number)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)),
                 "f"(number[0]), "f"(number[1]), "f"(number[2]), "f"(number[3])
                 : "memory");
#else
    for (int i = 0; i < 4; i++) atomicAdd(target + i, number[i]);
#endif
}
#endif

// ---- The types of values. ----

struct float32 {
    unsigned bits;
    static __device__ float widen(unsigned bits) { return __uint_as_float(bits); }
    static __device__ unsigned narrow(float number) { return __float_as_uint(number); }
};

struct float16 {
    unsigned short bits;
    static __device__ float widen(unsigned bits) { return half_to_float(bits); }
    static __device__ unsigned narrow(float number) { return float_to_half(number); }
};

struct bfloat16 {
    unsigned short bits;
    static __device__ float widen(unsigned bits) { return __uint_as_float(bits << 16); }
    static __device__ unsigned narrow(float number) {
        const unsigned wide = __float_as_uint(number);
        if (number != number) return 0x7fff;
        return (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;  // to the nearest, ties to even
    }
};

// N numbers from consecutive places, with one load where they fill 8 or 16 bytes.
template <typename T, int N>
static __device__ void load(float (&to)[N], const T* from) {
    constexpr int BYTES = N * sizeof(T);
    if constexpr (BYTES == 8 || BYTES == 16) {
        unsigned word[BYTES / 4];
        if constexpr (BYTES == 16) {
            const uint4 wide = __ldg(reinterpret_cast<const uint4*>(from));
            word[0] = wide.x, word[1] = wide.y, word[2] = wide.z, word[3] = wide.w;
        } else {
            const uint2 wide = __ldg(reinterpret_cast<const uint2*>(from));
            word[0] = wide.x, word[1] = wide.y;
        }
        constexpr int EACH = 4 / sizeof(T);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const unsigned shifted = word[i / EACH] >> (32 / EACH * (i % EACH));
            to[i] = T::widen(EACH == 1 ? shifted : shifted & 0xffff);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = T::widen(__ldg(&from[i].bits));
    }
}

// The same outwards: 16 bytes or one number.
template <typename T, int N>
static __device__ void store(T* to, const float (&from)[N]) {
    if constexpr (N == 1) {
        to->bits = T::narrow(from[0]);
    } else {
        constexpr int EACH = 4 / sizeof(T);
        unsigned word[4] = {};
#pragma unroll
        for (int i = 0; i < N; i++) word[i / EACH] |= T::narrow(from[i]) << (32 / EACH * (i % EACH));
        *reinterpret_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

// N floats in a row, that start at a multiple of N floats.
template <int N>
static __device__ void load_floats(float (&to)[N], const float* from) {
    constexpr int EACH = N % 4 == 0 ? 4 : N % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int i = 0; i < N; i += EACH) {
        float part[EACH];
        load(part, reinterpret_cast<const float32*>(from + i));
#pragma unroll
        for (int j = 0; j < EACH; j++) to[i + j] = part[j];
    }
}

// ---- Where the work is. ----

// The smallest power of two that has a lane for each group of channels, or a whole warp.
static constexpr __device__ int team_of(int groups) {
    int team = 1;
    while (team < groups && team < WARP) team *= 2;
    return team;
}

// Every size, known to the compiler where the kernel is made for it (not 0), and what follows for this thread.
// V channels are a lane's at a time.
template <Form FORM, int HEADS, int LEVELS, int POINTS, int CHANNELS, int V>
struct Work {
    const Problem& problem;
    __device__ bool is_fused() const { return FORM == either ? problem.reference != nullptr : FORM == fused; }
    __device__ int heads() const { return HEADS ? HEADS : problem.heads; }
    __device__ int levels() const { return LEVELS ? LEVELS : problem.levels; }
    __device__ int level_points() const { return POINTS ? POINTS : problem.level_points; }
    __device__ int points() const { return levels() * level_points(); }
    __device__ int channels() const { return CHANNELS ? CHANNELS : problem.channels; }
    __device__ int cell_stride() const { return heads() * channels(); }

    __device__ int team() const { return CHANNELS ? team_of(CHANNELS / V) : problem.team; }
    __device__ int lane() const { return threadIdx.x & (team() - 1); }
    __device__ int query() const { return blockIdx.x * (THREADS / team()) + threadIdx.x / team(); }

    // Which of (images, queries, heads), counted through, are an image, a query and this block's head.
    __device__ long long row(int image, int query) const {
        return ((long long)image * problem.queries + query) * heads() + blockIdx.y;
    }
    // Elements from the beginning of value to the first cell of an image, at this block's head.
    __device__ long long first_cell(int image) const {
        return ((long long)image * problem.cells * heads() + blockIdx.y) * channels();
    }
    // The x and y of a query's reference at level 0.
    __device__ const float* reference(int image, int query) const {
        return problem.reference + image * problem.reference_image_stride +
               (long long)query * problem.reference_query_stride;
    }
};

// A coordinate in cells is origin + scale * point; the center of the first cell is 0.
struct Axis {
    float origin, scale;
    __device__ Axis(bool is_fused, const float* reference, int which, int side)
        : origin(is_fused ? __ldg(reference + which) * side - 0.5f : -0.5f), scale(is_fused ? 1 : side) {}
    __device__ float cell(float point) const { return scale * point + origin; }
};

// The probabilities of a head's points: given, or the softmax of logits. COUNT of them stay in registers; where
// COUNT is 0 they are computed again at each use.
template <int COUNT>
struct Probabilities {
    float kept[COUNT];

    __device__ Probabilities(bool is_fused, const float* weights, int) {
        load_floats(kept, weights);
        if (!is_fused) return;
        float largest = kept[0], sum = 0;
#pragma unroll
        for (int i = 1; i < COUNT; i++) largest = fmaxf(largest, kept[i]);
#pragma unroll
        for (int i = 0; i < COUNT; i++) sum += kept[i] = exponential(kept[i] - largest);
        const float scale = reciprocal(sum);
#pragma unroll
        for (int i = 0; i < COUNT; i++) kept[i] *= scale;
    }
    __device__ float operator[](int point) const { return kept[point]; }
};

template <>
struct Probabilities<0> {
    const bool is_fused;
    const float* weights;
    float largest, scale;

    __device__ Probabilities(bool is_fused, const float* weights, int count)
        : is_fused(is_fused), weights(weights), largest(0), scale(1) {
        if (!is_fused) return;
        largest = __ldg(weights);
        for (int i = 1; i < count; i++) largest = fmaxf(largest, __ldg(weights + i));
        float sum = 0;
        for (int i = 0; i < count; i++) sum += exponential(__ldg(weights + i) - largest);
        scale = reciprocal(sum);
    }
    __device__ float operator[](int point) const {
        const float weight = __ldg(weights + point);
        return is_fused ? exponential(weight - largest) * scale : weight;
    }
};

// The four cells around x, y, which is less than a cell outside of the map at most. Corner k is to the right of
// the first where k & 1, below it where k & 2.
struct Corners {
    int column, row;
    float right, below;  // from the first corner to x, y: 0 to 1

    __device__ Corners(float x, float y) : column(floorf(x)), row(floorf(y)), right(x - column), below(y - row) {}

    __device__ bool is_on(const Level& map, int k) const {
        return unsigned(column + (k & 1)) < unsigned(map.width) && unsigned(row + (k >> 1)) < unsigned(map.height);
    }
    // Elements from the beginning of the maps to corner k.
    __device__ long long offset(const Level& map, int stride, int k) const {
        const long long first = (long long)(map.start + row * map.width + column) * stride;
        return first + (k & 1 ? stride : 0) + (k & 2 ? (long long)map.width * stride : 0);
    }
    // Each corner's part of a point's weight.
    __device__ void divide(float (&share)[4], float weight) const {
        const float lower = weight * below, upper = weight - lower;
        share[1] = upper * right, share[0] = upper - share[1];
        share[3] = lower * right, share[2] = lower - share[3];
    }
};

// Whether any corner is on the map. False for what is not a number, true only where int can hold the cells.
static __device__ bool touches(const Level& map, float x, float y) {
    return x > -1 && y > -1 && x < map.width && y < map.height;
}

// ---- Forward. ----

template <bool INSIDE, typename T, int V>
static __device__ void add_corners(float (&sum)[V], const T* cells, int stride, const Level& map,
                                   const Corners& corners, float weight) {
    float share[4];
    corners.divide(share, weight);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (!INSIDE && !corners.is_on(map, k)) continue;
        float number[V];
        load(number, cells + corners.offset(map, stride, k));
#pragma unroll
        for (int c = 0; c < V; c++) sum[c] += share[k] * number[c];
    }
}

// Add what a point samples. Most points have all their corners on the map, and need no further question.
template <typename T, int V>
static __device__ void add_sample(float (&sum)[V], const T* cells, int stride, const Level& map, float x, float y,
                                  float weight) {
    if (x >= 0 && y >= 0 && x < map.width - 1 && y < map.height - 1) {
        add_corners<true>(sum, cells, stride, map, Corners(x, y), weight);
    } else if (touches(map, x, y)) {
        add_corners<false>(sum, cells, stride, map, Corners(x, y), weight);
    }
}

template <typename T, Form FORM, int HEADS, int LEVELS, int POINTS, int CHANNELS, Width WIDTH>
static __device__ void forward(const Problem& problem) {
    constexpr int V = WIDTH == vector ? 16 / sizeof(T) : 1;
    const Work<FORM, HEADS, LEVELS, POINTS, CHANNELS, V> work{problem};
    const bool is_fused = work.is_fused();
    const int query = work.query();
    if (query >= problem.queries) return;
    for (int image = blockIdx.z; image < problem.images; image += gridDim.z) {
        const long long row = work.row(image, query);
        const float *points = problem.points + row * work.points() * 2, *reference = work.reference(image, query);
        const Probabilities<LEVELS * POINTS> probabilities(is_fused, problem.weights + row * work.points(),
                                                           work.points());
        for (int channel = work.lane() * V; channel < work.channels(); channel += work.team() * V) {
            const T* cells = static_cast<const T*>(problem.value) + work.first_cell(image) + channel;
            float sum[V] = {};
#pragma unroll
            for (int l = 0; l < work.levels(); l++) {
                const Level& map = problem.level[l];
                const float* origin = reference + l * problem.reference_level_stride;
                const Axis across(is_fused, origin, 0, map.width), down(is_fused, origin, 1, map.height);
#pragma unroll
                for (int p = 0; p < work.level_points(); p++) {
                    const int i = l * work.level_points() + p;
                    float xy[2];
                    load_floats(xy, points + 2 * i);
                    add_sample(sum, cells, work.cell_stride(), map, across.cell(xy[0]), down.cell(xy[1]),
                               probabilities[i]);
                }
            }
            store(static_cast<T*>(problem.output) + row * work.channels() + channel, sum);
        }
    }
}

// ---- Backward. ----

// The same sum in all lanes of each team. The whole warp has to come here.
static __device__ float team_sum(float number, int team) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        if (step < team) number += __shfl_xor_sync(0xffffffffu, number, step);
    }
    return number;
}

// A lane's share of the dot products of the gradient with the four corners, and of the gradients of those cells.
template <typename T, int V>
static __device__ void visit_corners(float (&product)[4], const T* cells, float* grad_cells, const float (&grad)[V],
                                     int stride, const Level& map, const Corners& corners, float weight) {
    float share[4];
    corners.divide(share, weight);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (!corners.is_on(map, k)) continue;
        const long long offset = corners.offset(map, stride, k);
        float number[V], part[V];
        load(number, cells + offset);
#pragma unroll
        for (int c = 0; c < V; c++) {
            product[k] += grad[c] * number[c];
            part[c] = share[k] * grad[c];
        }
        atomic_add(grad_cells + offset, part);
    }
}

// How the loss changes with a point's weight, and with its place in cells.
struct PointGradient {
    float weight, x, y;

    __device__ PointGradient(const float (&product)[4], float right, float below, float point_weight) {
        const float above = product[0] + right * (product[1] - product[0]);
        const float under = product[2] + right * (product[3] - product[2]);
        weight = above + below * (under - above);
        x = point_weight * ((1 - below) * (product[1] - product[0]) + below * (product[3] - product[2]));
        y = point_weight * (under - above);
    }
};

template <typename T, Form FORM, int HEADS, int LEVELS, int POINTS, int CHANNELS, Width WIDTH>
static __device__ void backward(const Problem& problem) {
    constexpr int V = WIDTH == vector ? 4 : 1;  // what one atomic addition takes, rather than what one load brings
    const Work<FORM, HEADS, LEVELS, POINTS, CHANNELS, V> work{problem};
    const bool is_fused = work.is_fused();
    const int team = work.team(), lane = work.lane();
    const bool active = work.query() < problem.queries;  // the others come along, for team_sum
    const int query = active ? work.query() : problem.queries - 1;
    for (int image = blockIdx.z; image < problem.images; image += gridDim.z) {
        const long long row = work.row(image, query);
        const float *points = problem.points + row * work.points() * 2, *reference = work.reference(image, query);
        float* grad_points = problem.grad_points + row * work.points() * 2;
        float* grad_weights = problem.grad_weights + row * work.points();
        const Probabilities<0> probabilities(is_fused, problem.weights + row * work.points(), work.points());
        float expected = 0;  // of the gradients of the probabilities: what softmax's backward subtracts
        for (int l = 0; l < work.levels(); l++) {
            const Level& map = problem.level[l];
            const float* origin = reference + l * problem.reference_level_stride;
            const Axis across(is_fused, origin, 0, map.width), down(is_fused, origin, 1, map.height);
            for (int p = 0; p < work.level_points(); p++) {
                const int i = l * work.level_points() + p;
                float xy[2], product[4] = {}, right = 0, below = 0;
                load_floats(xy, points + 2 * i);
                const float x = across.cell(xy[0]), y = down.cell(xy[1]), weight = probabilities[i];
                if (active && touches(map, x, y)) {
                    const Corners corners(x, y);
                    right = corners.right, below = corners.below;
                    for (int channel = lane * V; channel < work.channels(); channel += team * V) {
                        const long long cells = work.first_cell(image) + channel;
                        float grad[V];
                        load(grad, static_cast<const T*>(problem.grad) + row * work.channels() + channel);
                        visit_corners(product, static_cast<const T*>(problem.value) + cells,
                                      problem.grad_value + cells, grad, work.cell_stride(), map, corners, weight);
                    }
                }
                const PointGradient mine(product, right, below, weight);
                const float grad_weight = team_sum(mine.weight, team);
                const float grad_x = team_sum(mine.x, team), grad_y = team_sum(mine.y, team);
                expected += weight * grad_weight;
                if (active && lane == (i & (team - 1))) {
                    grad_points[2 * i] = grad_x * across.scale;
                    grad_points[2 * i + 1] = grad_y * down.scale;
                    grad_weights[i] = grad_weight;
                }
            }
        }
        if (!is_fused || !active) continue;
        for (int i = lane; i < work.points(); i += team) {  // each lane goes on with what it wrote itself
            grad_weights[i] = probabilities[i] * (grad_weights[i] - expected);
        }
    }
}

// ---- Entry points. The name of each is its arguments; 0 stands for a size that is known only at run time. ----

#define KERNEL(direction, type, form, heads, levels, points, channels, width)                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                           \
        direction##_##type##_##form##_##heads##_##levels##_##points##_##channels##_##width(            \
            const __grid_constant__ Problem problem) {                                                 \
        direction<type, form, heads, levels, points, channels, width>(problem);                        \
    }

#ifndef KERNELS
#define KERNELS_OF(direction, type)                           \
    KERNEL(direction, type, fused, 8, 3, 4, 32, vector)       \
    KERNEL(direction, type, either, 0, 0, 0, 0, vector)       \
    KERNEL(direction, type, either, 0, 0, 0, 0, scalar)
#define KERNELS                    \
    KERNELS_OF(forward, float32)   \
    KERNELS_OF(forward, float16)   \
    KERNELS_OF(forward, bfloat16)  \
    KERNELS_OF(backward, float32)  \
    KERNELS_OF(backward, float16)  \
    KERNELS_OF(backward, bfloat16)
#endif

KERNELS
