package discover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/container"
)

// SourceConfig names a runtime.
type SourceConfig struct {
	Socket string
	// Namespace is that of all its workloads; empty: as their labels say.
	Namespace string
	// Optional says that nothing is wrong while the socket does not exist.
	Optional bool
}

// DefaultSources are the sockets that dockerd and podman have for the whole machine.
func DefaultSources() []SourceConfig {
	return []SourceConfig{{Socket: "/run/docker.sock", Optional: true}, {Socket: "/run/podman/podman.sock", Optional: true}}
}

// ParseSource reads "PATH" or "PATH=NAMESPACE". The path may be a URL of a Unix
// socket, as DOCKER_HOST is.
func ParseSource(text string) (SourceConfig, error) {
	path, namespace, bound := strings.Cut(strings.TrimPrefix(text, "unix://"), "=")
	if !filepath.IsAbs(path) {
		return SourceConfig{}, fmt.Errorf("runtime socket %q is not an absolute path, such as /run/docker.sock", text)
	}
	if bound && !dnsLabel.MatchString(namespace) {
		return SourceConfig{}, fmt.Errorf("runtime socket %q: %q is not a namespace", text, namespace)
	}
	return SourceConfig{Socket: filepath.Clean(path), Namespace: namespace}, nil
}

// Config is what a Discoverer needs.
type Config struct {
	Rules
	Sources []SourceConfig
	// Each is told what there is, whenever that changes, by one call at a time.
	Each   func(Found)
	Logger *slog.Logger
}

// Validate names all faults at once.
func (c Config) Validate() error {
	var faults []error
	for _, key := range c.Trusted {
		if !trustable(key) {
			faults = append(faults, fmt.Errorf("label %q is not for containers' owners to choose: it is no label, or the system's or Kubernetes' own", key))
		}
	}
	if c.Default != "" && !dnsLabel.MatchString(c.Default) {
		faults = append(faults, fmt.Errorf("namespace %q is not a lower-case DNS label", c.Default))
	}
	seen := map[string]bool{}
	for _, s := range c.Sources {
		if seen[s.Socket] {
			faults = append(faults, fmt.Errorf("runtime socket %s is named twice", s.Socket))
		}
		seen[s.Socket] = true
	}
	return errors.Join(faults...)
}

// stopGrace is how long a workload that ended may come back as itself before it is
// forgotten: a restart is an end and a beginning.
const stopGrace = 30 * time.Second

// Waits before a socket is tried again.
const (
	againFirst = 100 * time.Millisecond
	againLast  = 5 * time.Second
)

// Discoverer follows runtimes and links.
type Discoverer struct {
	cfg Config
	log *slog.Logger
	// changed wakes the loop; one waiting notice stands for any number.
	changed chan struct{}

	// mu guards what follows.
	mu      sync.Mutex
	sources []Source
	failing map[string]string // by socket
	links   []host.Link
	linked  bool
	found   Found
	stopped map[string]ending // by namespace/name

	boxes map[string]box // by container; the loop's alone
}

// ending is a workload that ended a moment ago.
type ending struct {
	sighting bocage.Sighting
	until    time.Time
}

