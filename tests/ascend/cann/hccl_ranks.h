// Of libhccl.so: how ranks meet in shared memory, wait for each other, and fail together.
#pragma once
#include <fcntl.h>
#include <sched.h>
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
  uint64_t number = 0;
  std::ifstream("/dev/urandom", std::ios::binary).read(reinterpret_cast<char *>(&number), sizeof number);
  return format("%d-%016llx", getpid(), static_cast<unsigned long long>(number));
}

bool is_stale(const Communicator &c) {
  for (int r = 0; r < c.ranks; r++) {
    int pid = c.slot(r).pid;
    if (pid && started(pid) != c.slot(r).start) return true;
  }
  return false;
}

struct File {
  int number;
  ~File() {
    flock(number, LOCK_UN);  // as what is mapped would keep the lock
    close(number);
  }
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

}  // namespace
