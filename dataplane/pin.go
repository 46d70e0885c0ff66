package dataplane

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// What lies in a PinDir: one folder for each layout of maps, named by its hash and by
// how rows of flows are written there, normally only one. In it, map/NAME and
// link/IFINDEX-PROGRAM. A folder is made beside, under a name with a dot, and published
// by a rename, so that what is there is whole.

// Names of programs that links are pinned by.
const (
	programFrom    = "from_workload"
	programTo      = "to_workload"
	programOutside = "from_engine_outside"
	programInside  = "from_engine_inside"
	programDecoy   = "from_decoy"
	programAcross  = "across_wire"
	programHost    = "out_of_wire"
	programDriver  = "across_drivers"
)

// prefixRowsEach is how many rows there may be for each prefix, those that lead to
// it included: those are shared, so there are seldom more than two.
const prefixRowsEach = 4

// sizeOf says how many rows a map has, in terms of the configuration. There is room
// for two generations that have nothing in common, as they are while one takes the
// other's place. One to go back to, or a candidate, has what is left.
func sizeOf(cfg Config, name string) (uint32, bool) {
	switch name {
	case "flows", "guides":
		return bucketsOf(cfg), true
	case "cadences":
		return cadenceSets(cfg), true
	case "peers":
		return uint32(2 * cfg.PeerEntries), true
	case "groups":
		return uint32(2 * cfg.PeerEntries), true
	case "prefixes":
		return uint32(2 * prefixRowsEach * cfg.PrefixEntries), true
	case "cells":
		return uint32(2 * cfg.RuleEntries), true
	case "refused_identities":
		return uint32(2 * cfg.RefusedEntries), true
	case "successions":
		return uint32(2 * cfg.EndingEntries), true
	case "limits":
		return uint32(2 * cfg.LimitEntries), true
	case "quotas":
		return uint32(cfg.QuotaEntries), true
	case "rankings":
		return uint32(2 * cfg.RankEntries), true
	case "names":
		return uint32(2 * cfg.NameEntries), true
	case "events":
		return uint32(cfg.EventBytes), true
	}
	return 0, false
}

// loadSpec reads the object and configures it.
func loadSpec(cfg Config) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadKernel()
	if err != nil {
		return nil, fmt.Errorf("read eBPF object: %w", err)
	}
	for name, m := range spec.Maps {
		if size, ok := sizeOf(cfg, name); ok {
			m.MaxEntries = size
		}
	}
	if err := spec.Variables["cadence_sets"].Set(cadenceSets(cfg)); err != nil {
		return nil, fmt.Errorf("configure eBPF object: %w", err)
	}
	if err := spec.Variables["flow_buckets"].Set(bucketsOf(cfg)); err != nil {
		return nil, fmt.Errorf("configure eBPF object: %w", err)
	}
	wakeBytes := min(cfg.EventBytes/8, 1<<16)
	if err := spec.Variables["wake_bytes"].Set(uint64(wakeBytes)); err != nil {
		return nil, fmt.Errorf("configure eBPF object: %w", err)
	}
	if err := spec.Variables["wake_events"].Set(uint64(max(wakeBytes>>12, 1))); err != nil {
		return nil, fmt.Errorf("configure eBPF object: %w", err)
	}
	if err := spec.Variables["direct_delivery"].Set(uint8(number(cfg.DirectDelivery))); err != nil {
		return nil, fmt.Errorf("configure eBPF object: %w", err)
	}
	var patience [kinds]uint32
	if err := spec.Variables["patience"].Get(&patience); err != nil {
		return nil, fmt.Errorf("read how long flows wait: %w", err)
	}
	patience[kindSilenced] = max(patience[kindSilenced], uint32(cfg.Pickup.Nanoseconds()>>beatShift))
	if err := spec.Variables["patience"].Set(patience); err != nil {
		return nil, fmt.Errorf("configure eBPF object: %w", err)
	}
	for name, ns := range map[string]time.Duration{
		"pickup_period":   cfg.Pickup,
		"answer_interval": time.Second / time.Duration(cfg.AnswersPerSecond),
		"name_least":      cfg.NameLeast,
	} {
		if err := spec.Variables[name].Set(uint64(ns.Nanoseconds())); err != nil {
			return nil, fmt.Errorf("configure eBPF object: %w", err)
		}
	}
	return spec, nil
}

