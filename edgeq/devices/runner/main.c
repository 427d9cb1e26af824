/* Runs the graphs of bundles and measures them: `edgeq-runner JOB.json RESULT.json`.

   The host writes the job and judges the result; edgeq/devices/job_file.py is its side of both. What cannot be
   measured is null, with a note. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "job.h"
#include "npy.h"
#include "ort.h"
#include "runner.h"
#include "system.h"

/* One entry while it runs; times in ms, one for every turn. */
typedef struct {
  const job_entry *entry;
  session_plan plan;
  model model;
  OrtValue **outputs;
  double load_ms, first_ms, baseline_mb, peak_mb, spent_ms, *wall, *cpu;
  size_t warmups, runs;
} lane;

typedef struct {
  const job *job;
  runtime ort;
  lane *lanes;
  array *feed; /* the first: what latency is measured with */
  OrtValue **inputs;
  text before, after, notes;
  double energy_mj; /* of all measured runs together */
  const char *energy_source;
} stage;

static const char *result_path;

static void write_result(const text *result) {
  text work = {0};
  text_add(&work, "%s.part", result_path);
  FILE *file = fopen(work.bytes, "wbe");
  bool written = file && fwrite(result->bytes, 1, result->length, file) == result->length;
  if (file && fclose(file)) written = false;
  if (!written || rename(work.bytes, result_path)) {
    fprintf(stderr, "%s cannot be written\n", result_path);
    _exit(NO_OUTPUT);
  }
  free(work.bytes);
}

