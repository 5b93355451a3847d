// What CUDA text takes for granted, for a C++ compiler: included before it. Loads and additions are checked.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
    unsigned x, y, z;
};
extern Index threadIdx, blockIdx, gridDim;

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Notes an error where the bytes are no input's, or do not begin at a multiple of their number.
void check_load(const void* from, size_t bytes);
void check_addition(const void* target, size_t bytes);

template <typename T>
T __ldg(const T* from) {
    check_load(from, sizeof(T));
    return *from;
}

inline float __uint_as_float(unsigned bits) {
    float number;
    memcpy(&number, &bits, 4);
    return number;
}
inline unsigned __float_as_uint(float number) {
    unsigned bits;
    memcpy(&bits, &number, 4);
    return bits;
}
inline float exponential(float number) { return std::exp(number); }
inline float reciprocal(float number) { return 1 / number; }
using std::floor;

// IEEE half precision by arithmetic: a half is sign * fraction * 2^exponent.
inline float half_to_float(unsigned short half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    float number = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(float(fraction), -24);
    if (exponent == 31) number = fraction ? NAN : INFINITY;
    return half & 0x8000 ? -number : number;
}
inline unsigned short float_to_half(float number) {
    const unsigned sign = std::signbit(number) ? 0x8000 : 0;
    const float size = std::fabs(number);
    if (std::isnan(number)) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    if (size == 0) return sign;
    int exponent;
    std::frexp(size, &exponent);
    exponent = exponent < -13 ? -13 : exponent;                      // below lie the subnormal halves
    const int steps = std::nearbyint(std::ldexp(size, 11 - exponent));  // to even; of 2^(exponent - 11)
    return sign | ((exponent + 13) * 1024 + steps);  // the leading bit and a carry count into the exponent
}

template <int N>
void atomic_add(float* target, const float (&number)[N]) {
    check_addition(target, sizeof(number));
    for (int i = 0; i < N; i++) target[i] += number[i];
}

// Lanes wait here for the rest of their warp.
float __shfl_xor_sync(unsigned mask, float number, int step);
