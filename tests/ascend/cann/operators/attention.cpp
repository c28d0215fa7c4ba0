// Fused attention: FlashAttentionScore with its gradient for cards that train, PromptFlashAttention and
// FusedInferAttentionScore for all of Atlas A2.
//
// As the kernels do, scores are products with float32 sums and stay in float32, exp(score - maximum) is rounded to the
// dtype of the inputs before it is multiplied with v, and that product is divided by the float32 sum of what was not
// rounded. A masked score is the least float32, so a row that is masked whole attends to all keys alike; where
// innerPrecise asks for rows without a key, it is zero.
#include <cfloat>
#include <cstring>

#include "standin.h"

namespace {

constexpr int64_t K = 1024, M = K * K;
constexpr int64_t REPEATS = 8;  // maxima and sums fill a block of 32 bytes each

// How q, k or v lies in memory: element (b, n, s, d) is at b * batch + n * head + s * row + d.
struct Layout {
  int64_t batches, heads, length, width;  // B, N, S, D; batches is -1 where the dims do not fit
  int64_t batch, head, row;
};

// `heads` or `width` is told where the layout ends in H, the other is -1.
Layout layout_of(const Tensor *t, const std::string &name, int64_t heads, int64_t width) {
  const Dims &d = t->dims;
  const size_t rank = name.size() == 4 ? 4 : 3;
  if (d.size() != rank || elements(d) == 0) return {-1, 0, 0, 0, 0, 0, 0};
  if (name == "BNSD") return {d[0], d[1], d[2], d[3], d[1] * d[2] * d[3], d[2] * d[3], d[3]};
  if (name == "BSND") return {d[0], d[2], d[1], d[3], d[1] * d[2] * d[3], d[3], d[2] * d[3]};
  if (heads < 0) heads = d[2] / width;
  if (heads < 1 || d[2] % heads) return {-1, 0, 0, 0, 0, 0, 0};
  width = d[2] / heads;
  if (name == "BSH") return {d[0], heads, d[1], width, d[1] * d[2], width, d[2]};
  return {d[1], heads, d[0], width, d[2], width, d[1] * d[2]};  // SBH
}

// One head of one batch element as a (S, D) matrix, and back.
using Matrix = std::vector<float>;
Matrix take(const Matrix &all, const Layout &l, int64_t b, int64_t n) {
  Matrix m(l.length * l.width);
  for (int64_t s = 0; s < l.length; s++)
    std::memcpy(&m[s * l.width], &all[b * l.batch + n * l.head + s * l.row], l.width * sizeof(float));
  return m;
}
void add(Matrix &all, const Layout &l, int64_t b, int64_t n, const Matrix &m) {
  for (int64_t s = 0; s < l.length; s++)
    for (int64_t d = 0; d < l.width; d++) all[b * l.batch + n * l.head + s * l.row + d] += m[s * l.width + d];
}
void round_all(Matrix &m, int dtype) {
  if (dtype != F32)
    for (float &x : m) x = rounded(x, dtype);
}

bool one_of(const std::string &name, std::initializer_list<const char *> names) {
  for (const char *each : names)
    if (name == each) return true;
  return false;
}

// Which scores count: none that the mask discards, and in the default mode only those of the band around the diagonal.
struct Mask {
  const Tensor *tensor = nullptr;
  std::vector<int64_t> discard;
  int64_t batch = 0, head = 0;  // strides; 0 where the mask is the same for all
  int64_t before = INT64_MAX, after = INT64_MAX;