_Noreturn void fail(int code, const char *format, ...) {
  char words[4000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  fprintf(stderr, "%s\n", words);
  text result = {0};
  text_add(&result, "{\"schema\": 1, \"error\": {\"code\": %d, \"text\": ", code);
  text_add_string(&result, words);
  text_add(&result, "}}\n");
  if (result_path) write_result(&result);
  _exit(code);
}

void *need(void *memory) {
  if (memory) return memory;
  fputs("out of memory\n", stderr);
  _exit(BAD_INPUT);
}

static void note(stage *s, const char *words) {
  if (s->notes.length) text_add(&s->notes, ", ");
  text_add_string(&s->notes, words);
}

static void read_feed(FILE *file, const job *j, array *into) {
  for (size_t i = 0; i < j->input_count; i++) npy_read(file, j->feeds_file, &into[i]);
}

static void free_feed(const job *j, array *feed) {
  for (size_t i = 0; i < j->input_count; i++) free(feed[i].data);
}

static FILE *open_feeds(const job *j) {
  FILE *file = fopen(j->feeds_file, "rbe");
  if (!file) fail(BAD_INPUT, "%s cannot be read", j->feeds_file);
  return file;
}

/* One inference; its outputs stay in the lane until the next. */
static void infer(stage *s, lane *l, double *wall, double *cpu) {
  free_values(&s->ort, l->outputs, l->model.output_count);
  double cpu_start = cpu_ms(), start = wall_ms();
  run_model(&s->ort, &l->model, s->job->inputs, s->inputs, s->job->input_count, l->outputs);
  *wall = wall_ms() - start;
  *cpu = cpu_ms() - cpu_start;
}

static void open_lane(stage *s, lane *l, const job_entry *entry, int threads) {
  l->entry = entry;
  l->plan = (session_plan){.model = entry->model, .provider = entry->provider, .options = entry->options,
                           .session = entry->session, .own_options = entry->own_options, .plugin = entry->plugin,
                           .threads = threads};
  double start = wall_ms(), cpu;
  open_model(&s->ort, &l->plan, &l->model);
  l->load_ms = wall_ms() - start;
  l->outputs = need(calloc(l->model.output_count + 1, sizeof *l->outputs));
  infer(s, l, &l->first_ms, &cpu);
}

static void warm_up(stage *s, lane *l) {
  double wall, cpu, start = wall_ms();
  for (l->warmups = 1; (double)l->warmups < s->job->warmup_runs || wall_ms() - start < s->job->warmup_ms; l->warmups++)
    infer(s, l, &wall, &cpu);
}

static bool is_done(const stage *s) {
  const job *j = s->job;
  if ((double)s->lanes[0].runs >= (j->max_runs > j->min_runs ? j->max_runs : j->min_runs)) return true;
  for (size_t i = 0; i < j->entry_count; i++)
    if ((double)s->lanes[i].runs < j->min_runs || s->lanes[i].spent_ms < j->until_ms) return false;
  return true;
}

/* A B A B: all entries meet the same disturbances. */
static void take_turns(stage *s) {
  const job *j = s->job;
  size_t most = (size_t)(j->max_runs > j->min_runs ? j->max_runs : j->min_runs) + 1;
  for (size_t i = 0; i < j->entry_count; i++) {
    s->lanes[i].wall = need(calloc(most, sizeof(double)));
    s->lanes[i].cpu = need(calloc(most, sizeof(double)));
    warm_up(s, &s->lanes[i]);
  }
  if (j->sensors) add_state(&s->before);
  energy meter;
  const char *why = NULL;
  double start = wall_ms(), runs = 0;
  energy_start(&meter);
  while (!is_done(s)) {
    for (size_t i = 0; i < j->entry_count; i++) {
      lane *l = &s->lanes[i];
      infer(s, l, &l->wall[l->runs], &l->cpu[l->runs]);
      l->spent_ms += l->wall[l->runs++];
      runs++;
    }
    if (j->sensors) energy_sample(&meter);
  }
  s->energy_mj = -1;
  if (j->sensors && j->entry_count == 1 && runs > 0) {
    double spent = energy_mj(&meter, wall_ms() - start, &s->energy_source, &why);
    s->energy_mj = spent < 0 ? -1 : spent / runs;
    text said = {0};
    if (why) text_add(&said, "energy is n/a: %s", why);
    else text_add(&said, "energy is from %s", s->energy_source);
    note(s, said.bytes);
    free(said.bytes);
  }
  if (j->sensors) add_state(&s->after);
}

static void write_outputs(stage *s, lane *l, FILE *to) {
  for (size_t i = 0; i < l->model.output_count; i++) {
    array found;
    look_into(&s->ort, l->outputs[i], l->model.outputs[i], &found);
    if (!npy_write(to, &found)) fail(NO_OUTPUT, "%s cannot be written: is there room?", l->entry->outputs);
  }
}

/* Every feed through every entry, with one feed in memory at a time. */
static void run_feeds(stage *s) {
  const job *j = s->job;
  FILE *feeds = open_feeds(j), **files = need(calloc(j->entry_count, sizeof *files));
  for (size_t i = 0; i < j->entry_count; i++)
    if (!(files[i] = fopen(s->lanes[i].entry->outputs, "wbe"))) fail(NO_OUTPUT, "%s cannot be written", s->lanes[i].entry->outputs);
  for (size_t feed = 0; feed < j->feeds; feed++) {
    array *arrays = need(calloc(j->input_count + 1, sizeof *arrays));
    read_feed(feeds, j, arrays);
    OrtValue **first = s->inputs;
    s->inputs = make_inputs(&s->ort, arrays, j->input_count);
    for (size_t i = 0; i < j->entry_count; i++) {
      double wall, cpu;
      infer(s, &s->lanes[i], &wall, &cpu);
      write_outputs(s, &s->lanes[i], files[i]);
    }
    free_values(&s->ort, s->inputs, j->input_count);
    free(s->inputs);
    s->inputs = first;
    free_feed(j, arrays);
    free(arrays);
  }
  for (size_t i = 0; i < j->entry_count; i++)
    if (fclose(files[i])) fail(NO_OUTPUT, "%s cannot be written: is there room?", s->lanes[i].entry->outputs);
  free(files);
  fclose(feeds);
}

/* ONNX Runtime's own profile, in a session of its own: it slows the runs that it watches. Where it was written. */
static char *profile(stage *s, lane *l) {
  OrtAllocator *allocator;
  char *file = NULL, *kept;
  double wall, cpu;
  lane watched = {.entry = l->entry, .plan = l->plan};
  watched.plan.profile = l->entry->profile;
  open_model(&s->ort, &watched.plan, &watched.model);
  watched.outputs = need(calloc(watched.model.output_count + 1, sizeof *watched.outputs));
  double start = wall_ms();
  for (int runs = 0; runs < 6 || (runs < 102 && wall_ms() - start < s->job->profile_ms); runs++)
    infer(s, &watched, &wall, &cpu);
  free_values(&s->ort, watched.outputs, watched.model.output_count);
  free(watched.outputs);
  if (s->ort.api->GetAllocatorWithDefaultOptions(&allocator) || s->ort.api->SessionEndProfiling(watched.model.session, allocator, &file))
    fail(NO_OUTPUT, "the profile cannot be written");
  kept = need(strdup(file));
  allocator->Free(allocator, file);
  close_model(&s->ort, &watched.model);
  return kept;
}

static void add_numbers(text *to, const char *key, const double *values, size_t count) {
  text_add(to, ", \"%s\": [", key);
  for (size_t i = 0; i < count; i++) text_add(to, "%s%.6f", i ? ", " : "", values[i]);
  text_add(to, "]");
}

static void add_positive(text *to, const char *key, double value) {
  if (value > 0) text_add(to, ", \"%s\": %.6f", key, value);
  else text_add(to, ", \"%s\": null", key);
}

static void add_lane(text *to, const stage *s, const lane *l, const char *profile_file) {
  text_add(to, "{\"name\": ");
  text_add_string(to, l->entry->name);
  text_add(to, ", \"provider\": ");
  text_add_string(to, l->entry->provider);
  text_add(to, ", \"load_ms\": %.6f, \"first_ms\": %.6f, \"warmup_runs\": %zu", l->load_ms, l->first_ms, l->warmups);
  add_numbers(to, "wall_ms", l->wall, l->runs);
  add_numbers(to, "cpu_ms", l->cpu, l->runs);
  add_positive(to, "peak_mb", l->peak_mb);
  add_positive(to, "baseline_mb", l->baseline_mb);
  add_positive(to, "energy_mj", s->energy_mj);
  text_add(to, ", \"outputs\": [");
  for (size_t i = 0; i < l->model.output_count; i++) {
    text_add(to, i ? ", " : "");
    text_add_string(to, l->model.outputs[i]);
  }
  text_add(to, "], \"profile\": ");
  if (profile_file) text_add_string(to, profile_file);
  text_add(to, profile_file ? "}" : "null}");
}

static void add_head(text *to, const stage *s, int threads, const char *mask) {
  struct utsname system;
  text_add(to, "{\"schema\": 1, \"runtime\": ");
  text_add_string(to, s->ort.version);
  text_add(to, ", \"providers\": ");
  add_providers(&s->ort, to);
  text_add(to, ", \"machine\": ");
  text_add_string(to, uname(&system) ? "" : system.machine);
  text_add(to, ", \"features\": ");
  add_features(to);
  text_add(to, ", \"threads\": %d, \"core_mask\": ", threads);
  if (*mask) text_add_string(to, mask);
  else text_add(to, "null");
  text_add(to, ", \"before\": %s, \"after\": %s", s->before.length ? s->before.bytes : "null", s->after.length ? s->after.bytes : "null");
  text_add(to, ", \"notes\": [%s], \"entries\": [", s->notes.length ? s->notes.bytes : "");
}

static void finish(stage *s, int threads, const char *mask) {
  const job *j = s->job;
  text result = {0};
  add_head(&result, s, threads, mask);
  for (size_t i = 0; i < j->entry_count; i++) {
    lane *l = &s->lanes[i];
    char *file = l->entry->profile ? profile(s, l) : NULL;
    text_add(&result, i ? ", " : "");
    add_lane(&result, s, l, file);
    free(file);
  }
  text_add(&result, "]}\n");
  write_result(&result);
  free(result.bytes);
}

static void run_job(const job *j) {
  char mask[300];
  stage s = {.job = j, .energy_mj = -1};
  text unpinned = {0};
  pin(j->cores, &unpinned); /* before ONNX Runtime starts threads, which inherit it */
  if (unpinned.length) note(&s, unpinned.bytes);
  int cores = usable_cores(mask), threads = j->threads ? j->threads : cores;
  load_runtime(j->runtime, &s.ort);
  s.lanes = need(calloc(j->entry_count, sizeof *s.lanes));
  s.feed = need(calloc(j->input_count + 1, sizeof *s.feed));
  FILE *feeds = open_feeds(j);
  read_feed(feeds, j, s.feed);
  fclose(feeds);
  s.inputs = make_inputs(&s.ort, s.feed, j->input_count);
  double baseline = peak_mb();
  for (size_t i = 0; i < j->entry_count; i++) open_lane(&s, &s.lanes[i], &j->entries[i], threads);
  if (j->measure) take_turns(&s);
  if (j->entry_count == 1) s.lanes[0].baseline_mb = baseline, s.lanes[0].peak_mb = peak_mb();
  run_feeds(&s);
  finish(&s, threads, mask);
  for (size_t i = 0; i < j->entry_count; i++) {
    free_values(&s.ort, s.lanes[i].outputs, s.lanes[i].model.output_count);
    free(s.lanes[i].outputs), free(s.lanes[i].wall), free(s.lanes[i].cpu);
    close_model(&s.ort, &s.lanes[i].model);
  }
  free_values(&s.ort, s.inputs, j->input_count);
  free_feed(j, s.feed);
  s.ort.api->ReleaseEnv(s.ort.environment);
}

int main(int count, char **arguments) {
  static job j;
  if (count != 3) {
    fputs("usage: edgeq-runner JOB.json RESULT.json\n", stderr);
    return BAD_INPUT;
  }
  result_path = arguments[2];
  read_job(arguments[1], &j);
  if (j.timeout_s) alarm((unsigned)j.timeout_s); /* nothing is left running if the host is gone */
  run_job(&j);
  return 0;
}
