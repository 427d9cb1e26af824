/* What Linux and Android tell about the machine: all of it may be missing, and is null then, never a guess. */
#ifndef EDGEQ_SYSTEM_H
#define EDGEQ_SYSTEM_H

#include <stdbool.h>
#include <stdint.h>

#include "json.h"

double wall_ms(void);
double cpu_ms(void); /* of all threads of this process */

/* Keep this process on some cores: "all", "big", "little", or a list such as "0,4-7". What could not be done is
   said in `note`, which stays empty otherwise. */
void pin(const char *cores, text *note);

/* How many cores this process may use, and which: in hexadecimal, "" if the system does not tell. */
int usable_cores(char mask[300]);

/* The most memory that this process has had resident, in MB (10^6 bytes); negative if the system does not tell. */
double peak_mb(void);

/* Append the processor's features as Linux names them: a string. */
void add_features(text *to);

/* Append {"frequency_mhz": [...], "temperature_c": ..., "throttled": ..., "battery_percent": ...}. */
void add_state(text *to);

/* Energy of the whole machine while something runs. */
typedef struct {
  uint64_t start_uj, span_uj; /* of a counter of the processor (RAPL) */
  double watts, samples, last_ms; /* of a battery that is being discharged */
} energy;
void energy_start(energy *meter);
void energy_sample(energy *meter);
/* Millijoules since the start, which was `ms` ago; negative if the machine does not tell: then `why` says so. */
double energy_mj(energy *meter, double ms, const char **source, const char **why);

#endif
