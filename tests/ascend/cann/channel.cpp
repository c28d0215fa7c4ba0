// libacl_tdt_channel.so of the stand-in: the channels that a device sends messages to its host by. Nothing is sent.
#include <unistd.h>

extern "C" {
void *acltdtCreateChannelWithCapacity(unsigned, const char *, unsigned long) { return new char[64]; }
void *acltdtCreateDataset() { return new char[64]; }
int acltdtDestroyDataset(void *) { return 0; }
int acltdtStopChannel(void *) { return 0; }
int acltdtDestroyChannel(void *) { return 0; }
int acltdtReceiveTensor(void *, void *, int) {
  usleep(200000);
  return 100003;  // no message
}
}
