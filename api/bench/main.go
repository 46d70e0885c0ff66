// Command bench measures the API as its clients meet it: a server of its own
// process, on etcd on disk, asked over TLS on loopback.
//
//	go run ./api/bench -objects 100000 -watchers 5000 -rate 500
//
// It lists everything, in one answer and in pages; then it opens the watchers,
// each on a namespace, and has objects written at a rate that does not wait for
// the answers, so that what is slow is not left out. The latency of an event is
// the time from when its write was due to when a watcher has it. It prints a
// table for people on standard error and one JSON object on standard output.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
)

// settings are what is measured.
type settings struct {
	Objects    int           `json:"objects"`
	Namespaces int           `json:"namespaces"`
	Watchers   int           `json:"watchers"`
	Everything int           `json:"watchersOfEverything"` // of the watchers
	Streams    int           `json:"watchersPerConnection"`
	Rate       int           `json:"writesPerSecond"`
	Duration   time.Duration `json:"duration"`
	Lists      int           `json:"lists"`
	Trail      bool          `json:"auditTrail"`
	Profile    string        `json:"-"`
}

const (
	trustDomain = "bench.local"
	adminToken  = "only-for-the-time-of-this-measurement"
)

func main() {
	var s settings
	flag.IntVar(&s.Objects, "objects", 100_000, "workloads that there are")
	flag.IntVar(&s.Namespaces, "namespaces", 500, "namespaces that they lie in")
	flag.IntVar(&s.Watchers, "watchers", 5000, "open watches")
	flag.IntVar(&s.Everything, "everything", 10, "of them follow every namespace, the others one each")
	flag.IntVar(&s.Streams, "streams", 1, "watches that share a connection (HTTP/2); 1 is HTTP/1.1")
	flag.IntVar(&s.Rate, "rate", 500, "writes per second")
	flag.DurationVar(&s.Duration, "duration", 20*time.Second, "of the writing")
	flag.IntVar(&s.Lists, "lists", 5, "how often everything is listed")
	flag.BoolVar(&s.Trail, "audit", true, "keep the audit trail, as controllers do: an answer waits until it is on the disk")
	dir := flag.String("dir", "", "where the store lies; empty: a directory for the time of the measurement")
	flag.StringVar(&s.Profile, "profile", "", "a file for the server's CPU profile while there are writes")
	serving := flag.Bool("serve", false, "be the server; the bench starts itself with it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *serving {
		err = serve(ctx, *dir, s)
	} else {
		var r report
		if r, err = measure(ctx, *dir, s); err == nil {
			r.print(os.Stderr)
			err = json.NewEncoder(os.Stdout).Encode(r)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// report is what was measured.
type report struct {
	Settings settings          `json:"settings"`
	List     listFigures       `json:"list"`
	Pages    listFigures       `json:"pages"`
	Watch    watchFigures      `json:"watch"`
	Server   map[string]figure `json:"server"` // by phase
}

// figure is what the server's process used.
type figure struct {
	CPUSeconds  float64 `json:"cpuSeconds"`
	MemoryMiB   float64 `json:"memoryMiB"`
	WallSeconds float64 `json:"wallSeconds"`
}

func measure(ctx context.Context, dir string, s settings) (report, error) {
	r := report{Settings: s, Server: map[string]figure{}}
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "bct-bench-api"); err != nil {
			return r, err
		}
		defer os.RemoveAll(dir)
	}
	server, err := startServer(ctx, dir, s)
	if err != nil {
		return r, err
	}
	defer server.stop()
	r.Server["start"] = server.used()
	if err := server.login(ctx); err != nil {
		return r, err
	}
	if r.List, err = server.lists(ctx, s, 0); err != nil {
		return r, err
	}
	if r.Pages, err = server.lists(ctx, s, 500); err != nil {
		return r, err
	}
	r.Server["lists"] = server.used()
	r.Watch, err = server.watches(ctx, s)
	r.Server["watches"] = server.used()
	return r, err
}

// process is the server's.
type process struct {
	command *exec.Cmd
	bundle  *identity.Bundle
	dir     string
	address string
	token   string

	lastCPU  float64
	lastTime time.Time
}

// startServer starts this program as a server and waits until it answers.
func startServer(ctx context.Context, dir string, s settings) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{dir: dir, lastTime: time.Now()}
	p.command = exec.CommandContext(ctx, self, "-serve", "-dir", dir,
		"-objects", strconv.Itoa(s.Objects), "-namespaces", strconv.Itoa(s.Namespaces), "-watchers", strconv.Itoa(s.Watchers), "-profile", s.Profile, "-audit="+strconv.FormatBool(s.Trail))
	p.command.Cancel = func() error { return p.command.Process.Signal(syscall.SIGTERM) }
	p.command.Stderr = os.Stderr
	out, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	line := make([]byte, 256)
	n, err := out.Read(line)
	if err != nil {
		_ = p.command.Wait()
		return nil, errors.New("the server ended before it served")
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	p.address = "https://" + strings.TrimSpace(string(line[:n]))
	if p.bundle, err = identity.LoadBundle(filepath.Join(dir, "bundle"), trustDomain); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func (p *process) stop() {
	_ = p.command.Process.Signal(syscall.SIGTERM)
	_ = p.command.Wait()
}

// login exchanges the one-time token for a session's.
func (p *process) login(ctx context.Context) error {
	tls := identity.ClientTLS(func() *identity.SVID { return nil }, p.bundle, "/controller/")
	c, err := client.New(client.Config{Address: p.address, TLS: tls, Token: adminToken})
	if err != nil {
		return err
	}
	defer c.Close()
	session, err := c.Login(ctx)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	p.token = session.Token
	return nil
}

// used is what the server's process took since it was asked last.
func (p *process) used() figure {
	pid := p.command.Process.Pid
	var f figure
	total := cpuSeconds(pid)
	f.CPUSeconds, p.lastCPU = total-p.lastCPU, total
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
		for _, line := range strings.Split(string(text), "\n") {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmRSS:" {
				kib, _ := strconv.ParseFloat(fields[1], 64)
				f.MemoryMiB = kib / 1024
			}
		}
	}
	now := time.Now()
	f.WallSeconds, p.lastTime = now.Sub(p.lastTime).Seconds(), now
	return f
}

