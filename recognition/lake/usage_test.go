package lake

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

	"bocage.dev/bocage"
	streammem "bocage.dev/bocage/stream/mem"
)

// TestUsage counts flows at both of their enforcement points once, and refusals
// by their attempts.
func TestUsage(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	b := bocage.Batch{Source: "spiffe://bocage.test/agent/h1", Boot: "b", Sequence: 1}
	put := func(e bocage.FlowEvent, points ...bocage.Direction) {
		for _, e.Direction = range points {
			e.Protocol, e.Remote = bocage.ProtocolTCP, netip.MustParseAddr("10.1.0.9")
			b.Flows, _ = e.AppendBinary(b.Flows)
		}
	}
	allow := bocage.FlowEvent{Source: 20, Destination: 21, DestinationPort: 8080, Verdict: bocage.VerdictAllow, Would: bocage.VerdictAllow, Decision: 7}
	for i := range 5 {
		allow.Time, allow.Generation, allow.SourcePort = morning.Add(time.Duration(i)*time.Second), uint32(3+i/4), uint16(40000+i)
		allow.Kind = bocage.EventStart
		put(allow, bocage.DirectionFrom, bocage.DirectionTo)
		allow.Kind = bocage.EventEnd
		put(allow, bocage.DirectionFrom, bocage.DirectionTo)
	}
	refused := bocage.FlowEvent{Time: morning, Source: 20, Destination: 22, DestinationPort: 22, Verdict: bocage.VerdictDrop, Would: bocage.VerdictDrop,
		Kind: bocage.EventRefused, Packets: 11, Decision: 8, Generation: 3}
	put(refused, bocage.DirectionFrom)
	refused.Decision = 0 // nothing decided it
	put(refused, bocage.DirectionFrom)
	envelope, err := json.Marshal(&b)
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, log, "1", envelope)
	land(t, l, log)
	for _, c := range []struct {
		name         string
		since, until time.Time
		want         []Use
	}{
		{"ever", time.Time{}, morning.Add(time.Hour), []Use{{8, 3, 11, morning, morning}, {7, 4, 5, morning, morning.Add(4 * time.Second)}}},
		{"from its start, up to its end", morning.Add(time.Second), morning.Add(4 * time.Second), []Use{{7, 3, 3, morning.Add(time.Second), morning.Add(3 * time.Second)}}},
		{"later", morning.Add(time.Hour), morning.Add(2 * time.Hour), []Use{}},
	} {
		got, err := l.Usage(t.Context(), c.since, c.until)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}
