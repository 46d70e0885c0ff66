package lake

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/duckdb/duckdb-go/v2"

	"bocage.dev/bocage"
	streammem "bocage.dev/bocage/stream/mem"
)

// What flows were heard to speak goes with the edge, where they agree.
func TestEdgesSpoken(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	b := bocage.Batch{Source: "spiffe://bocage.test/agent/h1", Boot: "b", Sequence: 1}
	both := []bocage.Direction{bocage.DirectionFrom, bocage.DirectionTo}
	put := func(port uint16, spoken bocage.AppProtocol, packets uint32, bytes uint64, points ...bocage.Direction) {
		e := bocage.FlowEvent{Kind: bocage.EventEnd, Source: 20, Destination: 21, DestinationPort: port, Protocol: bocage.ProtocolTCP,
			Verdict: bocage.VerdictAllow, Would: bocage.VerdictDrop, Reason: bocage.ReasonDefaultDeny, Replied: true, Spoken: spoken,
			Packets: packets, Bytes: bytes, Time: morning, Remote: netip.MustParseAddr("10.1.0.9")}
		for _, e.Direction = range points {
			b.Flows, _ = e.AppendBinary(b.Flows)
		}
	}
	want := map[uint16]bocage.AppProtocol{}
	for port, flows := range []struct {
		is  bocage.AppProtocol
		put func(port uint16)
	}{
		{bocage.SpeechTLS, func(p uint16) {
			put(p, bocage.SpeechTLS, 20, 9000, both...)
			put(p, bocage.SpeechTLS, 30, 9000, both...)
		}},
		{bocage.SpeechHTTP, func(p uint16) { // and a check whether the port is open
			put(p, bocage.SpeechHTTP, 20, 9000, both...)
			put(p, bocage.SpeechUnknown, 6, 400, both...)
		}},
		{bocage.SpeechOther, func(p uint16) { // and one that nobody listened to
			put(p, bocage.SpeechHTTP, 20, 9000, both...)
			put(p, bocage.SpeechUnknown, 20, 9000, both...)
		}},
		{bocage.SpeechSSH, func(p uint16) { // heard at one point only
			put(p, bocage.SpeechSSH, 20, 9000, bocage.DirectionFrom)
			put(p, bocage.SpeechUnknown, 20, 9000, bocage.DirectionTo)
		}},
		{bocage.SpeechOther, func(p uint16) {
			put(p, bocage.SpeechHTTP, 20, 9000, both...)
			put(p, bocage.SpeechTLS, 20, 9000, both...)
		}},
		{bocage.SpeechOther, func(p uint16) { put(p, bocage.SpeechOther, 20, 9000, both...) }},
		{bocage.SpeechUnknown, func(p uint16) { put(p, bocage.SpeechUnknown, 6, 400, both...) }},
	} {
		want[uint16(port+1)] = flows.is
		flows.put(uint16(port + 1))
	}
	envelope, _ := json.Marshal(&b)
	appendTo(t, log, "1", envelope)
	land(t, l, log)
	edges, err := l.Edges(t.Context(), time.Time{})
	if err != nil || len(edges) != len(want) {
		t.Fatalf("%d edges, %v", len(edges), err)
	}
	for _, e := range edges {
		if e.Spoken != want[e.DestinationPort] {
			t.Errorf("port %d spoke %q, want %q", e.DestinationPort, e.Spoken, want[e.DestinationPort])
		}
	}
	if got := fmt.Sprint(query(t, l, "SELECT DISTINCT spoken FROM flows WHERE destination_port = 1").Rows); got != "[[tls]]" {
		t.Errorf("the flows of port 1 spoke %s", got)
	}
}

// Files that an earlier version wrote lack what flows spoke: they are read beside
// new ones, and alone.
func TestEarlierFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, encode func(io.Writer) error) string {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err == nil {
			err = encode(f)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	type earlier struct {
		TimeDT int64  `parquet:"time_dt,timestamp(millisecond),delta"`
		Time   int64  `parquet:"time,delta"`
		Event  string `parquet:"event,dict"`
	}
	old := write("old.parquet", encoder([]earlier{{Event: "end"}}))
	recent := write("new.parquet", encoder([]flowRow{{Event: "start", Spoken: "tls"}}))
	view := Views()[0]
	view.Columns = slices.DeleteFunc(slices.Clone(view.Columns), func(c Column) bool { return c.Name != "event" && c.Name != "spoken" })
	connector, err := duckdb.NewConnector("", nil)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	for i, files := range [][]string{{old}, {old, recent}, {recent}, nil} {
		if _, err := db.Exec("DROP VIEW IF EXISTS flows"); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(view.sql(files)); err != nil {
			t.Fatalf("files %d: %v", i, err)
		}
		var said sql.NullString
		if err := db.QueryRow("SELECT string_agg(event || ':' || spoken, ' ' ORDER BY event) FROM flows").Scan(&said); err != nil {
			t.Fatalf("files %d: %v", i, err)
		}
		if want := []string{"end:", "end: start:tls", "start:tls", ""}[i]; said.String != want {
			t.Errorf("files %d: %q, want %q", i, said.String, want)
		}
	}
}

// What clients of TLS asked for lands, is asked for, and is folded together with the rest.
func TestGreetings(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	for sequence := range 3 {
		b := bocage.Batch{Source: "spiffe://bocage.test/agent/h1", Boot: "b", Sequence: uint64(sequence + 1)}
		flow := bocage.FlowEvent{Kind: bocage.EventGreeting, Source: 20, Destination: 1, DestinationPort: 443, SourcePort: 40000, Protocol: bocage.ProtocolTCP,
			Verdict: bocage.VerdictAllow, Would: bocage.VerdictAllow, Spoken: bocage.SpeechTLS, Time: morning, Remote: netip.MustParseAddr("203.0.113.9")}
		b.Greetings = []bocage.Greeting{
			{Flow: flow, Greeted: bocage.Greeted{ServerName: "a.example", ALPN: []string{"h2", "http/1.1"}}},
			{Flow: flow, Greeted: bocage.Greeted{Ambiguous: true}},
		}
		b.Flows, _ = flow.AppendBinary(nil)
		envelope, err := json.Marshal(&b)
		if err != nil {
			t.Fatal(err)
		}
		appendTo(t, log, fmt.Sprint(sequence), envelope)
	}
	stop := land(t, l, log)
	got := fmt.Sprint(query(t, l, `SELECT source, destination_ip, server_name, alpn->>0, ambiguous, count(*) FROM greetings GROUP BY ALL ORDER BY server_name`).Rows)
	if want := "[[shop/web 203.0.113.9  <nil> true 3] [shop/web 203.0.113.9 a.example h2 false 3]]"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := fmt.Sprint(query(t, l, "SELECT count(DISTINCT record) FROM greetings").Rows); got != "[[6]]" {
		t.Errorf("%s records", got)
	}
	stop()
	if stats := l.Stats(); stats.Offered != 9 || stats.Landed != 9 || stats.Shed != 0 {
		t.Errorf("%+v", stats)
	}
}
