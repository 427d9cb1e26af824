/* JSON, read where it lies and written as it comes: no tree is built, so that reading costs no memory. */
#ifndef EDGEQ_JSON_H
#define EDGEQ_JSON_H

#include <stdbool.h>
#include <stddef.h>

/* The text of one value. All functions below trust that json_check has seen the whole document. */
typedef struct {
  const char *at, *end;
} json;

/* Whether the text is one JSON value, nested no deeper than 64 levels; the value without the blanks around it. */
bool json_check(const char *text, size_t length, json *value);

/* The member `key` of an object; false if it is no object or has no such member. The first of equal keys counts. */
bool json_get(json object, const char *key, json *value);

/* Members of an object or items of an array: start with `json_walk(value)`, then step until false. */
typedef struct {
  const char *at, *end;
  char kind;
} json_cursor;
json_cursor json_walk(json value);
bool json_step(json_cursor *cursor, json *key, json *value);
size_t json_count(json value);

/* The characters of a string, to be freed; NULL if it is no string or holds a NUL. */
char *json_string(json value);
bool json_number(json value, double *number);
bool json_is(json value, const char *literal);

/* Text that grows; `bytes` always ends with a NUL. */
typedef struct {
  char *bytes;
  size_t length, room;
} text;
void text_add(text *to, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_add_string(text *to, const char *value);

#endif
