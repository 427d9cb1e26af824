#define _GNU_SOURCE
#include "system.h"

#include <ctype.h>
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "runner.h"

#ifndef SYS
#define SYS "/sys" /* tests put another folder here */
#endif
#define CPUS SYS "/devices/system/cpu"
#define RAPL SYS "/class/powercap/intel-rapl:0"
#define SUPPLIES SYS "/class/power_supply"
#define THERMAL SYS "/class/thermal"
#define SENSORS SYS "/class/hwmon"
enum { PATH = 400, BETWEEN_SAMPLES_MS = 100 };

static double clock_ms(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

double wall_ms(void) { return clock_ms(CLOCK_MONOTONIC); }
double cpu_ms(void) { return clock_ms(CLOCK_PROCESS_CPUTIME_ID); }

/* The first line of a file, without its end. */
static bool read_line(char *into, size_t room, const char *folder, const char *name, const char *file) {
  char path[PATH];
  if ((size_t)snprintf(path, sizeof path, "%s/%s/%s", folder, name, file) >= sizeof path) return false;
  FILE *stream = fopen(path, "re");
  if (!stream) return false;
  bool found = fgets(into, (int)room, stream) != NULL;
  fclose(stream);
  if (found) into[strcspn(into, "\n")] = '\0';
  return found;
}

static bool read_integer(long long *into, const char *folder, const char *name, const char *file) {
  char line[64], *end;
  if (!read_line(line, sizeof line, folder, name, file)) return false;
  *into = strtoll(line, &end, 10);
  return end != line && *end == '\0';
}

/* Folders in `folder`, one a call; closes `listing` at the end. */
static const char *next_folder(DIR *listing) {
  struct dirent *entry;
  while ((entry = readdir(listing)))
    if (entry->d_name[0] != '.') return entry->d_name;
  closedir(listing);
  return NULL;
}

/* A measure of how fast a core is: its highest frequency in kHz, else the kernel's own figure. */
static long long strength(int cpu) {
  char name[32];
  long long value = 0;
  snprintf(name, sizeof name, "cpu%d", cpu);
  if (read_integer(&value, CPUS, name, "cpufreq/cpuinfo_max_freq") || read_integer(&value, CPUS, name, "cpu_capacity")) return value;
  return 0;
}

static bool parse_list(const char *at, cpu_set_t *chosen) {
  CPU_ZERO(chosen);
  while (*at) {
    char *end;
    if (!isdigit((unsigned char)*at)) return false;
    long first = strtol(at, &end, 10), last = first;
    if (*end == '-' && isdigit((unsigned char)end[1])) last = strtol(end + 1, &end, 10);
    if (last < first || last >= CPU_SETSIZE) return false;
    for (long cpu = first; cpu <= last; cpu++) CPU_SET((size_t)cpu, chosen);
    if (*end == ',' && end[1]) end++;
    else if (*end) return false;
    at = end;
  }
  return CPU_COUNT(chosen) > 0;
}

/* The slowest kind of cores is little, all others are big. */
static bool choose_kind(bool big, const cpu_set_t *allowed, cpu_set_t *chosen) {
  long long slowest = 0, fastest = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, allowed)) continue;
    long long own = strength(cpu);
    if (own == 0) return false;
    if (slowest == 0 || own < slowest) slowest = own;
    if (own > fastest) fastest = own;
  }
  CPU_ZERO(chosen);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, allowed) && (strength(cpu) > slowest) == big) CPU_SET(cpu, chosen);
  return fastest > slowest;
}

/* As parse_list reads them: 0,4-7. */
static void list_cores(const cpu_set_t *cores, text *into) {
  for (int cpu = 0, last; cpu < CPU_SETSIZE; cpu = last + 1) {
    last = cpu;
    if (!CPU_ISSET(cpu, cores)) continue;
    while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, cores)) last++;
    text_add(into, "%s%d", into->length ? "," : "", cpu);
    if (last > cpu) text_add(into, "-%d", last);
  }
}

