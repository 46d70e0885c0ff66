package hello

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// spoken is what Go's TLS says first with a configuration, in one record.
func spoken(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	config.InsecureSkipVerify = true
	go func() {
		_ = tls.Client(client, config).Handshake()
		client.Close()
	}()
	var all []byte
	b := make([]byte, 1<<16)
	for {
		n, err := server.Read(b)
		all = append(all, b[:n]...)
		if len(all) >= 5 && len(all) >= 5+int(binary.BigEndian.Uint16(all[3:])) {
			server.Close()
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// built is a ClientHello with these extensions, in one record.
func built(extensions ...[]byte) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)
	all := bytes.Join(extensions, nil)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(all))), all...)
	message := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return inRecords(message, len(message))
}

func extension(kind uint16, body ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
}

func name(s string) []byte {
	b := []byte{byte((len(s) + 3) >> 8), byte(len(s) + 3), 0, byte(len(s) >> 8), byte(len(s))}
	return extension(0, append(b, s...)...)
}

func offers(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(append(list, byte(len(n))), n...)
	}
	return extension(16, append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)...)
}

// inRecords cuts a message into records of at most so many bytes.
func inRecords(message []byte, most int) (out []byte) {
	for len(message) > 0 {
		n := min(most, len(message))
		out = append(binary.BigEndian.AppendUint16(append(out, 22, 3, 1), uint16(n)), message[:n]...)
		message = message[n:]
	}
	return out
}

func TestHellos(t *testing.T) {
	grease := extension(0x1a1a, 0)
	big := extension(51, make([]byte, 9000)...) // a key share of two segments and more
	for _, c := range []struct {
		name   string
		stream []byte
		want   Hello
		answer Answer
	}{
		{"of Go, with a post-quantum key share", spoken(t, &tls.Config{ServerName: "DB.Example.org", NextProtos: []string{"h2", "http/1.1"}}),
			Hello{ServerName: "db.example.org", ALPN: []string{"h2", "http/1.1"}}, Yes},
		{"of Go, TLS 1.2", spoken(t, &tls.Config{ServerName: "a.example", MaxVersion: tls.VersionTLS12}), Hello{ServerName: "a.example"}, Yes},
		{"to an address", spoken(t, &tls.Config{ServerName: "192.0.2.1"}), Hello{}, Yes},
		{"with what is to be ignored", built(grease, name("a.example"), extension(0x2a2a), offers("\x0a\x0a", "h2")), Hello{ServerName: "a.example", ALPN: []string{"h2"}}, Yes},
		{"with a big key share", built(big, name("a.example"), offers("postgresql")), Hello{ServerName: "a.example", ALPN: []string{"postgresql"}}, Yes},
		{"that hides its name", built(name("public.example"), extension(0xfe0d, 0, 1, 2)), Hello{ServerName: "public.example", Hidden: true}, Yes},
		{"with a dot at the end", built(name("a.example.")), Hello{ServerName: "a.example"}, Yes},
		{"with a name that would move a terminal", built(name("a\x1b[2J\x00.example")), Hello{ServerName: `a\x1b[2j\x00.example`}, Yes},
		{"without extensions", inRecords(append(append([]byte{1, 0, 0, 41, 3, 1}, make([]byte, 32)...), 0, 0, 2, 0, 47, 1, 0), 100), Hello{}, Yes},
		{"with a name twice", built(name("a.example"), name("b.example")), Hello{}, No},
		{"with an empty name", built(name("")), Hello{}, No},
		{"with an empty offer", built(offers("")), Hello{}, No},
		{"with no offers", built(extension(16, 0, 0)), Hello{}, No},
		{"with an extension that is cut", built([]byte{0, 0, 0, 9, 1}), Hello{}, No},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), Hello{}, No},
		{"a ServerHello", []byte{22, 3, 3, 0, 4, 2, 0, 0, 0}, Hello{}, No},
		{"an empty record", []byte{22, 3, 1, 0, 0}, Hello{}, No},
		{"a message longer than any", []byte{22, 3, 1, 64, 0, 1, 1, 0, 0}, Hello{}, No},
		{"nothing", nil, Hello{}, More},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, answer := Parse(c.stream)
			if answer != c.answer || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v, %v; want %+v, %v", got, answer, c.want, c.answer)
			}
			checkPrefixes(t, c.stream)
			if answer != Yes {
				return
			}
			// Whatever comes behind it, and in whatever records.
			if more, answer := Parse(append(bytes.Clone(c.stream), "early data"...)); answer != Yes || !reflect.DeepEqual(more, got) {
				t.Errorf("with data behind it: %+v, %v", more, answer)
			}
			for _, most := range []int{1, 2, 3, 7, 100} {
				if cut, answer := Parse(inRecords(c.stream[5:], most)); answer != Yes || !reflect.DeepEqual(cut, got) {
					t.Errorf("in records of %d: %+v, %v", most, cut, answer)
				}
			}
		})
	}
}

