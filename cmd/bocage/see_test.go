package main

import (
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// What a client of TLS asked for is its own word: nothing in it moves a terminal.
func TestGreetingLine(t *testing.T) {
	record := func(g bocage.Greeted) bocage.FlowRecord {
		return bocage.FlowRecord{FlowEvent: bocage.FlowEvent{Kind: bocage.EventGreeting, Protocol: bocage.ProtocolTCP, DestinationPort: 443,
			Verdict: bocage.VerdictAllow, Would: bocage.VerdictAllow, Spoken: bocage.SpeechTLS}, Greeting: &g,
			SourceWorkload: "shop/web", DestinationAddress: "203.0.113.9"}
	}
	for _, c := range []struct {
		said bocage.Greeted
		want string
	}{
		{bocage.Greeted{ServerName: "a.example", ALPN: []string{"h2", "http/1.1"}}, `, speaks tls, asked for "a.example", offered "h2", "http/1.1"  [greeting]`},
		{bocage.Greeted{}, ", speaks tls, asked for nobody by name  [greeting]"},
		{bocage.Greeted{ServerName: "p.example", Hidden: true}, `, asked for "p.example", with another name encrypted`},
		{bocage.Greeted{Ambiguous: true}, "asked for whom nobody can tell"},
		{bocage.Greeted{ServerName: "a\x1b[2J"}, `asked for "a\x1b[2J"`},
	} {
		if got := flowLine(record(c.said), false); !strings.Contains(got, c.want) || strings.Contains(got, "\x1b") {
			t.Errorf("got %q, want %q in it", got, c.want)
		}
	}
}
