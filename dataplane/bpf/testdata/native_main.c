// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Mutates what it reads and gives it to native.c, built with sanitizers:
//
//	native COUNT SEED < INPUTS
//
// Inputs are lines of a letter and hex: f, a frame; s, a stream's beginning; d, a
// datagram; n, a message of the DNS. With a COUNT of 0 nothing is mutated, and the
// addresses that messages of the DNS tell are printed, a line for each.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct speech;
int native_parse(void *data, unsigned size);
int native_speech(struct speech *s, const uint8_t *bytes, unsigned size, unsigned *broken);
struct message;
int native_dns(struct message *m, const uint8_t *bytes, unsigned size);
int native_addresses(struct message *m, uint8_t *to, unsigned room);
unsigned native_dns_size(void);

#define INPUTS 4096
#define LONGEST 4096

static struct {
	char kind;
	unsigned size;
	uint8_t bytes[LONGEST];
} inputs[INPUTS];
static unsigned count;
static uint64_t state;

static uint32_t draw(uint32_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 16) % below;
}

static void read_inputs(void)
{
	static char line[2 * LONGEST + 8];
	while (count < INPUTS && fgets(line, sizeof(line), stdin)) {
		unsigned value, n = 0;
		for (char *at = line + 2; n < LONGEST && sscanf(at, "%2x", &value) == 1; at += 2)
			inputs[count].bytes[n++] = value;
		inputs[count].kind = line[0];
		inputs[count++].size = n;
	}
}

int main(int argc, char **argv)
{
	static const uint8_t edges[] = {0, 1, 2, 3, 0x7f, 0x80, 0xfe, 0xff, ' ', '\r', '\n', '/', '$', '*', 0x30, 0x82};
	unsigned long rounds = strtoul(argv[1], NULL, 0);
	unsigned long known = 0, whole = 0, records = 0;
	state = strtoull(argv[2], NULL, 0) | 1;
	read_inputs();
	if (!count)
		return 2;
	struct message *m = malloc(native_dns_size());
	memset(m, 0xa5, native_dns_size());
	for (unsigned i = 0; !rounds && i < count; i++) {
		uint8_t told[64 * 20];
		int read = native_dns(m, inputs[i].bytes, inputs[i].size), n = read > 0 ? native_addresses(m, told, 64) : 0;
		for (int at = 0; at < n; at++) {
			uint32_t ttl;
			memcpy(&ttl, told + at * 20, 4);
			printf("%s%u ", at ? " " : "", ttl);
			for (int k = 4; k < 20; k++)
				printf("%02x", told[at * 20 + k]);
		}
		printf("\n");
	}
	if (!rounds) {
		free(m);
		return 0;
	}
	for (unsigned long i = 0; i < rounds; i++) {
		unsigned which = draw(count), size = inputs[which].size;
		uint8_t copy[LONGEST];
		memcpy(copy, inputs[which].bytes, size);
		for (unsigned n = draw(6); n && size; n--) {
			unsigned at = draw(draw(2) && size > 16 ? 16 : size);
			copy[at] = draw(2) ? edges[draw(sizeof(edges))] : copy[at] ^ 1 << draw(8);
		}
		if (!draw(3))
			size = draw(size + 1);
		uint8_t *exact = malloc(size ? size : 1); // so that one byte too far is noticed
		memcpy(exact, copy, size);
		if (inputs[which].kind == 'f') {
			int read = native_parse(exact, size);
			if (read < 0) {
				fprintf(stderr, "tags that are not there:");
				for (unsigned n = 0; n < size; n++)
					fprintf(stderr, " %02x", exact[n]);
				fprintf(stderr, "\n");
				return 5;
			}
			whole += read;
		} else if (inputs[which].kind == 'n') {
			int read = native_dns(m, exact, size);
			if (read < 0)
				return 4;
			records += read;
		} else {
			// struct speech: bytes[64], asked[16], length, asked_length, datagram, answers
			uint32_t *s = calloc(1, 96);
			memcpy((uint8_t *)s + 64, inputs[draw(count)].bytes, 16);
			s[21] = draw(17);
			s[22] = inputs[which].kind == 'd' ? size + draw(1500) + 1 : 0;
			s[23] = draw(2);
			unsigned broken = 0;
			int spoken = native_speech((struct speech *)s, exact, size, &broken);
			if (spoken < 0) {
				fprintf(stderr, "protocol %u answers otherwise of a part, or not of all:", broken);
				for (unsigned n = 0; n < size; n++)
					fprintf(stderr, " %02x", exact[n]);
				fprintf(stderr, "\n");
				return 1;
			}
			known += spoken > 0 && spoken < 254;
			free(s);
		}
		free(exact);
	}
	free(m);
	printf("%lu frames, %lu protocols, %lu records\n", whole, known, records);
	return whole && known && records ? 0 : 3;
}
