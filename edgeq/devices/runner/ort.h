/* ONNX Runtime, found at run time: one binary serves every version since 1.17. */
#ifndef EDGEQ_ORT_H
#define EDGEQ_ORT_H

#include "json.h"
#include "npy.h"

typedef struct {
  const OrtApi *api;
  const OrtApi *plugins; /* with plugin providers; NULL before 1.22 */
  const char *version;
  OrtEnv *environment;
} runtime;

/* What a session needs to know, from the job and the bundle's manifest. */
typedef struct {
  const char *model;   /* path */
  char *provider;      /* such as "XnnpackExecutionProvider" */
  json options, session, own_options; /* objects of strings: the manifest's, and the job's, which win */
  char *plugin;        /* the provider's library, or NULL */
  char *profile;       /* where to write a profile, or NULL */
  int threads;
} session_plan;

typedef struct {
  OrtSession *session;
  size_t input_count, output_count;
  char **inputs, **outputs;
} model;

void load_runtime(const char *path, runtime *into);
void add_providers(const runtime *ort, text *to); /* ["CPUExecutionProvider", ...] */
void open_model(const runtime *ort, const session_plan *plan, model *into);
void close_model(const runtime *ort, model *from);

/* Tensors over arrays, which stay where they are. */
OrtValue **make_inputs(const runtime *ort, array *arrays, size_t count);
void free_values(const runtime *ort, OrtValue **values, size_t count);

/* One inference; `outputs` has room for all of them and gets new values. */
void run_model(const runtime *ort, const model *m, char *const *names, OrtValue *const *inputs, size_t count, OrtValue **outputs);

/* The array that a value holds, still the value's own. */
void look_into(const runtime *ort, OrtValue *value, const char *name, array *into);

#endif