  void read(int64_t keys, int64_t queries) {
    discard = integers(tensor);
    const Dims &d = tensor->dims;
    const int64_t plane = keys * queries;
    const int64_t heads = d.size() == 4 ? d[1] : 1, batches = d.size() > 2 ? d[0] : 1;
    head = heads > 1 ? plane : 0;
    batch = batches > 1 ? heads * plane : 0;
  }
  // Returns whether row s of head n attends to nothing, after the scores that do not count are the least float32.
  bool apply(float *scores, int64_t b, int64_t n, int64_t s, int64_t keys) const {
    if (!tensor) return false;
    bool empty = true;
    for (int64_t j = 0; j < keys; j++) {
      const bool outside = s - j > before || j - s > after;
      if (outside || discard[b * batch + n * head + s * keys + j]) scores[j] = -FLT_MAX;
      else empty = false;
    }
    return empty;
  }
};

bool full_mask_fits(const Tensor *mask, const Layout &q, const Layout &k, bool per_head) {
  if (!mask) return true;
  const int64_t B = q.batches, N = q.heads, S = q.length, T = k.length;
  const Dims &d = mask->dims;
  if (d == Dims{S, T} || d == Dims{B, 1, S, T} || d == Dims{1, 1, S, T}) return true;
  return per_head ? d == Dims{B, N, S, T} : d == Dims{B, S, T} || d == Dims{1, S, T};
}

Mask mask_of(const Tensor *tensor, int64_t sparse, int64_t before, int64_t after) {
  Mask mask;
  mask.tensor = tensor;
  if (tensor && sparse == 0) mask.before = before, mask.after = after;
  return mask;
}

struct Settings {
  Layout q, k, v, out;
  float scale;
  bool empty_rows;  // those without a key are zero
  int dtype;
};

Matrix scores_of(const Matrix &q, const Matrix &k, const Settings &s) {
  Matrix scores(s.q.length * s.k.length);
  multiply(false, true, s.q.length, s.k.length, s.q.width, q.data(), k.data(), scores.data());
  for (float &x : scores) x *= s.scale;
  return scores;
}

// What the forward kernels share. `keep` is told maximum and sum of each row.
template <typename Keep>
Matrix attend(const Tensor *q, const Tensor *k, const Tensor *v, Mask mask, const Settings &s, Keep keep) {
  const Matrix qs = floats(q), ks = floats(k), vs = floats(v);
  if (mask.tensor) mask.read(s.k.length, s.q.length);
  Matrix out(s.out.batches * s.out.heads * s.out.length * s.out.width);
  const int64_t group = s.q.heads / s.k.heads, keys = s.k.length;
  for (int64_t b = 0; b < s.q.batches; b++)
    for (int64_t n = 0; n < s.q.heads; n++) {
      Matrix p = scores_of(take(qs, s.q, b, n), take(ks, s.k, b, n / group), s);
      Matrix y(s.q.length * s.v.width), sums(s.q.length);
      for (int64_t i = 0; i < s.q.length; i++) {
        float *row = &p[i * keys];
        const bool empty = mask.apply(row, b, n, i, keys);
        float largest = -FLT_MAX;
        double sum = 0;
        for (int64_t j = 0; j < keys; j++) largest = std::isnan(row[j]) ? row[j] : std::max(largest, row[j]);
        for (int64_t j = 0; j < keys; j++) sum += row[j] = std::exp(row[j] - largest);
        sums[i] = empty && s.empty_rows ? INFINITY : float(sum);
        keep(b, n, i, largest, float(sum));
      }
      round_all(p, s.dtype);
      multiply(false, false, s.q.length, s.v.width, keys, p.data(), take(vs, s.v, b, n / group).data(), y.data());
      for (int64_t i = 0; i < s.q.length; i++)
        for (int64_t d = 0; d < s.v.width; d++) y[i * s.v.width + d] /= sums[i];
      add(out, s.out, b, n, y);
    }
  return out;
}

bool trains() { return product() == A2_TRAINING; }
bool is_a2() { return product() != A1; }

}  // namespace

