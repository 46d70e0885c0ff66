package deception

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"bocage.dev/bocage"
)

func TestPrintable(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"root", "root"},
		{"pässwörd 密码", "pässwörd 密码"},
		{`a\b`, `a\\b`},
		{`'"`, `'"`},
		{"\x1b[2J\r\n", `\x1b[2J\r\n`},
		{"\x00\x7f\xff", `\x00\x7f\xff`},
		{"\u202etxt.exe", `\u202etxt.exe`},
		{"\u2028", `\u2028`},
		{strings.Repeat("a", 20), strings.Repeat("a", 20)},
		{strings.Repeat("a", 21), strings.Repeat("a", 17) + "…"},
		{strings.Repeat("\x1b", 21), `\x1b\x1b\x1b\x1b…`},
	} {
		if got := printable(c.in, 20); got != c.want {
			t.Errorf("printable(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("root\x1b]0;title\x07", 30)
	f.Add("\xe2\x80", 3)
	f.Fuzz(func(t *testing.T, in string, limit int) {
		limit = 3 + limit&0xfff
		got := printable(in, limit)
		if len(got) > limit {
			t.Errorf("%d bytes, limit %d", len(got), limit)
		}
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q is not printable", got)
		}
		if again := bounded(got, limit); again != got {
			t.Errorf("%q became %q", got, again)
		}
	})
}

// What a child says is taken only as far as it can be.
func TestSanitize(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	good := func() *bocage.EngagementEvent {
		return &bocage.EngagementEvent{
			Time: now, Decoy: "front", Session: "0123456789abcdef", Depth: bocage.DepthLogin,
			Flow:   bocage.Flow{Source: client4, Destination: victim4, DestinationPort: 22},
			Detail: map[string]string{"user": "root"},
		}
	}
	known := func(name string) bool { return name == "front" }
	if e := good(); sanitize(e, known, now) != nil || e.Detail["user"] != "root" || e.Flow.Protocol != bocage.ProtocolTCP {
		t.Errorf("a good event became %+v", e)
	}
	for name, spoil := range map[string]func(*bocage.EngagementEvent){
		"depth":   func(e *bocage.EngagementEvent) { e.Depth = "root" },
		"decoy":   func(e *bocage.EngagementEvent) { e.Decoy = "other" },
		"session": func(e *bocage.EngagementEvent) { e.Session = "\x1b[2J" },
		"long":    func(e *bocage.EngagementEvent) { e.Session = strings.Repeat("0", 65) },
		"flow":    func(e *bocage.EngagementEvent) { e.Flow.Source = netip.Addr{} },
		"details": func(e *bocage.EngagementEvent) {
			for i := range 20 {
				e.Detail[strings.Repeat("k", i)] = ""
			}
		},
	} {
		e := good()
		spoil(e)
		if sanitize(e, known, now) == nil {
			t.Errorf("a wrong %s is taken", name)
		}
	}
	e := good()
	e.Time, e.Source, e.Destination = now.Add(-time.Hour), 7, 8
	e.Detail["\x1b"] = "\x1b" + strings.Repeat("x", maxValue)
	if err := sanitize(e, known, now); err != nil {
		t.Fatal(err)
	}
	if !e.Time.Equal(now) || e.Source != 0 || e.Destination != 0 || len(e.Detail[`\x1b`]) > maxValue {
		t.Errorf("a lying event became %+v", e)
	}
}

func FuzzTake(f *testing.F) {
	f.Add([]byte(`{"engagement":{"time":"2026-05-04T03:02:01Z","flow":{"source":"10.9.0.1","destination":"10.77.3.4","protocol":"TCP"},"decoy":"front","session":"00","depth":"login","detail":{"user":"\u001b"}}}`))
	f.Add([]byte(`{"counts":{"offered":1,"shed":{"source":1,"invented":2}}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		d := &Decoys{queue: make(chan bocage.EngagementEvent, 1)}
		d.names.Store(&map[string]bool{"front": true})
		out := &lines{limit: maxReport, each: d.take}
		out.Write(append(bytes.Clone(line), '\n'))
		select {
		case e := <-d.queue:
			for k, v := range e.Detail {
				if strings.ContainsFunc(k+v, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("detail %q: %q", k, v)
				}
			}
		default:
		}
		for cause := range d.Counters().Shed {
			if cause == "invented" {
				t.Error("the child invents metrics")
			}
		}
	})
}

func TestLines(t *testing.T) {
	var got []string
	l := &lines{limit: 5, each: func(line []byte) { got = append(got, string(line)) }}
	for _, part := range []string{"one\ntw", "o\n", "too long\nfour\n", "fi", "ve5\n", "6\n\n", "toolong", "er\nend\npart"} {
		l.Write([]byte(part))
	}
	if want := "one two four five5 6  end"; strings.Join(got, " ") != want {
		t.Errorf("lines are %q, want %q", strings.Join(got, " "), want)
	}
}

func TestCovers(t *testing.T) {
	address := netip.MustParseAddr("10.1.2.3")
	for _, c := range []struct {
		prefixes string
		want     int
	}{
		{"", 0}, {"10.1.2.3/32", 33}, {"10.0.0.0/8", 9}, {"10.0.0.0/8 10.1.2.0/24", 25}, {"10.2.0.0/16", -1}, {"::/0", -1},
	} {
		var p bocage.DecoyPlacement
		for _, text := range strings.Fields(c.prefixes) {
			p.For = append(p.For, netip.MustParsePrefix(text))
		}
		if got := covers(p, address); got != c.want {
			t.Errorf("covers(%q) = %d, want %d", c.prefixes, got, c.want)
		}
	}
}

func TestGate(t *testing.T) {
	g := newGate()
	network := netip.MustParseAddr("2001:db8::")
	for i := range maxPerSource {
		address := network.As16()
		address[15] = byte(i)
		if _, ok := g.enter(netip.AddrFrom16(address), "a"); !ok {
			t.Fatalf("connection %d is turned away", i)
		}
	}
	if cause, ok := g.enter(netip.MustParseAddr("2001:db8::ffff"), "b"); ok || cause != ShedSource {
		t.Error("the addresses of one /64 are not one source")
	}
	if _, ok := g.enter(netip.MustParseAddr("2001:db8:0:1::"), "a"); !ok {
		t.Error("another /64 is the same source")
	}
	if cause, ok := g.enter(client4, ""); ok || cause != ShedUnplaced {
		t.Error("an address without a decoy is let in")
	}
	for i := range maxPerSource {
		address := network.As16()
		address[15] = byte(i)
		g.leave(netip.AddrFrom16(address), "a")
	}
	g.leave(netip.MustParseAddr("2001:db8:0:1::"), "a")
	if len(g.sources)+len(g.decoys)+g.total != 0 {
		t.Errorf("something stays behind: %+v", g)
	}
	c := g.read()
	if shed := c.Shed[ShedSource] + c.Shed[ShedUnplaced]; c.Offered != c.Served+shed || c.Served != maxPerSource+1 {
		t.Errorf("counts are %+v", c)
	}
}
