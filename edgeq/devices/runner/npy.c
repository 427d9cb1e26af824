#include "npy.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runner.h"

static const struct {
  const char *name;
  ONNXTensorElementDataType type;
  size_t bytes;
} kinds[] = {
    {"<f4", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},   {"<f2", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
    {"<f8", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},  {"|u1", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"|i1", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},    {"<u2", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, 2},
    {"<i2", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16, 2},   {"<u4", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, 4},
    {"<i4", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},   {"<u8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64, 8},
    {"<i8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},   {"|b1", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1},
};
enum { KINDS = sizeof kinds / sizeof *kinds, LONGEST_HEADER = 1 << 16 };

/* What follows `key` in the header, a Python dictionary of one line, such as
   {'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), } */
static const char *behind(const char *header, const char *key) {
  const char *at = strstr(header, key);
  if (!at) return "";
  at += strlen(key);
  while (*at == ' ' || *at == ':') at++;
  return at;
}

static bool read_shape(const char *at, array *into) {
  if (*at++ != '(') return false;
  for (into->dimensions = 0;;) {
    while (*at == ' ' || *at == ',') at++;
    if (*at == ')') return true;
    if (!isdigit((unsigned char)*at) || into->dimensions == MOST_DIMENSIONS) return false;
    char *end;
    long long size = strtoll(at, &end, 10);
    if (size > (1LL << 40)) return false;
    into->shape[into->dimensions++] = size;
    at = end;
  }
}

/* Bytes of all values; false if they are more than can be. */
static bool measure_bytes(array *into, size_t each) {
  size_t bytes = each;
  for (size_t i = 0; i < into->dimensions; i++) {
    size_t size = (size_t)into->shape[i];
    if (size && bytes > SIZE_MAX / 2 / size) return false;
    bytes *= size;
  }
  into->bytes = bytes;
  return true;
}

static size_t rest_of(FILE *file) {
  long here = ftell(file);
  if (here < 0 || fseek(file, 0, SEEK_END)) return 0;
  long end = ftell(file);
  return fseek(file, here, SEEK_SET) || end < here ? 0 : (size_t)(end - here);
}

static char *read_header(FILE *from, const char *what) {
  unsigned char head[12];
  if (fread(head, 1, 10, from) != 10 || memcmp(head, "\x93NUMPY", 6) != 0) fail(BAD_INPUT, "%s holds no further .npy array", what);
  size_t length = (size_t)head[8] | (size_t)head[9] << 8;
  if (head[6] > 1) {
    if (fread(head + 10, 1, 2, from) != 2) fail(BAD_INPUT, "%s ends inside an array", what);
    length |= (size_t)head[10] << 16 | (size_t)head[11] << 24;
  }
  if (length > LONGEST_HEADER) fail(BAD_INPUT, "%s: an array's header has %zu bytes", what, length);
  char *header = need(malloc(length + 1));
  if (fread(header, 1, length, from) != length) fail(BAD_INPUT, "%s ends inside an array's header", what);
  header[length] = '\0';
  return header;
}

void npy_read(FILE *from, const char *what, array *into) {
  char *header = read_header(from, what);
  const char *descr = behind(header, "'descr'");
  size_t kind = 0;
  while (kind < KINDS && !(*descr == '\'' && strncmp(descr + 1, kinds[kind].name, 3) == 0 && descr[4] == '\'')) kind++;
  if (kind == KINDS) fail(BAD_INPUT, "%s: the runner has no arrays of type %.20s", what, descr);
  if (strncmp(behind(header, "'fortran_order'"), "False", 5) != 0) fail(BAD_INPUT, "%s: an array is not in C order", what);
  if (!read_shape(behind(header, "'shape'"), into) || !measure_bytes(into, kinds[kind].bytes))
    fail(BAD_INPUT, "%s: an array's shape is malformed", what);
  free(header);
  if (into->bytes > rest_of(from)) fail(BAD_INPUT, "%s ends inside an array", what);
  into->type = kinds[kind].type;
  into->data = need(malloc(into->bytes ? into->bytes : 1));
  if (fread(into->data, 1, into->bytes, from) != into->bytes) fail(BAD_INPUT, "%s cannot be read", what);
}

static size_t kind_of(ONNXTensorElementDataType type) {
  size_t kind = 0;
  while (kind < KINDS && kinds[kind].type != type) kind++;
  return kind;
}

size_t npy_item(ONNXTensorElementDataType type) {
  size_t kind = kind_of(type);
  return kind == KINDS ? 0 : kinds[kind].bytes;
}

int npy_write(FILE *to, const array *from) {
  size_t kind = kind_of(from->type);
  if (kind == KINDS) return 0;
  text header = {0};
  text_add(&header, "{'descr': '%s', 'fortran_order': False, 'shape': (", kinds[kind].name);
  for (size_t i = 0; i < from->dimensions; i++) text_add(&header, "%lld, ", (long long)from->shape[i]);
  text_add(&header, "), }");
  while ((10 + header.length + 1) % 64) text_add(&header, " ");
  text_add(&header, "\n");
  unsigned char head[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (unsigned char)header.length, (unsigned char)(header.length >> 8)};
  bool written = fwrite(head, 1, 10, to) == 10 && fwrite(header.bytes, 1, header.length, to) == header.length &&
                 fwrite(from->data, 1, from->bytes, to) == from->bytes;
  free(header.bytes);
  return written;
}
