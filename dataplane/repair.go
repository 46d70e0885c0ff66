package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// Repair looks whether what enforces is still where it was put, and puts it back:
// programs that somebody took off an interface, pins that were removed, a file
// system that was unmounted. It says what it found; nothing, if all is well. This
// process holds every link open, so that a lost pin takes no program off.
func (d *Dataplane) Repair() (done []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil
	}
	folder, err := d.repairFolder()
	if err != nil {
		return folder, fmt.Errorf("repair %s: %w", d.cfg.PinDir, err)
	}
	done = folder
	d.moveLinks() // those that have waited for long enough
	for _, place := range d.places() {
		if slices.ContainsFunc(d.moves, func(m move) bool { return m.ifindex == place.ifindex && m.program == place.program }) {
			continue // another layout's is in its place
		}
		what, err := d.pins.repair(d.objects, place.ifindex, place.program)
		if err != nil {
			return done, fmt.Errorf("repair: %w", err)
		}
		if what != "" {
			done = append(done, what)
		}
	}
	for _, w := range d.wires {
		if !w.Drivers {
			continue
		}
		what, err := d.repairDrivers(w)
		done = append(done, what...)
		if err != nil {
			return done, fmt.Errorf("repair wire %s: %w", w.Name, err)
		}
	}
	for _, what := range done {
		d.log.Warn("repaired", "what", what)
	}
	return done, nil
}

// place is where a program should be.
type place struct {
	ifindex uint32
	program string
}

// places lists where programs should be; mu is held.
func (d *Dataplane) places() []place {
	var all []place
	for ifindex := range d.ports {
		all = append(all, place{ifindex, programFrom}, place{ifindex, programTo})
	}
	for _, w := range d.wires {
		for _, ifindex := range []uint32{w.Inside, w.Outside} {
			all = append(all, place{ifindex, programAcross}, place{ifindex, programHost})
			if w.Drivers {
				all = append(all, place{ifindex, programDriver})
			}
		}
	}
	for _, exit := range []place{{d.steering.Outside, programOutside}, {d.steering.Inside, programInside}, {d.steering.Decoy, programDecoy}} {
		if exit.ifindex != 0 {
			all = append(all, exit)
		}
	}
	slices.SortFunc(all, func(a, b place) int {
		return compareText(linkName(a.ifindex, a.program), linkName(b.ifindex, b.program))
	})
	return all
}

// repairFolder makes the folder of pins whole; mu is held.
func (d *Dataplane) repairFolder() (done []string, err error) {
	if !host.IsBPFFS(d.cfg.PinDir) {
		mounted, err := ensureBPFFS(d.cfg.PinDir)
		if err != nil {
			return nil, err
		}
		if mounted != "" {
			d.mounted = mounted
			done = append(done, fmt.Sprintf("the bpffs on %s had been unmounted", mounted))
		}
	}
	if err := d.lockAgain(); err != nil {
		return done, err
	}
	var missing []string
	for name := range mapsOf(d.objects) {
		if _, err := os.Stat(filepath.Join(d.pins.mapsDir(), name)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return done, os.MkdirAll(d.pins.linksDir(), 0o700)
	}
	slices.Sort(missing)
	if len(missing) == len(mapsOf(d.objects)) { // as a whole, so that no half is ever found
		if err := os.RemoveAll(d.pins.dir()); err != nil {
			return done, err
		}
		return append(done, "every map's pin had been removed"), d.pins.publish(d.objects)
	}
	for _, name := range missing {
		if err := pinMap(mapsOf(d.objects)[name], filepath.Join(d.pins.mapsDir(), name)); err != nil {
			return done, err
		}
		done = append(done, "the pin of map "+name+" had been removed")
	}
	return done, nil
}

// lockAgain holds the PinDir if it is another folder than the one that is held.
func (d *Dataplane) lockAgain() error {
	held, err := d.lock.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(d.cfg.PinDir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(d.cfg.PinDir, 0o700); err == nil {
			there, err = os.Stat(d.cfg.PinDir)
		}
	}
	if err != nil || os.SameFile(held, there) {
		return err
	}
	lock, err := lockDir(d.cfg.PinDir)
	if err != nil {
		return err
	}
	d.lock.Close()
	d.lock = lock
	return nil
}

// pinMap pins a map, wherever else it is or was pinned.
func pinMap(m *ebpf.Map, path string) error {
	fresh, err := m.Clone()
	if err != nil {
		return err
	}
	defer fresh.Close()
	if err := fresh.Pin(path); err != nil {
		return fmt.Errorf("pin map %s: %w", filepath.Base(path), err)
	}
	return nil
}

// hold keeps a link open as long as it is pinned by this process's will.
func (p *pins) hold(name string) error {
	l, err := link.LoadPinnedLink(filepath.Join(p.linksDir(), name), nil)
	if err != nil {
		return fmt.Errorf("hold link %s: %w", name, err)
	}
	p.drop(name)
	if p.held == nil {
		p.held = map[string]link.Link{}
	}
	p.held[name] = l
	return nil
}

// drop lets go of a link.
func (p *pins) drop(name string) {
	if l, is := p.held[name]; is {
		l.Close()
		delete(p.held, name)
	}
}

// repair puts a program back, or its pin, if it is not where it should be. An
// interface that is gone is nobody's fault.
func (p *pins) repair(objects *bpf.KernelObjects, ifindex uint32, program string) (what string, err error) {
	name := linkName(ifindex, program)
	path := filepath.Join(p.linksDir(), name)
	_, absent := os.Stat(path)
	pinned := absent == nil
	if _, holds := p.held[name]; !holds && pinned {
		if err := p.hold(name); err != nil {
			return "", err
		}
	}
	attached := false
	if l, holds := p.held[name]; holds {
		gone, err := isGone(l)
		if err != nil {
			return "", err
		}
		attached = !gone
	}
	if attached && pinned {
		return "", nil // by far the most often, and without a list of all links
	}
	at, err := linkAt(ifindex)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if attached {
		l := p.held[name]
		if err := errors.Join(l.Unpin(), l.Pin(path)); err != nil { // first forget where it was
			return "", fmt.Errorf("pin %s of %s: %w", program, at.Attrs().Name, err)
		}
		return fmt.Sprintf("the pin of %s at %s had been removed", program, at.Attrs().Name), nil
	}
	p.drop(name)
	if err := p.attach(objects, ifindex, program); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s had been detached from %s", program, at.Attrs().Name), nil
}
