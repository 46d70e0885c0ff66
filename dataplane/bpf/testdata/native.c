// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The pure parts of the programs as a native library: what native_main.c fuzzes.

#include "../parse.h"
#include "../speech.h"

// Reads a frame; its memory ends where the frame does.
int native_parse(void *data, unsigned size)
{
	struct packet p = {};
	struct frame f = {.data = data, .end = data + size, .length = size};
	return parse(&f, &p);
}

// Reads the beginning of a stream or a datagram as every protocol, and checks what
// readings promise of the parts of it. Returns what is spoken, or -1 for a broken
// promise.
int native_speech(struct speech *s, const __u8 *bytes, unsigned size, unsigned *broken)
{
	__u32 total = size < SPEECH_WINDOW ? size : SPEECH_WINDOW;
	__u32 before[SPEECH_PROTOCOLS + 1];
	for (__u32 p = 1; p <= SPEECH_PROTOCOLS; p++)
		before[p] = SPEECH_MORE;
	for (__u32 n = 0; n <= total; n++) {
		if (n)
			s->bytes[n - 1] = bytes[n - 1];
		s->length = n;
		if (s->datagram && n < total)
			continue;
		for (__u32 p = 1; p <= SPEECH_PROTOCOLS; p++) {
			__u32 said = speaks(s, p);
			*broken = p;
			if (before[p] != SPEECH_MORE && said != before[p])
				return -1; // said otherwise of less
			if (said == SPEECH_MORE && (s->datagram || n == SPEECH_WINDOW))
				return -1; // does not know of all
			before[p] = said;
		}
	}
	return classify(s);
}
