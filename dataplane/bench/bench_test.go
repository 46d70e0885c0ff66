package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage/host/hosttest"
)

// TestRootShort sees that every variant carries every kind of traffic and that
// all of it is written down.
func TestRootShort(t *testing.T) {
	hosttest.Root(t)
	o := options{repeats: 1, duration: 200 * time.Millisecond, only: regexp.MustCompile(""), tests: regexp.MustCompile(""), sizes: []int{10, 1000}, linear: []int{10}, mapped: 1000}
	file := filepath.Join(t.TempDir(), "figures.json")
	if err := run(o, file); err != nil {
		t.Fatal(err)
	}
	printed := "goos: linux\nBenchmarkRootPacket/new/IPv4-2   1000   12 ns/op   561 ns/packet\n" +
		"BenchmarkRootPacket/new/IPv4-2   1000   12 ns/op   461 ns/packet\nBenchmarkRootScan-2  3  70 ns/op  80.5 Mflows/s\nPASS\n"
	var said strings.Builder
	if err := addBenchmarks(file, "go test -bench", strings.NewReader(printed), &said); err != nil {
		t.Fatal(err)
	}
	if err := addBenchmarks(file, "go test -bench", strings.NewReader("PASS\n"), &said); err == nil {
		t.Error("no benchmark is no fault")
	}
	if !strings.Contains(said.String(), "ns/packet  561 (461 to 561)") {
		t.Errorf("it says %q", said.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got record
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	var added []figures
	for _, f := range got.Figures {
		seen[f.Variant+": "+f.Figure] = true
		if f.Baseline == "" {
			added = append(added, f)
			continue
		}
		if f.Median <= 0 || f.Ratio <= 0 || len(f.Values) != 1 {
			t.Errorf("%s, %s: median %v, ratio %v, values %v", f.Variant, f.Figure, f.Median, f.Ratio, f.Values)
		}
	}
	if want := []figures{
		{Suite: "RootPacket", Variant: "new/IPv4", Figure: "ns/packet", Less: true, Median: 561, Values: []float64{561, 461}},
		{Suite: "RootScan", Figure: "Mflows/s", Median: 80.5, Values: []float64{80.5}},
	}; !reflect.DeepEqual(added, want) || len(got.Added) != 1 {
		t.Errorf("added %+v by %q, want %+v", added, got.Added, want)
	}
	for _, want := range []string{"unfiltered: TCP Gbit/s, 1 stream", "nftables rules 10: connections/s", "nftables map 1k: requests/s",
		"bocage 1k: UDP 60 B packets/s", "bocage observing 1k: TCP Gbit/s, 8 streams", "bocage 10: request p99 µs",
		"bocage verifying 1k: connections with a request/s", "bocage direct verifying 1k: TCP Gbit/s, 1 stream",
		"bridge: connections/s", "bocage wire by stack 1k: TCP Gbit/s, 1 stream", "bocage wire by drivers 1k: UDP 60 B packets/s",
		"nftables netdev ingress: SYNs refused/s", "bocage 1k: SYNs refused/s", "bocage wire by drivers 1k: SYNs refused/s", "generator alone: SYNs refused/s"} {
		if !seen[want] {
			t.Errorf("no figure %q", want)
		}
	}
}

// TestFloodFrame sees that the flood's frame is one that hosts accept.
func TestFloodFrame(t *testing.T) {
	p := &path{client: end{address: netip.MustParseAddr("10.0.0.1"), mac: make([]byte, 6), hostMAC: make([]byte, 6)},
		server: end{address: netip.MustParseAddr("10.0.0.2")}}
	f := p.syn(80)
	if got := checksum(f[14:34]); got != 0 {
		t.Errorf("IPv4 checksum leaves %#x", got)
	}
	pseudo := append(append([]byte{}, f[26:34]...), 0, 6, 0, 20)
	if got := checksum(append(pseudo, f[34:]...)); got != 0 {
		t.Errorf("TCP checksum leaves %#x", got)
	}
}
