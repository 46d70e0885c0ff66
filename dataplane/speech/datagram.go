package speech

import (
	"slices"
	"strings"
)

func dtlsAsks(r *reader)    { dtls(r, "\x01", 0) }
func dtlsAnswers(r *reader) { dtls(r, "\x02\x03", 21) }

// dtls reads the first record: a message of the handshake of one of some kinds,
// or an alert where one may be.
func dtls(r *reader, kinds string, alert byte) {
	content := r.byte()
	r.text("\xfe")
	version := r.byte()
	r.must(version == 0xfd || version == 0xff)
	r.text("\x00\x00")
	r.skip(6)
	size := r.big(2)
	r.must(int(size)+13 <= r.Datagram)
	if content == 21 {
		r.must(alert == 21 && size == 2)
		r.skip(1)
		return
	}
	r.must(content == 22 && size >= 12)
	r.must(strings.IndexByte(kinds, r.byte()) >= 0)
}

func dns(r *reader) {
	if r.Datagram == 0 {
		r.must(r.big(2) >= 12)
	}
	multicast := r.big(2) == 0 && r.Datagram > 0
	flags := r.byte()
	opcode := flags >> 3 & 15
	r.must(flags>>7 == 1 == r.Answers)
	r.must(opcode <= 6 && opcode != 3)
	flags = r.byte()
	r.must(flags&0x40 == 0)
	r.must(r.Answers || flags&15 == 0)
	questions := r.big(2)
	r.must(questions <= 1 || multicast && questions <= 255)
	answers, _, additional := r.big(2), r.big(2), r.big(2)
	if !r.Answers {
		r.must(answers == 0 || multicast || opcode == 4 || opcode == 5)
		r.must(additional <= 4)
	}
	if questions == 0 {
		r.must(r.Answers || opcode == 6 || additional > 0)
		return
	}
	for {
		if r.at >= Window {
			break
		}
		size := int(r.byte())
		r.must(size < 64)
		if size == 0 {
			r.at--
			break
		}
		r.at += size
	}
	// The name's end, a type, a class.
	if r.at+5 > Window {
		r.must(r.Datagram == 0 || r.Datagram >= r.at+5)
		return
	}
	r.skip(3)
	class := r.big(2) & 0x7fff
	r.must(1 <= class && class <= 4 || class == 254 || class == 255)
}

func ntp(r *reader) {
	first, second := r.byte(), r.byte()
	version, mode := first>>3&7, first&7
	r.must(1 <= version && version <= 4)
	switch {
	case mode == 6:
		r.must(first>>6 == 0 && second>>7 == 1 == r.Answers)
		code := second & 31
		r.must(code <= 12 || code == 31)
		r.skip(8)
		r.must(int(r.big(2))+12 <= r.Datagram)
		return
	case mode == 0:
		r.must(version == 1) // which had no modes
	case mode == 3:
		r.must(!r.Answers)
	case mode == 4:
		r.must(r.Answers)
	default:
		r.must(mode == 1 || mode == 2 || mode == 5)
	}
	r.must(second <= 16)
	r.must(r.Datagram >= 48 && r.Datagram%4 == 0)
}

func quicAsks(r *reader) {
	first, version, size := r.byte(), r.big(4), r.byte()
	r.skip(1)
	r.must(first>>6 == 3 && size <= 20 && r.Datagram >= 1200 && quicVersion(version))
	kind := first >> 4 & 3
	r.must(version != 1 || kind == 0)
	r.must(version != 0x6b3343cf || kind == 1)
}

// quicVersion knows 1 and 2, drafts, and those that are there to be refused.
func quicVersion(v uint32) bool {
	return v == 1 || v == 0x6b3343cf || v>>8 == 0xff0000 || v&0x0f0f0f0f == 0x0a0a0a0a
}

func quicAnswers(r *reader) {
	first, version, size := r.byte(), r.big(4), r.byte()
	r.skip(1)
	r.must(first>>7 == 1 && size <= 20 && (version == 0 || first>>6 == 3 && quicVersion(version)))
}

// What a client and a server of memcached begin lines with. Of long words the
// first letters and the length are enough.
const (
	memcachedCommands = `mg ms md ma mn me get set add cas gat lru gets gats incr decr quit stats touch watch slabs
		delete append replace prepend version shutdown extstore lru_craw*** flush_al* verbosit* cache_me******`
	memcachedReplies = `HD VA EN NS EX NF MN ME OK END STAT BUSY VALUE ERROR RESET STORED EXISTS DELETED TOUCHED VERSION
		NOT_FOUN* NOT_STOR** CLIENT_E**** SERVER_E****`
)

// isOneOf reports whether a word is in a list; * stands for any letter.
func isOneOf(list, word string) bool {
	return slices.ContainsFunc(strings.Fields(list), func(known string) bool {
		start := strings.TrimRight(known, "*")
		return len(known) == len(word) && strings.HasPrefix(word, start)
	})
}

func memcached(r *reader) {
	if r.Datagram > 0 {
		r.skip(2)
		part, of := r.big(2), r.big(2)
		r.must(part < of && (r.Answers || of == 1))
		r.text("\x00\x00")
	}
	first := r.byte()
	if first >= 0x80 {
		r.must(r.Answers && first == 0x81 || !r.Answers && first == 0x80)
		r.between(r.big(1), 0, 0x48)
		key := r.between(r.big(2), 0, 250)
		extras := r.big(1)
		r.text("\x00")
		r.skip(2)
		r.between(extras, 0, 32)
		r.between(r.big(4), key+extras, 1<<30)
		return
	}
	r.must(printable(first))
	r.at--
	if r.Answers && digit(first) { // the value after incr
		r.number(false)
		return
	}
	word := r.until(longestWord, blank, printable)
	known := memcachedCommands
	if r.Answers {
		known = memcachedReplies
	}
	r.must(isOneOf(known, word))
}
