// Half precision and bfloat16, by integer arithmetic: it vectorizes, and needs no type that only some compilers have.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

#define INLINE inline __attribute__((always_inline))

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

INLINE float as_float(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

INLINE uint32_t as_bits(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

INLINE float load(float number) { return number; }

INLINE float load(BFloat16 number) { return as_float(uint32_t{number.bits} << 16); }

INLINE float load(Half number) {
  const uint32_t sign = (number.bits & 0x8000u) << 16, exponent = number.bits & 0x7c00u;
  // The biases differ by 112. Infinity and NaN go to the top; subnormals become normal, and 2**-14 is taken off.
  const uint32_t bits = ((number.bits & 0x7fffu) << 13) + (exponent == 0x7c00u ? 224u << 23 : 112u << 23);
  const float small = as_float(bits + (1u << 23)) - as_float(113u << 23);
  return as_float((exponent ? bits : as_bits(small)) | sign);
}

// The stores round to nearest, ties to even, as torch does.

INLINE void store(float* to, float number) { *to = number; }

INLINE void store(BFloat16* to, float number) {
  const uint32_t bits = as_bits(number), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

INLINE void store(Half* to, float number) {
  const uint32_t bits = as_bits(number), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);  // the addition rounds
  uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // from 65520 on: infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
  to->bits = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

}  // namespace
