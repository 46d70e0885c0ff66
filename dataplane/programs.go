package dataplane

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// The kernel takes the programs from who has CAP_PERFMON only (docs/decisions/0036).
// So loading and enforcing may be two processes: Load leaves programs where Open finds
// them, and who opens needs CAP_BPF and CAP_NET_ADMIN.

// Load verifies the programs of a configuration and pins them for the process that
// opens the same PinDir with the same configuration, those that answer questions
// (Trace) too, in the place of whatever was pinned for that before: who had the
// agent's rights once may have pinned that. It makes maps where there are none. What is
// in force stays so. It fails while a process has the folder open.
func Load(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	d := &Dataplane{cfg: cfg.withDefaults(), before: cfg.before}
	d.log = d.cfg.Logger.With("host", d.cfg.Host)
	if err := errors.Join(d.leavePrograms(), d.release()); err != nil {
		return fmt.Errorf("load programs for %s: %w", d.cfg.PinDir, err)
	}
	return nil
}

func (d *Dataplane) leavePrograms() error {
	spec, err := d.begin()
	if err != nil {
		return err
	}
	d.pins.anew = true
	if d.objects, err = d.pins.load(spec); err != nil {
		return err
	}
	asks, err := loadAsker(d.cfg, d.objects)
	if err != nil {
		return fmt.Errorf("load the programs that answer questions: %w", err)
	}
	defer asks.close()
	draft, dir := filepath.Join(d.pins.dir(), draftPrograms), d.pins.programsDir(spec)
	if err := os.RemoveAll(draft); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(draft, askerDir), 0o700); err != nil {
		return err
	}
	if err := d.step("load"); err != nil {
		return err
	}
	if err := errors.Join(pinPrograms(programsOf(d.objects), draft), pinMap(d.objects.Judgements, filepath.Join(draft, ownMap)),
		asks.pin(filepath.Join(draft, askerDir))); err != nil {
		return err
	}
	if err := d.step("loaded"); err != nil {
		return err
	}
	if err := replaceDir(draft, dir); err != nil {
		return fmt.Errorf("pin programs: %w", err)
	}
	if err := d.step("replaced"); err != nil {
		return err
	}
	return d.pins.forgetPrograms(dir)
}

// replaceDir gives a folder another's name, in one step also where there is one of that
// name, which then has the other's.
func replaceDir(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Rename(from, to)
	}
	return err
}

// Where programs lie in the folder of a layout, behind this and what tells them from
// others; until all are there, in a draft. Beside them is the one map that each load
// of the programs has of its own.
const (
	programsPrefix = "programs-"
	draftPrograms  = programsPrefix + "draft"
	askerDir       = "asker"
	ownMap         = "judgements"
)

// programsDir is where programs like these lie. Constants are part of what they are,
// and among those what was drawn when their layout was made.
func (p *pins) programsDir(spec *ebpf.CollectionSpec) string {
	h := sha256.New()
	h.Write(bpf.Object())
	for _, name := range slices.Sorted(maps.Keys(spec.Variables)) {
		fmt.Fprintf(h, "%s %x\n", name, spec.Variables[name].Value)
	}
	return filepath.Join(p.dir(), programsPrefix+hex.EncodeToString(h.Sum(nil))[:16])
}

// forgetPrograms unpins programs but those in a folder, once there are others to go by.
// What links hold of them stays.
func (p *pins) forgetPrograms(kept string) error {
	entries, err := os.ReadDir(p.dir())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		other := filepath.Join(p.dir(), entry.Name())
		if !strings.HasPrefix(entry.Name(), programsPrefix) || other == kept {
			continue
		}
		if err := os.RemoveAll(other); err != nil {
			return fmt.Errorf("unpin programs of before: %w", err)
		}
	}
	return nil
}

