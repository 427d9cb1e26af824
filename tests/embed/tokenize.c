/* Prints the tokens of texts: FOLDER, and a file of texts, each behind its number of bytes and a line feed. */
#include <inttypes.h>
#include "tiny_tokenizer.h"

int main(int count, char **words) {
    static tiny_tokens tokens;
    tiny_tokenizer tokenizer;
    unsigned long bytes;
    FILE *file = count == 3 ? fopen(words[2], "rb") : NULL;
    const char *error = file ? tiny_tokenizer_open(&tokenizer, words[1]) : "no file of texts";
    if (error) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    while (fscanf(file, "%lu", &bytes) == 1) {
        char *text = (char *)malloc(bytes ? bytes : 1); /* no byte more, so that a sanitizer sees what is read behind it */
        size_t i;
        if (fgetc(file) != '\n' || !text || fread(text, 1, bytes, file) != bytes) return 1;
        tiny_tokenize(&tokenizer, text, bytes, &tokens);
        free(text);
        for (i = 0; i < tokens.length; i++)
            printf("%" PRId64 ".%" PRId64 ".%" PRId64 ".%" PRId64 " ", tokens.ids[i], tokens.mask[i], tokens.segments[i], tokens.positions[i]);
        printf("\n");
    }
    tiny_tokenizer_close(&tokenizer);
    fclose(file);
    return 0;
}
