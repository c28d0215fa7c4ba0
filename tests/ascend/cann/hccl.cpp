// libhccl.so of the stand-in: collective communication between processes of this machine, over shared memory.
//
// Ranks meet in a file in /dev/shm that is named by the root info or the rank table, and pass data through it in chunks.
// A call runs at once in the thread that makes it. Before any data, the ranks compare what they were called with: HCCL's
// pages (docs/zh/api_ref/comm_op_interface of hicann/hccl) ask for equal counts, types, reductions and roots, and here
// a call where they differ fails on every rank with a sentence. So do a rank that has died or left, and waiting for
// longer than STANDIN_HCCL_TIMEOUT seconds (120).
//
// Sums and products of floats are computed in float32 in the order of the ranks and rounded once, to nearest even;
// integers wrap. Names that are not here fail when they are called. With STANDIN_MODE=plan only arguments are checked: no rank waits for another, and no memory is read.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "standin.h"

namespace {

enum Result { SUCCESS = 0, PARAMETER = 1, POINTER = 2, MEMORY = 3, INTERNAL = 4, NOT_SUPPORTED = 5, NOT_FOUND = 6,
              SYSTEM_CALL = 8, TIMEOUT = 9, REMOTE = 21 };
enum Type { INT8, INT16, INT32, FP16, FP32, INT64, UINT64, UINT8, UINT16, UINT32, FP64, BFP16, TYPES };
enum Reduction { SUM, PROD, MAX, MIN, REDUCTIONS };

const char *const TYPE_NAMES[] = {"int8",   "int16", "int32",  "float16", "float32", "int64",
                                   "uint64", "uint8", "uint16", "uint32",  "float64", "bfloat16"};
const size_t SIZES[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};
const char *const REDUCTION_NAMES[] = {"sum", "prod", "max", "min"};

const size_t ROOT_INFO = 4108, NAME = 128;
const uint32_t CONFIG_MAGIC = 0xf0f0f0f0;
const int RANKS = 64;          // at most, on one machine
const size_t CHUNK = 1 << 20;  // bytes that a rank shows the others at once
const size_t PIECE = 1 << 16;  // and that it sends to one of them
const int NONE = -1;

struct Failure {
  int code;
  std::string sentence;
};

std::string format(const char *text, ...) {
  char line[1024];
  va_list values;
  va_start(values, text);
  vsnprintf(line, sizeof line, text, values);
  va_end(values);
  return line;
}

bool is_910a() { return product() == A1; }

double patience() {
  const char *seconds = getenv("STANDIN_HCCL_TIMEOUT");
  return seconds && *seconds ? atof(seconds) : 120;
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// A process is known by its number and the time of its start, as numbers are used again.
uint64_t started(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  size_t at = text.rfind(')');
  if (at == std::string::npos || text.find_first_of("ZX", at) == at + 2) return 0;  // gone, or a zombie
  unsigned long long start = 0;
  sscanf(text.c_str() + at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
         &start);
  return start;
}

// What a rank was called with. `sends[r]` and `receives[r]` count elements to and from rank r where these may differ.
struct Call {
  char op[24];
  uint64_t count;
  int dtype, reduction, root, varies;
  uint64_t sends[RANKS], receives[RANKS];
};

struct Slot {  // of one rank
  std::atomic<int> pid, left;
  uint64_t start;
  std::atomic<uint32_t> arrived;  // barriers so far
  Call call;
};

struct Mail {  // from one rank to another
  std::atomic<uint32_t> written, read;
  char op[24];
  uint64_t count, bytes;
  int dtype;
  char data[PIECE];
};

struct Shared {
  std::atomic<uint32_t> ranks;  // 0 until the rest is set up
  std::atomic<int> failed;      // 1 while the sentence is written, 2 then
  int code;
  char sentence[1024];
};

size_t aligned(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

struct Communicator {
  std::string name;
  int rank = 0, ranks = 1;
  uint32_t barriers = 0;
  char *memory = nullptr;

  Shared *shared() const { return reinterpret_cast<Shared *>(memory); }
  Slot &slot(int r) const { return reinterpret_cast<Slot *>(memory + aligned(sizeof(Shared)))[r]; }
  static size_t slots_end(int n) { return aligned(sizeof(Shared)) + aligned(n * sizeof(Slot)); }
  Mail &mail(int from, int to) const {
    return reinterpret_cast<Mail *>(memory + slots_end(ranks))[from * ranks + to];
  }
  static size_t mails_end(int n) { return slots_end(n) + aligned(n * n * sizeof(Mail)); }
  char *chunk(int r) const { return memory + mails_end(ranks) + r * CHUNK; }
  static size_t size(int n) { return mails_end(n) + n * CHUNK; }

  void fail(int code, const std::string &sentence) const {
    int none = 0;
    if (shared()->failed.compare_exchange_strong(none, 1)) {
      shared()->code = code;
      snprintf(shared()->sentence, sizeof shared()->sentence, "%s", sentence.c_str());
      shared()->failed = 2;
    }
    throw Failure{code, sentence};
  }
  void check_failed() const {
    if (shared()->failed == 2) throw Failure{shared()->code, shared()->sentence};
  }
};

// Waits until `ready`, which is a matter of rank `other`; ends with a failure if that one has died, left or takes too long.
void wait(const Communicator &c, const char *op, int other, const std::function<bool()> &ready) {
  double start = now(), looked = start;
  for (long tries = 0; !ready(); tries++) {
    c.check_failed();
    if (tries < 1000) {
      sched_yield();
      continue;
    }
    usleep(tries < 3000 ? 50 : 500);
    double time = now();
    if (time - looked < 0.1) continue;
    looked = time;
    const Slot &slot = c.slot(other);
    int pid = slot.pid;
    bool died = pid && started(pid) != slot.start, left = slot.left;
    if ((died || left) && ready()) return;  // that was the last thing it did
    if (left) c.fail(REMOTE, format("%s: rank %d has left the communicator %s, in which rank %d waits for it", op, other,
                                    c.name.c_str(), c.rank));
    if (died) c.fail(REMOTE, format("%s: rank %d (process %d) has died, and rank %d waits for it", op, other, pid, c.rank));
    if (time - start < patience()) continue;
    std::string where = !pid ? "has not joined" : slot.call.op[0] ? format("last called %s", slot.call.op) : "has called nothing";
    c.fail(TIMEOUT, format("%s: rank %d has waited for %g seconds for rank %d, which %s", op, c.rank, patience(), other,
                           where.c_str()));
  }
}

void barrier(Communicator &c, const char *op) {
  uint32_t target = ++c.barriers;
  c.slot(c.rank).arrived = target;
  for (int r = 0; r < c.ranks; r++) {
    if (r != c.rank) wait(c, op, r, [&] { return int32_t(c.slot(r).arrived - target) >= 0; });
  }
}

// ---- Joining

std::string random_name() {
  std::random_device device;
  return format("%08x%08x", device(), device());
}

bool is_stale(const Communicator &c) {
  for (int r = 0; r < c.ranks; r++) {
    int pid = c.slot(r).pid;
    if (pid && started(pid) != c.slot(r).start) return true;
  }
  return false;
}

struct File {  // one that is closed, and with that unlocked, in the end
  int number;
  ~File() { close(number); }
};

// Whether the rank has its slot; false means that the file has been replaced meanwhile, or was another job's.
bool take_slot(Communicator &c, const std::string &path, bool may_replace) {
  File file{open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  if (file.number < 0) throw Failure{SYSTEM_CALL, format("%s cannot be made: %s", path.c_str(), strerror(errno))};
  if (flock(file.number, LOCK_EX)) throw Failure{SYSTEM_CALL, format("%s cannot be locked", path.c_str())};
  struct stat own, there;
  if (fstat(file.number, &own) || stat(path.c_str(), &there) || own.st_ino != there.st_ino) return false;
  bool is_new = own.st_size == 0;
  size_t size = Communicator::size(c.ranks);
  if (is_new) {  // now, as a lack of room would be a bus error later
    if (int error = posix_fallocate(file.number, 0, off_t(size))) {
      unlink(path.c_str());
      throw Failure{MEMORY, format("there is no room for %zu bytes in /dev/shm: %s", size, strerror(error))};
    }
  }
  auto *header = static_cast<char *>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file.number, 0));
  if (header == MAP_FAILED) throw Failure{MEMORY, "mmap failed"};
  auto &ranks = reinterpret_cast<Shared *>(header)->ranks;
  if (is_new) ranks = uint32_t(c.ranks);
  int there_are = int(ranks);
  munmap(header, 4096);
  if (there_are != c.ranks) {
    throw Failure{PARAMETER, format("rank %d was told that there are %d ranks, another that there are %d", c.rank, c.ranks,
                                    there_are)};
  }
  c.memory = static_cast<char *>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.number, 0));
  if (c.memory == MAP_FAILED) throw Failure{MEMORY, "mmap failed"};
  Slot &slot = c.slot(c.rank);
  if (may_replace && (is_stale(c) || c.shared()->failed)) {
    unlink(path.c_str());
    munmap(c.memory, size);
    return false;
  }
  if (slot.pid) throw Failure{PARAMETER, format("rank %d has joined twice", c.rank)};
  slot.start = started(getpid());
  slot.pid = getpid();
  return true;
}

