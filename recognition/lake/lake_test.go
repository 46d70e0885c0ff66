package lake

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"bocage.dev/bocage"
	"bocage.dev/bocage/stream"
	streammem "bocage.dev/bocage/stream/mem"
)

// The test binary is also the child that answers questions and the one that lands.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "lake-query":
			if err := ServeQuery(os.Stdin, os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "lake-land":
			landForEver(os.Args[2], os.Args[3])
		}
	}
	os.Exit(m.Run())
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func nameOf(id bocage.Identity) string {
	return map[bocage.Identity]string{20: "shop/web", 21: "shop/api", 22: "shop/db", 23: "dev/red"}[id]
}

// newLake opens a lake in a folder of the test's.
func newLake(t testing.TB, change func(*Config)) *Lake {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Dir: filepath.Join(t.TempDir(), "lake"), QueryProgram: []string{program, "lake-query"}, Name: nameOf,
		FlushEvery: 20 * time.Millisecond, MinFree: 1, Logger: quiet,
	}
	if change != nil {
		change(&cfg)
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// land runs Land until the test ends or stop is called.
func land(t testing.TB, l *Lake, log stream.Log) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Land(ctx, log, openPlain) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Land returned %v", err)
			}
		})
	}
	t.Cleanup(stop)
	for { // until it takes requests
		err := l.Flush(t.Context())
		if err == nil {
			return stop
		}
		if !errors.Is(err, ErrNotLanding) {
			t.Fatal(err)
		}
	}
}

func openPlain(envelope []byte) (*bocage.Batch, error) {
	var b bocage.Batch
	if err := json.Unmarshal(envelope, &b); err != nil {
		return nil, errors.New("not signed")
	}
	return &b, nil
}

// batch makes the n-th batch of h1: flows of web to api, and one of each other kind.
func batch(n uint64, at time.Time, flows int) []byte {
	b := bocage.Batch{Source: "spiffe://bocage.test/agent/h1", Boot: "boot1", Sequence: n, Sent: at}
	for i := range flows {
		e := bocage.FlowEvent{Time: at.Add(time.Duration(i) * time.Microsecond), Kind: bocage.EventStart, Source: 20, Destination: 21,
			SourcePort: uint16(30000 + i%30000), DestinationPort: 8080, Protocol: bocage.ProtocolTCP, Verdict: bocage.VerdictAllow,
			Would: bocage.VerdictAllow, Reason: bocage.ReasonRule, Decision: 7, Generation: 3, Interface: 5, Packets: 10, Bytes: 1500,
			Remote: netip.AddrFrom4([4]byte{10, 1, 0, 21})}
		b.Flows, _ = e.AppendBinary(b.Flows)
	}
	b.Inspections = []bocage.InspectionEvent{{Time: at, Source: 20, Destination: 21, Signature: 2034647, Title: "it's log4j", Severity: 1,
		Blocked: true, Technique: "T1190", Flow: bocage.Flow{Source: netip.MustParseAddr("10.1.0.20"), Destination: netip.MustParseAddr("10.1.0.21"),
			SourcePort: 40000, DestinationPort: 8080, Protocol: bocage.ProtocolTCP}}}
	b.Engagements = []bocage.EngagementEvent{{Time: at, Source: 23, Destination: 22, Decoy: "ssh", Session: "s1", Depth: bocage.DepthLogin,
		Detail: map[string]string{"user": "root", "password": "x"}}}
	envelope, err := json.Marshal(&b)
	if err != nil {
		panic(err)
	}
	return envelope
}

func appendTo(t testing.TB, log stream.Log, id string, envelope []byte) {
	t.Helper()
	if _, err := log.Append(t.Context(), "events.h1", id, envelope); err != nil {
		t.Fatal(err)
	}
}

func query(t testing.TB, l *Lake, sql string) bocage.HuntResult {
	t.Helper()
	result, err := l.Query(t.Context(), sql, 0)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return result
}

var morning = time.Now().UTC().Truncate(time.Hour).Add(5 * time.Minute)

