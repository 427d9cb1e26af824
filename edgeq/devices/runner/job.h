/* The job that the host wrote, and the bundles' manifests that it points to. */
#ifndef EDGEQ_JOB_H
#define EDGEQ_JOB_H

#include <stdbool.h>

#include "ort.h"

/* One graph to run. `model` is its path; `outputs` and `profile` are where what it gives is written. */
typedef struct {
  char *name, *model, *provider, *outputs, *profile, *plugin;
  json options, session, own_options;
} job_entry;

typedef struct {
  char *runtime, *cores, *feeds_file, **inputs;
  size_t input_count, feeds, entry_count;
  job_entry *entries;
  int threads, timeout_s;
  double warmup_runs, warmup_ms, min_runs, max_runs, until_ms, profile_ms;
  bool measure, sensors;
} job;

/* Ends the program if the job or a manifest is malformed. */
void read_job(const char *path, job *into);

#endif
