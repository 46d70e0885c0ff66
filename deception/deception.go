// Package deception gives attackers false targets: whoever tries what policy
// refuses meets, where the enforcement point says so, a decoy that wears the
// address and the face of what was tried, and everything done to it is told as
// engagement events.
//
// Decoys of one host live in one network namespace with one cable, to which the
// dataplane redirects refused connections without changing their addresses. In
// the namespace every address is local, so one listener stands in for any
// victim. The agent's side (this package's [Decoys]) makes the namespace, opens
// the listeners and watches the child; the child ([Serve]) gets listening
// sockets through a UNIX socket and answers connections. It runs as nobody,
// without capabilities, without files, and behind a seccomp filter in which
// opening, connecting, binding and executing do not exist: a decoy can answer,
// and nothing else.
//
// It promises that everything is bounded and counted (offered = served + shed,
// an engagement is reported or counted as lost), that a child which ends comes
// back while its listeners stay open, and that a child does not outlive its
// agent. What the child says is not believed further than it can be checked. It
// never opens a connection towards anybody, never executes anything that an
// attacker sent, and never passes on a control character from one.
//
// Locks: Decoys.mu is the only one on the agent's side; in the child gate.mu
// and servant.mu are never held together.
package deception

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"bocage.dev/bocage"
)

// Bounds of one host's decoys.
const (
	maxPlacements = 64   // decoys
	queueLength   = 8192 // engagements that wait for Run's report
	secretSize    = 32   // bytes
)

// Config says where the decoys of a host live.
type Config struct {
	// Host names the host in logs.
	Host string
	// Namespace is the network namespace that the decoys are made in. It is the
	// decoys' own: Start deletes what it finds there.
	Namespace string
	// Dir keeps the secret from which host keys are derived, so that a decoy
	// shows the same key after a restart.
	Dir string
	// Program is the command line of the child, which calls [Serve].
	Program []string
	// Logger is where the few things worth telling go; nil: nowhere.
	Logger *slog.Logger
}

// Validate tells all faults at once.
func (c Config) Validate() error {
	var faults []error
	if c.Namespace == "" {
		faults = append(faults, errors.New("decoys: Namespace is empty: name the network namespace to make them in"))
	}
	if c.Dir == "" {
		faults = append(faults, errors.New("decoys: Dir is empty: name the folder that keeps their secret"))
	}
	if len(c.Program) == 0 {
		faults = append(faults, errors.New("decoys: Program is empty: name the command that serves them"))
	}
	return errors.Join(faults...)
}

// Decoys are the decoys of one host.
type Decoys struct {
	cfg    Config
	log    *slog.Logger
	secret []byte
	port   uint32 // host-side index of the cable

	counters tally
	queue    chan bocage.EngagementEvent
	changed  chan struct{}                   // one token: placements differ from what the child has
	names    atomic.Pointer[map[string]bool] // of placements

	mu         sync.Mutex // guards what follows; held while the child is told, for seconds at most
	placements []bocage.DecoyPlacement
	listeners  map[uint16]*listener
}

// Start makes the ground that decoys stand on: the namespace and, with its
// host's end in the caller's own namespace, the cable. What an earlier process
// left is removed first. Decoys answer once Run runs.
func Start(ctx context.Context, cfg Config) (*Decoys, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	secret, err := openSecret(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("start decoys: %w", err)
	}
	if err := clearGround(cfg.Namespace); err != nil {
		return nil, fmt.Errorf("start decoys: remove what an earlier run left: %w", err)
	}
	port, err := layGround(cfg.Namespace)
	if err != nil {
		return nil, fmt.Errorf("start decoys: %w", errors.Join(err, clearGround(cfg.Namespace)))
	}
	return &Decoys{
		cfg: cfg, log: cfg.Logger.With(slog.String("host", cfg.Host)), secret: secret, port: port,
		queue: make(chan bocage.EngagementEvent, queueLength), changed: make(chan struct{}, 1),
		listeners: make(map[uint16]*listener),
	}, nil
}

