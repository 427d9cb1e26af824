/* What all parts of the runner share. */
#ifndef EDGEQ_RUNNER_H
#define EDGEQ_RUNNER_H

/* Exit codes, which the host turns into its own errors. */
enum {
  BAD_INPUT = 2,    /* the job, the manifest or a feed is malformed */
  BAD_MODEL = 3,    /* the model does not load or run; in ONNX Runtime's own words */
  BAD_RUNTIME = 4,  /* libonnxruntime cannot be loaded, or is too old */
  NO_PROVIDER = 5,  /* this runtime or device lacks the execution provider */
  NO_OUTPUT = 6,    /* the result cannot be written */
  NO_CORES = 7,     /* the cores that were asked for do not exist, or may not be used */
};

/* Write {"error": ...} in the result's place, and end. */
_Noreturn void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* `memory`, unless there is none: then the program ends. */
void *need(void *memory);

#endif
