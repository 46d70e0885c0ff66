package dataplane

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane/bpf"
)

// What a layout of maps takes over of the one before it, besides its links: the maps that
// both share (see legacy), and the flows.

// moveWait is how long links of another layout stay with a generation that is higher
// than the one in force here, for one as high to come.
const moveWait = 30 * time.Second

// writingOf names how rows of flows are written, so that a process knows whether those
// of another layout mean the same: by the text of the contract that says so, and by what
// headers say of a row's flags and of links in its key.
func writingOf(contract string, headers ...string) string {
	h := sha256.New()
	for _, begin := range []string{"struct address {", "struct flow_key {", "struct flow {"} {
		_, text, _ := strings.Cut(contract, "\n"+begin)
		text, _, _ = strings.Cut(text, "\n};")
		fmt.Fprintln(h, begin, text)
	}
	for _, text := range append([]string{contract}, headers...) {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "#define FLOW_") || strings.HasPrefix(line, "#define VERDICT_") || strings.HasPrefix(line, "#define LINK_") || strings.Contains(line, "_SHIFT ") {
				fmt.Fprintln(h, line)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:8]
}

// writingIn is how rows are written in a layout, by the name of its folder, which may
// have been put aside.
func writingIn(folder string) string { return folder[strings.LastIndex(folder, "-")+1:] }

// lateBeats is more than lies between a packet's time, as a row has it, and when that is
// in the row.
const lateBeats = uint32(time.Second >> beatShift)

// inheritFlows takes over the flows of other layouts that are not known here; mu is
// held. What cannot be taken over is picked up in its middle, if it is a stream. Once all
// were taken over, those that had no packet since are not looked at any more: what is not
// known here by then has ended here.
func (d *Dataplane) inheritFlows() {
	dirs, err := d.pins.foreignDirs()
	if err != nil {
		d.log.Warn("flows of another layout not taken over", "error", err)
		return
	}
	beat, whole := uint32(readClock().ns>>beatShift), true
	for _, dir := range dirs {
		if writingIn(filepath.Base(dir)) != writingIn(d.pins.layout) {
			continue // rows are written otherwise there
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "map", "flows"), nil)
		if err != nil {
			continue // it has none
		}
		taken, err := d.inheritFrom(m)
		m.Close()
		if err != nil {
			d.log.Warn("flows of another layout not taken over", "error", err)
			whole = false
		}
		d.log.Info("flows of another layout taken over", "flows", taken)
	}
	if whole && d.inheritedAt == nil {
		d.inheritedAt = &beat
	}
}

func (d *Dataplane) inheritFrom(m *ebpf.Map) (taken int, err error) {
	if m.ValueSize() != uint32(unsafe.Sizeof(bpf.KernelBucket{})) {
		return 0, nil
	}
	memory, err := mapMemory(m, unix.PROT_READ)
	if err != nil {
		return 0, fmt.Errorf("map their table: %w", err)
	}
	theirs := flowTable{memory: memory, rows: unsafe.Slice((*bpf.KernelFlow)(unsafe.Pointer(&memory[0])), int(m.MaxEntries())*ways), patience: d.flows.patience}
	defer theirs.close()
	beat := uint32(readClock().ns >> beatShift)
	for _, row := range theirs.live {
		word := atomic.LoadUint64(&row.Word)
		copied := *row
		copied.Word = word
		// Who was cut has nothing to lose. A row that became another's while it was read
		// is looked at again after the links were moved.
		if word&flowWriting != 0 || copied.Until == 0 || theirs.isOver(&copied, beat) || (atomic.LoadUint64(&row.Word)^word)&flowSelf != 0 {
			continue
		}
		if d.inheritedAt != nil && int32(copied.Seen-*d.inheritedAt) < -int32(lateBeats) {
			continue
		}
		ok, err := d.objects.Inherit.Run(&ebpf.RunOptions{Context: &copied})
		if err != nil {
			return taken, fmt.Errorf("take a flow over: %w", err)
		}
		taken += int(ok)
	}
	return taken, nil
}

// flowSelf is what of a word tells whose the row is: as long as it stays the same, the
// row is the same flow's.
const flowSelf = ^uint64(1<<25-1) | flowLive

