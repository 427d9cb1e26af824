#define _GNU_SOURCE
#include "ort.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner.h"

enum { API = 17, PLUGIN_API = 22 };

/* End with ONNX Runtime's own words if a call failed. */
static void check(const runtime *ort, OrtStatus *status, int code, const char *what) {
  if (status) fail(code, "%s: %s", what, ort->api->GetErrorMessage(status));
}

void load_runtime(const char *path, runtime *into) {
  setenv("ORT_DISABLE_TELEMETRY", "1", 1); /* on by default since 1.29, and read while loading */
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(BAD_RUNTIME, "ONNX Runtime cannot be loaded: %s", dlerror());
  const OrtApiBase *(*get_base)(void) = NULL;
  *(void **)&get_base = dlsym(library, "OrtGetApiBase");
  if (!get_base) fail(BAD_RUNTIME, "%s is no ONNX Runtime: it has no OrtGetApiBase", path);
  const OrtApiBase *base = get_base();
  into->version = base->GetVersionString();
  into->api = base->GetApi(API);
  if (!into->api) fail(BAD_RUNTIME, "ONNX Runtime %s is too old: 1.%d or later is needed", into->version, API);
  into->plugins = base->GetApi(PLUGIN_API);
  check(into, into->api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "edgeq", &into->environment), BAD_RUNTIME, "ONNX Runtime does not start");
}

void add_providers(const runtime *ort, text *to) {
  char **names;
  int count;
  check(ort, ort->api->GetAvailableProviders(&names, &count), BAD_RUNTIME, "ONNX Runtime tells of no providers");
  text_add(to, "[");
  for (int i = 0; i < count; i++) {
    text_add(to, i ? ", " : "");
    text_add_string(to, names[i]);
  }
  text_add(to, "]");
  check(ort, ort->api->ReleaseAvailableProviders(names, count), BAD_RUNTIME, "ONNX Runtime's list of providers");
}

/* Options as ONNX Runtime takes them; those of `second` win over equal keys of `first`. */
typedef struct {
  char **keys, **values;
  size_t count;
} pairs;

static void add_pair(pairs *to, json key, json value) {
  char *name = json_string(key), *plain = json_string(value);
  if (!name || !plain) fail(BAD_INPUT, "an option of the provider is no string");
  for (size_t i = 0; i < to->count; i++) {
    if (strcmp(to->keys[i], name) != 0) continue;
    free(to->values[i]), free(name);
    to->values[i] = plain;
    return;
  }
  to->keys = need(realloc(to->keys, (to->count + 1) * sizeof(char *)));
  to->values = need(realloc(to->values, (to->count + 1) * sizeof(char *)));
  to->keys[to->count] = name;
  to->values[to->count++] = plain;
}

static pairs read_pairs(json first, json second) {
  pairs found = {0};
  json key, value;
  for (json_cursor at = json_walk(first); json_step(&at, &key, &value);) add_pair(&found, key, value);
  for (json_cursor at = json_walk(second); json_step(&at, &key, &value);) add_pair(&found, key, value);
  return found;
}

static void free_pairs(pairs *from) {
  for (size_t i = 0; i < from->count; i++) free(from->keys[i]), free(from->values[i]);
  free(from->keys), free(from->values);
}

/* A provider that comes as a library of its own. */
static void add_plugin(const runtime *ort, OrtSessionOptions *options, const session_plan *plan, const pairs *given) {
  if (!ort->plugins) fail(NO_PROVIDER, "ONNX Runtime %s takes no plugin such as %s", ort->version, plan->provider);
  const OrtEpDevice *const *all;
  size_t count, own = 0;
  for (int attempt = 0; attempt < 2 && !own; attempt++) {
    check(ort, ort->plugins->GetEpDevices(ort->environment, &all, &count), NO_PROVIDER, plan->provider);
    const OrtEpDevice **found = need(calloc(count + 1, sizeof *found));
    for (size_t i = 0; i < count; i++)
      if (strcmp(ort->plugins->EpDevice_EpName(all[i]), plan->provider) == 0) found[own++] = all[i];
    if (own)
      check(ort, ort->plugins->SessionOptionsAppendExecutionProvider_V2(options, ort->environment, found, own,
            (const char *const *)given->keys, (const char *const *)given->values, given->count), NO_PROVIDER, plan->provider);
    else if (attempt == 0)
      check(ort, ort->plugins->RegisterExecutionProviderLibrary(ort->environment, plan->provider, plan->plugin), NO_PROVIDER, plan->provider);
    free(found);
  }
  if (!own) fail(NO_PROVIDER, "%s offers no device here", plan->provider);
}

/* ONNX Runtime's C API wants "QNN" or "XNNPACK" where its other languages say "QNNExecutionProvider"; newer versions
   take both. */
static void add_builtin(const runtime *ort, OrtSessionOptions *options, const session_plan *plan, const pairs *given) {
  char name[64], upper[64];
  snprintf(name, sizeof name, "%s", plan->provider);
  char *suffix = strstr(name, "ExecutionProvider");
  if (suffix) *suffix = '\0';
  for (size_t i = 0; i < sizeof upper; i++) upper[i] = (char)toupper((unsigned char)name[i]);
  const char *const spellings[] = {upper, name, plan->provider};
  OrtStatus *status = NULL;
  for (size_t i = 0; i < 3; i++) {
    if (status) ort->api->ReleaseStatus(status);
    status = ort->api->SessionOptionsAppendExecutionProvider(
        options, spellings[i], (const char *const *)given->keys, (const char *const *)given->values, given->count);
    if (!status) return;
  }
  fail(NO_PROVIDER, "ONNX Runtime %s has no %s here: %s", ort->version, plan->provider, ort->api->GetErrorMessage(status));
}

