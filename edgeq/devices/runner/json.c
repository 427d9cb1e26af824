#include "json.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner.h"

enum { DEEPEST = 64 };

static const char *blanks(const char *at, const char *end) {
  while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) at++;
  return at;
}

static bool is_digit(const char *at, const char *end) { return at < end && *at >= '0' && *at <= '9'; }

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/* Each of these returns the end of what it read, or NULL. */
static const char *read_string(const char *at, const char *end) {
  for (at++; at < end; at++) {
    if (*at == '"') return at + 1;
    if ((unsigned char)*at < 0x20) return NULL;
    if (*at != '\\') continue;
    if (++at >= end || !strchr("\"\\/bfnrtu", *at) || *at == '\0') return NULL;
    if (*at != 'u') continue;
    for (int i = 0; i < 4; i++)
      if (++at >= end || hex_digit(*at) < 0) return NULL;
  }
  return NULL;
}

static const char *read_number(const char *at, const char *end) {
  if (at < end && *at == '-') at++;
  if (!is_digit(at, end)) return NULL;
  if (*at == '0') at++;
  else while (is_digit(at, end)) at++;
  if (at < end && *at == '.') {
    if (!is_digit(++at, end)) return NULL;
    while (is_digit(at, end)) at++;
  }
  if (at < end && (*at == 'e' || *at == 'E')) {
    at++;
    if (at < end && (*at == '+' || *at == '-')) at++;
    if (!is_digit(at, end)) return NULL;
    while (is_digit(at, end)) at++;
  }
  return at;
}

static const char *read_literal(const char *at, const char *end) {
  static const char *const literals[] = {"true", "false", "null"};
  for (size_t i = 0; i < 3; i++) {
    size_t length = strlen(literals[i]);
    if ((size_t)(end - at) >= length && memcmp(at, literals[i], length) == 0) return at + length;
  }
  return NULL;
}

static const char *read_value(const char *at, const char *end, int depth);

static const char *read_items(const char *at, const char *end, int depth) {
  char close = *at == '{' ? '}' : ']';
  at = blanks(at + 1, end);
  if (at < end && *at == close) return at + 1;
  while (at < end) {
    if (close == '}') {
      if (*at != '"' || !(at = read_string(at, end))) return NULL;
      at = blanks(at, end);
      if (at >= end || *at != ':') return NULL;
      at = blanks(at + 1, end);
    }
    if (!(at = read_value(at, end, depth + 1))) return NULL;
    at = blanks(at, end);
    if (at >= end) return NULL;
    if (*at == close) return at + 1;
    if (*at != ',') return NULL;
    at = blanks(at + 1, end);
  }
  return NULL;
}

static const char *read_value(const char *at, const char *end, int depth) {
  if (at >= end || depth > DEEPEST) return NULL;
  if (*at == '{' || *at == '[') return read_items(at, end, depth);
  if (*at == '"') return read_string(at, end);
  if (*at == '-' || is_digit(at, end)) return read_number(at, end);
  return read_literal(at, end);
}

bool json_check(const char *from, size_t length, json *value) {
  const char *end = from + length;
  value->at = blanks(from, end);
  value->end = read_value(value->at, end, 0);
  return value->end && blanks(value->end, end) == end;
}

json_cursor json_walk(json value) {
  bool opens = value.at < value.end && (*value.at == '{' || *value.at == '[');
  if (!opens) return (json_cursor){value.end, value.end, 0};
  return (json_cursor){value.at + 1, value.end - 1, *value.at};
}

bool json_step(json_cursor *cursor, json *key, json *value) {
  const char *at = blanks(cursor->at, cursor->end);
  if (at < cursor->end && *at == ',') at = blanks(at + 1, cursor->end);
  if (at >= cursor->end) return false;
  if (cursor->kind == '{') {
    const char *end = read_string(at, cursor->end);
    if (key) *key = (json){at, end};
    at = blanks(blanks(end, cursor->end) + 1, cursor->end);
  }
  *value = (json){at, read_value(at, cursor->end, 0)};
  cursor->at = value->end;
  return true;
}

