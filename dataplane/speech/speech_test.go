package speech_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/speech"
	"bocage.dev/bocage/dataplane/speech/speechtest"
)

func recorded(t testing.TB) []speechtest.Capture {
	t.Helper()
	all, err := speechtest.Captures()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What real programs say is their protocol, whole and from some prefix on, and is
// taken for no other, but where one beginning fits two.
func TestCaptures(t *testing.T) {
	spoken := map[bocage.AppProtocol]bool{}
	for _, c := range recorded(t) {
		spoken[c.Protocol] = true
		for _, h := range c.Sides() {
			if len(h.Bytes) == 1 {
				continue // agrees to encrypt, and what follows is not recorded
			}
			if got := speech.Read(c.Protocol, h); got != speech.Yes {
				t.Errorf("%s of %s, answers %v: %s: % x", c.Protocol, c.Program, h.Answers, got, h.Bytes)
			}
			if got := speech.Classify(h); got != c.Protocol {
				t.Errorf("%s of %s, answers %v: classified as %s: % x", c.Protocol, c.Program, h.Answers, got, h.Bytes)
			}
			for p := bocage.SpeechTLS; p <= bocage.SpeechRedis; p++ {
				both := p == bocage.SpeechRedis && c.Protocol == bocage.SpeechMemcached && !h.Answers // words are words
				if p != c.Protocol && !both && speech.Read(p, h) == speech.Yes {
					t.Errorf("%s of %s, answers %v: is %s too", c.Protocol, c.Program, h.Answers, p)
				}
			}
		}
	}
	for _, name := range bocage.AppProtocolNames() {
		var p bocage.AppProtocol
		if err := p.UnmarshalText([]byte(name)); err != nil || !spoken[p] {
			t.Errorf("no capture of %s: %v", name, err)
		}
	}
}

// Openings of many versions are their protocol, and are taken for no other, but where
// one beginning fits two: words that are commands of Redis and of memcached.
func TestOpenings(t *testing.T) {
	all, err := speechtest.Openings()
	if err != nil || len(all) < 200 {
		t.Fatalf("%d openings, %v", len(all), err)
	}
	for _, c := range all {
		for _, h := range c.Sides() {
			if got := speech.Read(c.Protocol, h); got != speech.Yes {
				t.Errorf("%s of %s, answers %v: %s: % x", c.Protocol, c.Program, h.Answers, got, h.Bytes)
			}
			if got := speech.Classify(h); got != c.Protocol && (got != bocage.SpeechMemcached || c.Protocol != bocage.SpeechRedis) {
				t.Errorf("%s of %s, answers %v: is taken for %s: % x", c.Protocol, c.Program, h.Answers, got, h.Bytes)
			}
		}
	}
}

// What is none of the protocols is other, as soon as all of a window is there.
func TestOthers(t *testing.T) {
	for _, other := range []struct {
		name  string
		bytes string
		heard speech.Heard
	}{
		{"a mail server", "220 mail.example ESMTP Postfix\r\n", speech.Heard{Answers: true}},
		{"a mail client", "EHLO mail.example\r\n", speech.Heard{}},
		{"POP3", "+OK POP3 ready <1896.69@x>\r\n", speech.Heard{Answers: true}},
		{"IMAP", "* OK [CAPABILITY IMAP4rev1] ready\r\n", speech.Heard{Answers: true}},
		{"FTP", "USER anonymous\r\n", speech.Heard{}},
		{"VNC", "RFB 003.008\n", speech.Heard{}},
		{"a shell", "id; uname -a\n", speech.Heard{}},
		{"SSH 1", "SSH-1.5-OpenSSH\r\n", speech.Heard{}},
		{"HTTP/0.9", "GET /\r\n", speech.Heard{}},
		{"HTTP/2 in HTTP/1", "GET / HTTP/2.0\r\n", speech.Heard{}},
		{"SIP", "OPTIONS sip:nm SIP/2.0\r\n", speech.Heard{}},
		{"BGP", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x1d\x01", speech.Heard{}},
		{"Kerberos", "\x00\x00\x00\xb1\x6a\x81\xae\x30\x81\xab\xa1\x03\x02\x01\x05", speech.Heard{}},
		{"SOCKS 5", "\x05\x01\x00", speech.Heard{}},
		{"S7, in the same frames as RDP", "\x03\x00\x00\x16\x11\xe0\x00\x00\x00\x01\x00\xc0\x01\x0a\xc1\x02", speech.Heard{}},
		{"Modbus", "\x00\x01\x00\x00\x00\x06\x11\x03\x00\x6b\x00\x03", speech.Heard{}},
		{"SSL 2", "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", speech.Heard{}},
		{"SNMP", "\x30\x26\x02\x01\x01\x04\x06public", speech.Heard{Datagram: 40}},
		{"DHCP", "\x01\x01\x06\x00\x39\x03\xf3\x26", speech.Heard{Datagram: 300}},
		{"WireGuard", "\x01\x00\x00\x00\xd8\x1c\x9e\x02", speech.Heard{Datagram: 148}},
		{"syslog", "<34>Oct 11 22:14:15 su: failed", speech.Heard{Datagram: 30}},
		{"monlist, which amplifies", "\x17\x00\x03\x2a\x00\x00\x00\x00", speech.Heard{Datagram: 48}},
		{"a response where a query belongs", "\x00\x01\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01", speech.Heard{Datagram: 30}},
		{"noise", "\x9d\x11\x7a\x80\x42\x00\x10\xee", speech.Heard{}},
	} {
		h := other.heard
		h.Bytes = []byte(other.bytes)
		for len(h.Bytes) < speech.Window && h.Datagram == 0 {
			h.Bytes = append(h.Bytes, other.bytes...)
		}
		if got := speech.Classify(h); got != bocage.SpeechOther {
			t.Errorf("%s is taken for %q", other.name, got)
		}
	}
}

// An answer from a prefix stays true of all that is longer.
func TestAnswersStay(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	all := recorded(t)
	for range 20_000 {
		h := speechtest.Mutate(random, all)
		h.Datagram = 0
		for p := bocage.SpeechTLS; p <= bocage.SpeechRedis; p++ {
			checkStays(t, p, h)
		}
	}
}

func checkStays(t testing.TB, p bocage.AppProtocol, h speech.Heard) {
	t.Helper()
	before := speech.More
	for n := range len(h.Bytes) + 1 {
		part := h
		part.Bytes = h.Bytes[:n]
		answer := speech.Read(p, part)
		if before != speech.More && answer != before {
			t.Fatalf("%s said %s of %d bytes and %s of %d: % x", p, before, n-1, answer, n, h.Bytes)
		}
		before = answer
	}
	if len(h.Bytes) == speech.Window && before == speech.More {
		t.Fatalf("%s does not know of a whole window: % x", p, h.Bytes)
	}
}

func FuzzRead(f *testing.F) {
	for _, c := range recorded(f) {
		for _, h := range c.Sides() {
			f.Add(h.Bytes, h.Asked, uint16(h.Datagram), h.Answers)
		}
	}
	f.Fuzz(func(t *testing.T, b, asked []byte, datagram uint16, answers bool) {
		h := speech.Heard{Bytes: b[:min(len(b), speech.Window)], Asked: asked[:min(len(asked), speech.AskedWindow)], Answers: answers}
		for p := bocage.SpeechTLS; p <= bocage.SpeechRedis; p++ {
			checkStays(t, p, h)
		}
		h.Datagram = max(int(datagram), len(h.Bytes))
		if h.Datagram > 0 && speech.Classify(h) == bocage.SpeechUnknown {
			t.Fatalf("a whole datagram is not known: % x", b)
		}
	})
}

func TestNames(t *testing.T) {
	names := bocage.AppProtocolNames()
	if len(names) != 18 || !slices.IsSorted(names) {
		t.Errorf("protocols %v", names)
	}
	for _, p := range []bocage.AppProtocol{0, 1, bocage.SpeechRedis, bocage.SpeechNothing, bocage.SpeechOther} {
		text, _ := p.MarshalText()
		var back bocage.AppProtocol
		if err := back.UnmarshalText(text); err != nil || back != p {
			t.Errorf("%d became %q and then %d: %v", p, text, back, err)
		}
	}
	if got := (bocage.Duties{Verify: "http+tls"}).Expects(); got != bocage.SpeechNothing {
		t.Errorf("two protocols at once are %s", got)
	}
}
