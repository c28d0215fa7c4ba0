// Of libhccl.so: what calls are checked for, and how data is reduced and passed on.
#pragma once
#include "hccl_ranks.h"

namespace {

// ---- Checks

const char *dtype_name(int dtype) { return dtype >= 0 && dtype < TYPES ? TYPE_NAMES[dtype] : "an unknown type"; }

void check_reduction(int dtype, int reduction) {
  if (reduction < 0 || reduction >= REDUCTIONS) throw Failure{PARAMETER, format("there is no reduction %d", reduction)};
  bool a1 = is_910a(), listed = dtype == INT8 || dtype == INT32 || dtype == INT64 || dtype == FP16 || dtype == FP32 ||
                                (!a1 && (dtype == INT16 || dtype == BFP16));
  if (!listed) throw Failure{NOT_SUPPORTED, format("%s cannot be reduced on this product", dtype_name(dtype))};
  if (reduction == PROD && (dtype == INT16 || dtype == BFP16)) {
    throw Failure{NOT_SUPPORTED, format("prod is not there for %s", dtype_name(dtype))};
  }
}

void check_moved(int dtype) {
  if (dtype < 0 || dtype >= TYPES || (dtype == BFP16 && is_910a())) {
    throw Failure{NOT_SUPPORTED, format("%s (%d) cannot be sent on this product", dtype_name(dtype), dtype)};
  }
}

void check_rank(const Communicator &c, const char *what, uint32_t rank) {
  if (rank >= uint32_t(c.ranks)) throw Failure{PARAMETER, format("%s is %u, but there are %d ranks", what, rank, c.ranks)};
}

void check_buffer(const char *what, const void *buffer, uint64_t count, int dtype) {
  if (!count) return;
  if (!buffer) throw Failure{POINTER, format("%s is null", what)};
  if (reinterpret_cast<uintptr_t>(buffer) % SIZES[dtype]) {
    throw Failure{PARAMETER, format("%s is not at an address that %s may have", what, dtype_name(dtype))};
  }
}

std::string describe(const Call &call, bool counts) {
  std::string text = format("calls %s", call.op);
  if (counts && strcmp(call.op, "HcclBarrier")) text += format(" with %llu %s", static_cast<unsigned long long>(call.count), dtype_name(call.dtype));
  if (call.reduction != NONE) text += format(", %s", REDUCTION_NAMES[call.reduction]);
  if (call.root != NONE) text += format(", root %d", call.root);
  return text;
}

// Shows the others what this rank is called with, and fails on every rank in the same way if they do not fit together.
void agree(Communicator &c, const Call &call) {
  c.check_failed();
  c.slot(c.rank).call = call;
  barrier(c, call.op);
  const Call &first = c.slot(0).call;
  for (int r = 1; r < c.ranks; r++) {
    const Call &other = c.slot(r).call;
    bool same = !strcmp(first.op, other.op) && first.dtype == other.dtype && first.reduction == other.reduction &&
                first.root == other.root && (first.count == other.count || first.varies);
    if (same) continue;
    bool counts = !first.varies;
    c.fail(PARAMETER, format("%s: the ranks differ: rank 0 %s, but rank %d %s", first.op, describe(first, counts).c_str(),
                             r, describe(other, counts).c_str()));
  }
  for (int from = 0; first.varies && from < c.ranks; from++) {
    for (int to = 0; to < c.ranks; to++) {
      unsigned long long sent = c.slot(from).call.sends[to], received = c.slot(to).call.receives[from];
      if (sent == received) continue;
      c.fail(PARAMETER, format("%s: the ranks differ: rank %d sends %llu %s to rank %d, which expects %llu", first.op, from,
                               sent, dtype_name(first.dtype), to, received));
    }
  }
}

Call a_call(const char *op, uint64_t count, int dtype, int reduction = NONE, int root = NONE) {
  Call call{};
  snprintf(call.op, sizeof call.op, "%s", op);
  call.count = count, call.dtype = dtype, call.reduction = reduction, call.root = root;
  return call;
}

void trace(const Communicator &c, const Call &call, uint64_t bytes, void *stream) {
  std::string text = format("\"count\": %llu, \"dtype\": \"%s\", \"bytes\": %llu, \"rank\": %d, \"ranks\": %d",
                            static_cast<unsigned long long>(call.count), dtype_name(call.dtype),
                            static_cast<unsigned long long>(bytes), c.rank, c.ranks);
  if (call.reduction != NONE) text += format(", \"reduction\": \"%s\"", REDUCTION_NAMES[call.reduction]);
  if (call.root != NONE) text += format(", \"root\": %d", call.root);
  standin_trace_launch(call.op, text.c_str(), stream);
}

// ---- Numbers

template <typename T>
struct Integer {
  using Stored = T;
  using Sum = int64_t;
  static Sum get(Stored v) { return v; }
  static Stored put(Sum v) { return Stored(v); }
  static Sum add(Sum a, Sum b) { return Sum(uint64_t(a) + uint64_t(b)); }
  static Sum multiply(Sum a, Sum b) { return Sum(uint64_t(a) * uint64_t(b)); }
};

struct Float {
  using Stored = float;
  using Sum = float;
  static Sum get(Stored v) { return v; }
  static Stored put(Sum v) { return v; }
  static Sum add(Sum a, Sum b) { return a + b; }
  static Sum multiply(Sum a, Sum b) { return a * b; }
};

struct Bfloat16 : Float {
  using Stored = uint16_t;
  static Sum get(Stored v) { return from_bfloat16(v); }
  static Stored put(Sum v) { return to_bfloat16(v); }
};

struct Float16 : Float {
  using Stored = _Float16;
  static Sum get(Stored v) { return float(v); }
  static Stored put(Sum v) { return _Float16(v); }
};

template <typename N>
void reduce_as(char *out, const std::vector<const char *> &parts, size_t count, int reduction) {
  using Stored = typename N::Stored;
  using Sum = typename N::Sum;
  const size_t BLOCK = 512;
  Sum sums[BLOCK];
  for (size_t start = 0; start < count; start += BLOCK) {
    size_t n = std::min(BLOCK, count - start);
    for (size_t p = 0; p < parts.size(); p++) {
      const Stored *part = reinterpret_cast<const Stored *>(parts[p]) + start;
      if (p == 0) for (size_t i = 0; i < n; i++) sums[i] = N::get(part[i]);
      else if (reduction == SUM) for (size_t i = 0; i < n; i++) sums[i] = N::add(sums[i], N::get(part[i]));
      else if (reduction == PROD) for (size_t i = 0; i < n; i++) sums[i] = N::multiply(sums[i], N::get(part[i]));
      else if (reduction == MAX) for (size_t i = 0; i < n; i++) sums[i] = std::max(sums[i], N::get(part[i]));
      else for (size_t i = 0; i < n; i++) sums[i] = std::min(sums[i], N::get(part[i]));
    }
    Stored *to = reinterpret_cast<Stored *>(out) + start;
    for (size_t i = 0; i < n; i++) to[i] = N::put(sums[i]);
  }
}

void reduce(char *out, const std::vector<const char *> &parts, size_t count, int dtype, int reduction) {
  switch (dtype) {
    case INT8: return reduce_as<Integer<int8_t>>(out, parts, count, reduction);
    case INT16: return reduce_as<Integer<int16_t>>(out, parts, count, reduction);
    case INT32: return reduce_as<Integer<int32_t>>(out, parts, count, reduction);
    case INT64: return reduce_as<Integer<int64_t>>(out, parts, count, reduction);
    case FP16: return reduce_as<Float16>(out, parts, count, reduction);
    case BFP16: return reduce_as<Bfloat16>(out, parts, count, reduction);
    default: return reduce_as<Float>(out, parts, count, reduction);
  }
}

// ---- Passing data. All ranks take part in every round, between two barriers.

// Every rank with counts[rank] > 0 shows that many elements, and `use` gets them: (rank, first element, their number, data).
void show(Communicator &c, const char *op, const void *own, const std::vector<uint64_t> &counts, size_t width,
          const std::function<void(int, uint64_t, uint64_t, const char *)> &use) {
  const uint64_t room = CHUNK / width, most = *std::max_element(counts.begin(), counts.end());
  auto part = [&](int r, uint64_t start) { return counts[r] > start ? std::min(room, counts[r] - start) : 0; };
  for (uint64_t start = 0; start < most; start += room) {
    if (uint64_t n = part(c.rank, start)) memcpy(c.chunk(c.rank), static_cast<const char *>(own) + start * width, n * width);
    barrier(c, op);
    for (int r = 0; r < c.ranks; r++) {
      if (uint64_t n = part(r, start)) use(r, start, n, c.chunk(r));
    }
    barrier(c, op);
  }
}

// Every rank sends counts(from, to) elements from `sources[to]` to each; `use` gets what arrives: (start, number, the data
// of every rank, null where none).
void exchange(Communicator &c, const char *op, const std::vector<const char *> &sources, size_t width,
              const std::function<uint64_t(int, int)> &counts,
              const std::function<void(uint64_t, const std::vector<uint64_t> &, const std::vector<const char *> &)> &use) {
  const uint64_t room = CHUNK / c.ranks / width;
  uint64_t most = 0;
  for (int from = 0; from < c.ranks; from++) {
    for (int to = 0; to < c.ranks; to++) most = std::max(most, counts(from, to));
  }
  auto part = [&](int from, int to, uint64_t start) {
    uint64_t all = counts(from, to);
    return all > start ? std::min(room, all - start) : 0;
  };
  for (uint64_t start = 0; start < most; start += room) {
    for (int to = 0; to < c.ranks; to++) {
      if (uint64_t n = part(c.rank, to, start)) {
        memcpy(c.chunk(c.rank) + to * room * width, sources[to] + start * width, n * width);
      }
    }
    barrier(c, op);
    std::vector<uint64_t> numbers;
    std::vector<const char *> data;
    for (int from = 0; from < c.ranks; from++) {
      numbers.push_back(part(from, c.rank, start));
      data.push_back(c.chunk(from) + c.rank * room * width);
    }
    use(start, numbers, data);
    barrier(c, op);
  }
}

// The arguments of HcclAlltoAllV and what is a case of it: counts and offsets in elements.
struct Parts {
  std::vector<uint64_t> sends, send_offsets, receives, receive_offsets;
  explicit Parts(int ranks) : sends(ranks), send_offsets(ranks), receives(ranks), receive_offsets(ranks) {}
};

void all_to_all(Communicator &c, Call call, const void *from, void *to, const Parts &parts, void *stream) {
  size_t width = SIZES[call.dtype];
  uint64_t sent = 0, received = 0;
  call.varies = 1;
  for (int r = 0; r < c.ranks; r++) {
    sent += call.sends[r] = parts.sends[r];
    received += call.receives[r] = parts.receives[r];
  }
  call.count = std::max(sent, received);
  check_buffer("the source", from, sent, call.dtype);
  check_buffer("the destination", to, received, call.dtype);
  if (from == to && sent && received) throw Failure{PARAMETER, "source and destination are one buffer"};
  trace(c, call, (sent + received) * width, stream);
  if (plans()) return;
  agree(c, call);
  std::vector<const char *> sources;
  for (int r = 0; r < c.ranks; r++) sources.push_back(static_cast<const char *>(from) + parts.send_offsets[r] * width);
  auto counts = [&](int a, int b) { return c.slot(a).call.sends[b]; };
  exchange(c, call.op, sources, width, counts,
           [&](uint64_t start, const std::vector<uint64_t> &numbers, const std::vector<const char *> &data) {
             for (int r = 0; r < c.ranks; r++) {
               char *place = static_cast<char *>(to) + (parts.receive_offsets[r] + start) * width;
               if (numbers[r]) memcpy(place, data[r], numbers[r] * width);
             }
           });
  barrier(c, call.op);  // nobody shows a new call before all have read this one
}

void reduce_all(Communicator &c, const Call &call, const void *from, void *to, void *stream) {
  check_reduction(call.dtype, call.reduction);
  size_t width = SIZES[call.dtype];
  bool writes = call.root == NONE || call.root == c.rank;
  check_buffer("the source", from, call.count, call.dtype);
  if (writes) check_buffer("the destination", to, call.count, call.dtype);
  trace(c, call, 2 * call.count * width, stream);
  if (plans()) return;
  agree(c, call);
  std::vector<const char *> parts;
  show(c, call.op, from, std::vector<uint64_t>(c.ranks, call.count), width,
       [&](int r, uint64_t start, uint64_t n, const char *data) {
         if (r == 0) parts.clear();
         parts.push_back(data);
         if (r == c.ranks - 1 && writes) reduce(static_cast<char *>(to) + start * width, parts, n, call.dtype, call.reduction);
       });
  barrier(c, call.op);
}

// ---- Sending to one rank

struct Transfer {
  bool sends;
  char *buffer;
  uint64_t count;
  int dtype, other;
  bool introduced = false;
  uint64_t bytes() const { return count * SIZES[dtype]; }
  uint64_t done = 0;
  bool finished = false;
};

// Does what can be done at once; returns whether that was anything.
bool advance(const Communicator &c, const char *op, Transfer &t) {
  Mail &mail = t.sends ? c.mail(c.rank, t.other) : c.mail(t.other, c.rank);
  bool full = mail.written != mail.read;
  if (t.sends) {
    if (full) return false;
    if (t.introduced && t.done == t.bytes()) return t.finished = true;  // the other one has taken the last piece
    if (!t.introduced) {
      snprintf(mail.op, sizeof mail.op, "%s", op);
      mail.count = t.count, mail.dtype = t.dtype;
      t.introduced = true;
    }
    mail.bytes = std::min<uint64_t>(PIECE, t.bytes() - t.done);
    if (mail.bytes) memcpy(mail.data, t.buffer + t.done, mail.bytes);
    t.done += mail.bytes;
    mail.written++;
    return true;
  }
  if (!full) return false;
  if (!t.introduced && (mail.count != t.count || mail.dtype != t.dtype)) {
    c.fail(PARAMETER, format("%s: the ranks differ: rank %d sends %llu %s, but rank %d expects %llu %s", op, t.other,
                             static_cast<unsigned long long>(mail.count), dtype_name(mail.dtype), c.rank,
                             static_cast<unsigned long long>(t.count), dtype_name(t.dtype)));
  }
  t.introduced = true;
  if (mail.bytes) memcpy(t.buffer + t.done, mail.data, mail.bytes);
  t.done += mail.bytes;
  mail.read++;
  t.finished = t.done == t.bytes();
  return true;
}

// All of them at once, but those with the same rank in the same direction in their order.
void transfer(Communicator &c, const char *op, std::vector<Transfer> &all, void *stream) {
  for (const Transfer &t : all) {
    check_moved(t.dtype);
    check_rank(c, t.sends ? "the destination" : "the source", uint32_t(t.other));
    check_buffer("the buffer", t.buffer, t.count, t.dtype);
    trace(c, a_call(op, t.count, t.dtype, NONE, t.other), t.bytes(), stream);
  }
  if (plans()) return;
  c.check_failed();
  snprintf(c.slot(c.rank).call.op, sizeof Call::op, "%s", op);
  for (;;) {
    const Transfer *waits = nullptr;
    auto step = [&] {
      waits = nullptr;
      bool moved = false;
      std::set<std::pair<bool, int>> busy;
      for (Transfer &t : all) {
        if (t.finished || !busy.insert({t.sends, t.other}).second) continue;
        moved |= advance(c, op, t);
        if (!t.finished) waits = &t;
      }
      return moved || !waits;
    };
    if (step()) {
      if (!waits) return;
      continue;
    }
    wait(c, op, waits->other, step);
  }
}

}  // namespace
