// libascendcl.so of the stand-in: memory, streams, events, copies and callbacks of the "device", which is the host.
//
// Everything runs at once in the thread that asks for it, so streams only have numbers and waiting is done at once.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>

#include "standin.h"

namespace {

const int FAILURE = 507899, NO_MEMORY = 207001;

std::string setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

thread_local std::string last_error;

struct Stream { int number; };
struct Event { double seconds; };

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

std::atomic<long> waits{0}, event_waits{0};  // of the host for the device: for all it was given, and for some of it

int wait() {
  ++waits;
  return 0;
}

int new_stream(void **stream) {
  static int streams = 0;
  *stream = new Stream{++streams};
  return 0;
}

int new_event(void **event) {
  *event = new Event{0};
  return 0;
}

std::mutex lock;
std::map<void *, size_t> reserved, mapped;

int trace_file() {
  static const std::string path = setting("STANDIN_TRACE", "");
  static const int file = path.empty() ? -1 : open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  return file;
}

const char *direction(int kind) {
  static const char *const names[] = {"host to host", "host to device", "device to host", "device to device"};
  return kind >= 0 && kind < 4 ? names[kind] : "default";
}

int copy_bytes(void *to, size_t room, const void *from, size_t count, int kind, void *stream) {
  if (count > room) {
    standin_error("aclrtMemcpy: more bytes than there is room for");
    return FAILURE;
  }
  char text[96];
  snprintf(text, sizeof text, "\"bytes\": %zu, \"direction\": \"%s\"", 2 * count, direction(kind));
  standin_trace_launch("Memcpy", text, stream);
  if (!plans()) memmove(to, from, count);
  else if (kind == 2) memset(to, count == 1, count);  // a plan touches no device memory: it reads zeros, and true
  return 0;
}

int set_bytes(void *to, size_t room, int value, size_t count, void *stream) {
  if (count > room) {
    standin_error("aclrtMemset: more bytes than there is room for");
    return FAILURE;
  }
  char text[64];
  snprintf(text, sizeof text, "\"bytes\": %zu", count);
  standin_trace_launch("Memset", text, stream);
  if (!plans()) memset(to, value, count);
  return 0;
}

// With STANDIN_EVENTS, what one stream tells another is in the trace too: which waits for which event.
int trace_event(const char *op, void *event, void *stream) {
  static const bool traced = !setting("STANDIN_EVENTS", "").empty();
  if (traced) standin_trace_launch(op, ("\"event\": " + std::to_string(reinterpret_cast<uintptr_t>(event))).c_str(), stream);
  return 0;
}

size_t card_memory() { return strtoull(setting("STANDIN_MEMORY", "64").c_str(), nullptr, 10) << 30; }

int allocate(void **p, size_t size) {
  size_t room = size + sizeof(size_t) + 64;
  *p = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (*p == MAP_FAILED) return NO_MEMORY;
  std::lock_guard<std::mutex> guard(lock);
  mapped[*p] = room;
  return 0;
}

int release(void *p) {
  std::lock_guard<std::mutex> guard(lock);
  auto found = mapped.find(p);
  if (found == mapped.end()) return p ? FAILURE : 0;
  munmap(p, found->second);
  mapped.erase(found);
  return 0;
}

}  // namespace

bool plans() {
  static const std::string mode = setting("STANDIN_MODE", "compute");
  if (mode != "compute" && mode != "plan") {
    fprintf(stderr, "stand-in: STANDIN_MODE is %s; it is compute or plan\n", mode.c_str());
    abort();
  }
  static const bool answer = mode == "plan";
  return answer;
}

const char *product_name() {
  static const std::string name = setting("STANDIN_PRODUCT", "Ascend910B2");
  return name.c_str();
}

Product product() {
  static const std::map<std::string, Product> products = {
      {"Ascend910B1", A2_TRAINING},  {"Ascend910B2", A2_TRAINING}, {"Ascend910B2C", A2_TRAINING}, {"Ascend910B3", A2_TRAINING},
      {"Ascend910B4", A2_INFERENCE}, {"Ascend910B4-1", A2_INFERENCE}, {"Ascend910A", A1},  {"Ascend910ProA", A1}, {"Ascend910ProB", A1}};
  auto found = products.find(product_name());
  if (found == products.end()) {
    fprintf(stderr, "stand-in: STANDIN_PRODUCT %s is not known\n", product_name());
    abort();
  }
  return found->second;
}

