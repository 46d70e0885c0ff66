// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Readings of protocols that begin with binary headers, over streams.
#pragma once

// RFC 8446 and 5246: a record of the handshake that begins with a ClientHello.
STAGE int tls_asks(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(1, b[0] == 22);
	MUST(3, b[1] == 3 && b[2] <= 4);
	MUST(5, within(big16(b + 3), 6, 16384 + 256));
	MUST(6, b[5] == 1);
	MUST(9, b[6] <= 1 && (b[6] || big16(b + 7) >= 38));
	MUST(11, b[9] == 3 && b[10] <= 4);
	return SPEECH_YES;
}

// A ServerHello, or an alert that refuses the client's.
STAGE int tls_answers(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(1, b[0] == 22 || b[0] == 21);
	MUST(3, b[1] == 3 && b[2] <= 4);
	if (b[0] == 21) {
		MUST(5, big16(b + 3) == 2);
		MUST(6, b[5] == 1 || b[5] == 2);
		return SPEECH_YES;
	}
	MUST(5, within(big16(b + 3), 6, 16384 + 256));
	MUST(6, b[5] == 2);
	MUST(9, b[6] == 0 && big16(b + 7) >= 38);
	MUST(11, b[9] == 3 && b[10] <= 4);
	return SPEECH_YES;
}

// RFC 9113: a server begins with SETTINGS, which acknowledge nothing.
STAGE int http2_answers(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(3, b[0] == 0 && big16(b + 1) <= 16384 && big16(b + 1) % 6 == 0);
	MUST(4, b[3] == 4);
	MUST(5, !(b[4] & 1));
	MUST(9, big32(b + 5) == 0);
	return SPEECH_YES;
}

// PostgreSQL's frontend: a startup of version 3 or 2, or a request to encrypt by TLS or
// GSSAPI, or to cancel.
STAGE int postgresql_asks(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(4, within(big32(b), 8, 10000)); // MAX_STARTUP_PACKET_LENGTH
	__u32 size = big32(b);
	MUST(6, big16(b + 4) == 3 || big16(b + 4) == 1234 || (big16(b + 4) == 2 && size == 296));
	if (b[5] == 2)
		return SPEECH_YES; // before 7.4: fields of fixed sizes
	if (b[5] == 3) {
		// A version, then names and values, each ended by a zero byte.
		MUST(9, size > 8 && (within(b[8] | 0x20, 'a', 'z') || b[8] == '_' || (b[8] == 0 && size == 9)));
		return SPEECH_YES;
	}
	MUST(8, within(big16(b + 6), 5678, 5680));
	// The key to cancel by has 4 bytes, or up to 256 from version 3.2 on.
	MUST(8, big16(b + 6) == 5678 ? within(size, 16, 268) : size == 8);
	return SPEECH_YES;
}

// One letter answers the requests to encrypt; what follows is what was agreed on.
static __always_inline int postgresql_agrees(const struct speech *s)
{
	const __u8 *b = s->bytes;
	if (b[0] == 'G') {
		MUST(2, b[1] == 0); // length of a token of GSSAPI
		return SPEECH_YES;
	}
	MUST(2, b[1] == (b[0] == 'S' ? 22 : 'R') || (b[0] == 'S' && b[1] == 21) ||
			(b[0] == 'N' && (b[1] == 'E' || b[1] == 'S' || b[1] == 'N' || b[1] == 'v')));
	MUST(3, b[0] != 'S' || b[2] == 3);
	return SPEECH_YES;
}

STAGE int postgresql_answers(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(1, b[0] == 'R' || b[0] == 'E' || b[0] == 'S' || b[0] == 'N' || b[0] == 'G' || b[0] == 'v');
	if (b[0] == 'S' || b[0] == 'N' || b[0] == 'G')
		return postgresql_agrees(s);
	MUST(3, b[1] == 0 && b[2] == 0);
	MUST(5, big32(b + 1) >= 8);
	if (b[0] == 'E') {
		MUST(6, b[5] == 'S'); // the severity comes first
		return SPEECH_YES;
	}
	MUST(7, big16(b + 5) == (b[0] == 'v' ? 3 : 0));
	MUST(9, b[0] == 'v' || big16(b + 7) <= 20); // a way to authenticate
	return SPEECH_YES;
}

// MySQL: the server speaks first, a packet of protocol 10 with its version, or an
// error: too many connections, or a host that it does not want.
STAGE int mysql_answers(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(3, b[2] == 0 && within(b[1] << 8 | b[0], 9, 1024));
	MUST(4, b[3] == 0);
	MUST(5, b[4] == 10 || b[4] == 255);
	if (b[4] == 255) {
		MUST(7, within(b[6] << 8 | b[5], 1000, 4999)); // numbers of a server's errors
		MUST(8, b[7] == '#' || is_printable(b[7]));
		return SPEECH_YES;
	}
	MUST(6, is_digit(b[5]));
	MUST(7, is_digit(b[6]) || b[6] == '.');
	MUST(8, is_digit(b[7]) || b[7] == '.');
	return b[6] == '.' || b[7] == '.' ? SPEECH_YES : SPEECH_NO;
}

