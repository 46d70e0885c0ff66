package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
)

const (
	workloadsPath = "/apis/bocage.dev/v1/workloads"
	// dueAnnotation carries when a write was due, in nanoseconds, and its number.
	dueAnnotation = "bench.bocage.dev/due"
)

// transport opens connections to the server, of HTTP/2 or one for each request.
func (p *process) transport(http2 bool) *http.Transport {
	t := &http.Transport{
		TLSClientConfig: identity.ClientTLS(func() *identity.SVID { return nil }, p.bundle, "/controller/"),
		// What is measured is the server's work, not gzip's on the same machine.
		DisableCompression: true, ForceAttemptHTTP2: http2, MaxIdleConnsPerHost: 64, ReadBufferSize: 8 << 10,
	}
	return t
}

func (p *process) get(ctx context.Context, c *http.Client, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.address+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+p.token)
	answer, err := c.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		_ = answer.Body.Close()
		return nil, fmt.Errorf("GET %s: %s: %s", path, answer.Status, text)
	}
	return answer, nil
}

// listFigures are those of a list.
type listFigures struct {
	Objects int           `json:"objects"`
	MiB     float64       `json:"mib"`
	Median  time.Duration `json:"medianNanoseconds"`
	Worst   time.Duration `json:"worstNanoseconds"`
	Decoded time.Duration `json:"decodedNanoseconds,omitempty"`
}

// lists reads everything several times, in pages if page is above 0.
func (p *process) lists(ctx context.Context, s settings, page int) (listFigures, error) {
	t := p.transport(true)
	defer t.CloseIdleConnections()
	c := &http.Client{Transport: t}
	var f listFigures
	var took []time.Duration
	for range s.Lists {
		began := time.Now()
		size, objects, token := 0, 0, ""
		for {
			path := workloadsPath
			if page > 0 {
				path += fmt.Sprintf("?limit=%d&continue=%s", page, token)
			}
			answer, err := p.get(ctx, c, path)
			if err != nil {
				return f, err
			}
			data, err := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			if err != nil {
				return f, err
			}
			size += len(data)
			objects += bytes.Count(data, []byte(`"kind":"Workload",`))
			if token = continueOf(data); page == 0 || token == "" {
				break
			}
		}
		took = append(took, time.Since(began))
		f.Objects, f.MiB = objects, float64(size)/(1<<20)
	}
	slices.Sort(took)
	f.Median, f.Worst = took[len(took)/2], took[len(took)-1]
	if f.Objects != s.Objects {
		return f, fmt.Errorf("a list has %d objects, want %d", f.Objects, s.Objects)
	}
	if page > 0 {
		return f, nil
	}
	typed, err := client.New(client.Config{Address: p.address, Token: p.token, TLS: t.TLSClientConfig.Clone()})
	if err != nil {
		return f, err
	}
	defer typed.Close()
	kind, _ := bocage.KindNamed("Workload")
	began := time.Now()
	objects, _, err := typed.List(ctx, kind, client.ListOptions{})
	if err == nil && len(objects) != s.Objects {
		err = fmt.Errorf("the Go client lists %d objects, want %d", len(objects), s.Objects)
	}
	f.Decoded = time.Since(began)
	return f, err
}

// continueOf reads the token out of the head of a list.
func continueOf(data []byte) string {
	_, rest, found := bytes.Cut(data[:min(len(data), 1000)], []byte(`"continue":"`))
	if !found {
		return ""
	}
	token, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(token)
}

// watchFigures are those of the watches.
type watchFigures struct {
	Watchers           int           `json:"watchers"`
	Opened             time.Duration `json:"openedNanoseconds"`
	Writes             int           `json:"writes"`
	WritesPerSecond    float64       `json:"writesPerSecond"`
	WriteP50           time.Duration `json:"writeP50Nanoseconds"`
	WriteP99           time.Duration `json:"writeP99Nanoseconds"`
	Expected           int64         `json:"eventsExpected"`
	Delivered          int64         `json:"eventsDelivered"`
	DeliveredPerSecond float64       `json:"eventsPerSecond"`
	P50                time.Duration `json:"p50Nanoseconds"`
	P99                time.Duration `json:"p99Nanoseconds"`
	Worst              time.Duration `json:"worstNanoseconds"`
	AfterP50           time.Duration `json:"afterAnswerP50Nanoseconds"`
	AfterP99           time.Duration `json:"afterAnswerP99Nanoseconds"`
	// Refused counts the writes that found the server busy and were tried again.
	Refused int64 `json:"writesRefused"`
	// LateP50 and LateP99 are how long after it was due a write was begun: what
	// this program, which has the machine together with the server, adds itself.
	LateP50 time.Duration `json:"lateP50Nanoseconds"`
	LateP99 time.Duration `json:"lateP99Nanoseconds"`
	Disk    diskFigures   `json:"disk"`
	// Server and Own are what the server and this program had of the processors
	// while there were writes.
	Server share `json:"server"`
	Own    share `json:"own"`
}

