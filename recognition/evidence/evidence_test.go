package evidence

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"bocage.dev/bocage"
)

func TestPartiesHaveOneOrderAndOneSpelling(t *testing.T) {
	parties := []Party{
		{Host: "h1"}, {Host: "h2"}, {Identity: 16}, {Identity: 300}, {Identity: 1 << 30},
		{Address: netip.MustParseAddr("10.0.0.1")}, {Address: netip.MustParseAddr("10.0.0.2")}, {Address: netip.MustParseAddr("2001:db8::1")},
	}
	for i, p := range parties {
		for j, q := range parties {
			if got, want := p.Compare(q), compare(i, j); got != want {
				t.Errorf("%v against %v: %d, want %d", p, q, got, want)
			}
			if same := bytes.Equal(p.Append(nil), q.Append(nil)); same != (i == j) {
				t.Errorf("%v and %v are spelt alike: %v", p, q, same)
			}
		}
	}
}

func compare(i, j int) int {
	switch {
	case i < j:
		return -1
	case i > j:
		return 1
	default:
		return 0
	}
}

func TestEnds(t *testing.T) {
	far := netip.MustParseAddr("::ffff:203.0.113.9")
	for name, test := range map[string]struct {
		event    bocage.FlowEvent
		from, to Party
	}{
		"between members":  {bocage.FlowEvent{Source: 20, Destination: 21, Remote: far}, Party{Identity: 20}, Party{Identity: 21}},
		"to the world":     {bocage.FlowEvent{Source: 20, Destination: 1, Remote: far}, Party{Identity: 20}, Party{Address: far.Unmap()}},
		"from the world":   {bocage.FlowEvent{Source: 1, Destination: 20, Direction: 1, Remote: far}, Party{Address: far.Unmap()}, Party{Identity: 20}},
		"from an unknown":  {bocage.FlowEvent{Source: 0, Destination: 1, Remote: far}, Party{}, Party{Address: far.Unmap()}},
		"counted together": {bocage.FlowEvent{Remote: netip.IPv6Unspecified()}, Party{}, Party{}},
	} {
		if from, to := Ends(&test.event); from != test.from || to != test.to {
			t.Errorf("%s: %v, %v", name, from, to)
		}
	}
}

func FuzzQuote(f *testing.F) {
	f.Add("uname -a; {victims}\n\x1b[31m\u202e" + strings.Repeat("x", 100))
	f.Fuzz(func(t *testing.T, s string) {
		got := Quote(s)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) > 66 || strings.ContainsAny(got, "{}\n") {
			t.Errorf("%q", got)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Errorf("%q holds %U", got, r)
			}
		}
	})
}