static OrtSessionOptions *make_options(const runtime *ort, const session_plan *plan) {
  const OrtApi *api = ort->api;
  OrtSessionOptions *options;
  check(ort, api->CreateSessionOptions(&options), BAD_RUNTIME, "session options");
  check(ort, api->SetIntraOpNumThreads(options, plan->threads), BAD_INPUT, "threads");
  check(ort, api->SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL), BAD_RUNTIME, "log level");
  /* Idle threads do not spin, so that CPU time is time spent computing; the manifest may say otherwise. */
  check(ort, api->AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0"), BAD_RUNTIME, "spinning");
  pairs entries = read_pairs(plan->session, (json){"", ""});
  for (size_t i = 0; i < entries.count; i++)
    check(ort, api->AddSessionConfigEntry(options, entries.keys[i], entries.values[i]), BAD_INPUT, entries.keys[i]);
  free_pairs(&entries);
  if (plan->profile) check(ort, api->EnableProfiling(options, plan->profile), NO_OUTPUT, "profiling");
  pairs given = read_pairs(plan->options, plan->own_options);
  if (plan->plugin) add_plugin(ort, options, plan, &given);
  else if (strcmp(plan->provider, "CPUExecutionProvider") != 0) add_builtin(ort, options, plan, &given);
  free_pairs(&given);
  return options;
}

static char **read_names(const runtime *ort, OrtSession *session, size_t count,
                         OrtStatus *(*get)(const OrtSession *, size_t, OrtAllocator *, char **)) {
  OrtAllocator *allocator;
  check(ort, ort->api->GetAllocatorWithDefaultOptions(&allocator), BAD_RUNTIME, "allocator");
  char **names = need(calloc(count + 1, sizeof *names));
  for (size_t i = 0; i < count; i++) {
    char *name;
    check(ort, get(session, i, allocator, &name), BAD_MODEL, "a name");
    names[i] = need(strdup(name));
    check(ort, ort->api->AllocatorFree(allocator, name), BAD_RUNTIME, "a name");
  }
  return names;
}

void open_model(const runtime *ort, const session_plan *plan, model *into) {
  OrtSessionOptions *options = make_options(ort, plan);
  check(ort, ort->api->CreateSession(ort->environment, plan->model, options, &into->session), BAD_MODEL, "the model does not load");
  ort->api->ReleaseSessionOptions(options);
  check(ort, ort->api->SessionGetInputCount(into->session, &into->input_count), BAD_MODEL, "inputs");
  check(ort, ort->api->SessionGetOutputCount(into->session, &into->output_count), BAD_MODEL, "outputs");
  into->inputs = read_names(ort, into->session, into->input_count, ort->api->SessionGetInputName);
  into->outputs = read_names(ort, into->session, into->output_count, ort->api->SessionGetOutputName);
}

void close_model(const runtime *ort, model *from) {
  ort->api->ReleaseSession(from->session);
  for (size_t i = 0; i < from->input_count; i++) free(from->inputs[i]);
  for (size_t i = 0; i < from->output_count; i++) free(from->outputs[i]);
  free(from->inputs), free(from->outputs);
}

OrtValue **make_inputs(const runtime *ort, array *arrays, size_t count) {
  OrtMemoryInfo *memory;
  check(ort, ort->api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), BAD_RUNTIME, "memory");
  OrtValue **values = need(calloc(count + 1, sizeof *values));
  for (size_t i = 0; i < count; i++)
    check(ort, ort->api->CreateTensorWithDataAsOrtValue(memory, arrays[i].data, arrays[i].bytes, arrays[i].shape,
          arrays[i].dimensions, arrays[i].type, &values[i]), BAD_INPUT, "an input");
  ort->api->ReleaseMemoryInfo(memory);
  return values;
}

void free_values(const runtime *ort, OrtValue **values, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (values[i]) ort->api->ReleaseValue(values[i]), values[i] = NULL;
}

void run_model(const runtime *ort, const model *m, char *const *names, OrtValue *const *inputs, size_t count, OrtValue **outputs) {
  OrtStatus *status = ort->api->Run(m->session, NULL, (const char *const *)names, (const OrtValue *const *)inputs, count,
                                    (const char *const *)m->outputs, m->output_count, outputs);
  check(ort, status, BAD_MODEL, "the model does not run");
}

void look_into(const runtime *ort, OrtValue *value, const char *name, array *into) {
  OrtTensorTypeAndShapeInfo *info;
  int tensor = 0;
  if (!value || ort->api->IsTensor(value, &tensor) || !tensor) fail(BAD_MODEL, "output '%s' is no tensor", name);
  check(ort, ort->api->GetTensorTypeAndShape(value, &info), BAD_MODEL, name);
  check(ort, ort->api->GetTensorElementType(info, &into->type), BAD_MODEL, name);
  check(ort, ort->api->GetDimensionsCount(info, &into->dimensions), BAD_MODEL, name);
  if (into->dimensions > MOST_DIMENSIONS) fail(BAD_MODEL, "output '%s' has %zu dimensions", name, into->dimensions);
  check(ort, ort->api->GetDimensions(info, into->shape, into->dimensions), BAD_MODEL, name);
  check(ort, ort->api->GetTensorShapeElementCount(info, &into->bytes), BAD_MODEL, name);
  ort->api->ReleaseTensorTypeAndShapeInfo(info);
  if (!npy_item(into->type)) fail(BAD_MODEL, "output '%s' holds values of type %d, which cannot be brought back", name, (int)into->type);
  into->bytes *= npy_item(into->type);
  if (ort->api->GetTensorMutableData(value, &into->data)) fail(BAD_MODEL, "output '%s' holds no numbers", name);
}
