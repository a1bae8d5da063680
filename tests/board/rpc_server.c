/* A device for TVM's RPC tracker that needs TVM's runtime libraries and no Python: rpc_server TRACKER_PORT KEY PORT FOLDER.
 *
 * It is known to the tracker on the loopback interface by KEY, and listens on PORT. Each session is a process of its own,
 * which keeps its files in a folder below FOLDER and is ended when its time is over.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <tvm/ffi/c_api.h>

enum { MAGIC = 0xFF271, MISMATCH = MAGIC + 2, TRACKER_MAGIC = 0x2F271 };
enum { PUT = 3, UPDATE_INFO = 5, PENDING_KEYS = 7 };
enum { PING_MS = 2000, LONGEST = 1 << 16 };

static char folder[512];

static void fail(const char* format, ...) {
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(1);
}

static int whole(int socket, void* data, size_t size, int sends) {
  char* place = data;
  while (size > 0) {
    ssize_t done = sends ? send(socket, place, size, MSG_NOSIGNAL) : recv(socket, place, size, 0);
    if (done <= 0) return 0;
    place += done;
    size -= (size_t)done;
  }
  return 1;
}

static void put_text(int socket, const char* text) {
  int32_t size = (int32_t)strlen(text);
  if (!whole(socket, &size, 4, 1) || !whole(socket, (void*)text, (size_t)size, 1)) fail("the peer is gone");
}

/* Reads a text into memory of LONGEST bytes; 0 if there is none. */
static int get_text(int socket, char* text) {
  int32_t size = 0;
  if (!whole(socket, &size, 4, 0) || size < 0 || size >= LONGEST || !whole(socket, text, (size_t)size, 0)) return 0;
  text[size] = 0;
  return 1;
}