int64_t elements(const Dims &dims) {
  int64_t n = 1;
  for (int64_t d : dims) n *= d;
  return n;
}

const char *name_of(int dtype) {
  switch (dtype) {
    case F32: return "float32";
    case F16: return "float16";
    case BF16: return "bfloat16";
    case F64: return "float64";
    case I8: return "int8";
    case U8: return "uint8";
    case BOOL: return "bool";
    case I16: return "int16";
    case I32: return "int32";
    case I64: return "int64";
  }
  return "unknown";
}

int64_t size_of(int dtype) {
  switch (dtype) {
    case I8: case U8: case BOOL: return 1;
    case F16: case BF16: case I16: return 2;
    case F32: case I32: return 4;
    case I64: case F64: return 8;
  }
  return 0;
}

extern "C" {

void standin_error(const char *sentence) {
  last_error = sentence;
  fprintf(stderr, "[stand-in] %s\n", sentence);
}

void standin_trace_launch(const char *op, const char *text, void *stream) {
  int file = trace_file();
  if (file < 0) return;
  std::string line = std::string("{\"op\": \"") + op + "\", \"stream\": " +
                     std::to_string(stream ? static_cast<Stream *>(stream)->number : 0) + ", " + text + "}\n";
  if (write(file, line.data(), line.size()) != ssize_t(line.size())) perror("stand-in: STANDIN_TRACE");
}

const char *aclGetRecentErrMsg() { return last_error.c_str(); }
const char *aclrtGetSocName() { product(); return product_name(); }
const char *aclrtGetVersion() { return nullptr; }
size_t aclDataTypeSize(int dtype) { return size_t(size_of(dtype)); }

int aclInit(const char *) { return 0; }
int aclFinalize() { return 0; }
int aclrtSetDevice(int) { return 0; }
int aclrtResetDevice(int) { return 0; }
int aclrtGetDeviceCount(unsigned *n) { *n = 8; return 0; }
int aclrtGetDevice(int *n) { *n = 0; return 0; }
int aclrtGetRunMode(int *mode) { *mode = 1; return 0; }
int aclrtCreateContext(void **p, int) { static char context[64]; *p = context; return 0; }
int aclrtDestroyContext(void *) { return 0; }
int aclrtSetCurrentContext(void *) { return 0; }
int aclrtGetCurrentContext(void **p) { return aclrtCreateContext(p, 0); }
int aclrtDeviceCanAccessPeer(int *can, int, int) { *can = 1; return 0; }
int aclrtDeviceEnablePeerAccess(int, unsigned) { return 0; }
int aclrtDeviceGetBareTgid(int *pid) { *pid = getpid(); return 0; }
int aclrtDeviceGetStreamPriorityRange(int *low, int *high) { *low = 7; *high = 0; return 0; }
int aclrtGetMemUceInfo(int, void *, size_t, size_t *n) { *n = 0; return 0; }

// Settings that change nothing here.
int aclrtCtxSetSysParamOpt(int, int64_t) { return 0; }
int aclrtSetDeviceSatMode(int) { return 0; }
int aclrtSetExceptionInfoCallback(void *) { return 0; }
int aclrtSetOpExecuteTimeOut(unsigned) { return 0; }
int aclrtSetOpWaitTimeout(unsigned) { return 0; }
int aclrtSetStreamFailureMode(void *, uint64_t) { return 0; }
int aclSetCompileopt(int, const char *) { return 0; }
int aclopSetCompileFlag(int) { return 0; }
int aclrtSubscribeReport(uint64_t, void *) { return 0; }

// Memory. Reserved addresses cost nothing until they are touched, so a plan of 64 GB needs no memory here.
int aclrtGetMemInfo(int, size_t *free, size_t *all) { *free = *all = card_memory(); return 0; }
int aclrtMalloc(void **p, size_t size, int) { return allocate(p, size); }
int aclrtMallocAlign32(void **p, size_t size, int) { return allocate(p, size); }
int aclrtFree(void *p) { return release(p); }
int aclrtMallocHost(void **p, size_t size) { return allocate(p, size); }
int aclrtFreeHost(void *p) { return release(p); }
int aclrtReserveMemAddress(void **p, size_t size, size_t, void *, uint64_t) {
  *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (*p == MAP_FAILED) return NO_MEMORY;
  std::lock_guard<std::mutex> guard(lock);
  reserved[*p] = size;
  return 0;
}
int aclrtReleaseMemAddress(void *p) {
  std::lock_guard<std::mutex> guard(lock);
  auto found = reserved.find(p);
  if (found == reserved.end()) return FAILURE;
  munmap(p, found->second);
  reserved.erase(found);
  return 0;
}
int aclrtMallocPhysical(void **handle, size_t size, const void *, uint64_t) { *handle = new size_t(size); return 0; }
int aclrtFreePhysical(void *handle) { delete static_cast<size_t *>(handle); return 0; }
int aclrtMapMem(void *p, size_t size, size_t, void *, uint64_t) {
  std::lock_guard<std::mutex> guard(lock);
  mapped[p] = size;
  return 0;
}
int aclrtUnmapMem(void *p) {
  std::lock_guard<std::mutex> guard(lock);
  auto found = mapped.find(p);
  if (found == mapped.end()) return FAILURE;
  madvise(p, found->second, MADV_DONTNEED);
  mapped.erase(found);
  return 0;
}
int aclrtMemcpy(void *to, size_t room, const void *from, size_t count, int kind) {
  return copy_bytes(to, room, from, count, kind, nullptr);
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t count, int kind, void *stream) {
  return copy_bytes(to, room, from, count, kind, stream);
}
int aclrtMemset(void *to, size_t room, int value, size_t count) { return set_bytes(to, room, value, count, nullptr); }
int aclrtMemsetAsync(void *to, size_t room, int value, size_t count, void *stream) {
  return set_bytes(to, room, value, count, stream);
}

// Streams, events and callbacks.
int aclrtCreateStream(void **stream) { return new_stream(stream); }
int aclrtCreateStreamWithConfig(void **stream, unsigned, unsigned) { return new_stream(stream); }
int aclrtDestroyStream(void *) { return 0; }  // kept: MindSpore may still name it
int aclrtDestroyStreamForce(void *) { return 0; }
int aclrtStreamQuery(void *, int *status) { *status = 0; return 0; }
int aclrtStreamWaitEvent(void *stream, void *event) { return trace_event("WaitEvent", event, stream); }
int aclrtSynchronizeStream(void *) { return wait(); }
int aclrtSynchronizeStreamWithTimeout(void *, int) { return wait(); }
int aclrtSynchronizeDeviceWithTimeout(int) { return wait(); }
int aclrtSynchronizeEvent(void *) { return ++event_waits, 0; }
long standin_waits() { return waits; }  // so far; a program reads it by ctypes
long standin_event_waits() { return event_waits; }
int aclrtCreateEventExWithFlag(void **event, unsigned) { return new_event(event); }
int aclrtCreateEventWithFlag(void **event, unsigned) { return new_event(event); }
int aclrtDestroyEvent(void *event) { delete static_cast<Event *>(event); return 0; }
int aclrtRecordEvent(void *event, void *stream) {
  static_cast<Event *>(event)->seconds = now();
  return trace_event("RecordEvent", event, stream);
}
int aclrtResetEvent(void *, void *) { return 0; }
int aclrtQueryEventStatus(void *, int *status) { *status = 1; return 0; }
int aclrtEventElapsedTime(float *ms, void *a, void *b) {
  *ms = float(1e3 * (static_cast<Event *>(b)->seconds - static_cast<Event *>(a)->seconds));
  return 0;
}
int aclrtLaunchCallback(void (*function)(void *), void *argument, int, void *) { function(argument); return 0; }
int aclrtProcessReport(int ms) { usleep(1000 * (ms > 0 && ms < 100 ? ms : 100)); return 0; }  // called without end
}
