// libacl_tdt_channel.so of the stand-in: queues of tensors between host and device, which are one process here.
//
// MindSpore's data sets send batches to the channel of their queue, and the operator GetNext (compiler.cpp) takes them off
// again. The other channels bring messages of the device, such as what it prints; nothing sends any. Sizes, ends of a
// channel and the values returned are as CANN's header acl_tdt.h says.
#include <string.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "standin.h"

namespace {

const int INVALID = 100000, FAILURE = 500000, EMPTY = 207013, FULL = 207014;
const int TENSOR = 0, END_OF_SEQUENCE = 1;

struct Item {
  int kind, dtype;
  Dims dims;
  std::string own;  // what is on its way; an item that the host made points to the host's data instead
  const void *data;
  size_t size;
  const void *bytes() const { return own.empty() ? data : own.data(); }
};

struct Dataset {
  std::vector<Item *> items;
  std::vector<std::unique_ptr<Item>> received;  // these are its own
};

struct Channel {
  std::string name;
  size_t capacity;
  bool stopped = false;
  std::deque<std::vector<Item>> queue;
  std::condition_variable changed;
};

std::mutex lock;
std::map<std::string, Channel *> channels;

// Whether `ready` became true in time; a negative time is without end. A channel that stops ends the waiting.
template <typename Ready>
bool wait(Channel &channel, std::unique_lock<std::mutex> &guard, int milliseconds, Ready ready) {
  auto done = [&] { return channel.stopped || ready(); };
  if (milliseconds < 0) channel.changed.wait(guard, done);
  else channel.changed.wait_for(guard, std::chrono::milliseconds(milliseconds), done);
  return !channel.stopped && ready();
}

int refuse(const std::string &sentence) {
  standin_error(sentence.c_str());
  return INVALID;
}

}  // namespace

