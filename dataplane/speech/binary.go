package speech

import "slices"

// handshake reads a record of TLS up to the version in its first message.
func handshake(r *reader, kind byte, most uint32) {
	r.text("\x03")
	r.must(r.byte() <= 4)
	r.between(r.big(2), 6, 16384+256)
	r.must(r.byte() == kind)
	r.between(r.big(3), 38, most)
	r.text("\x03")
	r.must(r.byte() <= 4)
}

func tlsAsks(r *reader) {
	r.text("\x16")
	handshake(r, 1, 1<<17-1)
}

func tlsAnswers(r *reader) {
	switch r.byte() {
	case 22:
		handshake(r, 2, 1<<16-1)
	case 21:
		r.text("\x03")
		r.must(r.byte() <= 4)
		r.text("\x00\x02")
		r.between(r.big(1), 1, 2)
	default:
		r.must(false)
	}
}

func http2Answers(r *reader) {
	size := r.big(3)
	r.must(size <= 16384 && size%6 == 0)
	r.must(r.byte() == 4)
	r.must(r.byte()&1 == 0)
	r.text("\x00\x00\x00\x00")
}

func postgresqlAsks(r *reader) {
	size := r.between(r.big(4), 8, 10000)
	switch r.big(2) {
	case 2:
		r.must(size == 296)
	case 3:
		r.skip(2)
		r.must(size > 8)
		first := r.byte()
		r.must(letter(first) || first == '_' || first == 0 && size == 9)
	case 1234:
		switch r.big(2) {
		case 5678:
			r.between(size, 16, 268)
		case 5679, 5680:
			r.must(size == 8)
		default:
			r.must(false)
		}
	default:
		r.must(false)
	}
}

func postgresqlAnswers(r *reader) {
	switch r.byte() {
	case 'S': // agreed: TLS follows
		next := r.byte()
		r.must(next == 22 || next == 21)
		r.text("\x03")
	case 'N': // not agreed: what a server says otherwise, or to the next request
		r.must(slices.Contains([]byte("RESNv"), r.byte()))
		r.skip(1)
	case 'G':
		r.text("\x00")
	case 'R':
		r.must(r.between(r.big(4), 8, 1<<16-1) >= 8)
		r.between(r.big(4), 0, 20)
	case 'v':
		r.between(r.big(4), 8, 1<<16-1)
		r.must(r.big(2) == 3)
		r.skip(2)
	case 'E':
		r.between(r.big(4), 8, 1<<16-1)
		r.text("S")
	default:
		r.must(false)
	}
}

func mysqlAnswers(r *reader) {
	r.between(r.little(3), 9, 1024)
	r.text("\x00")
	switch r.byte() {
	case 10:
		version := []byte{r.byte(), r.byte(), r.byte()}
		r.must(digit(version[0]))
		r.must(version[1] == '.' && (digit(version[2]) || version[2] == '.') || digit(version[1]) && version[2] == '.')
	case 255:
		r.between(r.little(2), 1000, 4999)
		r.must(printable(r.byte()))
	default:
		r.must(false)
	}
}

func mysqlAsks(r *reader) {
	r.between(r.little(3), 32, 1<<16-1)
	r.text("\x01")
	r.must(r.little(2)&0x200 != 0)
	r.skip(7)
	for range 19 {
		r.text("\x00")
	}
}

func mongodb(r *reader) {
	r.between(r.little(4), 17, 48_000_000)
	r.skip(4)
	to := r.little(4)
	switch {
	case !r.Answers:
		r.must(to == 0 || to == 0xffffffff) // of old clients all ones
	case len(r.Asked) >= 8:
		r.must(to == (&reader{Heard: Heard{Bytes: r.Asked[4:8]}}).little(4))
	}
	switch r.little(4) {
	case 1:
		r.must(r.Answers && r.little(4) <= 15)
	case 2004:
		r.must(!r.Answers)
		r.skip(4)
		r.must(printable(r.byte()))
	case 2012:
		r.must(slices.Contains([]uint32{1, 2004, 2013}, r.little(4)))
		r.skip(4)
		r.must(r.byte() <= 3)
	case 2013:
		r.must(r.little(2)&^3 == 0)
		r.skip(2)
		r.must(r.byte() <= 1)
	default:
		r.must(false)
	}
}

func kafkaAsks(r *reader) {
	size := r.between(r.big(4), 10, 1<<19) // of the first request
	r.between(r.big(2), 0, 127)
	r.between(r.big(2), 0, 31)
	r.skip(4)
	switch name := r.big(2); {
	case name == 0xffff || name == 0:
	default:
		r.between(name, 1, min(32767, size-10))
		r.must(printable(r.byte()))
	}
}

func kafkaAnswers(r *reader) {
	r.between(r.big(4), 4, 100<<20)
	r.must(len(r.Asked) >= 12)
	r.text(string(r.Asked[8:12]))
}