// checkPrefixes: an answer from a prefix stays true.
func checkPrefixes(t testing.TB, stream []byte) {
	t.Helper()
	before, said := More, Hello{}
	for n := range min(len(stream), 2000) + 1 {
		h, answer := Parse(stream[:n])
		if before != More && (answer != before || !reflect.DeepEqual(h, said)) {
			t.Fatalf("%v of %d bytes and %v of %d", before, n-1, answer, n)
		}
		before, said = answer, h
	}
}

func TestLongNames(t *testing.T) {
	long := strings.Repeat("a", 300)
	h, answer := Parse(built(name(long), offers(long[:255], long[:255])))
	if answer != Yes || len(h.ServerName) != bocage.LongestServerName || len(h.ALPN[0]) != bocage.LongestALPN {
		t.Errorf("%+v, %v", h, answer)
	}
	many := make([]string, 200)
	for i := range many {
		many[i] = "x"
	}
	if h, _ := Parse(built(offers(many...))); len(h.ALPN) != bocage.MostALPN {
		t.Errorf("%d offers are kept", len(h.ALPN))
	}
}

// Split at any byte, in either order, a hello says the same.
func TestSplitAnywhere(t *testing.T) {
	stream := spoken(t, &tls.Config{ServerName: "db.example.org", NextProtos: []string{"h2"}})
	if len(stream) < 1400 {
		t.Fatalf("%d bytes: no post-quantum key share", len(stream))
	}
	for at := 1; at < len(stream); at++ {
		for _, late := range []bool{false, true} {
			var g Gatherer
			first, second := 0, at
			if late {
				first, second = at, 0
			}
			end := func(from int) int {
				if from == 0 {
					return at
				}
				return len(stream)
			}
			if _, _, done := g.Add(&bocage.FlowEvent{}, first, stream[first:end(first)], now); done {
				t.Fatalf("split at %d: done after a part", at)
			}
			h, ambiguous, done := g.Add(&bocage.FlowEvent{}, second, stream[second:end(second)], now)
			if !done || ambiguous || h.ServerName != "db.example.org" {
				t.Fatalf("split at %d: %+v, %v, %v", at, h, ambiguous, done)
			}
			if g.held != len(stream) {
				t.Fatalf("%d bytes are held, of %d", g.held, len(stream))
			}
		}
	}
}

var now = time.Unix(1_700_000_000, 0)

// In pieces of any sizes and order, overlapping and twice, it is told once; bytes
// that came otherwise too make it ambiguous, before it is told or after.
func TestGatherProperty(t *testing.T) {
	stream := built(extension(51, make([]byte, 1500)...), name("a.example"), offers("h2"))
	rapid.Check(t, func(t *rapid.T) {
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		var pieces [][2]int
		for at := 0; at < len(stream); {
			n := min(1+random.IntN(1+random.IntN(900)), len(stream)-at)
			back := min(at, random.IntN(20))
			pieces = append(pieces, [2]int{at - back, at + n})
			if random.IntN(3) == 0 {
				pieces = append(pieces, [2]int{at, at + n})
			}
			at += n
		}
		random.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		lie := random.IntN(2 * len(pieces))
		var g Gatherer
		told, doubted, lied, again := 0, 0, -1, false
		for i, p := range pieces {
			b := bytes.Clone(stream[p[0]:p[1]])
			if i == lie {
				at := random.IntN(len(b))
				b[at] ^= 1 << random.IntN(8)
				lied = p[0] + at
			}
			h, ambiguous, done := g.Add(&bocage.FlowEvent{Packets: uint32(i)}, p[0], b, now)
			if !done {
				continue
			}
			if doubted > 0 {
				t.Fatalf("told %+v, ambiguous %v, of what was ambiguous", h, ambiguous)
			}
			if lied < 0 && (ambiguous || h.ServerName != "a.example" || !reflect.DeepEqual(h.ALPN, []string{"h2"})) {
				t.Fatalf("told %+v, ambiguous %v", h, ambiguous)
			}
			if ambiguous {
				doubted++
			} else {
				told++
			}
			if ambiguous && h.ServerName != "" {
				t.Fatalf("ambiguous, and told %+v", h)
			}
		}
		for i, p := range pieces {
			again = again || i != lie && p[0] <= lied && lied < p[1]
		}
		if told > 1 || told == 0 && lied < 0 || doubted > 0 != again {
			t.Fatalf("told %d times, and %d times that it is ambiguous; byte %d was a lie", told, doubted, lied)
		}
	})
}

