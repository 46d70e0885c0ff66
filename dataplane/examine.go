package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// Examination is what lies in a PinDir, as somebody sees it who does not hold it:
// it works beside a running agent, and without any.
type Examination struct {
	// Layouts are the generations of state that lie there; normally one.
	Layouts []Layout
	// Fill says how full the tables of this program's layout are.
	Fill []Fill
	// Offered and Lost events, since the state was made.
	Offered, Lost uint64
	// NamesAnswered and NamesUnlearned are as in Counters.
	NamesAnswered, NamesUnlearned uint64
}

// Layout is one folder of state.
type Layout struct {
	Name string
	// Current says that this program knows it: the next agent takes it over.
	Current bool
	// Draft says that its making was cut short.
	Draft bool
	// MissingMaps are not there although the layout has them.
	MissingMaps []string
	// MissingPrograms were loaded for the agent, and are not there any more.
	MissingPrograms []string
	Links           []PinnedLink
}

// PinnedLink is a program's place at an interface.
type PinnedLink struct {
	Ifindex   uint32
	Interface string // empty: it is gone
	Program   string
	// Attached says that packets still pass it.
	Attached bool
	// Others counts the TCX programs of others at the same place, Ahead those that
	// come first.
	Others, Ahead int
}

// Fill is how full a table is.
type Fill struct {
	Table     string
	Rows, Max uint32
}

// countPatience bounds how long one table's rows are counted.
const countPatience = 2 * time.Second

// Examine looks at a PinDir and changes nothing. The error wraps [fs.ErrNotExist]
// if there is none.
func Examine(cfg Config) (Examination, error) {
	cfg = cfg.withDefaults()
	e, err := examine(cfg)
	if err != nil {
		return e, fmt.Errorf("examine %s: %w", cfg.PinDir, err)
	}
	return e, nil
}

func examine(cfg Config) (Examination, error) {
	var e Examination
	entries, err := os.ReadDir(cfg.PinDir)
	if err != nil {
		return e, err
	}
	if !host.IsBPFFS(cfg.PinDir) {
		return e, errors.New("not in a bpffs: it has been unmounted, and its state is out of reach")
	}
	spec, err := loadSpec(cfg)
	if err != nil {
		return e, err
	}
	current := layoutOf(spec)
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		l := Layout{Name: entry.Name(), Current: entry.Name() == current, Draft: strings.HasPrefix(entry.Name(), "draft-")}
		dir := filepath.Join(cfg.PinDir, l.Name)
		if l.Current {
			for name := range spec.Maps {
				if _, err := os.Stat(filepath.Join(dir, "map", name)); isShared(name) && errors.Is(err, fs.ErrNotExist) {
					l.MissingMaps = append(l.MissingMaps, name)
				}
			}
			slices.Sort(l.MissingMaps)
			if l.MissingPrograms, err = examinePrograms(cfg, current); err != nil {
				return e, err
			}
		}
		if l.Links, err = examineLinks(filepath.Join(dir, "link")); err != nil {
			return e, err
		}
		e.Layouts = append(e.Layouts, l)
		if l.Current {
			if err := e.readState(spec, filepath.Join(dir, "map"), l.MissingMaps); err != nil {
				return e, err
			}
		}
	}
	return e, nil
}

// examinePrograms looks for what Load left, if this layout's seeds are there.
func examinePrograms(cfg Config, layout string) ([]string, error) {
	p := &pins{root: cfg.PinDir, layout: layout}
	seeds, err := ebpf.LoadPinnedMap(filepath.Join(p.mapsDir(), "seeds"), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer seeds.Close()
	return p.missingPrograms(cfg, seeds)
}

func examineLinks(dir string) ([]PinnedLink, error) {
	pinned, err := linksIn(dir)
	if err != nil {
		return nil, err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	names := make(map[uint32]string, len(interfaces))
	for _, i := range interfaces {
		names[uint32(i.Index)] = i.Name
	}
	var all []PinnedLink
	for _, p := range pinned {
		l := PinnedLink{Ifindex: p.ifindex, Program: p.program, Interface: names[p.ifindex]}
		if err := l.look(p.path); err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// look asks the kernel what is attached, and what else is at the same place.
func (l *PinnedLink) look(path string) error {
	pinned, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // detached meanwhile
	}
	if err != nil {
		return fmt.Errorf("open link %s: %w", path, err)
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		return fmt.Errorf("ask link %s: %w", path, err)
	}
	tcx := info.TCX()
	l.Attached = ifindexOf(info) == l.Ifindex
	if !l.Attached || tcx == nil {
		return nil // a driver has one program
	}
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(l.Ifindex), Attach: ebpf.AttachType(tcx.AttachType)})
	if err != nil {
		return fmt.Errorf("ask for programs at interface %d: %w", l.Ifindex, err)
	}
	for i, program := range found.Programs {
		if program.ID == info.Program {
			l.Ahead = i
		} else {
			l.Others++
		}
	}
	return nil
}

// readState reads what the maps tell.
func (e *Examination) readState(spec *ebpf.CollectionSpec, dir string, missing []string) error {
	for name, m := range spec.Maps {
		if !isShared(name) || slices.Contains(missing, name) {
			continue
		}
		rows, most, err := uint32(0), m.MaxEntries, error(nil)
		switch {
		case name == "flows":
			rows, err = countFlows(filepath.Join(dir, name))
			most *= uint32(ways)
		case m.Type == ebpf.Hash || m.Type == ebpf.LPMTrie:
			rows, err = countRows(filepath.Join(dir, name))
		default:
			continue
		}
		if err != nil {
			return err
		}
		e.Fill = append(e.Fill, Fill{Table: name, Rows: rows, Max: most})
	}
	slices.SortFunc(e.Fill, func(a, b Fill) int { return compareText(a.Table, b.Table) })
	if slices.Contains(missing, "tallies") {
		return nil
	}
	tallies, err := ebpf.LoadPinnedMap(filepath.Join(dir, "tallies"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer tallies.Close()
	var rows []bpf.KernelTally
	if err := tallies.Lookup(uint32(0), &rows); err != nil {
		return err
	}
	for _, t := range rows {
		e.Offered += t.Offered
		e.Lost += t.Lost
		e.NamesAnswered += t.Answered
		e.NamesUnlearned += t.Unlearned
	}
	return nil
}

// countFlows counts the flows that live in the table of our own.
func countFlows(path string) (uint32, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer m.Close()
	const batch = 256
	keys, buckets := make([]uint32, batch), make([]bpf.KernelBucket, batch)
	var cursor ebpf.MapBatchCursor
	for live := uint32(0); ; {
		n, err := m.BatchLookup(&cursor, keys, buckets, nil)
		for _, bucket := range buckets[:n] {
			for _, row := range bucket.Rows {
				if row.Word&flowLive != 0 {
					live++
				}
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return live, nil
		}
		if err != nil {
			return live, err
		}
	}
}

// countRows walks the keys of a pinned table. Where that takes too long, what was
// counted by then is told.
func countRows(path string) (uint32, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer m.Close()
	deadline := time.Now().Add(countPatience)
	key, next := []byte(nil), make([]byte, m.KeySize())
	for rows := uint32(0); ; rows++ {
		var err error
		if key == nil {
			err = m.NextKey(nil, next)
		} else {
			err = m.NextKey(key, next)
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) || rows >= m.MaxEntries() || rows%1024 == 0 && time.Now().After(deadline) {
			return rows, nil
		}
		if err != nil {
			return rows, err
		}
		key = append(key[:0], next...)
	}
}