// mqttLength reads a length of 7 bits a byte, and returns its first byte.
func mqttLength(r *reader) (first byte) {
	first = r.byte()
	for i, c := 1, first; c&0x80 != 0; i++ {
		r.must(i < 4)
		c = r.byte()
	}
	return first
}

func mqttAsks(r *reader) {
	r.text("\x10")
	mqttLength(r)
	r.text("\x00")
	switch r.byte() {
	case 4:
		r.text("MQTT")
		r.between(uint32(r.byte()&0x7f), 4, 5)
	case 6:
		r.text("MQIsdp")
		r.must(r.byte()&0x7f == 3)
	default:
		r.must(false)
	}
}

func mqttAnswers(r *reader) {
	switch r.byte() {
	case 0x20:
		size := mqttLength(r)
		r.must(size >= 2)
		r.must(r.byte() <= 1)
		code := r.byte()
		r.must(size != 2 || code <= 5)
	case 0xf0:
		mqttLength(r)
		r.must(r.byte() == 0x18)
	default:
		r.must(false)
	}
}

func amqpAsks(r *reader) {
	r.text("AMQP")
	r.must(slices.Contains([]string{"\x00\x00\x09\x01", "\x00\x01\x00\x00", "\x02\x01\x00\x00", "\x03\x01\x00\x00",
		"\x01\x01\x09\x01", "\x01\x01\x00\x09", "\x01\x01\x00\x0a", "\x01\x01\x08\x00"}, string([]byte{r.byte(), r.byte(), r.byte(), r.byte()})))
}

func amqpAnswers(r *reader) {
	if r.byte() != 1 {
		r.at = 0
		amqpAsks(r)
		return
	}
	r.text("\x00\x00")
	r.between(r.big(4), 4, 1<<20)
	r.text("\x00\x0a\x00\x0a")
}

func ldap(r *reader) {
	r.text("\x30")
	size := r.byte()
	switch {
	case size < 0x80:
		r.must(size >= 5)
	default:
		r.between(uint32(size), 0x81, 0x84)
		r.skip(int(size & 7))
	}
	r.text("\x02")
	id := r.between(r.big(1), 1, 4)
	r.skip(int(id))
	requests := []byte{0x42, 0x4a, 0x50, 0x60, 0x63, 0x66, 0x68, 0x6c, 0x6e, 0x77}
	responses := []byte{0x61, 0x64, 0x65, 0x67, 0x69, 0x6b, 0x6d, 0x6f, 0x73, 0x78, 0x79}
	if r.Answers {
		requests = responses
	}
	r.must(slices.Contains(requests, r.byte()))
}

func smbAsks(r *reader) {
	if r.byte() == 0x81 {
		// Two names of 34 to 255 bytes each; the lowest of the flags is the length's highest bit.
		r.between(r.big(3), 68, 2*255)
		r.text("\x20")
		for range 2 {
			r.between(r.big(1), 'A', 'P')
		}
		return
	}
	r.at = 0
	smbMessage(r)
}

func smbAnswers(r *reader) {
	switch r.byte() {
	case 0x82:
		r.text("\x00\x00\x00")
	case 0x83:
		r.text("\x00\x00\x01")
	case 0x84:
		r.text("\x00\x00\x06")
	default:
		r.at = 0
		smbMessage(r)
	}
}

func smbMessage(r *reader) {
	r.text("\x00")
	r.must(r.big(3) >= 32)
	switch r.byte() {
	case 0xff:
		r.text("SMB\x72")
	case 0xfe:
		r.text("SMB\x40\x00")
		r.skip(6)
		r.text("\x00\x00")
	default:
		r.must(false)
	}
}

// rdpHead reads a TPKT and the head of X.224, and returns the TPKT's size.
func rdpHead(r *reader, kind byte) uint32 {
	r.text("\x03\x00")
	size := r.between(r.big(2), 11, 1024)
	length := r.byte()
	r.must(length == 255 || uint32(length) == size-5 && size-5 < 256)
	r.must(r.byte() == kind)
	to := r.big(2)
	r.must(kind == 0xd0 || to == 0)
	r.skip(2)
	r.text("\x00")
	return size
}

func rdpNegotiation(r *reader, size uint32) {
	r.must(size >= 19)
	r.skip(1)
	r.text("\x08\x00")
}

func rdpAsks(r *reader) {
	size := rdpHead(r, 0xe0)
	if size == 11 {
		return
	}
	switch r.byte() {
	case 1:
		rdpNegotiation(r, size)
	case 'C':
		r.text("ookie: ")
	case 't':
		r.text("sv://")
	default:
		r.must(false)
	}
}

func rdpAnswers(r *reader) {
	size := rdpHead(r, 0xd0)
	if size == 11 {
		return
	}
	r.between(r.big(1), 2, 3)
	rdpNegotiation(r, size)
}