// The rules that FlashAttentionScore and its gradient share, those of the pages' sections on constraints.
#define NEED_TRAINING_ATTENTION                                                                                       \
  NEED(trains(), "the product is Atlas A2 for training, not Atlas 800I A2 (910B4) or 910A");                          \
  const std::string name = input_layout;                                                                              \
  NEED(one_of(name, {"BSH", "SBH", "BSND", "BNSD"}), "inputLayout is BSH, SBH, BSND or BNSD");                        \
  NEED(is_floating(q), "query, key and value are float16, bfloat16 or float32");                                      \
  NEED(k->dtype == q->dtype && v->dtype == q->dtype, "query, key and value have one dtype");                          \
  NEED(!pse && !drop && !padding && keep_prob == 1, "the stand-in has no pse, drop mask or padding mask");            \
  NEED(!mask || is_one_of(mask, {BOOL, U8}), "attenMask is bool or uint8");                                           \
  NEED(sparse == 0 || sparse == 1, "the stand-in has sparse modes 0 (default mask) and 1 (whole mask) only");         \
  Settings s;                                                                                                         \
  s.q = layout_of(q, name, heads, -1);                                                                                \
  NEED(s.q.batches > 0, "query has the axes of inputLayout, and its heads divide H");                                 \
  NEED(s.q.heads == heads, "headNum is the N of query");                                                              \
  s.k = layout_of(k, name, -1, s.q.width);                                                                            \
  NEED(s.k.batches > 0, "key has the axes of inputLayout, and its width is that of query");                           \
  s.v = layout_of(v, name, s.k.heads, -1);                                                                            \
  NEED(s.v.batches > 0, "value has the axes of inputLayout, and the heads of key divide its H");                      \
  NEED(s.k.batches == s.q.batches && s.v.batches == s.q.batches, "query, key and value have one batch size");         \
  NEED(s.k.length == s.v.length && s.k.heads == s.v.heads, "key and value differ in D only");                         \
  NEED(s.q.width == s.k.width && s.k.width >= s.v.width, "D of query is that of key, at least that of value");        \
  NEED(s.q.heads % s.k.heads == 0, "N of query is a multiple of N of key");                                           \
  NEED(s.q.batches <= 2 * M, "B is 1 to 2M");                                                                         \
  NEED(s.q.heads <= 256, "N is 1 to 256");                                                                            \
  NEED(s.q.length <= M && s.k.length <= M, "S is 1 to 1M");                                                           \
  NEED(s.q.width <= 768, "D is 1 to 768");                                                                            \
  NEED(full_mask_fits(mask, s.q, s.k, true), "attenMask is (B, N, S, S), (B, 1, S, S), (1, 1, S, S) or (S, S)");      \
  s.out = s.q;                                                                                                        \
  NEED(s.q.width == s.v.width, "the stand-in has no value with another D than key");                                  \
  s.scale = float(scale);                                                                                             \
  s.empty_rows = inner == 2;                                                                                          \
  s.dtype = q->dtype;                                                                                                 \
  const Dims statistics{s.q.batches, s.q.heads, s.q.length, REPEATS};                                                 \
  const Mask masked = mask_of(mask, sparse, before, after)

