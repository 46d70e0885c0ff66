package lake

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"bocage.dev/bocage"
	streammem "bocage.dev/bocage/stream/mem"
)

// Cadences land beside flows, and what of them cannot be read is counted.
func TestCadencesLand(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	stop := land(t, l, log)
	defer stop()
	at := time.Now().UTC().Truncate(time.Millisecond)
	c := bocage.Cadence{GapBeats: 4 * 500, GapSquares: 4 * 500 * 500, Alike: 3, Flow: bocage.FlowEvent{Time: at, Kind: bocage.EventCadence,
		Source: 20, Destination: 21, SourcePort: 40000, DestinationPort: 443, Protocol: bocage.ProtocolTCP, Packets: 30, Bytes: 9000,
		Remote: netip.MustParseAddr("10.1.0.21")}}
	c.Gaps[0][2], c.Sizes[0][1] = 4, 4
	b := bocage.Batch{Source: "spiffe://bocage.test/agent/h1", Boot: "boot1", Sequence: 1, Sent: at}
	b.Cadences, _ = c.AppendBinary(nil)
	if read, err := b.CadenceRecords(); err != nil || len(read) != 1 || read[0] != c {
		t.Fatalf("read %+v: %v", read, err)
	}
	b.Cadences = append(b.Cadences, 1, 2, 3)
	if _, err := b.CadenceRecords(); err == nil {
		t.Error("a batch that ends inside a record was read")
	}
	envelope, err := json.Marshal(&b)
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, log, "1", envelope)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]string{
		"SELECT source, destination_port, gaps, round(gap_mean, 3), gap_deviation, gap_regularity, packets FROM cadences": "[[shop/web 443 4 2.097 0 1 30]]",
		"SELECT gap_histogram->'$[0][2]', size_histogram->'$[0][1]', record FROM cadences":                                "[[4 4 spiffe://bocage.test/agent/h1/boot1/1/0]]",
	} {
		if got := fmt.Sprint(query(t, l, sql).Rows); got != want {
			t.Errorf("%s:\n got %s\nwant %s", sql, got, want)
		}
	}
	if stats := l.Stats(); stats.Offered != 2 || stats.Landed != 1 || stats.Shed != 1 {
		t.Errorf("accounts: %+v", stats)
	}
}