// layoutOf names the layout of the maps: what must be equal for a process to
// take maps over.
func layoutOf(spec *ebpf.CollectionSpec) string {
	h := sha256.New()
	fmt.Fprintln(h, bpf.Contract, bpf.ContractOfNames)
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if m := spec.Maps[name]; isShared(name) {
			fmt.Fprintln(h, name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16] + "-" + writingOf(bpf.Contract, bpf.HeaderOfTags, bpf.HeaderOfTracks)
}

// isShared says whether a map outlives the process: all but the sections of constants,
// and what was judged a moment ago, which each load of the programs has of its own.
func isShared(name string) bool { return !strings.HasPrefix(name, ".") && name != "judgements" }

// pins is the folder of one layout.
type pins struct {
	root   string // PinDir
	layout string
	found  bool                 // an earlier process made it
	broken string               // a map whose pin was gone, so that what was found is put aside
	held   map[string]link.Link // of this process, open, by name
	anew   bool                 // what Load left is not taken
	loads  loader               // nil: loadAnew
	step   func(string) error   // asked before each change of what is pinned
}

// loader loads the programs, and makes the maps that it is not given.
type loader func(*ebpf.CollectionSpec, *ebpf.CollectionOptions) (*bpf.KernelObjects, error)

func loadAnew(spec *ebpf.CollectionSpec, options *ebpf.CollectionOptions) (*bpf.KernelObjects, error) {
	objects := &bpf.KernelObjects{}
	return objects, spec.LoadAndAssign(objects, options)
}

func (p *pins) dir() string      { return filepath.Join(p.root, p.layout) }
func (p *pins) mapsDir() string  { return filepath.Join(p.dir(), "map") }
func (p *pins) linksDir() string { return filepath.Join(p.dir(), "link") }

func openPins(root string, spec *ebpf.CollectionSpec, step func(string) error) (*pins, error) {
	p := &pins{root: root, layout: layoutOf(spec), step: step}
	_, err := os.Stat(p.mapsDir())
	p.found = err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if p.found {
		return p, p.putAside(spec)
	}
	return p, nil
}

// putAside makes a layout that has lost pins of maps another one: its links go on
// with the maps that their programs hold, until there is a ruleset to move them for.
func (p *pins) putAside(spec *ebpf.CollectionSpec) error {
	for name := range spec.Maps {
		_, err := os.Stat(filepath.Join(p.mapsDir(), name))
		if !isShared(name) || err == nil {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		p.found, p.broken = false, name
		aside := filepath.Join(p.root, "broken-"+p.layout)
		if err := removeLayout(aside); err != nil {
			return err
		}
		if err := p.step("aside"); err != nil {
			return err
		}
		return os.Rename(p.dir(), aside)
	}
	return nil
}

// load loads the programs over the pinned maps, or over new ones which it pins. What
// Load left of these is taken.
func (p *pins) load(spec *ebpf.CollectionSpec) (*bpf.KernelObjects, error) {
	var before legacy
	if !p.found {
		before = p.legacy(spec)
	}
	options, loads := &ebpf.CollectionOptions{MapReplacements: before.maps}, p.loads
	if loads == nil {
		loads = loadAnew
	}
	defer func() {
		for _, m := range options.MapReplacements {
			m.Close()
		}
	}()
	if p.found {
		options.MapReplacements = make(map[string]*ebpf.Map)
		for name := range spec.Maps {
			if !isShared(name) {
				continue
			}
			m, err := ebpf.LoadPinnedMap(filepath.Join(p.mapsDir(), name), nil)
			if err != nil {
				return nil, fmt.Errorf("take over map %s: %w", name, err)
			}
			options.MapReplacements[name] = m
		}
	}
	if err := seed(spec, options.MapReplacements["seeds"], before.keys); err != nil {
		return nil, fmt.Errorf("seed the table of flows: %w", err)
	}
	if p.found && !p.anew {
		objects, err := p.left(spec, options.MapReplacements)
		if err != nil {
			return nil, err
		}
		if objects != nil {
			return p.alone(objects, p.programsDir(spec))
		}
	}
	if p.loads == nil {
		if err := mayLoad(); err != nil {
			return nil, err
		}
	}
	objects, err := loads(spec, options)
	if err != nil {
		return nil, fmt.Errorf("load eBPF programs (Linux 6.6 or newer is needed): %w", err)
	}
	if p.found && !p.anew {
		return p.alone(objects, "")
	}
	if p.found {
		return objects, nil
	}
	if err := p.publish(objects); err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	return objects, nil
}

// alone unpins all programs but those in a folder, now that there are some to go by.
func (p *pins) alone(objects *bpf.KernelObjects, kept string) (*bpf.KernelObjects, error) {
	if err := p.forgetPrograms(kept); err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	return objects, nil
}

func (p *pins) publish(objects *bpf.KernelObjects) error {
	draft := filepath.Join(p.root, "draft-"+p.layout)
	if err := os.RemoveAll(draft); err != nil {
		return err
	}
	for _, dir := range []string{"map", "link"} {
		if err := os.MkdirAll(filepath.Join(draft, dir), 0o700); err != nil {
			return err
		}
	}
	if err := p.step("draft"); err != nil {
		return err
	}
	for name, m := range mapsOf(objects) {
		if err := pinMap(m, filepath.Join(draft, "map", name)); err != nil {
			return err
		}
	}
	if err := p.step("publish"); err != nil {
		return err
	}
	return os.Rename(draft, p.dir())
}

func mapsOf(o *bpf.KernelObjects) map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		"active": o.Active, "rulesets": o.Rulesets, "peers": o.Peers, "prefixes": o.Prefixes, "groups": o.Groups,
		"cells": o.Cells, "refused_identities": o.RefusedIdentities, "ports": o.Ports,
		"port_addresses": o.PortAddresses, "steering": o.Steering, "flows": o.Flows, "fragments": o.Fragments,
		"refusals": o.Refusals, "folded": o.Folded, "questions": o.Questions, "events": o.Events, "counters": o.Counters,
		"tallies": o.Tallies, "pressure": o.Pressure, "successions": o.Successions, "limits": o.Limits, "quotas": o.Quotas,
		"comparisons": o.Comparisons, "residents": o.Residents, "crossings": o.Crossings, "cadences": o.Cadences, "holdings": o.Holdings, "shares": o.Shares, "seeds": o.Seeds, "topology": o.Topology,
		"endings": o.Endings, "guides": o.Guides,
		"orders": o.Orders, "presences": o.Presences,
		"hearings": o.Hearings, "ears": o.Ears,
		"names": o.Names, "rankings": o.Rankings, "learned": o.Learned, "inquiries": o.Inquiries, "readings": o.Readings, "namings": o.Namings, "clerks": o.Clerks,
		"greetings": o.Greetings, "greeting_drafts": o.GreetingDrafts,
	}
}