// The rules that PromptFlashAttention and FusedInferAttentionScore share.
#define NEED_INFERENCE_ATTENTION                                                                                      \
  NEED(is_a2(), "the product is Atlas A2 or A3, not 910A");                                                           \
  const std::string name = input_layout;                                                                              \
  NEED(one_of(name, {"BSH", "BSND", "BNSD"}), "inputLayout is BSH, BSND or BNSD; the stand-in has no other");         \
  NEED(is_half(q), "query, key and value are float16 or bfloat16 (int8, with its scales, the stand-in has not)");     \
  NEED(k->dtype == q->dtype && v->dtype == q->dtype, "query, key and value have one dtype");                          \
  NEED(is_contiguous(q) && is_contiguous(k) && is_contiguous(v), "query, key and value are contiguous");              \
  NEED(!pse, "the stand-in has no pseShift");                                                                         \
  NEED(!lengths || lengths->values.empty(), "the stand-in has no actualSeqLengths");                                  \
  NEED(!kv_lengths || kv_lengths->values.empty(), "the stand-in has no actualSeqLengthsKv");                          \
  NEED(!mask || is_one_of(mask, {BOOL, I8, U8}), "attenMask is bool, int8 or uint8");                                 \
  NEED(!mask || is_contiguous(mask), "attenMask is contiguous");                                                      \
  NEED(sparse == 0 || sparse == 1, "the stand-in has sparse modes 0 (default mask) and 1 (whole mask) only");         \
  NEED(sparse == 0 || mask, "sparse mode 1 comes with its whole mask");                                               \
  NEED(inner >= 0 && inner <= 3, "innerPrecise is 0, 1, 2 or 3");                                                     \
  Settings s;                                                                                                         \
  s.q = layout_of(q, name, heads, -1);                                                                                \
  NEED(s.q.batches > 0, "query has the axes of inputLayout, and its heads divide H");                                 \
  NEED(s.q.heads == heads, "numHeads is the N of query");                                                             \
  s.k = layout_of(k, name, kv_heads ? kv_heads : heads, -1);                                                          \
  s.v = layout_of(v, name, kv_heads ? kv_heads : heads, -1);                                                          \
  NEED(s.k.batches > 0 && s.v.batches > 0, "key and value have the axes of inputLayout, and their heads divide H");   \
  NEED(same_dims(k, v), "key and value have one shape");                                                              \
  NEED(s.k.heads == (kv_heads ? kv_heads : heads), "numKeyValueHeads is the N of key and value");                     \
  NEED(s.k.batches == s.q.batches, "query, key and value have one batch size");                                       \
  NEED(s.q.width == s.k.width, "query, key and value have one D");                                                    \
  NEED(heads % s.k.heads == 0 && heads / s.k.heads <= 64, "numKeyValueHeads divides numHeads, 64 times at most");     \
  NEED(s.q.batches <= 64 * K, "B is at most 65536");                                                                  \
  NEED(s.q.heads <= 256, "N is at most 256");                                                                         \
  NEED(s.q.length <= 20 * M && s.k.length <= 20 * M, "S is at most 20971520");                                        \
  NEED(s.q.width <= 512, "D is at most 512");                                                                         \
  NEED(y->dtype == q->dtype && same_dims(y, q), "attentionOut has dtype and shape of query");                         \
  s.out = s.q;                                                                                                        \
  s.scale = float(scale);                                                                                             \
  s.empty_rows = inner >= 2;                                                                                          \
  s.dtype = q->dtype;                                                                                                 \
  const Mask masked = mask_of(mask, sparse, before, after)

ACLNN(FlashAttentionScore, "ops-transformer attention/flash_attention_score/docs/aclnnFlashAttentionScore.md",
      const Tensor *q, const Tensor *k, const Tensor *v, const Tensor *pse, const Tensor *drop, const Tensor *padding,
      const Tensor *mask, const IntArray *, double scale, double keep_prob, int64_t before, int64_t after,
      int64_t heads, char *input_layout, int64_t inner, int64_t sparse, Tensor *maxima, Tensor *sums, Tensor *,
      Tensor *y) {
  LAUNCH({q, k, v, mask}, {maxima, sums, y});
  NEED_TRAINING_ATTENTION;
  NEED(maxima->dtype == F32 && sums->dtype == F32, "softmaxMax and softmaxSum are float32");
  NEED(maxima->dims == statistics && sums->dims == statistics, "softmaxMax and softmaxSum are (B, N, Sq, 8)");
  NEED(y->dtype == q->dtype && same_dims(y, q), "attentionOut has dtype and shape of query");
  return READY([=] {
    Matrix largest(elements(statistics)), sum(elements(statistics));
    store(y, attend(q, k, v, masked, s, [&](int64_t b, int64_t n, int64_t i, float row_max, float row_sum) {
      const int64_t at = ((b * s.q.heads + n) * s.q.length + i) * REPEATS;
      std::fill_n(&largest[at], REPEATS, row_max);
      std::fill_n(&sum[at], REPEATS, row_sum);
    }));
    store(maxima, largest);
    store(sums, sum);
  });
}

