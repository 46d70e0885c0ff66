// Package speech is the model of protocol verification: which application
// protocol a flow speaks, by the first bytes of each direction, and what becomes
// of a flow that must speak one. It is written by the protocols' own documents and
// apart from the eBPF programs, which must come to the same answers; tests compare
// them on captures, on everything near them, and on random bytes.
//
// It promises to be pure and total, and to answer from a prefix what stays true of
// every longer one. It never looks at ports.
package speech

import (
	"bocage.dev/bocage"
)

// Window is how many of the first bytes of a direction are read. A reading that
// has all of them, or all of a datagram, must know.
const Window = 64

// AskedWindow is how many bytes of the other direction an answer is read with.
const AskedWindow = 16

// Answer is what a reading says of a beginning.
type Answer uint8

// Answers.
const (
	No Answer = iota
	More
	Yes
)

func (a Answer) String() string { return [...]string{"no", "more", "yes"}[a] }

// Heard is what was heard of one direction of a flow.
type Heard struct {
	// Bytes are the first ones, without a gap.
	Bytes []byte
	// Datagram is the length of the whole payload, if it is one; 0: a stream.
	Datagram int
	// Answers says that the side that was connected to speaks; Asked is then what
	// is known of the other side's first bytes.
	Answers bool
	Asked   []byte
}

// Read says whether this is how a protocol begins.
func Read(p bocage.AppProtocol, h Heard) Answer {
	h.Bytes = h.Bytes[:min(len(h.Bytes), Window)]
	answer := read(p, h)
	if answer == More && (len(h.Bytes) == Window || h.Datagram > 0) {
		return No
	}
	return answer
}

// Classify names what is spoken: a protocol, SpeechOther, or SpeechUnknown while
// it may still become one.
func Classify(h Heard) bocage.AppProtocol {
	more := false
	for p := bocage.SpeechTLS; p <= bocage.SpeechRedis; p++ {
		switch Read(p, h) {
		case Yes:
			return p
		case More:
			more = true
		}
	}
	if more {
		return bocage.SpeechUnknown
	}
	return bocage.SpeechOther
}

func read(p bocage.AppProtocol, h Heard) (answer Answer) {
	grammar := grammars[p]
	switch {
	case h.Datagram > 0 && h.Answers:
		return try(grammar.datagramAnswers, h)
	case h.Datagram > 0:
		return try(grammar.datagramAsks, h)
	case h.Answers:
		return try(grammar.answers, h)
	}
	return try(grammar.asks, h)
}

// grammar is how a protocol begins; nil: it does not.
type grammar struct {
	asks, answers                 func(*reader)
	datagramAsks, datagramAnswers func(*reader)
}

var grammars = [...]grammar{
	bocage.SpeechTLS:        {tlsAsks, tlsAnswers, dtlsAsks, dtlsAnswers},
	bocage.SpeechHTTP:       {asks: httpAsks, answers: httpAnswers},
	bocage.SpeechHTTP2:      {asks: http2Asks, answers: http2Answers},
	bocage.SpeechSSH:        {asks: sshAsks, answers: sshAnswers},
	bocage.SpeechPostgreSQL: {asks: postgresqlAsks, answers: postgresqlAnswers},
	bocage.SpeechMySQL:      {asks: mysqlAsks, answers: mysqlAnswers},
	bocage.SpeechMongoDB:    {asks: mongodb, answers: mongodb},
	bocage.SpeechKafka:      {asks: kafkaAsks, answers: kafkaAnswers},
	bocage.SpeechMQTT:       {asks: mqttAsks, answers: mqttAnswers},
	bocage.SpeechAMQP:       {asks: amqpAsks, answers: amqpAnswers},
	bocage.SpeechLDAP:       {ldap, ldap, ldap, ldap},
	bocage.SpeechSMB:        {asks: smbAsks, answers: smbAnswers},
	bocage.SpeechRDP:        {asks: rdpAsks, answers: rdpAnswers},
	bocage.SpeechDNS:        {dns, dns, dns, dns},
	bocage.SpeechNTP:        {datagramAsks: ntp, datagramAnswers: ntp},
	bocage.SpeechQUIC:       {datagramAsks: quicAsks, datagramAnswers: quicAnswers},
	bocage.SpeechMemcached:  {memcached, memcached, memcached, memcached},
	bocage.SpeechRedis:      {asks: redisAsks, answers: redisAnswers},
}

// try runs a grammar, which ends early by leaving with its answer.
func try(grammar func(*reader), h Heard) (answer Answer) {
	if grammar == nil {
		return No
	}
	defer func() {
		switch left := recover().(type) {
		case nil:
		case Answer:
			answer = left
		default:
			panic(left)
		}
	}()
	grammar(&reader{Heard: h})
	return Yes
}

// reader reads a beginning from left to right, and leaves the grammar where it
// ends or cannot be what it should.
type reader struct {
	Heard
	at int
}

func (r *reader) byte() byte {
	if r.at >= len(r.Bytes) {
		panic(More)
	}
	r.at++
	return r.Bytes[r.at-1]
}

func (r *reader) skip(n int) {
	for range n {
		r.byte()
	}
}

// big reads a number, the most significant byte first.
func (r *reader) big(bytes int) (n uint32) {
	for range bytes {
		n = n<<8 | uint32(r.byte())
	}
	return n
}

func (r *reader) little(bytes int) (n uint32) {
	for i := range bytes {
		n |= uint32(r.byte()) << (8 * i)
	}
	return n
}

func (r *reader) must(condition bool) {
	if !condition {
		panic(No)
	}
}

func (r *reader) between(n, least, most uint32) uint32 {
	r.must(least <= n && n <= most)
	return n
}

func (r *reader) text(s string) {
	for i := range len(s) {
		r.must(r.byte() == s[i])
	}
}

// until reads bytes of a kind, at most so many, up to and with one that ends them.
func (r *reader) until(most int, ends, of func(byte) bool) string {
	var word []byte
	for {
		c := r.byte()
		if ends(c) {
			return string(word)
		}
		r.must(of(c) && len(word) < most)
		word = append(word, c)
	}
}

func printable(c byte) bool { return ' ' <= c && c <= '~' }
func digit(c byte) bool     { return '0' <= c && c <= '9' }
func upper(c byte) bool     { return 'A' <= c && c <= 'Z' }
func letter(c byte) bool    { return upper(c &^ 0x20) }
func blank(c byte) bool     { return c == ' ' || c == '\r' || c == '\n' }