void pin(const char *cores, text *note) {
  cpu_set_t allowed, chosen;
  if (strcmp(cores, "all") == 0) return;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) {
    text_add(note, "it was not pinned to cores: the system does not say which there are");
    return;
  }
  bool big = strcmp(cores, "big") == 0;
  if (big || strcmp(cores, "little") == 0) {
    if (!choose_kind(big, &allowed, &chosen)) {
      text_add(note, "it was not pinned to %s cores: the system tells of one kind of cores only", cores);
      return;
    }
  } else if (!parse_list(cores, &chosen)) {
    fail(NO_CORES, "'%s' names no cores: write all, big, little, or numbers such as 0,4-7", cores);
  }
  CPU_AND(&chosen, &chosen, &allowed);
  if (CPU_COUNT(&chosen) == 0) {
    text known = {0};
    list_cores(&allowed, &known);
    fail(NO_CORES, "none of the cores %s may be used, only %s", cores, known.bytes);
  }
  if (sched_setaffinity(0, sizeof chosen, &chosen)) text_add(note, "it was not pinned to cores: the system refused");
}

int usable_cores(char mask[300]) {
  cpu_set_t allowed;
  mask[0] = '\0';
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return 1;
  char *at = mask;
  for (int digit = CPU_SETSIZE / 4 - 1; digit >= 0; digit--) {
    int value = 0;
    for (int bit = 0; bit < 4; bit++) value |= CPU_ISSET(digit * 4 + bit, &allowed) ? 1 << bit : 0;
    if (value || at > mask) *at++ = "0123456789abcdef"[value];
  }
  *at = '\0';
  return CPU_COUNT(&allowed);
}

double peak_mb(void) {
  /* VmHWM first: ru_maxrss is inherited from the parent over exec. */
  FILE *stream = fopen("/proc/self/status", "re");
  char line[200];
  double peak = -1;
  while (stream && fgets(line, sizeof line, stream))
    if (strncmp(line, "VmHWM:", 6) == 0) peak = strtod(line + 6, NULL) * 1024 / 1e6;
  if (stream) fclose(stream);
  struct rusage usage;
  if (peak < 0 && getrusage(RUSAGE_SELF, &usage) == 0) peak = (double)usage.ru_maxrss * 1024 / 1e6;
  return peak;
}

void add_features(text *to) {
  FILE *stream = fopen("/proc/cpuinfo", "re");
  char line[8192];
  const char *found = "";
  while (stream && !*found && fgets(line, sizeof line, stream)) {
    char *colon = strchr(line, ':');
    if (!colon || (strncmp(line, "Features", 8) != 0 && strncmp(line, "flags", 5) != 0)) continue;
    line[strcspn(line, "\n")] = '\0';
    found = colon + 1;
  }
  if (stream) fclose(stream);
  text_add_string(to, found);
}

static bool names_processor(const char *type) {
  static const char *const words[] = {"cpu", "soc", "pkg_temp", "core", "tsens", "cluster", "k10temp", "zenpower"};
  char lower[64];
  size_t length = 0;
  for (; type[length] && length < sizeof lower - 1; length++) lower[length] = (char)tolower((unsigned char)type[length]);
  lower[length] = '\0';
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (strstr(lower, words[i])) return true;
  return false;
}

/* The kernel counts in thousandths of a degree; figures that cannot be such are left out. */
static void take_hotter(double *hottest, long long millidegrees) {
  if (millidegrees > 1000 && millidegrees < 150000 && (double)millidegrees / 1e3 > *hottest) *hottest = (double)millidegrees / 1e3;
}

static double temperature(void) {
  double hottest = -1;
  char type[64];
  long long value;
  const char *name;
  DIR *zones = opendir(THERMAL);
  while (zones && (name = next_folder(zones)))
    if (strncmp(name, "thermal_zone", 12) == 0 && read_line(type, sizeof type, THERMAL, name, "type") &&
        names_processor(type) && read_integer(&value, THERMAL, name, "temp"))
      take_hotter(&hottest, value);
  DIR *chips = opendir(SENSORS);
  while (chips && (name = next_folder(chips))) {
    if (!read_line(type, sizeof type, SENSORS, name, "name") || !names_processor(type)) continue;
    for (int i = 1; i < 64; i++) {
      char input[32];
      snprintf(input, sizeof input, "temp%d_input", i);
      if (read_integer(&value, SENSORS, name, input)) take_hotter(&hottest, value);
    }
  }
  return hottest;
}

