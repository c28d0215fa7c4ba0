// libc_sec.so of the stand-in: copies that check the room there is.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

extern "C" {
int memcpy_s(void *to, size_t room, const void *from, size_t n) {
  if (n > room) return 34;  // ERANGE
  memcpy(to, from, n);
  return 0;
}
int memset_s(void *to, size_t room, int value, size_t n) {
  if (n > room) return 34;
  memset(to, value, n);
  return 0;
}
int vsnprintf_s(char *to, size_t room, size_t, const char *format, va_list values) {
  return vsnprintf(to, room, format, values);
}
int vsnprintf_truncated_s(char *to, size_t room, const char *format, va_list values) {
  return vsnprintf(to, room, format, values);
}
int snprintf_s(char *to, size_t room, size_t, const char *format, ...) {
  va_list values;
  va_start(values, format);
  const int n = vsnprintf(to, room, format, values);
  va_end(values);
  return n;
}
}