func TestLandAndAsk(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	if got := query(t, l, "SELECT count(*) AS n FROM flows"); fmt.Sprint(got.Rows) != "[[0]]" {
		t.Errorf("an empty lake holds %v", got.Rows)
	}
	stop := land(t, l, log)
	for n := range uint64(10) {
		appendTo(t, log, fmt.Sprint(n), batch(n+1, morning.Add(time.Duration(n)*10*time.Minute), 100))
	}
	appendTo(t, log, "again", batch(3, morning, 100)) // the same batch under another id
	appendTo(t, log, "forged", []byte("garbage"))
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]string{
		"SELECT count(*), count(DISTINCT record) FROM flows":                                                                              "[[1000 1000]]",
		"SELECT source, destination, destination_port, protocol, verdict, reason, count(*) FROM flows GROUP BY ALL":                       "[[shop/web shop/api 8080 TCP allow rule 1000]]",
		"SELECT source, title, blocked, technique, count(*) FROM detections GROUP BY ALL":                                                 "[[shop/web it's log4j true T1190 10]]",
		"SELECT source, destination, decoy, depth, detail->>'user', count(*) FROM engagements GROUP BY ALL":                               "[[dev/red shop/db ssh login root 10]]",
		"SELECT min(time_ms), min(time) FROM flows":                                                                                       fmt.Sprintf("[[%d %s]]", morning.UnixMilli(), morning.Format(time.RFC3339)),
		"SELECT record FROM flows ORDER BY time LIMIT 1":                                                                                  "[[spiffe://bocage.test/agent/h1/boot1/1/0]]",
		"SELECT record FROM engagements ORDER BY time LIMIT 1":                                                                            "[[spiffe://bocage.test/agent/h1/boot1/1/101]]",
		"SELECT destination_ip, source_ip, host, packets, bytes, decision, direction FROM flows LIMIT 1":                                  "[[10.1.0.21  h1 10 1500 7 from]]",
		"SELECT count(*) FROM flows WHERE time > now() - INTERVAL 3 HOURS AND time >= TIMESTAMPTZ '2020-01-01'":                           "[[1000]]",
		"SELECT date_trunc('hour', time) AS hour, sum(bytes) AS b FROM flows GROUP BY 1 ORDER BY 1 LIMIT 1":                               fmt.Sprintf("[[%s %d]]", morning.Truncate(time.Hour).Format(time.RFC3339), 6*100*1500),
		"WITH a AS (SELECT source, bytes FROM flows) SELECT source, avg(bytes), median(bytes) FROM a GROUP BY source":                     "[[shop/web 1500 1500]]",
		"SELECT 1.5::DECIMAL(4,2), 'x'::BLOB, [1,2], {'a': 1}, MAP {'k': 2}, NULL, INTERVAL 1 DAY IS NOT NULL, 'nan'::DOUBLE, 1::HUGEINT": "[[1.5 78 [1 2] map[a:1] map[k:2] <nil> true NaN 1]]",
	} {
		if got := fmt.Sprint(query(t, l, sql).Rows); got != want {
			t.Errorf("%s:\n got %s\nwant %s", sql, got, want)
		}
	}
	if got, err := l.Query(t.Context(), "SELECT * FROM flows", 7); err != nil || len(got.Rows) != 7 || !got.Truncated {
		t.Errorf("%d rows, truncated %v, %v", len(got.Rows), got.Truncated, err)
	}
	for _, view := range Views() {
		got := query(t, l, "SELECT * FROM "+view.Name+" LIMIT 1")
		if len(got.Columns) != len(view.Columns) {
			t.Errorf("%s has columns %v", view.Name, got.Columns)
		}
	}
	stats := l.Stats()
	if stats.Offered != 1020 || stats.Landed != 1020 || stats.Shed != 0 || stats.Duplicates != 1 || stats.Rejected != 1 || l.Landed() != 12 {
		t.Errorf("accounts: %+v, landed %d", stats, l.Landed())
	}
	stop()
	if _, err := Open(l.cfg); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second process opened the lake: %v", err)
	}
}