// A client answers with what it can do: protocol 4.1 and 19 zero bytes.
STAGE int mysql_asks(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(3, b[2] == 0 && (b[1] << 8 | b[0]) >= 32);
	MUST(4, b[3] == 1);
	MUST(6, b[5] & 2);
	__u32 said = 0;
#pragma unroll
	for (int i = 13; i < 32; i++)
		said |= b[i];
	MUST(32, !said);
	return SPEECH_YES;
}

// MongoDB: a header of 16 bytes, the code of the operation last.
STAGE int mongodb_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(4, within(little32(b), 17, 48000000));
	MUST(12, s->answers ? s->asked_length < 8 || little32(b + 8) == little32(s->asked + 4) : little32(b + 8) + 1 <= 1); // of old clients all ones
	MUST(16, b[14] == 0 && b[15] == 0);
	__u32 code = b[13] << 8 | b[12];
	switch (code) {
	case 2013: // OP_MSG: flags, of which few are defined, and a kind of section
		MUST(18, b[17] == 0 && !(b[16] & ~3));
		MUST(21, b[20] <= 1);
		return SPEECH_YES;
	case 2012: // OP_COMPRESSED: of which operation, its size, and how
		MUST(20, little32(b + 16) == 2013 || little32(b + 16) == 2004 || little32(b + 16) == 1);
		MUST(25, b[24] <= 3);
		return SPEECH_YES;
	case 2004: // OP_QUERY: flags, and a collection's name
		MUST(21, !s->answers && is_printable(b[20]));
		return SPEECH_YES;
	case 1: // OP_REPLY: flags, a cursor, an offset, a number of documents
		MUST(20, s->answers && little32(b + 16) <= 15);
		return SPEECH_YES;
	}
	return SPEECH_NO;
}

// Kafka: size, the request's kind and version, a number to answer by, and the
// client's name, which may be missing.
STAGE int kafka_asks(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(4, within(big32(b), 10, 1 << 19)); // of the first request
	MUST(6, big16(b + 4) <= 127);
	MUST(8, big16(b + 6) <= 31);
	MUST(14, big16(b + 12) == 0xffff || big16(b + 12) <= 32767);
	__u32 name = big16(b + 12);
	if (name == 0xffff || name == 0)
		return SPEECH_YES;
	if (name > big32(b) - 10)
		return SPEECH_NO;
	MUST(15, is_printable(b[14]));
	return SPEECH_YES;
}

STAGE int kafka_answers(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(4, within(big32(b), 4, 100 << 20));
	if (s->asked_length < 12)
		return SPEECH_NO; // a broker never speaks first
	MUST(8, big32(b + 4) == big32(s->asked + 8));
	return SPEECH_YES;
}

// Reads a length of MQTT, of 1 to 4 bytes with 7 bits each, from the second byte
// on; where it ends goes to end. Of what it says only the lowest bits are needed.
static __always_inline int mqtt_length(const struct speech *s, __u32 *end)
{
#pragma unroll
	for (__u32 i = 1; i <= 4; i++) {
		if (s->length <= i)
			return SPEECH_MORE;
		*end = i + 1;
		if (!(s->bytes[i] & 0x80))
			return SPEECH_YES;
	}
	return SPEECH_NO;
}

// MQTT 3.1, 3.1.1 and 5: CONNECT, the protocol's name and version. The version's
// highest bit says that a bridge connects.
STAGE int mqtt_asks(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	__u32 at = 2;
	MUST(1, b[0] == 0x10);
	int length = mqtt_length(s, &at);
	if (length != SPEECH_YES)
		return length;
	MUST(at + 2, !byte_at(s, at) && (byte_at(s, at + 1) == 4 || byte_at(s, at + 1) == 6));
	bool old = byte_at(s, at + 1) == 6;
	int name = old ? says(s, at + 2, "MQIsdp", 6) : says(s, at + 2, "MQTT", 4);
	if (name != SPEECH_YES)
		return name;
	at += old ? 8 : 6;
	MUST(at + 1, old ? (byte_at(s, at) & 0x7f) == 3 : (byte_at(s, at) & 0x7f) == 4 || (byte_at(s, at) & 0x7f) == 5);
	return SPEECH_YES;
}

// CONNACK, or of version 5 a request to authenticate further.
STAGE int mqtt_answers(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	__u32 at = 2;
	MUST(1, b[0] == 0x20 || b[0] == 0xf0);
	int length = mqtt_length(s, &at);
	if (length != SPEECH_YES)
		return length;
	if (b[0] == 0xf0) {
		MUST(at + 1, byte_at(s, at) == 0x18); // continue to authenticate
		return SPEECH_YES;
	}
	if (b[1] < 2)
		return SPEECH_NO;
	MUST(at + 1, byte_at(s, at) <= 1);
	MUST(at + 2, b[1] != 2 || byte_at(s, at + 1) <= 5);
	return SPEECH_YES;
}