size_t json_count(json value) {
  size_t count = 0;
  json item;
  for (json_cursor cursor = json_walk(value); json_step(&cursor, NULL, &item);) count++;
  return count;
}

bool json_get(json object, const char *key, json *value) {
  if (object.at >= object.end || *object.at != '{') return false;
  json name;
  for (json_cursor cursor = json_walk(object); json_step(&cursor, &name, value);) {
    char *plain = json_string(name);
    bool same = plain && strcmp(plain, key) == 0;
    free(plain);
    if (same) return true;
  }
  return false;
}

static uint32_t read_hex(const char *at) {
  uint32_t code = 0;
  for (int i = 0; i < 4; i++) code = code * 16 + (uint32_t)hex_digit(at[i]);
  return code;
}

static size_t put_utf8(char *to, uint32_t code) {
  if (code < 0x80) return to[0] = (char)code, 1;
  if (code < 0x800) return to[0] = (char)(0xC0 | code >> 6), to[1] = (char)(0x80 | (code & 0x3F)), 2;
  if (code < 0x10000) {
    to[0] = (char)(0xE0 | code >> 12), to[1] = (char)(0x80 | (code >> 6 & 0x3F)), to[2] = (char)(0x80 | (code & 0x3F));
    return 3;
  }
  to[0] = (char)(0xF0 | code >> 18), to[1] = (char)(0x80 | (code >> 12 & 0x3F));
  to[2] = (char)(0x80 | (code >> 6 & 0x3F)), to[3] = (char)(0x80 | (code & 0x3F));
  return 4;
}

char *json_string(json value) {
  if (value.end - value.at < 2 || *value.at != '"') return NULL;
  char *plain = need(malloc((size_t)(value.end - value.at))); /* no escape is longer than what it stands for */
  size_t length = 0;
  for (const char *at = value.at + 1; at < value.end - 1; at++) {
    if (*at != '\\') {
      plain[length++] = *at;
      continue;
    }
    static const char names[] = "bfnrt", values[] = "\b\f\n\r\t";
    const char *name = strchr(names, *++at);
    if (*at != 'u') {
      plain[length++] = name ? values[name - names] : *at;
      continue;
    }
    uint32_t code = read_hex(at + 1);
    at += 4;
    if (code >= 0xD800 && code < 0xDC00 && value.end - 1 - at > 6 && at[1] == '\\' && at[2] == 'u') {
      uint32_t low = read_hex(at + 3);
      if (low >= 0xDC00 && low < 0xE000) code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00), at += 6;
    }
    length += put_utf8(plain + length, code);
  }
  plain[length] = '\0';
  if (strlen(plain) == length) return plain;
  free(plain);
  return NULL;
}

bool json_number(json value, double *number) {
  char buffer[64];
  size_t length = (size_t)(value.end - value.at);
  if (length == 0 || length >= sizeof buffer || !(*value.at == '-' || is_digit(value.at, value.end))) return false;
  memcpy(buffer, value.at, length);
  buffer[length] = '\0';
  *number = strtod(buffer, NULL);
  return *number - *number == 0; /* finite */
}

bool json_is(json value, const char *literal) {
  return (size_t)(value.end - value.at) == strlen(literal) && memcmp(value.at, literal, strlen(literal)) == 0;
}

static void make_room(text *to, size_t more) {
  if (to->room - to->length > more) return;
  to->room = (to->length + more + 1) * 2;
  to->bytes = need(realloc(to->bytes, to->room));
}

void text_add(text *to, const char *format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  int length = vsnprintf(NULL, 0, format, arguments);
  if (length >= 0) {
    make_room(to, (size_t)length);
    vsnprintf(to->bytes + to->length, (size_t)length + 1, format, again);
    to->length += (size_t)length;
  }
  va_end(again);
  va_end(arguments);
}

void text_add_string(text *to, const char *value) {
  text_add(to, "\"");
  for (; *value; value++) {
    unsigned char c = (unsigned char)*value;
    if (c < 0x20 || c == '"' || c == '\\') text_add(to, "\\u%04x", c);
    else text_add(to, "%c", c);
  }
  text_add(to, "\"");
}