// ahead says whether another layout's programs go by a generation that is higher than
// the one in force here: then they go on for a while, since what comes first may only
// be what is gone back to later, and who was cut off since must not be let in again.
func (d *Dataplane) ahead(f *force) bool {
	theirs := d.generationElsewhere()
	if theirs <= uint64(f.header.Generation) {
		return false
	}
	if d.aheadSince.IsZero() {
		d.aheadSince = time.Now()
		d.log.Info("another layout is in force with a higher generation", "generation", theirs, "here", f.header.Generation)
	}
	return time.Since(d.aheadSince) < moveWait
}

// generationElsewhere is the generation that another layout's programs go by, or 0 where
// that cannot be read.
func (d *Dataplane) generationElsewhere() uint64 {
	active, rulesets := d.pins.elsewhere("active"), d.pins.elsewhere("rulesets")
	defer active.Close()
	defer rulesets.Close()
	if active == nil || rulesets == nil {
		return 0
	}
	if active.ValueSize() != uint32(unsafe.Sizeof(bpf.KernelActive{})) || rulesets.ValueSize() != uint32(unsafe.Sizeof(bpf.KernelRuleset{})) {
		return 0
	}
	there := Dataplane{objects: &bpf.KernelObjects{}}
	there.objects.Active, there.objects.Rulesets = active, rulesets
	f, err := there.readForce()
	if err != nil || f.header == nil {
		return 0
	}
	return uint64(f.header.Generation)
}

// elsewhere is a map of the other layout whose links wait to be moved, or nil.
func (p *pins) elsewhere(name string) *ebpf.Map {
	dirs, err := p.foreignDirs()
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		if len(linkNames(dir)) == 0 {
			continue
		}
		if m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "map", name), nil); err == nil {
			return m
		}
	}
	return nil
}

// legacy is what new state takes from the state that it takes the place of: the keys of
// names, and the maps of what was asked and learned under them, which both then share.
// So nothing is lost that the programs there go on to learn until they are replaced.
type legacy struct {
	keys []uint64 // seeds from addressSeed on; nil: there is none
	maps map[string]*ebpf.Map
}

// isLegacy says which maps new state shares with the one before it: what was asked and
// learned of names, and until when rates are used up. Whoever changes what their rows
// mean, and not their size, gives them another name.
func isLegacy(name string) bool { return name == "learned" || name == "inquiries" || name == "quotas" }

// legacy looks for what state of another layout leaves: the one that programs are in
// place of, if there are more. What is of another form there, workloads ask for again.
func (p *pins) legacy(spec *ebpf.CollectionSpec) legacy {
	dirs, err := p.foreignDirs()
	if err != nil {
		return legacy{}
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return cmp.Compare(len(linkNames(b)), len(linkNames(a))) })
	for _, dir := range dirs {
		if keys := readSeeds(dir, spec.Maps["seeds"]); keys != nil {
			return legacy{keys: keys, maps: loadLegacy(dir, spec)}
		}
	}
	return legacy{}
}

func linkNames(dir string) []pinnedLink {
	links, _ := linksIn(filepath.Join(dir, "link")) // what cannot be read is not in force
	return links
}

// readSeeds reads the keys of names in a folder; nil if it knew no names.
func readSeeds(dir string, spec *ebpf.MapSpec) []uint64 {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "map", "seeds"), nil)
	if err != nil {
		return nil
	}
	defer m.Close()
	keys := make([]uint64, nameSeed+2-addressSeed)
	if m.KeySize() != spec.KeySize || m.ValueSize() != spec.ValueSize {
		return nil
	}
	for i := range keys {
		if m.Lookup(uint32(addressSeed+i), &keys[i]) != nil {
			return nil
		}
	}
	return keys
}

func loadLegacy(dir string, spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	maps := map[string]*ebpf.Map{}
	for name, form := range spec.Maps {
		if !isLegacy(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "map", name), nil)
		if err != nil {
			continue
		}
		if form.Compatible(m) != nil {
			m.Close()
			continue
		}
		maps[name] = m
	}
	return maps
}
