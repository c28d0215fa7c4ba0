// What the cube unit multiplies, as cubeMathType chooses it; shared by products and convolutions.
#pragma once
#include <string.h>

#include "standin.h"

enum CubeMath { KEEP_DTYPE = 0, ALLOW_FP32_DOWN_PRECISION = 1, USE_FP16 = 2, USE_HF32 = 3, USE_FP32_ADD = 4 };
enum Arithmetic { EXACT, AS_FLOAT16, AS_HF32 };

inline bool any_is(int dtype, std::initializer_list<const Tensor *> tensors) {
  for (const Tensor *t : tensors)
    if (t && t->dtype == dtype) return true;
  return false;
}

inline bool all_floating(std::initializer_list<const Tensor *> tensors) {
  for (const Tensor *t : tensors)
    if (t && !is_floating(t)) return false;
  return true;
}

// The dtype that two operands are multiplied in; bfloat16 goes with bfloat16 alone.
inline int promoted(const Tensor *a, const Tensor *b) { return a->dtype == b->dtype ? a->dtype : int(F32); }
inline bool promotable(const Tensor *a, const Tensor *b) { return a->dtype == b->dtype || !any_is(BF16, {a, b}); }

// Products of float32: the A1's cube has float16 alone, that of the A2 also float32 and HF32.
inline Arithmetic arithmetic(int math, int dtype) {
  if (dtype != F32) return EXACT;
  if (math == USE_FP16 || product() == A1) return AS_FLOAT16;
  return math == ALLOW_FP32_DOWN_PRECISION || math == USE_HF32 ? AS_HF32 : EXACT;
}

// HF32 has float32's 8 bits of exponent and 11 bits of mantissa; rounded to nearest even.
inline float to_hf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (std::isnan(value) || std::isinf(value)) return value;
  bits = (bits + 0x7ff + ((bits >> 12) & 1)) & ~0xfffu;
  memcpy(&value, &bits, 4);
  return value;
}

// The elements of a tensor in C order, as the cube takes them; float32 that is not rounded is not copied either.
struct Operand {
  std::vector<float> copied;
  const float *data;

  Operand(const Tensor *t, Arithmetic how) {
    if (t->dtype == F32 && how == EXACT && is_contiguous(t)) {
      data = reinterpret_cast<const float *>(t->data) + t->offset;
      return;
    }
    copied = floats(t);
    if (how == AS_FLOAT16)
      for (float &v : copied) v = rounded(v, F16);
    if (how == AS_HF32)
      for (float &v : copied) v = to_hf32(v);
    data = copied.data();
  }
};
