package dataplane

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// The kernel takes the programs from who has CAP_PERFMON only (docs/decisions/0036).
// So loading and enforcing may be two processes: Load leaves programs where Open finds
// them, and who opens needs CAP_BPF and CAP_NET_ADMIN.

// Load verifies the programs of a configuration and pins them for the process that
// opens the same PinDir with the same configuration, those that answer questions
// (Trace) too. It makes maps where there are none. What is in force stays so, and
// where the programs are there already nothing is done. It fails while a process has
// the folder open.
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
	if d.objects, err = d.pins.load(spec); err != nil {
		return err
	}
	dir := d.pins.programsDir(spec)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	asks, err := loadAsker(d.cfg, d.objects)
	if err != nil {
		return fmt.Errorf("load the programs that answer questions: %w", err)
	}
	defer asks.close()
	draft := filepath.Join(d.pins.dir(), draftPrograms)
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
	return os.Rename(draft, dir)
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

// forgetPrograms unpins programs unlike these. What links hold of them stays.
func (p *pins) forgetPrograms(spec *ebpf.CollectionSpec) error {
	dir := p.programsDir(spec)
	entries, err := os.ReadDir(p.dir())
	if err != nil {
		return err
	}
	for _, entry := range entries {
		other := filepath.Join(p.dir(), entry.Name())
		if !strings.HasPrefix(entry.Name(), programsPrefix) || other == dir {
			continue
		}
		if err := os.RemoveAll(other); err != nil {
			return fmt.Errorf("unpin programs of before: %w", err)
		}
	}
	return nil
}

// left takes programs that Load left, with the maps that they are of; nil: there are
// none like these.
func (p *pins) left(spec *ebpf.CollectionSpec, shared map[string]*ebpf.Map) (*bpf.KernelObjects, error) {
	dir := p.programsDir(spec)
	var err error
	all := &ebpf.Collection{Programs: map[string]*ebpf.Program{}, Maps: map[string]*ebpf.Map{}}
	defer all.Close() // of what is not handed on
	for name := range spec.Programs {
		program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("take over program %s: %w", name, err)
		}
		all.Programs[name] = program
	}
	for name, m := range shared {
		if all.Maps[name], err = m.Clone(); err != nil {
			return nil, fmt.Errorf("take over map %s: %w", name, err)
		}
	}
	if all.Maps[ownMap], err = ebpf.LoadPinnedMap(filepath.Join(dir, ownMap), nil); err != nil {
		return nil, fmt.Errorf("take over map %s: %w", ownMap, err)
	}
	objects := &bpf.KernelObjects{}
	if err := errors.Join(all.Assign(&objects.KernelPrograms), all.Assign(&objects.KernelMaps)); err != nil {
		return nil, errors.Join(err, objects.KernelPrograms.Close(), objects.KernelMaps.Close())
	}
	return objects, nil
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
func askerSpec(cfg Config, o *bpf.KernelObjects) (spec *ebpf.CollectionSpec, own []string, err error) {
	if spec, err = loadSpec(cfg); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(spec.Variables["tracing"].Set(uint32(1)), seed(spec, o.Seeds, nil)); err != nil {
		return nil, nil, err
	}
	page := uint32(os.Getpagesize()) // nobody reads them
	spec.Maps["events"].MaxEntries, spec.Maps["greetings"].MaxEntries = page, page
	for name := range spec.Programs {
		if name != programFrom && name != programTo && name != programAcross {
			delete(spec.Programs, name)
		}
	}
	shared := asked(o)
	for name := range spec.Maps {
		if shared[name] == nil && !strings.HasPrefix(name, ".") {
			own = append(own, name)
		}
	}
	return spec, own, nil
}

func loadAsker(cfg Config, o *bpf.KernelObjects) (*asker, error) {
	if err := mayLoad(); err != nil {
		return nil, err
	}
	spec, own, err := askerSpec(cfg, o)
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

// leftAsker takes what Load left for questions; nil: there is none.
func leftAsker(dir string, cfg Config, o *bpf.KernelObjects) (*asker, error) {
	spec, own, err := askerSpec(cfg, o)
	if err != nil {
		return nil, err
	}
	a := &asker{programs: map[string]*ebpf.Program{}, maps: map[string]*ebpf.Map{}, stepsAt: spec.Variables["traced"].Offset}
	for name := range spec.Programs {
		program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil)
		if err != nil {
			a.close()
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil
			}
			return nil, fmt.Errorf("take over program %s: %w", name, err)
		}
		a.programs[name] = program
	}
	for _, name := range append(own, steps) {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			a.close()
			return nil, fmt.Errorf("take over map %s: %w", name, err)
		}
		a.maps[name] = m
	}
	return a, nil
}

func (a *asker) close() {
	for _, program := range a.programs {
		program.Close()
	}
	for _, m := range a.maps {
		m.Close()
	}
}