// cpuSeconds is how long a process has worked.
func cpuSeconds(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name of the program ends with the last parenthesis.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) <= 12 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100 // USER_HZ
}

// waited is how long a process's threads were ready to run and did not: others had
// the processors.
func waited(pid int) float64 {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	total := 0.0
	for _, thread := range threads {
		text, _ := os.ReadFile(thread)
		if fields := strings.Fields(string(text)); len(fields) > 1 {
			nanoseconds, _ := strconv.ParseFloat(fields[1], 64)
			total += nanoseconds / 1e9
		}
	}
	return total
}

func (r report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(what, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", what, fmt.Sprintf(format, args...)) }
	line(fmt.Sprintf("list of %d objects", r.List.Objects), "%s median, %s worst, %.1f MiB", r.List.Median, r.List.Worst, r.List.MiB)
	line("  the same, decoded by the Go client", "%s", r.List.Decoded)
	line("list in pages of 500", "%s median, %s worst", r.Pages.Median, r.Pages.Worst)
	line(fmt.Sprintf("%d watchers", r.Watch.Watchers), "open in %s", r.Watch.Opened)
	line("writes", "%d at %.0f/s, latency p50 %s, p99 %s, %d refused as too many at a time and tried again", r.Watch.Writes, r.Watch.WritesPerSecond, r.Watch.WriteP50, r.Watch.WriteP99, r.Watch.Refused)
	line("events", "%d delivered of %d, %.0f/s", r.Watch.Delivered, r.Watch.Expected, r.Watch.DeliveredPerSecond)
	line("event latency, from when the write was due", "p50 %s, p99 %s, worst %s", r.Watch.P50, r.Watch.P99, r.Watch.Worst)
	line("event latency, from the write's answer", "p50 %s, p99 %s", r.Watch.AfterP50, r.Watch.AfterP99)
	line("  of that, writes that this program began late", "p50 %s, p99 %s", r.Watch.LateP50, r.Watch.LateP99)
	d := r.Watch.Disk
	line("the disk meanwhile, one sync", "p50 %s, p99 %s, worst %s of %d", d.P50, d.P99, d.Worst, d.Syncs)
	line("  of etcd's log", "p50 <= %s, p99 <= %s of %.0f", d.Log.AtMost, d.Log.Tail, d.Log.Count)
	line("  of etcd's database", "p50 <= %s, p99 <= %s of %.0f", d.Commit.AtMost, d.Commit.Tail, d.Commit.Count)
	line("processors while writing", "server %.1f s and %.1f s waiting for one, this program %.1f s and %.1f s", r.Watch.Server.Worked, r.Watch.Server.Waited, r.Watch.Own.Worked, r.Watch.Own.Waited)
	for _, phase := range []string{"start", "lists", "watches"} {
		f := r.Server[phase]
		line("server, "+phase, "%.1f s CPU in %.1f s, %.0f MiB resident", f.CPUSeconds, f.WallSeconds, f.MemoryMiB)
	}
	_ = w.Flush()
}
