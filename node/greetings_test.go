package node

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/stream/mem"
)

// A greeting goes from an agent's publisher by the log to who asks for flows.
func TestGreetingsTravel(t *testing.T) {
	log := mem.NewLog(1 << 20)
	p, err := newPublisher("h1", t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p.identify("spiffe://bocage.test/agent/h1", func(_ string, payload []byte) ([]byte, error) { return payload, nil })
	p.connect(log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	sent := bocage.Greeting{
		Flow: bocage.FlowEvent{Kind: bocage.EventGreeting, Time: time.Unix(1_700_000_000, 0).UTC(), Source: 100, Destination: 1, DestinationPort: 443,
			Protocol: bocage.ProtocolTCP, Verdict: bocage.VerdictAllow, Would: bocage.VerdictDrop, Spoken: bocage.SpeechTLS, Remote: netip.MustParseAddr("203.0.113.9")},
		Greeted: bocage.Greeted{ServerName: "a.example", ALPN: []string{"h2"}},
	}
	p.Greeting(sent)
	reader := flowReader{log: log, names: &names{}, open: func(envelope []byte) (*bocage.Batch, error) {
		var b bocage.Batch
		return &b, json.Unmarshal(envelope, &b)
	}}
	var got []bocage.FlowRecord
	err = reader.Flows(ctx, bocage.FlowsQuery{Follow: true, Since: time.Unix(1, 0), Port: 443, Limit: 1}, func(r bocage.FlowRecord) error {
		got = append(got, r)
		return nil
	})
	if err != nil || len(got) != 1 {
		t.Fatalf("%d records, %v", len(got), err)
	}
	r := got[0]
	if !reflect.DeepEqual(r.FlowEvent, sent.Flow) || r.Greeting == nil || !reflect.DeepEqual(*r.Greeting, sent.Greeted) || r.DestinationAddress != "203.0.113.9" || r.Host != "h1" {
		t.Errorf("%+v", r)
	}
}
