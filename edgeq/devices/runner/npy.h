/* Arrays in numpy's .npy format, one behind another in a file: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html */
#ifndef EDGEQ_NPY_H
#define EDGEQ_NPY_H

#include <stdint.h>
#include <stdio.h>

#include "json.h"
#include "vendor/onnxruntime_c_api.h"

enum { MOST_DIMENSIONS = 32 };

typedef struct {
  ONNXTensorElementDataType type;
  int64_t shape[MOST_DIMENSIONS];
  size_t dimensions, bytes;
  void *data;
} array;

/* The next array of `from`; what is malformed ends the program, with `what` naming the file. */
void npy_read(FILE *from, const char *what, array *into);

/* Bytes of one value; 0 if numpy has no name for the type. */
size_t npy_item(ONNXTensorElementDataType type);

/* Append one whose type numpy has a name for; returns 0 if the file cannot be written. */
int npy_write(FILE *to, const array *from);

#endif
