// libhccl.so of the stand-in: collective communication between processes of this machine, over shared memory.
//
// Ranks meet in a file in /dev/shm that is named by the root info or the rank table, and pass data through it in chunks.
// A call runs at once in the thread that makes it. Before any data, the ranks compare what they were called with: HCCL's
// pages ask for equal counts, types, reductions and roots, and here a call where they differ fails on every rank with a
// sentence. So do a rank that has died or left, and waiting for longer than STANDIN_HCCL_TIMEOUT seconds (120).
//
// Sums and products of floats are computed in float32 in the order of the ranks and rounded once, to nearest even;
// integers wrap. Names that are not here fail when they are called. With STANDIN_MODE=plan only arguments are checked: no
// rank waits for another, and no memory is read.
#include "hccl_data.h"

namespace {

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