// Whole hellos that differ are of one flow, which hides something, or of two.
func TestGatherAgain(t *testing.T) {
	good, evil := built(name("good.example")), built(name("evil.example"))
	broken := built(name("evil.example"), name("evil.example"))
	for _, c := range []struct {
		name          string
		first, second []byte
		place         int
		packets       uint32 // of the flow, at the second; 3 at the first
		want          string
		ambiguous     bool
	}{
		{"the same again", good, good, 0, 4, "", false},
		{"another", good, evil, 0, 4, "", true},
		{"the end of another", good, evil, 60, 4, "", true},
		{"one behind what is none", broken, evil, 0, 4, "", true},
		{"data behind it", good, append(bytes.Clone(good), "early data"...), 0, 4, "", false},
		{"of the next flow", good, evil, 0, 3, "evil.example", false},
		{"of the next flow, the same", good, good, 0, 3, "", false},
	} {
		var g Gatherer
		g.Add(&bocage.FlowEvent{Packets: 3}, 0, c.first, now)
		h, ambiguous, done := g.Add(&bocage.FlowEvent{Packets: c.packets}, c.place, c.second[c.place:], now)
		if h.ServerName != c.want || ambiguous != c.ambiguous || done != (c.ambiguous || c.want != "") {
			t.Errorf("%s: %+v, %v, %v", c.name, h, ambiguous, done)
		}
		if _, _, done := g.Add(&bocage.FlowEvent{Packets: 9}, 0, c.second, now); c.ambiguous && done {
			t.Errorf("%s: told once more", c.name)
		}
	}
}

// What is in doubt is told once, whatever of it came before or comes after, and other
// flows, on the same ports as well, are not.
func TestGatherDoubt(t *testing.T) {
	now := time.Unix(1000, 0)
	whole := []byte{0x16, 3, 1, 0, 200, 1, 0, 0, 196}
	var g Gatherer
	flow := bocage.FlowEvent{SourcePort: 1000, Packets: 3}
	other := bocage.FlowEvent{SourcePort: 1001, Packets: 3}
	g.Add(&flow, 0, whole, now)
	if !g.Doubt(&flow, now) || g.Doubt(&flow, now) {
		t.Error("a doubt is not told once")
	}
	if _, ambiguous, done := g.Add(&flow, 0, whole, now); ambiguous || done {
		t.Error("more is told of what is in doubt")
	}
	if !g.Doubt(&other, now) {
		t.Error("a doubt about another flow, of which nothing came before, is not told")
	}
	later := now.Add(patience + 1)
	if !g.Doubt(&flow, later) {
		t.Error("a doubt about another flow on the same ports is not told")
	}
	if g.held != 0 {
		t.Errorf("%d bytes are held", g.held)
	}
}

// However many flows begin and never end, what is held is bounded.
func TestGatherBounded(t *testing.T) {
	var g Gatherer
	part := append([]byte{22, 3, 1, 64, 0, 1, 0, 63, 252}, make([]byte, 9000)...)
	for i := range 20_000 {
		g.Add(&bocage.FlowEvent{Interface: uint32(i)}, 0, part, now.Add(time.Duration(i)*time.Millisecond))
		if len(g.flows) > mostFlows+1 || g.held > mostHeld+len(part) || len(g.order) > 2*mostFlows {
			t.Fatalf("%d flows, %d bytes, %d in order", len(g.flows), g.held, len(g.order))
		}
	}
	if g.GivenUp < 15_000 {
		t.Errorf("%d flows were given up", g.GivenUp)
	}
	late := now.Add(time.Hour)
	stream := built(name("a.example"))
	for i := range 3 { // the same ports again, long after
		if h, _, done := g.Add(&bocage.FlowEvent{}, 0, stream, late.Add(time.Duration(i)*time.Minute)); !done || h.ServerName != "a.example" {
			t.Fatalf("flow %d: %+v, %v", i, h, done)
		}
	}
	if len(g.flows) > 2 || g.held > 2*len(stream) {
		t.Errorf("%d flows and %d bytes are kept", len(g.flows), g.held)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(built(name("a.example"), offers("h2")))
	f.Add(inRecords(built(name("a.example"))[5:], 3))
	f.Add(spoken(f, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2"}}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		checkPrefixes(t, stream)
		h, answer := Parse(stream)
		if answer != Yes && !reflect.DeepEqual(h, Hello{}) {
			t.Fatalf("%v, and %+v", answer, h)
		}
		for _, s := range append(h.ALPN, h.ServerName) {
			if len(s) > bocage.LongestServerName || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Fatalf("%q is not safe to show", s)
			}
		}
	})
}