Communicator *join(const char *op, const std::string &name, int ranks, int rank, bool may_replace) {
  if (ranks < 1 || ranks > RANKS) throw Failure{PARAMETER, format("there are %d ranks, but 1 to %d may be", ranks, RANKS)};
  if (rank < 0 || rank >= ranks) throw Failure{PARAMETER, format("rank %d is not below the number of ranks, %d", rank, ranks)};
  auto *c = new Communicator;
  c->name = name, c->rank = rank, c->ranks = ranks;
  if (plans()) return c;
  std::string path = "/dev/shm/standin_hccl_" + name;
  while (!take_slot(*c, path, may_replace)) continue;
  try {
    barrier(*c, op);
    if (rank == 0) unlink(path.c_str());  // all hold it; nothing stays behind, however the ranks end
    barrier(*c, op);
  } catch (const Failure &) {
    unlink(path.c_str());
    throw;
  }
  return c;
}

std::string hashed(const std::string &text) {
  uint64_t hash = 14695981039346656037ull;
  for (unsigned char byte : text) hash = (hash ^ byte) * 1099511628211ull;
  return format("%016llx", static_cast<unsigned long long>(hash));
}

std::vector<std::string> values_of(const std::string &json, const char *key) {
  std::regex pattern(std::string("\"") + key + "\"\\s*:\\s*\"?([^\",}\\s]*)\"?");
  std::vector<std::string> values;
  for (std::sregex_iterator at(json.begin(), json.end(), pattern), end; at != end; ++at) values.push_back((*at)[1].str());
  return values;
}