// New returns a Discoverer that does nothing until it runs.
func New(cfg Config) (*Discoverer, error) {
	if cfg.Default == "" {
		cfg.Default = DefaultNamespace
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("new discoverer: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Discoverer{cfg: cfg, log: cfg.Logger, changed: make(chan struct{}, 1), failing: map[string]string{}, stopped: map[string]ending{}, boxes: map[string]box{}}
	for _, s := range cfg.Sources {
		d.sources = append(d.sources, Source{Socket: s.Socket, Namespace: s.Namespace})
	}
	return d, nil
}

// SawLinks tells which links there are.
func (d *Discoverer) SawLinks(links []host.Link) {
	d.mu.Lock()
	d.links, d.linked = slices.Clone(links), true
	d.mu.Unlock()
	d.wake()
}

func (d *Discoverer) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// Run follows until the context ends.
func (d *Discoverer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range d.cfg.Sources {
		group.Go(func() error { return d.follow(ctx, i, s) })
	}
	group.Go(func() error { return d.loop(ctx) })
	return group.Wait()
}

// follow keeps one source up to date. While its socket is away, what it said last
// is what is known.
func (d *Discoverer) follow(ctx context.Context, i int, s SourceConfig) error {
	for wait := againFirst; ; wait = min(2*wait, againLast) {
		err := container.New(s.Socket).Follow(ctx, func(inventory container.Inventory) {
			owner, err := ownerOf(s.Socket)
			if err != nil {
				return // it went away meanwhile
			}
			wait = againFirst
			d.set(i, "", func(source *Source) {
				source.Inventory, source.Owner, source.Listed, source.Live = inventory, owner, true, true
			})
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.set(i, d.reason(s, err), func(source *Source) { source.Live = false })
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// set changes a source, with what is wrong with it.
func (d *Discoverer) set(i int, failing string, change func(*Source)) {
	d.mu.Lock()
	socket := d.sources[i].Socket
	was := d.failing[socket]
	change(&d.sources[i])
	if d.failing[socket] = failing; failing == "" {
		delete(d.failing, socket)
	}
	d.mu.Unlock()
	switch {
	case failing != "" && failing != was:
		d.log.Warn("container runtime cannot be read", "socket", socket, "error", failing)
	case failing == "" && was != "":
		d.log.Info("container runtime is read", "socket", socket)
	}
	d.wake()
}

// reason says what is wrong and what to do; empty if nothing is.
func (d *Discoverer) reason(s SourceConfig, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.Optional:
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("%s does not exist: start the runtime, or name its socket with --runtime-socket", s.Socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("%s may not be read by this agent: give it to the agent's group, or name a read-only proxy's socket with --runtime-socket", s.Socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nobody listens at %s: start the runtime", s.Socket)
	}
	return err.Error()
}

// ownerOf is the user whom a socket belongs to.
func ownerOf(path string) (uint32, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Uid, nil
}

// loop folds whenever something has changed, and when a stopped workload's time is
// over.
func (d *Discoverer) loop(ctx context.Context) error {
	tick := time.NewTicker(stopGrace / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.changed:
		case <-tick.C:
		}
		d.fold(time.Now())
	}
}

func (d *Discoverer) fold(now time.Time) {
	d.mu.Lock()
	sources, links, linked := slices.Clone(d.sources), d.links, d.linked
	d.mu.Unlock()
	if !linked {
		return
	}
	used := map[string]box{}
	found := Fold(d.cfg.Rules, sources, links, func(c *container.Container) (Sandbox, error) { return d.look(c, links, used) })
	d.boxes = used
	d.mu.Lock()
	d.remember(found, now)
	same := reflect.DeepEqual(found, d.found)
	d.found = found
	d.mu.Unlock()
	if !same && d.cfg.Each != nil {
		d.cfg.Each(found)
	}
}

// remember keeps what ended a moment ago.
func (d *Discoverer) remember(found Found, now time.Time) {
	there := map[string]bool{}
	for _, s := range found.Sightings {
		there[s.NamespacedName()] = true
		delete(d.stopped, s.NamespacedName())
	}
	for _, s := range d.found.Sightings {
		if !there[s.NamespacedName()] {
			s.Stopped = true
			d.stopped[s.NamespacedName()] = ending{s, now.Add(stopGrace)}
		}
	}
	maps.DeleteFunc(d.stopped, func(_ string, e ending) bool { return now.After(e.until) })
}

// Sightings is what controllers are to be told.
func (d *Discoverer) Sightings() bocage.Sightings {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := bocage.Sightings{Sources: []string{}, Known: []string{}, Sightings: slices.Clone(d.found.Sightings)}
	for _, s := range d.sources {
		all.Sources = append(all.Sources, s.Socket)
		if s.Live {
			all.Known = append(all.Known, s.Socket)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.stopped)) {
		all.Sightings = append(all.Sightings, d.stopped[name].sighting)
	}
	if n := len(d.found.Ungoverned); n > bocage.MostUngoverned {
		all.Ungoverned = append(slices.Clone(d.found.Ungoverned[:bocage.MostUngoverned-1]), fmt.Sprintf("%d more", n-bocage.MostUngoverned+1))
	} else {
		all.Ungoverned = slices.Clone(d.found.Ungoverned)
	}
	for _, socket := range slices.Sorted(maps.Keys(d.failing)) {
		all.Failing = append(all.Failing, d.failing[socket])
	}
	return all
}

// Ready says whether there is anything to tell: before the links are known and the
// sockets were tried once, what is not seen says nothing.
func (d *Discoverer) Ready() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.linked
}

// box is what was found out of a sandbox, and from what: it holds as long as that
// is so.
type box struct {
	inode, device uint64
	ends          string // the links of this host that lead there
	sandbox       Sandbox
}

// look asks the kernel about a container's sandbox, unless nothing has changed
// since it was asked last.
func (d *Discoverer) look(c *container.Container, links []host.Link, used map[string]box) (Sandbox, error) {
	path := c.Sandbox
	if path == "" {
		path = fmt.Sprintf("/proc/%d/ns/net", c.Pid)
	}
	var info syscall.Stat_t
	if err := syscall.Stat(path, &info); err != nil {
		return ofProcess(c.Pid, err)
	}
	if last, ok := d.boxes[c.ID]; ok && last.inode == info.Ino && last.device == info.Dev && last.sandbox.Number != host.NoNamespace &&
		last.ends == endsIn(links, last.sandbox.Number) {
		used[c.ID] = last
		return last.sandbox, nil
	}
	sandbox, err := open(path)
	if err != nil {
		return ofProcess(c.Pid, err)
	}
	used[c.ID] = box{info.Ino, info.Dev, endsIn(links, sandbox.Number), sandbox}
	return sandbox, nil
}

func open(path string) (Sandbox, error) {
	file, err := host.OpenSandbox(path)
	if err != nil {
		return Sandbox{}, err
	}
	defer file.Close()
	var s Sandbox
	if s.Owner, err = file.Owner(); err != nil {
		return s, err
	}
	if s.Number, err = file.Number(); err != nil || s.Number == host.NoNamespace {
		return s, err
	}
	s.Links, err = host.FarLinks(s.Number)
	return s, err
}

// ofProcess is open for an agent that may not see the file, since it is not root or
// other processes are hidden from it. Who owns the sandbox it cannot tell, and
// leaves at root: a user's own runtime is not believed then.
func ofProcess(pid int, why error) (s Sandbox, err error) {
	if pid == 0 {
		return s, why
	}
	if s.Number, err = host.NumberOfProcess(pid); err != nil || s.Number == host.NoNamespace {
		return s, err
	}
	s.Links, err = host.FarLinks(s.Number)
	return s, err
}

// endsIn names the links that lead into a namespace.
func endsIn(links []host.Link, number int32) string {
	var b strings.Builder
	for _, l := range links {
		if l.PeerNamespace == number {
			fmt.Fprint(&b, l.Index, "/", l.Born, "/", l.Peer, " ")
		}
	}
	return b.String()
}