// Remove ends the decoys of an earlier or present run and takes away all that
// Start made, the secret included. It is called in the namespace that Start was
// called in; nil if nothing is there.
func Remove(cfg Config) error {
	err := clearGround(cfg.Namespace)
	if cfg.Dir != "" {
		if e := os.Remove(secretFile(cfg.Dir)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("remove decoys: %w", err)
	}
	return nil
}

// Port tells where the dataplane has to redirect: the interface index of the
// cable's host side, and the decoys' own hardware address at the other end.
func (d *Decoys) Port() (ifindex uint32, mac net.HardwareAddr) {
	return d.port, slices.Clone(decoyMAC)
}

// Place makes the decoys be exactly these. Listeners open here, so a connection
// waits rather than fails while the child is on its way; sessions of decoys that
// are no longer placed are cut. A placement that cannot be served is left out
// and told in the error; the others stand.
func (d *Decoys) Place(placements []bocage.DecoyPlacement) error {
	good, faults := checkPlacements(placements)

	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := make(map[uint16]bool)
	for _, p := range good {
		wanted[p.Port] = true
	}
	for port, l := range d.listeners {
		if !wanted[port] {
			l.close()
			delete(d.listeners, port)
		}
	}
	for _, port := range slices.Sorted(maps.Keys(wanted)) {
		if d.listeners[port] != nil {
			continue
		}
		l, err := listen(d.cfg.Namespace, port)
		if err != nil {
			faults = append(faults, fmt.Errorf("place decoys on port %d: %w", port, err))
			good = slices.DeleteFunc(good, func(p bocage.DecoyPlacement) bool { return p.Port == port })
			continue
		}
		d.listeners[port] = l
	}
	d.placements = good
	names := make(map[string]bool, len(good))
	for _, p := range good {
		names[p.Name] = true
	}
	d.names.Store(&names)
	d.notify()
	return errors.Join(faults...)
}

// checkPlacements sorts the placements by name and leaves out, with a fault
// each, what no child could serve.
func checkPlacements(placements []bocage.DecoyPlacement) (good []bocage.DecoyPlacement, faults []error) {
	seen := make(map[string]bool)
	for _, p := range placements {
		switch {
		case p.Name == "":
			faults = append(faults, errors.New("place decoy: it has no name"))
		case seen[p.Name]:
			faults = append(faults, fmt.Errorf("place decoy %s: it is there twice", p.Name))
		case p.Port == 0:
			faults = append(faults, fmt.Errorf("place decoy %s: it has no port", p.Name))
		case len(good) == maxPlacements:
			faults = append(faults, fmt.Errorf("place decoy %s: a host serves %d decoys at most", p.Name, maxPlacements))
		default:
			if _, err := newHandler(p, nil); err != nil {
				faults = append(faults, fmt.Errorf("place decoy %s: %w", p.Name, err))
				continue
			}
			seen[p.Name] = true
			good = append(good, p)
		}
	}
	slices.SortFunc(good, func(a, b bocage.DecoyPlacement) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return good, faults
}

// notify says that the child has to be told, without waiting.
func (d *Decoys) notify() {
	select {
	case d.changed <- struct{}{}:
	default: // it is going to look anyway
	}
}

// Counters tells what happened so far, over all lives of the child.
func (d *Decoys) Counters() Counters { return d.counters.read(len(d.queue)) }

// Run serves the decoys, restarting the child when it ends, and hands every
// engagement to report, one at a time, until ctx ends. A slow report fills a
// bounded queue and then costs engagements, which are counted. Identities in
// events are left 0.
func (d *Decoys) Run(ctx context.Context, report func(bocage.EngagementEvent)) error {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { d.keepChild(ctx) })
	defer watch.Wait()
	defer cancel()
	defer d.closeListeners()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-d.queue:
			d.counters.reported()
			report(e)
		}
	}
}

func (d *Decoys) closeListeners() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for port, l := range d.listeners {
		l.close()
		delete(d.listeners, port)
	}
	d.placements = nil
}

// decoySecret is what the host keys of one decoy are derived from.
func (d *Decoys) decoySecret(name string) []byte {
	mac := hmac.New(sha256.New, d.secret)
	mac.Write([]byte("bocage decoy\x00" + name))
	return mac.Sum(nil)
}

func secretFile(dir string) string { return filepath.Join(dir, "secret") }

// openSecret reads the host's secret, or makes it on first use.
func openSecret(dir string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the decoys' folder: %w", err)
	}
	file := secretFile(dir)
	secret, err := os.ReadFile(file)
	switch {
	case err == nil && len(secret) == secretSize:
		return secret, nil
	case err == nil:
		return nil, fmt.Errorf("%s has %d bytes and not %d: remove it, and decoys will show new host keys", file, len(secret), secretSize)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read the decoys' secret: %w", err)
	}
	secret = make([]byte, secretSize)
	rand.Read(secret)
	if err := writeWhole(file, secret); err != nil {
		return nil, fmt.Errorf("keep the decoys' secret: %w", err)
	}
	return secret, nil
}

// writeWhole writes a file that is either there with all its content or absent.
func writeWhole(file string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".secret-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