// The number of ranks in a rank table. Fails on what HCCL's page on rank tables does not allow.
int read_table(const std::string &path, const std::string &json) {
  auto need = [&](bool condition, const std::string &rule) {
    if (!condition) throw Failure{PARAMETER, format("rank table %s: %s", path.c_str(), rule.c_str())};
  };
  auto only = [&](const char *key) {
    auto values = values_of(json, key);
    need(values.size() == 1, format("it has no single %s", key));
    return values[0];
  };
  need(only("status") == "completed", "status is not \"completed\"");
  need(only("version") == "1.0", "version is not \"1.0\"");
  need(only("server_count") == std::to_string(values_of(json, "server_id").size()), "server_count is not that of server_list");
  need(only("server_count") == "1", "the stand-in connects ranks of one machine, but server_count is " + only("server_count"));
  auto ranks = values_of(json, "rank_id"), devices = values_of(json, "device_id");
  need(!ranks.empty(), "it has no rank_id");
  std::set<std::string> different(ranks.begin(), ranks.end());
  for (size_t r = 0; r < ranks.size(); r++) need(different.count(std::to_string(r)), format("no device has rank_id %zu", r));
  need(std::set<std::string>(devices.begin(), devices.end()).size() == ranks.size(), "two ranks have one device_id");
  return int(ranks.size());
}

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