ACLNN(FlashAttentionScoreGrad,
      "ops-transformer attention/flash_attention_score_grad/docs/aclnnFlashAttentionScoreGrad.md",
      const Tensor *q, const Tensor *k, const Tensor *v, const Tensor *dy, const Tensor *pse, const Tensor *drop,
      const Tensor *padding, const Tensor *mask, const Tensor *maxima, const Tensor *sums, const Tensor *,
      const Tensor *y, const IntArray *, double scale, double keep_prob, int64_t before, int64_t after, int64_t heads,
      char *input_layout, int64_t inner, int64_t sparse, Tensor *dq, Tensor *dk, Tensor *dv, Tensor *) {
  LAUNCH({q, k, v, dy, mask, maxima, sums, y}, {dq, dk, dv});
  NEED_TRAINING_ATTENTION;
  NEED(maxima && sums && y, "softmaxMax, softmaxSum and attentionIn of the forward pass are given");
  NEED(maxima->dtype == F32 && sums->dtype == F32, "softmaxMax and softmaxSum are float32");
  NEED(maxima->dims == statistics && sums->dims == statistics, "softmaxMax and softmaxSum are (B, N, Sq, 8)");
  NEED(dy->dtype == q->dtype && y->dtype == q->dtype, "dy and attentionIn have the dtype of query");
  NEED(same_dims(dy, q) && same_dims(y, q), "dy and attentionIn have the shape of query");
  NEED(dq->dtype == q->dtype && dk->dtype == q->dtype && dv->dtype == q->dtype, "gradients have the dtype of query");
  NEED(same_dims(dq, q) && same_dims(dk, k) && same_dims(dv, v), "gradients have the shapes of query, key and value");
  return READY([=] {
    const Matrix qs = floats(q), ks = floats(k), vs = floats(v), ys = floats(y), dys = floats(dy);
    const Matrix largest = floats(maxima), sum = floats(sums);
    Mask discard = masked;
    if (discard.tensor) discard.read(s.k.length, s.q.length);
    Matrix to_q(qs.size()), to_k(ks.size()), to_v(vs.size());
    const int64_t group = s.q.heads / s.k.heads, L = s.q.length, S = s.k.length, D = s.q.width;
    for (int64_t b = 0; b < s.q.batches; b++)
      for (int64_t n = 0; n < s.q.heads; n++) {
        const Matrix qi = take(qs, s.q, b, n), ki = take(ks, s.k, b, n / group), vi = take(vs, s.v, b, n / group);
        const Matrix yi = take(ys, s.q, b, n), dyi = take(dys, s.q, b, n);
        Matrix p = scores_of(qi, ki, s), ds(L * S);
        multiply(false, true, L, S, D, dyi.data(), vi.data(), ds.data());
        for (int64_t i = 0; i < L; i++) {
          const bool empty = discard.apply(&p[i * S], b, n, i, S) && s.empty_rows;
          const int64_t at = ((b * s.q.heads + n) * L + i) * REPEATS;
          float delta = 0;
          for (int64_t d = 0; d < D; d++) delta += yi[i * D + d] * dyi[i * D + d];
          for (int64_t j = 0; j < S; j++) {
            float &pij = p[i * S + j];
            pij = empty ? 0 : std::exp(pij - largest[at]) / sum[at];
            ds[i * S + j] = pij * (ds[i * S + j] - delta);
          }
        }
        round_all(p, s.dtype);
        round_all(ds, s.dtype);
        Matrix dqi(L * D), dki(S * D), dvi(S * D);
        multiply(false, false, L, D, S, ds.data(), ki.data(), dqi.data());
        multiply(true, false, S, D, L, ds.data(), qi.data(), dki.data());
        multiply(true, false, S, D, L, p.data(), dyi.data(), dvi.data());
        for (float &x : dqi) x *= s.scale;
        for (float &x : dki) x *= s.scale;
        add(to_q, s.q, b, n, dqi);
        add(to_k, s.k, b, n / group, dki);
        add(to_v, s.v, b, n / group, dvi);
      }
    store(dq, to_q);
    store(dk, to_k);
    store(dv, to_v);
  });
}