// share is how many seconds a process had of the processors, and how many it could
// have used besides.
type share struct {
	Worked float64 `json:"workedSeconds"`
	Waited float64 `json:"waitedSeconds"`
}

func shareOf(pid int) share { return share{cpuSeconds(pid), waited(pid)} }

func (s share) since(before share) share {
	return share{s.Worked - before.Worked, s.Waited - before.Waited}
}

// sample is one event that a watcher got.
type sample struct {
	write int
	due   time.Duration // since the write was due
	at    time.Time
}

// watches opens the watchers, writes, and waits until every event has arrived.
func (p *process) watches(ctx context.Context, s settings) (watchFigures, error) {
	f := watchFigures{Watchers: s.Watchers}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	revision, err := p.revision(ctx)
	if err != nil {
		return f, err
	}
	samples := make([][]sample, s.Watchers)
	var delivered atomic.Int64
	failed := make(chan error, s.Watchers)
	open := make(chan struct{}, s.Watchers)
	perNamespace := make([]int64, s.Namespaces)
	began := time.Now()
	var shared *http.Client
	dialing := make(chan struct{}, 32) // handshakes at a time
	for i := range s.Watchers {
		path := workloadsPath
		if i >= s.Everything {
			n := i % s.Namespaces
			perNamespace[n]++
			path = fmt.Sprintf("/apis/bocage.dev/v1/namespaces/ns-%04d/workloads", n)
		}
		if s.Streams == 1 || i%s.Streams == 0 {
			shared = &http.Client{Transport: p.transport(s.Streams > 1)}
		}
		c := shared
		running.Go(func() {
			dialing <- struct{}{}
			answer, err := p.get(ctx, c, path+"?watch=true&resourceVersion="+revision)
			<-dialing
			if err != nil {
				failed <- err
				return
			}
			defer answer.Body.Close()
			open <- struct{}{}
			lines := bufio.NewReaderSize(answer.Body, 4<<10)
			for {
				line, err := readLine(lines)
				if err != nil {
					if ctx.Err() == nil {
						failed <- fmt.Errorf("a watch ended: %w", err)
					}
					return
				}
				if now := time.Now(); len(line) > 0 {
					if got, ok := dueOf(line, now); ok {
						samples[i] = append(samples[i], got)
						delivered.Add(1)
					}
				}
			}
		})
	}
	for range s.Watchers {
		select {
		case <-open:
		case err := <-failed:
			return f, err
		}
	}
	f.Opened = time.Since(began)

	wrote, err := p.writeWatched(ctx, s, &f)
	if err != nil {
		return f, err
	}
	f.Writes, f.WritesPerSecond = len(wrote.took), float64(len(wrote.took))/wrote.elapsed.Seconds()
	f.WriteP50, f.WriteP99 = quantile(wrote.took, .5), quantile(wrote.took, .99)
	f.Refused = wrote.refused.Load()
	f.LateP50, f.LateP99 = quantile(wrote.late, .5), quantile(wrote.late, .99)
	for _, n := range wrote.namespaces {
		f.Expected += int64(s.Everything) + perNamespace[n]
	}
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for delivered.Load() < f.Expected {
		select {
		case <-look.C:
		case err := <-failed:
			return f, err
		case <-deadline.C:
			return f, fmt.Errorf("%d of %d events arrived", delivered.Load(), f.Expected)
		}
	}
	cancel()
	running.Wait()
	var due, after []time.Duration
	for _, list := range samples {
		for _, got := range list {
			due = append(due, got.due)
			after = append(after, max(0, got.at.Sub(wrote.answered[got.write])))
		}
	}
	f.Delivered, f.DeliveredPerSecond = delivered.Load(), float64(delivered.Load())/wrote.elapsed.Seconds()
	f.P50, f.P99, f.Worst = quantile(due, .5), quantile(due, .99), quantile(due, 1)
	f.AfterP50, f.AfterP99 = quantile(after, .5), quantile(after, .99)
	return f, nil
}

// revision is where the watches begin.
func (p *process) revision(ctx context.Context) (string, error) {
	t := p.transport(true)
	defer t.CloseIdleConnections()
	answer, err := p.get(ctx, &http.Client{Transport: t}, workloadsPath+"?fieldSelector=metadata.name%3Dnone")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	err = json.NewDecoder(answer.Body).Decode(&list)
	return list.Metadata.ResourceVersion, err
}

// readLine reads a line and keeps its beginning, where the annotation is.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	for rest := err; rest == bufio.ErrBufferFull; {
		line = bytes.Clone(line)
		_, rest = r.ReadSlice('\n')
		err = rest
	}
	return line, err
}

