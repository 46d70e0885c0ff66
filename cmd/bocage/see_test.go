package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
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

// A line says "refused" of what was refused, and of nothing that passed.
func TestRefusedLine(t *testing.T) {
	for _, c := range []struct {
		verdict bocage.Verdict
		packets uint32
		want    string
	}{
		{bocage.VerdictDrop, 1, "[refused 1 packet 60 B]"},
		{bocage.VerdictDrop, 2, "[refused 2 packets 60 B]"},
		{bocage.VerdictAllow, 1, "would ✗ drop  default-deny  [would be refused 1 packet 60 B]"},
	} {
		record := bocage.FlowRecord{FlowEvent: bocage.FlowEvent{Kind: bocage.EventRefused, Verdict: c.verdict, Would: bocage.VerdictDrop,
			Reason: bocage.ReasonDefaultDeny, Packets: c.packets, Bytes: 60, Time: time.Unix(0, 1).In(time.FixedZone("x", -5*3600))}}
		if got := flowLine(record, false); !strings.HasSuffix(got, c.want) || !strings.HasPrefix(got, "1970-01-01T00:00:00Z ") {
			t.Errorf("got %q, want it to end with %q", got, c.want)
		}
	}
}

// What could not be asked is told once for all that wanted it, without cures of
// failures that nobody found.
func TestUnaskedFindings(t *testing.T) {
	var out strings.Builder
	(&env{out: &out}).printFindings([]host.Finding{
		{Code: "a.one", State: host.Unknown, Severity: host.Degraded, Detail: "no agent answers", Cure: "start it"},
		{Code: "a.two", State: host.Passed, Severity: host.Degraded, Detail: "well"},
		{Code: "a.three", State: host.Unknown, Severity: host.Degraded, Detail: "no agent answers", Cure: "start it"},
		{Code: "b.one", State: host.Unknown, Severity: host.Needed, Detail: "not seen"},
		{Code: "c.one", State: host.Skipped},
	})
	const want = `✓ a.two                    well
? not asked: no agent answers
  start it
  a.one, a.three
? not asked: not seen
  b.one
· 1 more check has nothing to ask here: see -o json
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// An answer about the past says when it comes from a generation that was not there.
func TestYounger(t *testing.T) {
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	generation := func(number uint64, compiled time.Time) bocage.Resource {
		return &bocage.Generation{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("g%d", number)},
			Status: bocage.GenerationStatus{Number: number, Compiled: compiled}}
	}
	all := []bocage.Resource{generation(10, at.Add(-2*time.Hour)), generation(11, at.Add(-time.Hour)), generation(13, at)}
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{at, ""},
		{at.Add(time.Hour), ""},
		{at.Add(-time.Minute), "g13 was made at 2026-11-20T12:00:00Z, after 2026-11-20T11:59:00Z: for what the newest one of that moment says, add --generation g11"},
		{at.Add(-24 * time.Hour), "no generation is kept from before that"},
	} {
		if got := younger(all, c.at, 13); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("at %s: %q, want %q", c.at, got, c.want)
		}
	}
}

// The rows of a watch stand below each other though each is written at once.
func TestWatchColumns(t *testing.T) {
	var out strings.Builder
	e := &env{out: &out}
	kind, _ := bocage.KindNamed("Scope")
	p := e.newPrinter(kind)
	for event, name := range map[string]string{"added": "a", "modified": "a-longer-name"} {
		if err := p.event(event, &bocage.Scope{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ScopeSpec{Mode: bocage.ModeObserve}}); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("got %q", lines)
	}
	for _, line := range lines[1:] {
		if strings.Index(line, "observe") != strings.Index(lines[0], "MODE") {
			t.Errorf("the column MODE is not above its values:\n%s", out.String())
		}
	}
}