func programOf(o *bpf.KernelObjects, name string) (*ebpf.Program, ebpf.AttachType, bool) {
	switch name {
	case programFrom:
		return o.FromWorkload, ebpf.AttachTCXIngress, true
	case programTo:
		return o.ToWorkload, ebpf.AttachTCXEgress, true
	case programOutside:
		return o.FromEngineOutside, ebpf.AttachTCXIngress, true
	case programInside:
		return o.FromEngineInside, ebpf.AttachTCXIngress, true
	case programDecoy:
		return o.FromDecoy, ebpf.AttachTCXIngress, true
	case programAcross:
		return o.AcrossWire, ebpf.AttachTCXIngress, true
	case programHost:
		return o.OutOfWire, ebpf.AttachTCXEgress, true
	case programDriver:
		return o.AcrossDrivers, ebpf.AttachXDP, true
	}
	return nil, 0, false
}

// pinnedLink is a program's place at an interface.
type pinnedLink struct {
	ifindex uint32
	program string
	path    string
}

func linkName(ifindex uint32, program string) string { return fmt.Sprintf("%d-%s", ifindex, program) }

// links lists the pinned links of this layout.
func (p *pins) links() ([]pinnedLink, error) { return linksIn(p.linksDir()) }

func linksIn(dir string) ([]pinnedLink, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []pinnedLink
	for _, entry := range entries {
		number, program, ok := strings.Cut(entry.Name(), "-")
		ifindex, err := strconv.ParseUint(number, 10, 32)
		if !ok || err != nil {
			continue
		}
		all = append(all, pinnedLink{uint32(ifindex), program, filepath.Join(dir, entry.Name())})
	}
	slices.SortFunc(all, func(a, b pinnedLink) int {
		return cmp.Or(cmp.Compare(a.ifindex, b.ifindex), cmp.Compare(a.program, b.program))
	})
	return all, nil
}

// swapPrograms puts this process's programs in the place of an earlier one's.
// A link whose interface is gone is forgotten.
func (p *pins) swapPrograms(objects *bpf.KernelObjects) error {
	all, err := p.links()
	if err != nil {
		return err
	}
	for _, l := range all {
		program, _, ok := programOf(objects, l.program)
		if !ok {
			return fmt.Errorf("%s: no such program; remove the file", l.path)
		}
		if err := p.step("swap"); err != nil {
			return err
		}
		if _, err := swapLink(l.path, program); err != nil {
			return fmt.Errorf("swap program of %s: %w", l.path, err)
		}
	}
	return nil
}