func dueOf(line []byte, now time.Time) (sample, bool) {
	_, rest, found := bytes.Cut(line, []byte(`"`+dueAnnotation+`":"`))
	if !found {
		return sample{}, false
	}
	text, _, _ := bytes.Cut(rest, []byte(`"`))
	number, due, _ := strings.Cut(string(text), " ")
	n, err := strconv.Atoi(number)
	nanoseconds, err2 := strconv.ParseInt(due, 10, 64)
	if err != nil || err2 != nil {
		return sample{}, false
	}
	return sample{n, now.Sub(time.Unix(0, nanoseconds)), now}, true
}

// writeWatched writes, and looks at the disk and the processors meanwhile.
func (p *process) writeWatched(ctx context.Context, s settings, f *watchFigures) (*written, error) {
	const walSync, dbCommit = "etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"
	before, err := p.histograms(ctx, walSync, dbCommit)
	if err != nil {
		return nil, err
	}
	probing, stop := context.WithCancel(ctx)
	defer stop()
	type outcome struct {
		figures diskFigures
		err     error
	}
	probed := make(chan outcome, 1)
	go func() {
		figures, err := probeDisk(probing, p.dir)
		probed <- outcome{figures, err}
	}()
	server, own := shareOf(p.command.Process.Pid), shareOf(os.Getpid())
	p.profiles(s)
	wrote, err := p.write(ctx, s)
	p.profiles(s)
	f.Server, f.Own = shareOf(p.command.Process.Pid).since(server), shareOf(os.Getpid()).since(own)
	stop()
	disk := <-probed
	if err := errors.Join(err, disk.err); err != nil {
		return nil, err
	}
	after, err := p.histograms(ctx, walSync, dbCommit)
	if err != nil {
		return nil, err
	}
	f.Disk = disk.figures
	f.Disk.Log, f.Disk.Commit = after[walSync].since(before[walSync]), after[dbCommit].since(before[dbCommit])
	return wrote, nil
}

// profiles has the server begin, or end, its profile.
func (p *process) profiles(s settings) {
	if s.Profile != "" {
		_ = p.command.Process.Signal(syscall.SIGUSR1)
	}
}

// written is what became of the writes.
type written struct {
	took       []time.Duration
	late       []time.Duration
	refused    atomic.Int64
	answered   []time.Time
	namespaces []int
	elapsed    time.Duration
}

// write changes objects at the rate, whatever the answers take.
func (p *process) write(ctx context.Context, s settings) (*written, error) {
	t := p.transport(true)
	defer t.CloseIdleConnections()
	c := &http.Client{Transport: t}
	count := int(float64(s.Rate) * s.Duration.Seconds())
	w := &written{took: make([]time.Duration, count), late: make([]time.Duration, count), answered: make([]time.Time, count), namespaces: make([]int, count)}
	began := time.Now()
	var writing sync.WaitGroup
	var mu sync.Mutex
	var failure error
	for n := range count {
		due := began.Add(time.Duration(n) * time.Second / time.Duration(s.Rate))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// A step that visits every namespace, and objects all over the list.
		object := n * 7919 % s.Objects
		w.namespaces[n] = object % s.Namespaces
		writing.Go(func() {
			w.late[n] = time.Since(due)
			err := p.patch(ctx, c, s, object, n, due)
			for ; errors.Is(err, errBusy) && ctx.Err() == nil; err = p.patch(ctx, c, s, object, n, due) {
				w.refused.Add(1)
				select {
				case <-time.After(busyPause):
				case <-ctx.Done():
				}
			}
			if err != nil {
				mu.Lock()
				failure = err
				mu.Unlock()
			}
			w.answered[n] = time.Now()
			w.took[n] = w.answered[n].Sub(due)
		})
	}
	writing.Wait()
	w.elapsed = time.Since(began)
	return w, failure
}

func (p *process) patch(ctx context.Context, c *http.Client, s settings, object, n int, due time.Time) error {
	namespace, name := workloadName(object, s)
	body := fmt.Sprintf(`{"metadata":{"annotations":{%q:"%d %d"}}}`, dueAnnotation, n, due.UnixNano())
	request, err := http.NewRequestWithContext(ctx, http.MethodPatch,
		p.address+"/apis/bocage.dev/v1/namespaces/"+namespace+"/workloads/"+name, strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+p.token)
	request.Header.Set("Content-Type", "application/merge-patch+json")
	answer, err := c.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode == http.StatusTooManyRequests {
		return errBusy
	}
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("write %s/%s: %s: %.300s", namespace, name, answer.Status, text)
	}
	return err
}

// errBusy is the server's answer while it serves as many requests as it may: the
// write is tried again, and is the later for it.
var errBusy = errors.New("the server is busy")

const busyPause = 100 * time.Millisecond

func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(len(list)-1, int(float64(len(list))*q))].Round(10 * time.Microsecond)
}
