#define _GNU_SOURCE
#include "job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner.h"

enum { LARGEST_TEXT = 256 << 20 };

/* A whole JSON document; its text stays in memory, for values point into it. */
static json read_document(const char *path) {
  FILE *file = fopen(path, "rbe");
  if (!file) fail(BAD_INPUT, "%s cannot be read", path);
  if (fseek(file, 0, SEEK_END)) fail(BAD_INPUT, "%s cannot be read", path);
  long length = ftell(file);
  if (length < 0 || length > LARGEST_TEXT) fail(BAD_INPUT, "%s is too large", path);
  rewind(file);
  char *bytes = need(malloc((size_t)length + 1));
  size_t found = fread(bytes, 1, (size_t)length, file);
  fclose(file);
  json value;
  if (found != (size_t)length || !json_check(bytes, found, &value)) fail(BAD_INPUT, "%s is not JSON", path);
  return value;
}

static json member(json object, const char *key, const char *where) {
  json value;
  if (!json_get(object, key, &value)) fail(BAD_INPUT, "%s has no %s", where, key);
  return value;
}

static char *string(json object, const char *key, const char *where) {
  char *value = json_string(member(object, key, where));
  if (!value) fail(BAD_INPUT, "%s of %s is no string", key, where);
  return value;
}

static char *string_or_null(json object, const char *key, const char *where) {
  json value;
  return !json_get(object, key, &value) || json_is(value, "null") ? NULL : string(object, key, where);
}

static double number(json object, const char *key, double highest) {
  double value;
  if (!json_number(member(object, key, "the job"), &value) || value < 0 || value > highest)
    fail(BAD_INPUT, "%s of the job is no number between 0 and %g", key, highest);
  return value;
}

static bool truth(json object, const char *key) { return json_is(member(object, key, "the job"), "true"); }

/* Whether a name stays inside its folder. */
static bool is_plain(const char *name) {
  if (*name == '\0' || *name == '/' || strchr(name, '\\') || strchr(name, ':')) return false;
  for (const char *part = name; part; part = strchr(part, '/')) {
    part += *part == '/';
    size_t length = strcspn(part, "/");
    if (length == 0 || (part[0] == '.' && (length == 1 || (length == 2 && part[1] == '.')))) return false;
  }
  return true;
}

static char *join(const char *folder, const char *name) {
  text path = {0};
  text_add(&path, "%s/%s", folder, name);
  return path.bytes;
}

/* How a session with the graph in the file `name` is made: a bundle has one or two. */
static void read_manifest(const char *bundle, const char *name, job_entry *into) {
  char *path = join(bundle, "manifest.json");
  json graph = read_document(path), second, provider;
  if (json_get(graph, "fallback", &second)) {
    char *own = json_is(second, "null") ? NULL : string(second, "model", path);
    if (own && strcmp(own, name) == 0) graph = second;
    free(own);
  }
  provider = member(graph, "provider", path);
  into->provider = string(provider, "name", path);
  json_get(provider, "options", &into->options);
  json_get(provider, "session", &into->session);
  free(path);
}

static void read_entry(json item, job_entry *into) {
  static const char where[] = "an entry of the job";
  into->options = into->session = into->own_options = (json){"", ""};
  into->name = string(item, "name", where);
  into->outputs = string(item, "outputs", where);
  into->profile = string_or_null(item, "profile", where);
  into->plugin = string_or_null(item, "plugin", where);
  json_get(item, "options", &into->own_options);
  char *bundle = string_or_null(item, "bundle", where);
  char *name = string(item, "model", where);
  if (!bundle) {
    into->model = name;
    into->provider = need(strdup("CPUExecutionProvider"));
    return;
  }
  if (!is_plain(name)) fail(BAD_INPUT, "'%s' is no plain path inside the bundle", name);
  into->model = join(bundle, name);
  read_manifest(bundle, name, into);
  free(bundle), free(name);
}

static void read_feeds(json feeds, job *into) {
  json names = member(feeds, "names", "the job's feeds"), item;
  into->feeds_file = string(feeds, "file", "the job's feeds");
  into->feeds = (size_t)number(feeds, "count", 1e9);
  into->inputs = need(calloc(json_count(names) + 1, sizeof(char *)));
  for (json_cursor at = json_walk(names); json_step(&at, NULL, &item);)
    if (!(into->inputs[into->input_count++] = json_string(item))) fail(BAD_INPUT, "an input's name is no string");
  if (into->feeds == 0) fail(BAD_INPUT, "the job has no feeds");
}

void read_job(const char *path, job *into) {
  json whole = read_document(path), entries = member(whole, "entries", path), item;
  if (!json_is(member(whole, "schema", path), "1")) fail(BAD_INPUT, "this runner knows jobs of schema 1 only");
  *into = (job){
      .runtime = string(whole, "runtime", path),
      .cores = string(whole, "cores", path),
      .threads = (int)number(whole, "threads", 4096),
      .timeout_s = (int)number(whole, "timeout_s", 1e6),
      .warmup_runs = number(whole, "warmup_runs", 1e9),
      .warmup_ms = number(whole, "warmup_s", 1e6) * 1e3,
      .min_runs = number(whole, "min_runs", 1e7),
      .max_runs = number(whole, "max_runs", 1e7),
      .until_ms = number(whole, "seconds", 1e6) * 1e3,
      .profile_ms = number(whole, "profile_s", 1e6) * 1e3,
      .measure = truth(whole, "measure"),
      .sensors = truth(whole, "sensors"),
  };
  read_feeds(member(whole, "feeds", path), into);
  into->entries = need(calloc(json_count(entries) + 1, sizeof(job_entry)));
  for (json_cursor at = json_walk(entries); json_step(&at, NULL, &item);) read_entry(item, &into->entries[into->entry_count++]);
  if (into->entry_count == 0) fail(BAD_INPUT, "the job has no entries");
}