/* Whether the kernel slows the processor down to cool it: 1, 0, or -1 where it does not tell. */
static int throttled(void) {
  int found = -1;
  char type[64];
  long long state;
  const char *name;
  DIR *devices = opendir(THERMAL);
  while (devices && (name = next_folder(devices))) {
    if (strncmp(name, "cooling_device", 14) != 0 || !read_line(type, sizeof type, THERMAL, name, "type")) continue;
    if (strcmp(type, "Processor") != 0 && strncmp(type, "cpu", 3) != 0 && strncmp(type, "thermal-cpu", 11) != 0) continue;
    if (read_integer(&state, THERMAL, name, "cur_state") && (found < 1)) found = state > 0;
  }
  return found;
}

static bool find_battery(char name[64]) {
  char type[32];
  const char *found;
  bool there = false;
  DIR *supplies = opendir(SUPPLIES);
  while (supplies && (found = next_folder(supplies)))
    if (!there && read_line(type, sizeof type, SUPPLIES, found, "type") && strcmp(type, "Battery") == 0)
      there = (size_t)snprintf(name, 64, "%s", found) < 64;
  return there;
}

void add_state(text *to) {
  long long value;
  char name[64];
  const char *comma = "";
  text_add(to, "{\"frequency_mhz\": [");
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    snprintf(name, sizeof name, "cpu%d", cpu);
    if (!read_integer(&value, CPUS, name, "cpufreq/scaling_cur_freq")) continue;
    text_add(to, "%s%lld", comma, value / 1000);
    comma = ", ";
  }
  double degrees = temperature();
  int slowed = throttled();
  text_add(to, "], \"temperature_c\": ");
  if (degrees > 0) text_add(to, "%.1f", degrees);
  else text_add(to, "null");
  text_add(to, ", \"throttled\": %s", slowed < 0 ? "null" : slowed ? "true" : "false");
  bool battery = find_battery(name) && read_integer(&value, SUPPLIES, name, "capacity") && value >= 0 && value <= 100;
  if (battery) text_add(to, ", \"battery_percent\": %lld}", value);
  else text_add(to, ", \"battery_percent\": null}");
}

static bool read_counter(uint64_t *into) {
  long long value;
  if (!read_integer(&value, RAPL, ".", "energy_uj")) return false;
  *into = (uint64_t)value;
  return true;
}

/* Watts that the battery gives; 0 if it is being charged or does not tell. */
static double battery_watts(void) {
  char name[64], status[32];
  long long current, voltage;
  if (!find_battery(name) || !read_line(status, sizeof status, SUPPLIES, name, "status") || strcmp(status, "Discharging") != 0) return 0;
  if (!read_integer(&current, SUPPLIES, name, "current_now") || !read_integer(&voltage, SUPPLIES, name, "voltage_now")) return 0;
  return (double)llabs(current) * (double)voltage / 1e12;
}

void energy_start(energy *meter) {
  long long span;
  memset(meter, 0, sizeof *meter);
  if (read_integer(&span, RAPL, ".", "max_energy_range_uj") && read_counter(&meter->start_uj)) meter->span_uj = (uint64_t)span;
  meter->last_ms = wall_ms();
}

static void read_battery(energy *meter) {
  double watts = battery_watts();
  meter->watts += watts, meter->samples += watts > 0;
  meter->last_ms = wall_ms();
}

void energy_sample(energy *meter) {
  if (!meter->span_uj && wall_ms() - meter->last_ms >= BETWEEN_SAMPLES_MS) read_battery(meter);
}

double energy_mj(energy *meter, double ms, const char **source, const char **why) {
  uint64_t now;
  if (meter->span_uj && read_counter(&now)) {
    uint64_t spent = now >= meter->start_uj ? now - meter->start_uj : now + meter->span_uj - meter->start_uj;
    *source = "the processor's own counter (RAPL)";
    if (spent == 0) *why = "the processor's own counter (RAPL) stands still";
    return spent == 0 ? -1 : (double)spent / 1e3;
  }
  if (meter->samples == 0) read_battery(meter); /* all runs were over before the first reading was due */
  if (meter->samples > 0) {
    *source = "the battery's current and voltage: the whole device";
    return meter->watts / meter->samples * ms;
  }
  char name[64];
  *why = find_battery(name) ? "its battery is being charged or does not tell its current"
                            : "it tells of no battery and no energy counter that may be read";
  return -1;
}