func TestRestartResumesAndKnowsDuplicates(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	stop := land(t, l, log)
	for n := range uint64(5) {
		appendTo(t, log, fmt.Sprint(n), batch(n+1, morning, 10))
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	appendTo(t, log, "again", batch(5, morning, 10))
	appendTo(t, log, "new", batch(6, morning, 10))
	l, err := Open(l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stop = land(t, l, log)
	if got := fmt.Sprint(query(t, l, "SELECT count(*), count(DISTINCT record) FROM flows").Rows); got != "[[60 60]]" {
		t.Error(got)
	}
	stop()
}

// A log that was lost and begins anew lands after what the old one had.
func TestNewLog(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	stop := land(t, l, log)
	for n := range uint64(5) {
		appendTo(t, log, fmt.Sprint(n), batch(n+1, morning, 10))
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	log = streammem.NewLog(1 << 30)
	appendTo(t, log, "other", batch(6, morning, 10))
	stop = land(t, l, log)
	if got := fmt.Sprint(query(t, l, "SELECT count(*), count(DISTINCT record) FROM flows").Rows); got != "[[60 60]]" || l.Landed() != 1 {
		t.Error(got, l.Landed())
	}
	stop()
}

func TestMergeKeepsEveryRecord(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	old := morning.Add(-5 * time.Hour)
	stop := land(t, l, log)
	for n := range uint64(40) {
		at := morning
		if n%2 == 1 {
			at = old
		}
		appendTo(t, log, fmt.Sprint(n), batch(n+1, at, 25))
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	before := fmt.Sprint(query(t, l, "SELECT record, time_ms, source, bytes FROM flows ORDER BY ALL").Rows)
	files, release := l.snapshot() // a question that is being answered
	if err := l.tidyOnce(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := l.Stats().Segments; got != 6 {
		t.Errorf("%d segments after the merge", got)
	}
	for _, path := range slices.Concat(files[classFlows], files[classDetections]) {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("a file that is being read is gone: %v", err)
		}
	}
	release()
	if err := l.tidyOnce(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if after := fmt.Sprint(query(t, l, "SELECT record, time_ms, source, bytes FROM flows ORDER BY ALL").Rows); after != before {
		t.Error("merging changed what is there")
	}
	if found := parquetFiles(t, l.cfg.Dir); len(found) != 6 {
		t.Errorf("files: %v", found)
	}
}

func parquetFiles(t testing.TB, dir string) []string {
	var found []string
	for _, class := range classes() {
		some, err := filepath.Glob(filepath.Join(dir, "class="+class, "*", "*", "*.parquet"))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, some...)
	}
	return found
}

// A crash between the steps of a merge leaves both, and the larger one counts.
func TestMergeCutOff(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	stop := land(t, l, log)
	for n := range uint64(16) {
		appendTo(t, log, fmt.Sprint(n), batch(n+1, morning, 10))
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	_, release := l.snapshot() // keeps the small ones, as a crash would
	if err := l.tidyOnce(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	release()
	if got := len(parquetFiles(t, l.cfg.Dir)); got != 51 {
		t.Fatalf("%d files", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Open(l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := len(parquetFiles(t, l.cfg.Dir)); got != 3 {
		t.Errorf("%d files after the restart", got)
	}
	if got := fmt.Sprint(query(t, l, "SELECT count(*), count(DISTINCT record) FROM flows").Rows); got != "[[160 160]]" {
		t.Error(got)
	}
}

// A crash after a flush was committed, with some of its files in place: the rest
// follows. A crash before that leaves nothing.
func TestLandingCutOff(t *testing.T) {
	l := newLake(t, nil)
	gathered := newRows()
	for n := range uint64(4) {
		b, err := openPlain(batch(n+1, morning.Add(-time.Duration(n)*time.Hour), 10))
		if err != nil {
			t.Fatal(err)
		}
		gathered.add(b, "h1", time.Now(), nameOf)
	}
	landing := filepath.Join(l.cfg.Dir, landingDir, "00000000000000000001-00000000000000000004")
	if err := l.commit(gathered, filepath.Base(landing), landing); err != nil {
		t.Fatal(err)
	}
	done := gathered.partitions()[2]
	if err := l.makePartition(done); err != nil {
		t.Fatal(err)
	}
	place := segment{partition: done, first: 1, last: 4}.path(l.cfg.Dir)
	if err := os.Rename(filepath.Join(landing, fileOf(done)), place); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(l.cfg.Dir, tempDir, "00000000000000000005-00000000000000000006")
	if err := os.Mkdir(half, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, fileOf(done)), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Open(l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := fmt.Sprint(query(t, l, "SELECT count(*), count(DISTINCT record) FROM flows").Rows); got != "[[40 40]]" || l.Landed() != 4 {
		t.Errorf("%s, landed %d", got, l.Landed())
	}
	if left, _ := filepath.Glob(filepath.Join(l.cfg.Dir, "*", "0*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestOldAndTooMuchGoes(t *testing.T) {
	l, log := newLake(t, func(c *Config) { c.MaxAge = 24 * time.Hour }), streammem.NewLog(1<<30)
	stop := land(t, l, log)
	for n := range uint64(6) {
		appendTo(t, log, fmt.Sprint(n), batch(n+1, time.Now().Add(-time.Duration(5-n)*8*time.Hour), 1000))
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := l.tidyOnce(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(query(t, l, "SELECT count(*) FROM flows").Rows); got != "[[3000]]" {
		t.Errorf("after a day: %s", got)
	}
	l.cfg.MaxBytes = 1
	if err := l.tidyOnce(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Segments != 1 || l.Landed() != 6 {
		t.Errorf("%d segments are left, landed %d", s.Segments, l.Landed())
	}
}

func TestWrongClocksDoNotStrewFiles(t *testing.T) {
	now := time.Now()
	for _, at := range []time.Time{{}, time.Unix(0, 0), now.Add(-72 * time.Hour), now.Add(3 * time.Hour), now.AddDate(500, 0, 0)} {
		if got, want := partition(classFlows, at, now), partition(classFlows, now, now); got != want {
			t.Errorf("%s lands in %s", at, got)
		}
	}
}

func TestFullDiskLosesNothing(t *testing.T) {
	l, log := newLake(t, func(c *Config) { c.MinFree = 1 << 62 }), streammem.NewLog(1<<30)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Land(ctx, log, openPlain) }()
	for n := range uint64(50) {
		appendTo(t, log, fmt.Sprint(n), batch(n+1, morning, 10))
	}
	deadline := time.Now().Add(10 * time.Second)
	for l.Fault() == nil && time.Now().Before(deadline) {
		waiting, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := l.Flush(waiting); err == nil {
			t.Error("flushed to a full disk")
		}
		stop()
	}
	if fault := l.Fault(); fault == nil || !strings.Contains(fault.Error(), "no space left on device") {
		t.Fatalf("fault: %v", fault)
	}
	cancel()
	<-done
	if l.Landed() != 0 || len(parquetFiles(t, l.cfg.Dir)) != 0 {
		t.Error("something landed")
	}
	l.cfg.MinFree = 1 // somebody made room
	stop := land(t, l, log)
	if got := fmt.Sprint(query(t, l, "SELECT count(*), count(DISTINCT record) FROM flows").Rows); got != "[[500 500]]" {
		t.Error(got)
	}
	stop()
}

func TestEdges(t *testing.T) {
	l, log := newLake(t, nil), streammem.NewLog(1<<30)
	b := bocage.Batch{Source: "spiffe://bocage.test/agent/h1", Boot: "b", Sequence: 1}
	put := func(e bocage.FlowEvent, points ...bocage.Direction) {
		for _, e.Direction = range points {
			e.Protocol, e.Time = bocage.ProtocolTCP, morning
			e.Remote = netip.MustParseAddr("10.1.0.9")
			b.Flows, _ = e.AppendBinary(b.Flows)
		}
	}
	both := []bocage.Direction{bocage.DirectionFrom, bocage.DirectionTo}
	allow := bocage.FlowEvent{Source: 20, Destination: 21, DestinationPort: 8080, Verdict: bocage.VerdictAllow, Would: bocage.VerdictAllow}
	for port := range uint16(5) { // five flows with an answer, seen twice each
		allow.SourcePort = 40000 + port
		allow.Kind, allow.Replied = bocage.EventStart, false
		put(allow, both...)
		allow.Kind, allow.Replied = bocage.EventEnd, true
		put(allow, both...)
	}
	observed := bocage.FlowEvent{Source: 21, Destination: 22, DestinationPort: 5432, Verdict: bocage.VerdictAllow, Would: bocage.VerdictDrop,
		Reason: bocage.ReasonDefaultDeny, Kind: bocage.EventRefused, Packets: 3}
	put(observed, both...)
	observed.Kind, observed.Replied, observed.SourcePort, observed.Packets = bocage.EventUpdate, true, 41000, 77
	put(observed, both...) // one goes on, told twice
	put(observed, both...)
	put(bocage.FlowEvent{Source: 23, Destination: 22, DestinationPort: 22, Verdict: bocage.VerdictDrop, Would: bocage.VerdictDrop,
		Reason: bocage.ReasonDefaultDeny, Kind: bocage.EventRefused, Packets: 1}, both...)
	put(bocage.FlowEvent{Source: 23, Destination: 1, Verdict: bocage.VerdictAllow, Would: bocage.VerdictAllow,
		Reason: bocage.ReasonDarkAddress, Kind: bocage.EventRefused, Packets: 1}, bocage.DirectionFrom)
	put(bocage.FlowEvent{Source: 20, Destination: 1, DestinationPort: 443, Kind: bocage.EventStart, Verdict: bocage.VerdictAllow,
		Would: bocage.VerdictAllow}, bocage.DirectionFrom) // to the world
	probe := bocage.FlowEvent{Source: 23, Destination: 21, Verdict: bocage.VerdictAllow, Would: bocage.VerdictDrop, Reason: bocage.ReasonDefaultDeny, Replied: true, Closed: true}
	for port, packets := range map[uint16]uint32{23: 2, 25: 3, 80: 4} { // a closed port, one that was tried half, and a connection
		probe.SourcePort, probe.DestinationPort = 50000+port, port
		probe.Kind, probe.Packets = bocage.EventRefused, 1
		put(probe, both...)
		probe.Kind, probe.Packets = bocage.EventEnd, packets
		put(probe, both...)
	}
	envelope, _ := json.Marshal(&b)
	appendTo(t, log, "1", envelope)
	land(t, l, log)
	edges, err := l.Edges(t.Context(), morning.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range edges {
		got = append(got, fmt.Sprintf("%s %s %s/%d %d %d %v", e.Source, e.Destination, e.Protocol, e.DestinationPort, e.Flows, e.Replied, e.First.Equal(morning)))
	}
	want := []string{"shop/web shop/api TCP/8080 5 5 true", "shop/api shop/db TCP/5432 3 1 true", "dev/red shop/api TCP/23 1 0 true", "dev/red shop/api TCP/25 1 0 true", "dev/red shop/api TCP/80 1 1 true", "shop/web 10.1.0.9 TCP/443 1 0 true"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if edges, err = l.Edges(t.Context(), morning.Add(time.Hour)); err != nil || len(edges) != 0 {
		t.Errorf("later: %v, %v", edges, err)
	}
	if edges, err = l.Edges(t.Context(), time.Time{}); err != nil || len(edges) != 6 {
		t.Errorf("ever: %v, %v", edges, err)
	}
}

// fileLog is a log in a file, so that it outlives the processes that read it:
// records of length and data.
type fileLog struct{ path string }

func (f fileLog) Append(_ context.Context, _, _ string, data []byte) (uint64, error) {
	out, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	_, err = out.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(data))), data...))
	return 0, err
}

func (f fileLog) Read(ctx context.Context, from uint64, each func(stream.Message) error) error {
	in, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer in.Close()
	reader := bufio.NewReader(in)
	for n := uint64(1); ctx.Err() == nil; n++ {
		head, err := reader.Peek(4)
		for err != nil && ctx.Err() == nil { // at the end: wait for more
			_ = pause(ctx, time.Millisecond)
			head, err = reader.Peek(4)
		}
		if ctx.Err() != nil {
			break
		}
		size := int(binary.LittleEndian.Uint32(head))
		whole := make([]byte, 4+size)
		for got := 0; got < len(whole) && ctx.Err() == nil; {
			some, err := reader.Read(whole[got:])
			if got += some; err != nil {
				_ = pause(ctx, time.Millisecond)
			}
		}
		if ctx.Err() != nil {
			break
		}
		if n < from {
			continue
		}
		if err := each(stream.Message{Sequence: n, Time: time.Now(), Subject: "events.h1", Data: whole[4:]}); err != nil {
			return err
		}
	}
	return nil
}

func (f fileLog) Bounds(context.Context) (first, last uint64, err error) {
	data, err := os.ReadFile(f.path)
	for len(data) >= 4 {
		size := 4 + int(binary.LittleEndian.Uint32(data))
		if size > len(data) {
			break
		}
		data = data[size:]
		last++
	}
	return 1, last, err
}

// landForEver is the child that gets killed.
func landForEver(dir, log string) {
	l, err := Open(Config{Dir: dir, FlushEvery: 15 * time.Millisecond, MinFree: 1, Name: nameOf, Logger: quiet, tidyEvery: 7 * time.Millisecond})
	for err != nil { // the one before may not be quite dead
		l, err = Open(Config{Dir: dir, FlushEvery: 15 * time.Millisecond, MinFree: 1, Name: nameOf, Logger: quiet, tidyEvery: 7 * time.Millisecond})
	}
	fmt.Println("landing")
	err = l.Land(context.Background(), fileLog{log}, openPlain)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// The lander is killed again and again while batches arrive, also while it merges.
// In the end every record is there once.
func TestKilledLanderLandsExactlyOnce(t *testing.T) {
	const kills, flows = 30, 40
	dir, path := filepath.Join(t.TempDir(), "lake"), filepath.Join(t.TempDir(), "log")
	log := fileLog{path}
	var sent uint64
	send := func() {
		sent++
		at := morning.Add(time.Duration(sent%3) * -7 * time.Hour)
		appendTo(t, log, "", batch(sent, at, flows))
		if sent%10 == 0 {
			appendTo(t, log, "", batch(sent, at, flows)) // sent twice
		}
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range kills {
		cmd := exec.Command(program, "lake-land", dir, path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		send()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		for until := time.Now().Add(time.Duration(10+random.IntN(150)) * time.Millisecond); time.Now().Before(until); {
			send()
			_ = pause(t.Context(), 2*time.Millisecond)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	l, err := Open(Config{Dir: dir, MinFree: 1, Name: nameOf, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	resumed := l.Landed()
	stop := land(t, l, log)
	stop()
	seen := map[string]int{}
	var files, total int
	for _, path := range parquetFiles(t, dir) {
		files++
		if !strings.Contains(path, classFlows) {
			continue
		}
		rows, err := parquet.ReadFile[flowRow](path)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			seen[fmt.Sprintf("%d/%d", row.Sequence, row.Index)]++
			total++
		}
	}
	t.Logf("%d kills, %d batches, %d records in %d files; the last restart resumed at message %d", kills, sent, total, files, resumed)
	if want := int(sent) * flows; total != want || len(seen) != want {
		t.Errorf("%d records landed, %d of them different: want %d", total, len(seen), want)
	}
}

// What was hostile or careless is refused or bounded, and harms nothing.
func TestHostileQuestions(t *testing.T) {
	l, log := newLake(t, func(c *Config) { c.QueryTime, c.QueryMemory = 10*time.Second, 64<<20 }), streammem.NewLog(1<<30)
	stop := land(t, l, log)
	appendTo(t, log, "1", batch(1, morning, 1000))
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	dir := l.cfg.Dir
	before := tree(t, dir)
	for sql, want := range map[string]string{
		"":                                 "empty",
		"SELEC 1":                          "syntax error",
		"SELECT nope FROM flows":           "nope",
		"SELECT * FROM nothing_here":       "nothing_here",
		"SELECT 1; SELECT 2":               "one SELECT",
		"SELECT 1; COPY flows TO '/tmp/x'": "SELECT",
		"COPY flows TO '/tmp/bct-x.csv'":   "only SELECT",
		"COPY (SELECT 1) TO '" + dir + "/x.parquet'":    "only SELECT",
		"EXPORT DATABASE '" + dir + "/x'":               "only SELECT",
		"ATTACH '" + dir + "/x.db'":                     "only SELECT",
		"INSTALL httpfs":                                "only SELECT",
		"LOAD httpfs":                                   "only SELECT",
		"LOAD '/tmp/evil.so'":                           "only SELECT",
		"PRAGMA memory_limit='100GB'":                   "only SELECT",
		"SET memory_limit='100GB'":                      "only SELECT",
		"SET enable_external_access=true":               "only SELECT",
		"RESET lock_configuration":                      "only SELECT",
		"CREATE TABLE t AS SELECT 1":                    "only SELECT",
		"CREATE OR REPLACE VIEW flows AS SELECT 1":      "only SELECT",
		"DROP VIEW flows":                               "only SELECT",
		"INSERT INTO flows VALUES (1)":                  "only SELECT",
		"DELETE FROM flows":                             "only SELECT",
		"CALL pragma_version()":                         "only SELECT",
		"CHECKPOINT":                                    "only SELECT",
		"PREPARE p AS SELECT 1":                         "only SELECT",
		"EXPLAIN ANALYZE COPY flows TO '" + dir + "/y'": "only SELECT",
		"SELECT * FROM read_csv('/etc/passwd')":         "disabled by configuration",
		"SELECT * FROM read_text('/etc/passwd')":        "disabled by configuration",
		"SELECT * FROM read_blob('/proc/1/environ')":    "disabled by configuration",
		"SELECT * FROM read_text('" + dir + "/../../../../../../../etc/passwd')":                                     "disabled by configuration",
		"SELECT * FROM glob('/etc/*')":                                                                               "disabled by configuration",
		"SELECT * FROM '/etc/passwd'":                                                                                "",
		"SELECT * FROM read_parquet('https://example.org/x.parquet')":                                                "",
		"SELECT * FROM query('DROP VIEW flows')":                                                                     "SELECT",
		"SELECT getenv('PATH')":                                                                                      "getenv",
		"SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE hash(a.range, b.range) = 0":                   "stopped after",
		"SELECT count(DISTINCT x) FROM (SELECT a.range*b.range+random() AS x FROM range(100000) a, range(100000) b)": "emory",
		"SELECT list(range) FROM range(1000000000)":                                                                  "emory",
		"SELECT repeat('x', 2000000000)":                                                                             "emory",
		"SELECT '" + strings.Repeat("x", maxSQL) + "'":                                                               "at most",
	} {
		t.Run(sql[:min(len(sql), 50)], func(t *testing.T) {
			t.Parallel()
			result, err := l.Query(t.Context(), sql, 10)
			if err == nil {
				t.Fatalf("answered: %v", result.Rows)
			}
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nwant %q in it", err, want)
			}
		})
	}
	t.Run("afterwards", func(t *testing.T) {
		for _, sql := range []string{"FROM flows SELECT count(*)", "SELECT 1 -- ; DROP", "/* c */ SELECT 1;", "VALUES (1)", "SELECT ';'"} {
			if got := query(t, l, sql); len(got.Rows) != 1 {
				t.Errorf("%s: %v", sql, got.Rows)
			}
		}
		if got := query(t, l, "SELECT repeat('x', 1000000)").Rows[0][0].(string); len(got) > maxCell+8 {
			t.Errorf("a cell of %d bytes", len(got))
		}
	})
	t.Cleanup(func() {
		if after := tree(t, dir); after != before {
			t.Errorf("the lake changed:\n%s\n%s", before, after)
		}
	})
}

func tree(t testing.TB, dir string) string {
	var out strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			fmt.Fprintln(&out, path, info.Size(), info.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return out.String()
}