// left takes programs that Load left, with the maps that they are of; nil: there are
// none like these, or not all of them.
func (p *pins) left(spec *ebpf.CollectionSpec, shared map[string]*ebpf.Map) (*bpf.KernelObjects, error) {
	dir := p.programsDir(spec)
	programs, err := pinnedPrograms(spec, dir)
	if programs == nil {
		return nil, err
	}
	all := &ebpf.Collection{Programs: programs, Maps: map[string]*ebpf.Map{}}
	defer all.Close() // of what is not handed on
	for name, m := range shared {
		if all.Maps[name], err = m.Clone(); err != nil {
			return nil, fmt.Errorf("take over map %s: %w", name, err)
		}
	}
	all.Maps[ownMap], err = ebpf.LoadPinnedMap(filepath.Join(dir, ownMap), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("take over map %s: %w", ownMap, err)
	}
	if like, err := areLike(spec, all.Programs, all.Maps); err != nil || !like {
		return nil, err
	}
	objects := &bpf.KernelObjects{}
	if err := errors.Join(all.Assign(&objects.KernelPrograms), all.Assign(&objects.KernelMaps)); err != nil {
		return nil, errors.Join(err, objects.KernelPrograms.Close(), objects.KernelMaps.Close())
	}
	return objects, nil
}

// pinnedPrograms opens the programs of a spec in a folder; nil if not all are there.
func pinnedPrograms(spec *ebpf.CollectionSpec, dir string) (map[string]*ebpf.Program, error) {
	all := make(map[string]*ebpf.Program, len(spec.Programs))
	for name := range spec.Programs {
		program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil)
		if err == nil {
			all[name] = program
			continue
		}
		closeAll(all)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("take over program %s: %w", name, err)
	}
	return all, nil
}

// areLike says whether programs are what a spec says, over the maps given: by what the
// kernel says of them. Whoever has the agent's rights can pin others by these names.
func areLike(spec *ebpf.CollectionSpec, programs map[string]*ebpf.Program, over map[string]*ebpf.Map) (bool, error) {
	ids := make(map[string]ebpf.MapID, len(over))
	for name, m := range over {
		info, err := m.Info()
		if err != nil {
			return false, fmt.Errorf("look at map %s: %w", name, err)
		}
		ids[name], _ = info.ID()
	}
	for name, program := range programs {
		info, err := program.Info()
		if err != nil {
			return false, fmt.Errorf("look at program %s: %w", name, err)
		}
		text := slices.Clone(spec.Programs[name].Instructions)
		if err := text.Marshal(io.Discard, spec.ByteOrder); err != nil { // which resolves calls
			return false, fmt.Errorf("look at program %s: %w", name, err)
		}
		same, err := text.HasTag(info.Tag, spec.ByteOrder)
		if err != nil {
			return false, fmt.Errorf("look at program %s: %w", name, err)
		}
		if !same || info.Type != spec.Programs[name].Type || !isOver(info, text, ids) {
			return false, nil
		}
	}
	return true, nil
}

// isOver says whether a program uses the maps that its text names. Of sections, which
// each load has of its own, it says how many there are.
func isOver(info *ebpf.ProgramInfo, text asm.Instructions, ids map[string]ebpf.MapID) bool {
	have, _ := info.MapIDs()
	named := map[string]bool{}
	for _, instruction := range text {
		if !instruction.IsLoadFromMap() {
			continue
		}
		name := instruction.Reference()
		named[name] = true
		if id, known := ids[name]; known && !slices.Contains(have, id) {
			return false
		}
	}
	return len(have) == len(named)
}

// mayLoad says why this process cannot load the programs; nil if it can.
func mayLoad() error {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return err
	}
	effective, err := host.EffectiveCapabilities(string(status))
	if err != nil {
		return err
	}
	if effective&(1<<unix.CAP_PERFMON|1<<unix.CAP_SYS_ADMIN) == 0 {
		return errors.New("this process may not load programs, which takes CAP_PERFMON, and none of this version and these options were left for it: run `bocage prepare` as root with the agent's options before the agent, both with a folder that the agent's user can reach (--bpffs /run/bocage/bpf), as its unit does")
	}
	return nil
}

func programsOf(o *bpf.KernelObjects) map[string]*ebpf.Program {
	return map[string]*ebpf.Program{
		"across_drivers": o.AcrossDrivers, "across_wire": o.AcrossWire, "from_decoy": o.FromDecoy,
		"from_engine_inside": o.FromEngineInside, "from_engine_outside": o.FromEngineOutside,
		"from_workload": o.FromWorkload, "to_workload": o.ToWorkload, "out_of_wire": o.OutOfWire,
		"inherit": o.Inherit, "stage": o.Stage, "sweep": o.Sweep,
	}
}