extern "C" {

void *acltdtCreateChannelWithCapacity(unsigned, const char *name, size_t capacity) {
  std::lock_guard<std::mutex> guard(lock);
  if (!name || !capacity || channels.count(name)) {
    refuse(std::string("acltdtCreateChannel: ") + (name ? name : "no name") + " is there already, or has no capacity");
    return nullptr;
  }
  return channels[name] = new Channel{name, capacity, false, {}, {}};
}

void *acltdtCreateChannel(unsigned device, const char *name) { return acltdtCreateChannelWithCapacity(device, name, 2); }

int acltdtStopChannel(void *handle) {
  if (!handle) return refuse("acltdtStopChannel: the channel is null");
  std::lock_guard<std::mutex> guard(lock);
  static_cast<Channel *>(handle)->stopped = true;
  static_cast<Channel *>(handle)->changed.notify_all();
  return 0;
}

int acltdtDestroyChannel(void *handle) {  // its memory stays, as a thread may just be leaving it
  if (!handle) return refuse("acltdtDestroyChannel: the channel is null");
  acltdtStopChannel(handle);
  std::lock_guard<std::mutex> guard(lock);
  auto *channel = static_cast<Channel *>(handle);
  channel->queue.clear();
  channels.erase(channel->name);
  return 0;
}

int acltdtCleanChannel(void *handle) {
  if (!handle) return refuse("acltdtCleanChannel: the channel is null");
  std::lock_guard<std::mutex> guard(lock);
  static_cast<Channel *>(handle)->queue.clear();
  static_cast<Channel *>(handle)->changed.notify_all();
  return 0;
}

int acltdtQueryChannelSize(const void *handle, size_t *size) {
  if (!handle || !size) return refuse("acltdtQueryChannelSize: the channel is null");
  std::lock_guard<std::mutex> guard(lock);
  *size = static_cast<const Channel *>(handle)->queue.size();
  return 0;
}

int acltdtSendTensor(void *handle, const void *dataset, int milliseconds) {
  if (!handle || !dataset) return refuse("acltdtSendTensor: the channel or the data set is null");
  auto &channel = *static_cast<Channel *>(handle);
  std::vector<Item> batch;
  for (const Item *item : static_cast<const Dataset *>(dataset)->items) {
    batch.push_back(*item);
    batch.back().own.assign(static_cast<const char *>(item->bytes()), item->size);
  }
  std::unique_lock<std::mutex> guard(lock);
  if (!wait(channel, guard, milliseconds, [&] { return channel.queue.size() < channel.capacity; })) {
    return channel.stopped ? FAILURE : FULL;
  }
  channel.queue.push_back(std::move(batch));
  channel.changed.notify_all();
  return 0;
}

int acltdtReceiveTensor(void *handle, void *dataset, int milliseconds) {
  if (!handle || !dataset) return refuse("acltdtReceiveTensor: the channel or the data set is null");
  auto &channel = *static_cast<Channel *>(handle);
  auto &into = *static_cast<Dataset *>(dataset);
  std::unique_lock<std::mutex> guard(lock);
  if (!wait(channel, guard, milliseconds, [&] { return !channel.queue.empty(); })) return EMPTY;
  for (Item &item : channel.queue.front()) {
    into.received.push_back(std::make_unique<Item>(std::move(item)));
    into.items.push_back(into.received.back().get());
  }
  channel.queue.pop_front();
  channel.changed.notify_all();
  return 0;
}

void *acltdtCreateDataset() { return new Dataset; }
int acltdtDestroyDataset(void *dataset) {
  delete static_cast<Dataset *>(dataset);
  return 0;
}
int acltdtAddDataItem(void *dataset, void *item) {
  if (!dataset || !item) return refuse("acltdtAddDataItem: the data set or the item is null");
  static_cast<Dataset *>(dataset)->items.push_back(static_cast<Item *>(item));
  return 0;
}
void *acltdtGetDataItem(const void *dataset, size_t index) {
  auto &items = static_cast<const Dataset *>(dataset)->items;
  return index < items.size() ? items[index] : nullptr;
}
size_t acltdtGetDatasetSize(const void *dataset) { return static_cast<const Dataset *>(dataset)->items.size(); }
const char *acltdtGetDatasetName(const void *) { return ""; }

void *acltdtCreateDataItem(int kind, const int64_t *dims, size_t count, int dtype, void *data, size_t size) {
  Dims shape(dims, dims + (dims ? count : 0));
  if (kind == TENSOR && elements(shape) * size_of(dtype) != int64_t(size)) {
    refuse("acltdtCreateDataItem: " + std::to_string(size) + " bytes are not those of the shape in " + name_of(dtype));
    return nullptr;
  }
  return new Item{kind, dtype, shape, "", data, size};
}
int acltdtDestroyDataItem(void *item) {
  delete static_cast<Item *>(item);
  return 0;
}
int acltdtGetTensorTypeFromItem(const void *item) { return static_cast<const Item *>(item)->kind; }
int acltdtGetDataTypeFromItem(const void *item) { return static_cast<const Item *>(item)->dtype; }
void *acltdtGetDataAddrFromItem(const void *item) { return const_cast<void *>(static_cast<const Item *>(item)->bytes()); }
size_t acltdtGetDataSizeFromItem(const void *item) { return static_cast<const Item *>(item)->size; }
size_t acltdtGetDimNumFromItem(const void *item) { return static_cast<const Item *>(item)->dims.size(); }
int acltdtGetDimsFromItem(const void *item, int64_t *dims, size_t room) {
  const Dims &shape = static_cast<const Item *>(item)->dims;
  if (room < shape.size()) return refuse("acltdtGetDimsFromItem: there is no room for all dimensions");
  if (!shape.empty()) memcpy(dims, shape.data(), shape.size() * sizeof(int64_t));
  return 0;
}
int acltdtGetSliceInfoFromItem(const void *, size_t *slices, size_t *slice) {
  *slices = *slice = 0;  // nothing is sent in slices
  return 0;
}

// The next batch of a channel, for GetNext: copied to `outputs`, whose sizes in bytes it must have.
int standin_next(const char *name, size_t count, void *const *outputs, const size_t *sizes) {
  std::unique_lock<std::mutex> guard(lock);
  auto found = channels.find(name);
  if (found == channels.end()) return refuse(std::string("GetNext: there is no channel ") + name);
  Channel &channel = *found->second;
  if (!wait(channel, guard, 120000, [&] { return !channel.queue.empty(); })) {
    return refuse(std::string("GetNext: nothing has come through channel ") + name + " for 120 seconds, or it has stopped");
  }
  std::vector<Item> batch = std::move(channel.queue.front());
  if (batch.size() == 1 && batch[0].kind == END_OF_SEQUENCE) return refuse(std::string("GetNext: the data of channel ") + name + " has ended");
  channel.queue.pop_front();
  channel.changed.notify_all();
  if (batch.size() != count) {
    return refuse("GetNext: the batch has " + std::to_string(batch.size()) + " tensors, but " + std::to_string(count) + " are asked for");
  }
  for (size_t i = 0; i < count; i++) {
    if (batch[i].size != sizes[i]) {
      return refuse("GetNext: tensor " + std::to_string(i) + " has " + std::to_string(batch[i].size) + " bytes, but its output " +
                    std::to_string(sizes[i]));
    }
    if (!plans() && sizes[i]) memcpy(outputs[i], batch[i].own.data(), sizes[i]);
  }
  return 0;
}
}
