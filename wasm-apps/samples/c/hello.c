// A command for WASI p1 in C: prints its arguments and its environment, then a line a second.
//
//   hello [COUNT]   ends with exit code 0 after COUNT lines; without it, never

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
  // What a log shows while the program runs must not wait in a buffer.
  setvbuf(stdout, NULL, _IOLBF, 0);

  long count = -1;
  if (argc > 1) {
    char *end = NULL;
    errno = 0;
    count = strtol(argv[1], &end, 10);
    if (errno != 0 || end == argv[1] || *end != '\0' || count < 0) {
      fprintf(stderr, "hello: %s is not a number of lines\n", argv[1]);
      return 64;
    }
  }

  for (int i = 0; i < argc; i++) printf("argument %d: %s\n", i, argv[i]);
  for (char **variable = environ; *variable != NULL; variable++) {
    printf("environment: %s\n", *variable);
  }
  for (long line = 1; count < 0 || line <= count; line++) {
    printf("Hello from C, line %ld\n", line);
    if (line != count) sleep(1);
  }
  return 0;
}