float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

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
  static Sum get(Stored v) { return bits_to_float(uint32_t(v) << 16); }
  static Stored put(Sum v) {
    uint32_t bits = float_to_bits(v);
    if ((bits & 0x7fffffff) > 0x7f800000) return Stored((bits >> 16) | 0x40);
    return Stored((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};

struct Float16 : Float {
  using Stored = uint16_t;
  static Sum get(Stored v) {
    uint32_t sign = uint32_t(v & 0x8000) << 16, exponent = (v >> 10) & 31, fraction = v & 0x3ff;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | fraction << 13);
    if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
    float small = float(fraction) * 0x1p-24f;
    return sign ? -small : small;
  }
  static Stored put(Sum v) {
    uint32_t bits = float_to_bits(v), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return Stored(sign | 0x7e00);
    if (size >= 0x477ff000) return Stored(sign | 0x7c00);  // from 65520 on
    if (size < 0x38800000) {                               // subnormal: added to 0.5 the last bit is worth 2^-24
      return Stored(sign | (float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000));
    }
    uint32_t rounded = size + 0xfff + ((size >> 13) & 1);
    return Stored(sign | ((rounded - 0x38000000) >> 13));
  }
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

// ---- The face

int guarded(const char *op, const std::function<void()> &body) {
  try {
    body();
    return SUCCESS;
  } catch (const Failure &failure) {
    bool named = failure.sentence.rfind("Hccl", 0) == 0;
    standin_error((named ? failure.sentence : std::string(op) + ": " + failure.sentence).c_str());
    return failure.code;
  }
}

Communicator &the(void *comm) {
  if (!comm) throw Failure{POINTER, "the communicator is null"};
  return *static_cast<Communicator *>(comm);
}

void check_config(const char *config) {
  if (!config) throw Failure{POINTER, "the configuration is null"};
  uint32_t magic;
  memcpy(&magic, config + 8, 4);
  if (magic != CONFIG_MAGIC) throw Failure{PARAMETER, "the configuration was not set up by HcclCommConfigInit"};
}

Communicator *join_root(const char *op, uint32_t ranks, const char *root, uint32_t rank) {
  if (!root) throw Failure{POINTER, "the root info is null"};
  if (memcmp(root, "standin-", 8)) throw Failure{PARAMETER, "the root info is not one of HcclGetRootInfo"};
  return join(op, std::string(root, strnlen(root, NAME - 1)), int(ranks), int(rank), false);
}

Communicator *join_table(const char *op, const char *path, uint32_t rank) {
  if (!path) throw Failure{POINTER, "the path of the rank table is null"};
  std::ifstream file(path);
  if (!file) throw Failure{NOT_FOUND, format("the rank table %s cannot be read", path)};
  std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  int ranks = read_table(path, json);
  return join(op, "table-" + hashed(std::to_string(getuid()) + path + json), ranks, int(rank), true);
}

}  // namespace

extern "C" {

int HcclGetRootInfo(char *root) {
  return guarded("HcclGetRootInfo", [&] {
    if (!root) throw Failure{POINTER, "the root info is null"};
    memset(root, 0, ROOT_INFO);
    snprintf(root, NAME, "standin-%s", random_name().c_str());
  });
}

int HcclCommInitRootInfo(uint32_t ranks, const char *root, uint32_t rank, void **comm) {
  return guarded("HcclCommInitRootInfo", [&] { *comm = join_root("HcclCommInitRootInfo", ranks, root, rank); });
}

int HcclCommInitRootInfoConfig(uint32_t ranks, const char *root, uint32_t rank, const char *config, void **comm) {
  return guarded("HcclCommInitRootInfoConfig", [&] {
    check_config(config);
    *comm = join_root("HcclCommInitRootInfoConfig", ranks, root, rank);
  });
}

int HcclCommInitClusterInfo(const char *table, uint32_t rank, void **comm) {
  return guarded("HcclCommInitClusterInfo", [&] { *comm = join_table("HcclCommInitClusterInfo", table, rank); });
}

int HcclCommInitClusterInfoConfig(const char *table, uint32_t rank, const char *config, void **comm) {
  return guarded("HcclCommInitClusterInfoConfig", [&] {
    check_config(config);
    *comm = join_table("HcclCommInitClusterInfoConfig", table, rank);
  });
}

int HcclCreateSubCommConfig(void **comm, uint32_t ranks, const uint32_t *members, uint64_t id, uint32_t rank,
                            const char *config, void **sub) {
  const char *op = "HcclCreateSubCommConfig";
  return guarded(op, [&] {
    if (!comm || !sub) throw Failure{POINTER, "the communicator is null"};
    *sub = nullptr;
    if (!members && rank == 0xffffffff) return;  // this rank is not in it
    check_config(config);
    Communicator &c = the(*comm);
    if (!members) throw Failure{POINTER, "the list of ranks is null"};
    for (uint32_t r = 0; r < ranks; r++) check_rank(c, "a member", members[r]);
    if (rank >= ranks || members[rank] != uint32_t(c.rank)) {
      throw Failure{PARAMETER, format("rank %d is not number %u of the members", c.rank, rank)};
    }
    *sub = join(op, format("%s-%llx", c.name.substr(0, 80).c_str(), static_cast<unsigned long long>(id)), int(ranks), int(rank), false);
  });
}

int HcclGetCommName(void *comm, char *name) {
  return guarded("HcclGetCommName", [&] { snprintf(name, NAME, "%s", the(comm).name.c_str()); });
}
int HcclGetRankId(void *comm, uint32_t *rank) {
  return guarded("HcclGetRankId", [&] { *rank = uint32_t(the(comm).rank); });
}
int HcclGetRankSize(void *comm, uint32_t *ranks) {
  return guarded("HcclGetRankSize", [&] { *ranks = uint32_t(the(comm).ranks); });
}
uint32_t HcclGetCommConfigCapability() { return 4; }  // buffer size, determinism, name and place of expansion

int HcclGetCommAsyncError(void *comm, int *error) {
  return guarded("HcclGetCommAsyncError", [&] {
    Communicator &c = the(comm);
    *error = c.memory && c.shared()->failed == 2 ? c.shared()->code : SUCCESS;
  });
}

const char *HcclGetErrorString(int code) {
  switch (code) {
    case SUCCESS: return "no error";
    case PARAMETER: return "parameter error";
    case POINTER: return "empty pointer";
    case MEMORY: return "memory error";
    case INTERNAL: return "internal error";
    case NOT_SUPPORTED: return "not support feature";
    case NOT_FOUND: return "not found specific resource";
    case SYSTEM_CALL: return "call system interface error";
    case TIMEOUT: return "timeout";
    case REMOTE: return "remote error: a rank has died or left";
    default: return "unknown error";
  }
}

int HcclSetConfig(int config, int value) {
  return guarded("HcclSetConfig", [&] {  // only 0, determinism, is there; it always holds here
    if (config != 0 || value < 0 || value > 1) throw Failure{PARAMETER, format("there is no setting %d with value %d", config, value)};
  });
}

int HcclCommDestroy(void *comm) {
  return guarded("HcclCommDestroy", [&] {
    Communicator &c = the(comm);
    if (c.memory) {
      c.slot(c.rank).left = 1;
      munmap(c.memory, Communicator::size(c.ranks));
    }
    delete &c;
  });
}

int HcclAllReduce(void *from, void *to, uint64_t count, int dtype, int reduction, void *comm, void *stream) {
  return guarded("HcclAllReduce", [&] {
    reduce_all(the(comm), a_call("HcclAllReduce", count, dtype, reduction), from, to, stream);
  });
}

int HcclReduce(void *from, void *to, uint64_t count, int dtype, int reduction, uint32_t root, void *comm, void *stream) {
  return guarded("HcclReduce", [&] {
    check_rank(the(comm), "root", root);
    reduce_all(the(comm), a_call("HcclReduce", count, dtype, reduction, int(root)), from, to, stream);
  });
}

int HcclBroadcast(void *buffer, uint64_t count, int dtype, uint32_t root, void *comm, void *stream) {
  return guarded("HcclBroadcast", [&] {
    Communicator &c = the(comm);
    check_moved(dtype);
    check_rank(c, "root", root);
    check_buffer("the buffer", buffer, count, dtype);
    Call call = a_call("HcclBroadcast", count, dtype, NONE, int(root));
    size_t width = SIZES[dtype];
    trace(c, call, count * width, stream);
    if (plans()) return;
    agree(c, call);
    std::vector<uint64_t> counts(c.ranks);
    counts[root] = count;
    show(c, call.op, buffer, counts, width, [&](int r, uint64_t start, uint64_t n, const char *data) {
      if (r != c.rank) memcpy(static_cast<char *>(buffer) + start * width, data, n * width);
    });
    barrier(c, call.op);
  });
}

int HcclAllGather(void *from, void *to, uint64_t count, int dtype, void *comm, void *stream) {
  return guarded("HcclAllGather", [&] {
    Communicator &c = the(comm);
    check_moved(dtype);
    check_buffer("the source", from, count, dtype);
    check_buffer("the destination", to, count, dtype);
    Call call = a_call("HcclAllGather", count, dtype);
    size_t width = SIZES[dtype];
    trace(c, call, (c.ranks + 1) * count * width, stream);
    if (plans()) return;
    agree(c, call);
    show(c, call.op, from, std::vector<uint64_t>(c.ranks, count), width,
         [&](int r, uint64_t start, uint64_t n, const char *data) {
           memcpy(static_cast<char *>(to) + (r * count + start) * width, data, n * width);
         });
    barrier(c, call.op);
  });
}

int HcclAllGatherV(void *from, uint64_t count, void *to, const void *counts, const void *offsets, int dtype, void *comm,
                   void *stream) {
  return guarded("HcclAllGatherV", [&] {
    Communicator &c = the(comm);
    if (is_910a()) throw Failure{NOT_SUPPORTED, "it is not there on this product"};
    check_moved(dtype);
    if (!counts || !offsets) throw Failure{POINTER, "the counts or offsets are null"};
    auto *receives = static_cast<const uint64_t *>(counts), *places = static_cast<const uint64_t *>(offsets);
    Parts parts(c.ranks);
    parts.sends.assign(c.ranks, count);
    parts.receives.assign(receives, receives + c.ranks);
    parts.receive_offsets.assign(places, places + c.ranks);
    all_to_all(c, a_call("HcclAllGatherV", count, dtype), from, to, parts, stream);
  });
}


int HcclReduceScatter(void *from, void *to, uint64_t count, int dtype, int reduction, void *comm, void *stream) {
  return guarded("HcclReduceScatter", [&] {
    Communicator &c = the(comm);
    check_reduction(dtype, reduction);
    check_buffer("the source", from, count, dtype);
    check_buffer("the destination", to, count, dtype);
    Call call = a_call("HcclReduceScatter", count, dtype, reduction);
    size_t width = SIZES[dtype];
    trace(c, call, (c.ranks + 1) * count * width, stream);
    if (plans()) return;
    agree(c, call);
    std::vector<const char *> sources;
    for (int r = 0; r < c.ranks; r++) sources.push_back(static_cast<const char *>(from) + r * count * width);
    exchange(c, call.op, sources, width, [&](int, int) { return count; },
             [&](uint64_t start, const std::vector<uint64_t> &numbers, const std::vector<const char *> &data) {
               reduce(static_cast<char *>(to) + start * width, data, numbers[0], dtype, reduction);
             });
    barrier(c, call.op);
  });
}

int HcclScatter(void *from, void *to, uint64_t count, int dtype, uint32_t root, void *comm, void *stream) {
  return guarded("HcclScatter", [&] {
    Communicator &c = the(comm);
    check_moved(dtype);
    check_rank(c, "root", root);
    bool sends = uint32_t(c.rank) == root;
    if (sends) check_buffer("the source", from, count, dtype);
    check_buffer("the destination", to, count, dtype);
    Call call = a_call("HcclScatter", count, dtype, NONE, int(root));
    size_t width = SIZES[dtype];
    trace(c, call, (sends ? c.ranks + 1 : 1) * count * width, stream);
    if (plans()) return;
    agree(c, call);
    std::vector<const char *> sources;
    for (int r = 0; r < c.ranks; r++) sources.push_back(static_cast<const char *>(from) + r * count * width);
    exchange(c, call.op, sources, width, [&](int r, int) { return uint32_t(r) == root ? count : 0; },
             [&](uint64_t start, const std::vector<uint64_t> &numbers, const std::vector<const char *> &data) {
               memcpy(static_cast<char *>(to) + start * width, data[root], numbers[root] * width);
             });
    barrier(c, call.op);
  });
}

int HcclAlltoAll(const void *from, uint64_t sends, int dtype, const void *to, uint64_t receives, int to_dtype, void *comm,
                 void *stream) {
  return guarded("HcclAlltoAll", [&] {
    Communicator &c = the(comm);
    check_moved(dtype);
    if (sends != receives || dtype != to_dtype) {
      throw Failure{PARAMETER, format("%llu %s are to be sent to each rank, but %llu %s received",
                                      static_cast<unsigned long long>(sends), dtype_name(dtype),
                                      static_cast<unsigned long long>(receives), dtype_name(to_dtype))};
    }
    Parts parts(c.ranks);
    for (int r = 0; r < c.ranks; r++) {
      parts.sends[r] = parts.receives[r] = sends;
      parts.send_offsets[r] = parts.receive_offsets[r] = r * sends;
    }
    all_to_all(c, a_call("HcclAlltoAll", sends, dtype), from, const_cast<void *>(to), parts, stream);
  });
}

int HcclAlltoAllV(const void *from, const void *sends, const void *from_offsets, int dtype, const void *to,
                  const void *receives, const void *to_offsets, int to_dtype, void *comm, void *stream) {
  return guarded("HcclAlltoAllV", [&] {
    Communicator &c = the(comm);
    check_moved(dtype);
    if (dtype != to_dtype) throw Failure{PARAMETER, "the types of source and destination differ"};
    if (!sends || !from_offsets || !receives || !to_offsets) throw Failure{POINTER, "the counts or offsets are null"};
    Parts parts(c.ranks);
    for (int r = 0; r < c.ranks; r++) {
      parts.sends[r] = static_cast<const uint64_t *>(sends)[r];
      parts.send_offsets[r] = static_cast<const uint64_t *>(from_offsets)[r];
      parts.receives[r] = static_cast<const uint64_t *>(receives)[r];
      parts.receive_offsets[r] = static_cast<const uint64_t *>(to_offsets)[r];
    }
    all_to_all(c, a_call("HcclAlltoAllV", 0, dtype), from, const_cast<void *>(to), parts, stream);
  });
}

int HcclAlltoAllVC(const void *from, const void *matrix, int dtype, const void *to, int to_dtype, void *comm, void *stream) {
  return guarded("HcclAlltoAllVC", [&] {
    Communicator &c = the(comm);
    if (is_910a()) throw Failure{NOT_SUPPORTED, "it is not there on this product"};
    check_moved(dtype);
    if (dtype != to_dtype) throw Failure{PARAMETER, "the types of source and destination differ"};
    if (!matrix) throw Failure{POINTER, "the matrix of counts is null"};
    auto *counts = static_cast<const uint64_t *>(matrix);
    Parts parts(c.ranks);
    for (int r = 0; r < c.ranks; r++) {
      parts.sends[r] = counts[c.rank * c.ranks + r];
      parts.receives[r] = counts[r * c.ranks + c.rank];
      if (r == 0) continue;
      parts.send_offsets[r] = parts.send_offsets[r - 1] + parts.sends[r - 1];
      parts.receive_offsets[r] = parts.receive_offsets[r - 1] + parts.receives[r - 1];
    }
    all_to_all(c, a_call("HcclAlltoAllVC", 0, dtype), from, const_cast<void *>(to), parts, stream);
  });
}

int HcclSend(void *buffer, uint64_t count, int dtype, uint32_t to, void *comm, void *stream) {
  return guarded("HcclSend", [&] {
    std::vector<Transfer> one{{true, static_cast<char *>(buffer), count, dtype, int(to)}};
    transfer(the(comm), "HcclSend", one, stream);
  });
}

int HcclRecv(void *buffer, uint64_t count, int dtype, uint32_t from, void *comm, void *stream) {
  return guarded("HcclRecv", [&] {
    std::vector<Transfer> one{{false, static_cast<char *>(buffer), count, dtype, int(from)}};
    transfer(the(comm), "HcclRecv", one, stream);
  });
}

struct SendReceive {
  int kind;  // 0 sends, 1 receives
  void *buffer;
  uint64_t count;
  int dtype;
  uint32_t other;
};

int HcclBatchSendRecv(SendReceive *items, uint32_t count, void *comm, void *stream) {
  return guarded("HcclBatchSendRecv", [&] {
    if (!items || !count) throw Failure{POINTER, "there is nothing to send or to receive"};
    std::vector<Transfer> all;
    for (SendReceive *item = items; item < items + count; item++) {
      all.push_back({item->kind == 0, static_cast<char *>(item->buffer), item->count, item->dtype, int(item->other)});
    }
    transfer(the(comm), "HcclBatchSendRecv", all, stream);
  });
}

int HcclBarrier(void *comm, void *stream) {
  return guarded("HcclBarrier", [&] {
    Communicator &c = the(comm);
    Call call = a_call("HcclBarrier", 0, INT8);
    trace(c, call, 0, stream);
    if (plans()) return;
    agree(c, call);
    barrier(c, call.op);
  });
}

}