// swapLink puts a program in place at a pinned link. It reports false, and
// unpins the link, if its interface is gone.
func swapLink(path string, program *ebpf.Program) (bool, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return false, err
	}
	defer l.Close()
	if gone, err := isGone(l); err != nil {
		return false, err
	} else if gone {
		return false, l.Unpin()
	}
	err = l.Update(program)
	if errors.Is(err, unix.ENOLINK) {
		return false, l.Unpin()
	}
	return err == nil, err
}

func isGone(l link.Link) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	return ifindexOf(info) == 0, nil
}

// ifindexOf is the interface that a link is on; 0 if it has gone.
func ifindexOf(info *link.Info) uint32 {
	if tcx := info.TCX(); tcx != nil {
		return tcx.Ifindex
	}
	if xdp := info.XDP(); xdp != nil {
		return xdp.Ifindex
	}
	return 0
}

// attach puts a program on an interface, ahead of others, and pins the link. It
// takes over a link that is already there.
func (p *pins) attach(objects *bpf.KernelObjects, ifindex uint32, name string) error {
	program, where, _ := programOf(objects, name)
	path := filepath.Join(p.linksDir(), linkName(ifindex, name))
	if _, err := os.Stat(path); err == nil {
		alive, err := swapLink(path, program)
		if err != nil {
			return fmt.Errorf("swap program of %s: %w", path, err)
		}
		if alive {
			return p.hold(linkName(ifindex, name))
		}
	}
	if err := p.step("attach"); err != nil {
		return err
	}
	var l link.Link
	var err error
	if where == ebpf.AttachXDP {
		l, err = link.AttachXDP(link.XDPOptions{Interface: int(ifindex), Program: program, Flags: link.XDPDriverMode})
	} else {
		l, err = link.AttachTCX(link.TCXOptions{Interface: int(ifindex), Program: program, Attach: where, Anchor: link.Head()})
	}
	if err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", name, ifindex, err)
	}
	defer l.Close()
	if err := p.step("pin"); err != nil {
		return err
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link of interface %d: %w", ifindex, err)
	}
	return p.hold(linkName(ifindex, name))
}

// alive says whether a program is still on the interface that it was put on.
func (p *pins) alive(ifindex uint32, name string) bool {
	l, err := link.LoadPinnedLink(filepath.Join(p.linksDir(), linkName(ifindex, name)), nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false
	}
	return ifindexOf(info) != 0
}

// detach takes a program off an interface; nil if it is not there.
func (p *pins) detach(ifindex uint32, name string) error {
	p.drop(linkName(ifindex, name))
	return cutLink(filepath.Join(p.linksDir(), linkName(ifindex, name)))
}

// release lets go of every link; what is pinned stays.
func (p *pins) release() {
	for name := range p.held {
		p.drop(name)
	}
}

func cutLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	defer l.Close()
	// Detached by name, in case another process holds the link open; what is
	// detached already, or has lost its interface, is well.
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return l.Unpin()
}

// move is a link of another layout that waits for this layout's ruleset.
type move struct{ pinnedLink }

// foreign lists links of other layouts.
func (p *pins) foreign() ([]move, error) {
	dirs, err := p.foreignDirs()
	if err != nil {
		return nil, err
	}
	var all []move
	for _, dir := range dirs {
		links, err := linksIn(filepath.Join(dir, "link"))
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			all = append(all, move{l})
		}
	}
	return all, nil
}

func (p *pins) foreignDirs() ([]string, error) {
	entries, err := os.ReadDir(p.root)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, entry := range entries {
		if entry.IsDir() && entry.Name() != p.layout {
			dirs = append(dirs, filepath.Join(p.root, entry.Name()))
		}
	}
	return dirs, nil
}

// adopt puts this layout's program in place at a link of another one.
func (p *pins) adopt(objects *bpf.KernelObjects, m move) error {
	program, _, ok := programOf(objects, m.program)
	if !ok {
		return cutLink(m.path)
	}
	if err := p.step("adopt"); err != nil {
		return err
	}
	alive, err := swapLink(m.path, program)
	if err != nil || !alive {
		return err
	}
	if err := p.step("adopted"); err != nil {
		return err
	}
	return os.Rename(m.path, filepath.Join(p.linksDir(), filepath.Base(m.path)))
}