// AMQP: a header with the version; a broker of 0-9-1 answers with the method
// connection.start, others with a header.
STAGE int amqp_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	if (s->answers && s->length && b[0] == 1) {
		MUST(3, big16(b + 1) == 0);
		MUST(7, within(big32(b + 3), 4, 1 << 20));
		MUST(11, big32(b + 7) == 0x000a000a);
		return SPEECH_YES;
	}
	int header = says(s, 0, "AMQP", 4);
	if (header != SPEECH_YES)
		return header;
	MUST(8, big32(b + 4) == 0x00000901 || // 0-9-1
			big32(b + 4) == 0x00010000 || big32(b + 4) == 0x02010000 || big32(b + 4) == 0x03010000 || // 1.0, TLS, SASL
			big32(b + 4) == 0x01010901 || big32(b + 4) == 0x01010009 || big32(b + 4) == 0x0101000a || big32(b + 4) == 0x01010800); // 0-9, 0-10, 0-8
	return SPEECH_YES;
}

static __always_inline bool is_ldap_request(__u8 tag)
{
	switch (tag) {
	case 0x60: case 0x42: case 0x63: case 0x66: case 0x68: case 0x4a: case 0x6c: case 0x6e: case 0x50: case 0x77:
		return true;
	}
	return false;
}

static __always_inline bool is_ldap_response(__u8 tag)
{
	switch (tag) {
	case 0x61: case 0x64: case 0x65: case 0x67: case 0x69: case 0x6b: case 0x6d: case 0x6f: case 0x73: case 0x78: case 0x79:
		return true;
	}
	return false;
}

// RFC 4511: a sequence of a number and an operation, in BER. Over datagrams too
// (RFC 1798, as directories of Windows are found).
STAGE int ldap_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(1, b[0] == 0x30);
	MUST(2, b[1] < 0x80 ? b[1] >= 5 : within(b[1], 0x81, 0x84));
	__u32 at = b[1] < 0x80 ? 2 : 2 + (b[1] & 7);
	MUST(at + 1, byte_at(s, at) == 2);
	MUST(at + 2, within(byte_at(s, at + 1), 1, 4));
	__u32 op = at + 2 + (byte_at(s, at + 1) & 7);
	MUST(op + 1, s->answers ? is_ldap_response(byte_at(s, op)) : is_ldap_request(byte_at(s, op)));
	return SPEECH_YES;
}

// SMB 1 to 3 negotiate first, in a frame of a NetBIOS session, which over port 139
// is asked for first.
STAGE int smb_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(1, b[0] == 0 || (s->answers ? within(b[0], 0x82, 0x84) : b[0] == 0x81));
	if (b[0] == 0x81) { // two names, each coded into 34 to 255 bytes (RFC 1002, 4.3.2; RFC 883)
		MUST(4, b[1] == 0 && within(big16(b + 2), 68, 510));
		MUST(5, b[4] == 32);
		MUST(7, within(b[5], 'A', 'P') && within(b[6], 'A', 'P'));
		return SPEECH_YES;
	}
	if (b[0]) {
		MUST(4, b[1] == 0 && big16(b + 2) == (b[0] == 0x82 ? 0 : b[0] == 0x83 ? 1 : 6));
		return SPEECH_YES;
	}
	MUST(4, b[1] || big16(b + 2) >= 32);
	MUST(5, b[4] == 0xff || b[4] == 0xfe);
	int magic = says(s, 5, "SMB", 3);
	if (magic != SPEECH_YES)
		return magic;
	if (b[4] == 0xff) {
		MUST(9, b[8] == 0x72);
		return SPEECH_YES;
	}
	MUST(10, b[8] == 64 && b[9] == 0);
	MUST(18, b[16] == 0 && b[17] == 0);
	return SPEECH_YES;
}

// RDP: a TPKT with a request to connect (X.224), and in it a cookie, a token or
// what may be negotiated, if anything.
STAGE int rdp_says(const struct speech *s)
{
	if (!s)
		return SPEECH_NO;
	const __u8 *b = s->bytes;
	MUST(2, b[0] == 3 && b[1] == 0);
	MUST(4, within(big16(b + 2), 11, 1024));
	__u32 size = big16(b + 2);
	MUST(5, b[4] == 255 || b[4] == size - 5);
	MUST(6, b[5] == (s->answers ? 0xd0 : 0xe0));
	MUST(8, s->answers || big16(b + 6) == 0);
	MUST(11, b[10] == 0);
	if (size == 11)
		return SPEECH_YES;
	if (s->answers) {
		MUST(12, b[11] == 2 || b[11] == 3);
		MUST(15, size >= 19 && b[13] == 8 && b[14] == 0);
		return SPEECH_YES;
	}
	MUST(12, b[11] == 1 || b[11] == 'C' || b[11] == 't');
	if (b[11] == 1) {
		MUST(15, size >= 19 && b[13] == 8 && b[14] == 0);
		return SPEECH_YES;
	}
	return b[11] == 'C' ? says(s, 11, "Cookie: ", 8) : says(s, 11, "tsv://", 6);
}