static void ask(int tracker, char* answer, const char* format, ...) {
  char request[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(request, sizeof request, format, args);
  va_end(args);
  put_text(tracker, request);
  if (!get_text(tracker, answer)) fail("the tracker is gone");
}

static struct sockaddr_in loopback(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

static void check(int code, const char* what) {
  if (code == 0) return;
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error == NULL) fail("%s failed", what);
  TVMFFIErrorCell* cell = (TVMFFIErrorCell*)((TVMFFIObject*)error + 1);
  fail("%s: %.*s", what, (int)cell->message.size, cell->message.data);
}

static TVMFFIObjectHandle global(const char* name) {
  TVMFFIByteArray key = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  check(TVMFFIFunctionGetGlobal(&key, &function), name);
  if (function == NULL) fail("the runtime has no function %s", name);
  return function;
}

/* The path in the session's folder of the file that the first argument names. */
static void path_of(const TVMFFIAny* name, char* path, size_t size) {
  TVMFFIByteArray text = {NULL, 0};
  if (name->type_index == kTVMFFIRawStr) {
    text = (TVMFFIByteArray){name->v_c_str, strlen(name->v_c_str)};
  } else if (name->type_index == kTVMFFISmallStr) {
    text = (TVMFFIByteArray){name->v_bytes, name->small_str_len};
  } else if (name->type_index == kTVMFFIStr) {
    text = *(const TVMFFIByteArray*)(name->v_obj + 1);
  } else {
    fail("a file's name is of type %d", name->type_index);
  }
  snprintf(path, size, "%s/%.*s", folder, (int)text.size, text.data);
}

static int workpath(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self, (void)count;
  char path[1024];
  path_of(args, path, sizeof path);
  TVMFFIByteArray text = {path, strlen(path)};
  return TVMFFIStringFromByteArray(&text, result);
}

static int load_module(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self, (void)count;
  char path[1024];
  path_of(args, path, sizeof path);
  TVMFFIAny argument = {.type_index = kTVMFFIRawStr, .v_c_str = path};
  return TVMFFIFunctionCall(global("ffi.ModuleLoadFromFile"), &argument, 1, result);
}

static void set_global(const char* name, TVMFFISafeCallType function) {
  TVMFFIByteArray key = {name, strlen(name)};
  TVMFFIObjectHandle handle = NULL;
  check(TVMFFIFunctionCreate(NULL, function, NULL, &handle), name);
  check(TVMFFIFunctionSetGlobal(&key, handle, 1), name);
}

static void serve(int connection, const char* place, double seconds) {
  snprintf(folder, sizeof folder, "%s/session-%d", place, (int)getpid());
  if (mkdir(folder, 0700) != 0) fail("%s cannot be made", folder);
  if (seconds > 0) alarm((unsigned)seconds + 1);
  set_global("tvm.rpc.server.workpath", workpath);
  set_global("tvm.rpc.server.load_module", load_module);
  TVMFFIAny argument = {.type_index = kTVMFFIInt, .v_int64 = connection};
  TVMFFIAny result = {.type_index = kTVMFFINone};
  check(TVMFFIFunctionCall(global("rpc.ServerLoop"), &argument, 1, &result), "the session");
}

/* Waits for a client that knows the key of this turn; 0 if the key has gone stale. */
static int accept_client(int listener, int tracker, const char* key, const char* secret, char* said) {
  char wanted[256], answer[LONGEST];
  snprintf(wanted, sizeof wanted, "client:%s", secret);
  for (int stale = 0; stale < 4;) {
    struct pollfd waits = {.fd = listener, .events = POLLIN};
    if (poll(&waits, 1, PING_MS) <= 0) {
      ask(tracker, answer, "[%d]", PENDING_KEYS);
      stale = strstr(answer, secret) ? 0 : stale + 1;
      continue;
    }
    int connection = accept(listener, NULL, NULL);
    int32_t code = 0;
    if (whole(connection, &code, 4, 0) && code == MAGIC && get_text(connection, said)) {
      code = strncmp(said, wanted, strlen(wanted)) == 0 ? MAGIC : MISMATCH;
      whole(connection, &code, 4, 1);
      if (code == MAGIC) {
        snprintf(wanted, sizeof wanted, "server:%s", key);
        put_text(connection, wanted);
        return connection;
      }
    }
    close(connection);
  }
  return 0;
}

int main(int argc, char** argv) {
  if (argc != 5) fail("usage: rpc_server TRACKER_PORT KEY PORT FOLDER");
  const char *key = argv[2], *place = argv[4];
  int port = atoi(argv[3]), listener = socket(AF_INET, SOCK_STREAM, 0), tracker = socket(AF_INET, SOCK_STREAM, 0);
  int one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in mine = loopback(port), theirs = loopback(atoi(argv[1]));
  if (bind(listener, (struct sockaddr*)&mine, sizeof mine) != 0 || listen(listener, 4) != 0) fail("port %d is taken", port);
  int32_t magic = TRACKER_MAGIC;
  if (connect(tracker, (struct sockaddr*)&theirs, sizeof theirs) != 0 || !whole(tracker, &magic, 4, 1) ||
      !whole(tracker, &magic, 4, 0) || magic != TRACKER_MAGIC) {
    fail("no tracker answers");
  }
  static char said[LONGEST];
  ask(tracker, said, "[%d, {\"key\": \"server:%s\", \"addr\": [null, %d]}]", UPDATE_INFO, key, port);
  for (int turn = 0;; turn++) {
    char secret[128];
    snprintf(secret, sizeof secret, "%s:%d.%d", key, (int)getpid(), turn);
    ask(tracker, said, "[%d, \"%s\", [%d, \"%s\"], null]", PUT, key, port, secret);
    int connection = accept_client(listener, tracker, key, secret, said);
    if (connection == 0) continue;
    const char* timeout = strstr(said, "-timeout=");
    pid_t child = fork();
    if (child == 0) {
      close(listener);
      close(tracker);
      serve(connection, place, timeout ? atof(timeout + strlen("-timeout=")) : 0);
      _exit(0);
    }
    close(connection);
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0) fprintf(stderr, "a session ended with status %d\n", status);
  }
}