// removeForeign removes other layouts, with whatever links they still have.
func (p *pins) removeForeign() error {
	dirs, err := p.foreignDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := p.step("remove"); err != nil {
			return err
		}
		if err := removeLayout(dir); err != nil {
			return err
		}
	}
	return nil
}

func removeLayout(dir string) error {
	links, err := linksIn(filepath.Join(dir, "link"))
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := cutLink(l.path); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// Enforces reports whether anything is attached that is pinned under a PinDir: programs
// that are only prepared are not, nor is what others than Bocage pin there.
func Enforces(pinDir string) (bool, error) {
	entries, err := os.ReadDir(pinDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		links, err := linksIn(filepath.Join(pinDir, entry.Name(), "link"))
		if err != nil || len(links) > 0 {
			return len(links) > 0, err
		}
	}
	return false, nil
}

// Remove takes all enforcement off and forgets all state under a PinDir. It
// needs no Dataplane, and refuses while a process has the folder open. Nothing
// is left: nil also if there was nothing.
func Remove(pinDir string) error {
	if pinDir == "" {
		pinDir = DefaultPinDir
	}
	if err := remove(pinDir); err != nil {
		return fmt.Errorf("remove dataplane in %s: %w", pinDir, err)
	}
	return nil
}

func remove(pinDir string) error {
	if _, err := os.Stat(pinDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !host.IsBPFFS(pinDir) {
		return errors.New("not in a bpffs")
	}
	lock, err := lockDir(pinDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	entries, err := os.ReadDir(pinDir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue // the file system's own
		}
		dir := filepath.Join(pinDir, entry.Name())
		if err := restoreLinks(dir); err != nil {
			return err
		}
		if err := removeLayout(dir); err != nil {
			return err
		}
	}
	// Then the folders, as far up as they are empty and in a bpffs, and the bpffs
	// itself if Open mounted it.
	for dir := pinDir; host.IsBPFFS(dir); dir = filepath.Dir(dir) {
		if isOwnMount(dir) {
			if err := unmount(dir); err != nil {
				return err
			}
		}
		if err := os.Remove(dir); err != nil {
			if dir == pinDir && dir != host.BPFFS {
				return err
			}
			return nil
		}
	}
	return nil
}

// ensureBPFFS makes sure that a folder exists in a bpffs: the system's where the
// folder belongs there, else one of its own. It says where it had to mount one.
func ensureBPFFS(dir string) (mounted string, err error) {
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("%q is not an absolute path", dir)
	}
	mountpoint := dir
	if rel, err := filepath.Rel(host.BPFFS, dir); err == nil && !strings.HasPrefix(rel, "..") {
		mountpoint = host.BPFFS
	} else if host.IsBPFFS(filepath.Dir(dir)) {
		mountpoint = filepath.Dir(dir)
	}
	did, err := mount(mountpoint)
	if err != nil {
		return "", err
	}
	if did {
		mounted = mountpoint
	}
	return mounted, os.MkdirAll(dir, 0o700)
}

// mountSource marks the file systems that Open mounted, so that Remove can tell
// them from those of others.
const mountSource = "bocage"

// unmount takes a file system that Open mounted away, once nobody has anything
// in it.
func unmount(dir string) error {
	above, err := holdDir(filepath.Dir(dir), unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("unmount bpffs: %w", err)
	}
	defer above.Close()
	if !isOwnMount(dir) {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("unmount bpffs: %w", err)
	}
	if slices.ContainsFunc(entries, fs.DirEntry.IsDir) {
		return nil
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// isOwnMount says whether the file system mounted on dir is one of Open's.
func isOwnMount(dir string) bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	own := false
	for line := range strings.Lines(string(mounts)) { // the last on a folder is the one seen
		before, after, _ := strings.Cut(line, " - ")
		place, what := strings.Fields(before), strings.Fields(after)
		if len(place) >= 5 && place[4] == dir && len(what) >= 2 {
			own = what[0] == "bpf" && what[1] == mountSource
		}
	}
	return own
}

// lockDir holds a PinDir for this process; the kernel lets go when it ends. A program
// that is just being started has what its parent has open until it runs, so whoever
// opens a folder that was closed this very moment may have to wait for that.
func lockDir(path string) (*os.File, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); ; <-tick.C {
		dir, err := holdDir(path, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return dir, err
		}
		if time.Since(begun) > startTime {
			return nil, errors.New("another process has it open: stop that agent first")
		}
	}
}

// startTime is more than a program needs from its creation until it runs.
const startTime = 500 * time.Millisecond

func holdDir(path string, how int) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), how); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return dir, nil
}