func pinPrograms(programs map[string]*ebpf.Program, dir string) error {
	for name, program := range programs {
		fresh, err := program.Clone()
		if err != nil {
			return err
		}
		if err := errors.Join(fresh.Pin(filepath.Join(dir, name)), fresh.Close()); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

// asker is the programs once more, to be asked: with maps of their own for whatever
// they write, and one for the steps that they took.
type asker struct {
	programs map[string]*ebpf.Program
	maps     map[string]*ebpf.Map
	stepsAt  uint32 // in that one's value
}

// steps is where the programs write their steps; the kernel's name of it no file of a
// bpffs may have.
const steps, stepsSection = "steps", ".bss"

// askerSpec configures what is asked, and says which of its maps are its own.
func askerSpec(cfg Config, seeds *ebpf.Map) (spec *ebpf.CollectionSpec, own []string, err error) {
	if spec, err = loadSpec(cfg); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(spec.Variables["tracing"].Set(uint32(1)), seed(spec, seeds, nil)); err != nil {
		return nil, nil, err
	}
	page := uint32(os.Getpagesize()) // nobody reads them
	spec.Maps["events"].MaxEntries, spec.Maps["greetings"].MaxEntries = page, page
	for name := range spec.Programs {
		if name != programFrom && name != programTo && name != programAcross {
			delete(spec.Programs, name)
		}
	}
	for name := range spec.Maps {
		if !isAsked(name) && !strings.HasPrefix(name, ".") {
			own = append(own, name)
		}
	}
	return spec, own, nil
}

func loadAsker(cfg Config, o *bpf.KernelObjects) (*asker, error) {
	if err := mayLoad(); err != nil {
		return nil, err
	}
	spec, own, err := askerSpec(cfg, o.Seeds)
	if err != nil {
		return nil, err
	}
	all, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: asked(o)})
	if err != nil {
		return nil, err
	}
	defer all.Close() // of what is not handed on
	a := &asker{programs: all.Programs, maps: map[string]*ebpf.Map{steps: all.Maps[stepsSection]}, stepsAt: spec.Variables["traced"].Offset}
	for _, name := range own {
		a.maps[name] = all.Maps[name]
		delete(all.Maps, name)
	}
	delete(all.Maps, stepsSection)
	all.Programs = nil
	return a, nil
}

func (a *asker) pin(dir string) error {
	for name, m := range a.maps {
		if err := pinMap(m, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return pinPrograms(a.programs, dir)
}

// leftAsker takes what Load left for questions; nil: there is none, or not all of it.
func leftAsker(dir string, cfg Config, o *bpf.KernelObjects) (*asker, error) {
	spec, own, err := askerSpec(cfg, o.Seeds)
	if err != nil {
		return nil, err
	}
	programs, err := pinnedPrograms(spec, dir)
	if programs == nil {
		return nil, err
	}
	a := &asker{programs: programs, maps: map[string]*ebpf.Map{}, stepsAt: spec.Variables["traced"].Offset}
	for _, name := range append(own, steps) {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			a.close()
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil
			}
			return nil, fmt.Errorf("take over map %s: %w", name, err)
		}
		a.maps[name] = m
	}
	over := asked(o)
	for _, name := range own {
		over[name] = a.maps[name]
	}
	over[stepsSection] = a.maps[steps]
	if like, err := areLike(spec, a.programs, over); err != nil || !like {
		a.close()
		return nil, err
	}
	return a, nil
}

// missingPrograms lists what Load left of these and is not pinned any more; nothing, if
// no folder of theirs is there.
func (p *pins) missingPrograms(cfg Config, seeds *ebpf.Map) ([]string, error) {
	spec, err := loadSpec(cfg)
	if err != nil {
		return nil, err
	}
	asks, own, err := askerSpec(cfg, seeds)
	if err != nil {
		return nil, err
	}
	if err := seed(spec, seeds, nil); err != nil {
		return nil, err
	}
	dir := p.programsDir(spec)
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	names := append(slices.Collect(maps.Keys(spec.Programs)), ownMap)
	for _, name := range slices.AppendSeq(append(own, steps), maps.Keys(asks.Programs)) {
		names = append(names, filepath.Join(askerDir, name))
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return !errors.Is(err, fs.ErrNotExist)
	})
	slices.Sort(names)
	return names, nil
}

func (a *asker) close() {
	closeAll(a.programs)
	closeAll(a.maps)
}

func closeAll[T io.Closer](opened map[string]T) {
	for _, o := range opened {
		o.Close()
	}
}