ACLNN(PromptFlashAttentionV3, "ops-transformer attention/prompt_flash_attention/docs/aclnnPromptFlashAttentionV3.md",
      const Tensor *q, const Tensor *k, const Tensor *v, const Tensor *pse, const Tensor *mask, const IntArray *lengths,
      const IntArray *kv_lengths, const Tensor *deq1, const Tensor *quant1, const Tensor *deq2, const Tensor *quant2,
      const Tensor *offset2, int64_t heads, double scale, int64_t before, int64_t after, char *input_layout,
      int64_t kv_heads, int64_t sparse, int64_t inner, Tensor *y) {
  LAUNCH({q, k, v, mask}, {y});
  NEED_INFERENCE_ATTENTION;
  NEED(!deq1 && !quant1 && !deq2 && !quant2 && !offset2, "without int8 there are no scales of quantization");
  NEED(s.q.width % 16 == 0 || s.q.batches <= 128, "B is at most 128 where D is not a multiple of 16");
  NEED(name == "BNSD" || s.q.heads * s.q.width < 65535, "N * D is less than 65535 in the layouts BSH and BSND");
  NEED(full_mask_fits(mask, s.q, s.k, false),
       "attenMask is (S, S), (B, S, S), (1, S, S), (B, 1, S, S) or (1, 1, S, S)");
  return READY([=] { store(y, attend(q, k, v, masked, s, [](int64_t, int64_t, int64_t, float, float) {})); });
}

ACLNN(FusedInferAttentionScoreV2,
      "ops-transformer attention/fused_infer_attention_score/docs/aclnnFusedInferAttentionScoreV2.md", const Tensor *q,
      const TensorList *ks, const TensorList *vs, const Tensor *pse, const Tensor *mask, const IntArray *lengths,
      const IntArray *kv_lengths, const Tensor *deq1, const Tensor *quant1, const Tensor *deq2, const Tensor *quant2,
      const Tensor *offset2, const Tensor *antiquant_scale, const Tensor *antiquant_offset, const Tensor *block_table,
      const Tensor *q_padding, const Tensor *kv_padding, const Tensor *k_scale, const Tensor *k_offset,
      const Tensor *v_scale, const Tensor *v_offset, const Tensor *k_prefix, const Tensor *v_prefix, const IntArray *,
      int64_t heads, double scale, int64_t before, int64_t after, char *input_layout, int64_t kv_heads, int64_t sparse,
      int64_t inner, int64_t, int64_t, bool lse, int64_t, int64_t, Tensor *y, Tensor *) {
  const bool single = ks->values.size() == 1 && vs->values.size() == 1;
  const Tensor *k = ks->values.empty() ? nullptr : ks->values[0], *v = vs->values.empty() ? nullptr : vs->values[0];
  LAUNCH({q, k, v, mask}, {y});
  NEED(single, "the stand-in has no key or value in several tensors");
  NEED_INFERENCE_ATTENTION;
  NEED(!deq1 && !quant1 && !deq2 && !quant2 && !offset2 && !antiquant_scale && !antiquant_offset && !k_scale &&
           !k_offset && !v_scale && !v_offset, "without int8 there are no scales of quantization");
  NEED(!block_table && !q_padding && !kv_padding && !k_prefix && !v_prefix && !lse,
       "the stand-in has no pages, paddings, prefixes or softmaxLse");
  NEED(s.q.length == 1 || s.q.width % 16 == 0, "D is a multiple of 16 where query has more than one row");
  const int64_t B = s.q.batches, T = s.k.length;
  const Dims shape = mask ? mask->dims : Dims{};
  const bool row_mask_fits = shape == Dims{B, T} || shape == Dims{B, 1, T} || shape == Dims{B, 1, 1, T};
  NEED(!mask || s.q.length != 1 || row_mask_fits,
       "attenMask is (B, S), (B, 1, S) or (B, 1, 1, S) where query has one row");
  NEED(s.q.length == 1 || full_mask_fits(mask, s.q, s.k, false),
       "attenMask is (S, S), (B, S, S), (1, S, S), (B, 1, S, S) or (1, 1, S, S)");
  return READY([=] { store(y, attend(q, k, v, masked, s, [](int64_t, int64_t, int64_t, float, float) {})); });
}
