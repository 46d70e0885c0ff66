// Package dataplane turns rulesets into kernel state and what the kernel does
// into events. It is the only place that speaks eBPF.
//
// An enforcement point is the host's side of a workload's interface, with one
// program in each direction (see the bpf package for what they do with a
// packet). Programs, links and maps are pinned in a folder of a bpffs, so
// enforcement does not depend on any process: a process that ends, or is killed,
// leaves everything as it is, and the next one takes it over without losing a
// packet or a connection.
//
// It promises: a packet is judged by one generation, never by halves of two;
// once Apply has returned, no packet is judged by an earlier one; a generation
// that does not fit changes nothing; what is not known yet is observed, never
// refused, until a ruleset says otherwise; nothing is lost without being counted.
//
// It never goes back to an earlier generation unless it is told to (Revert) or nobody
// confirmed the one in force by its deadline (Ruleset.ConfirmBy), never
// touches an interface that it was not told to attach to, and never writes packets
// of its own but the answers that a verdict of reject asks for.
//
// A Dataplane may be used by several goroutines. Its methods act on the network
// namespace of the calling thread.
package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// DefaultPinDir is where state is pinned if Config does not say.
const DefaultPinDir = "/sys/fs/bpf/bocage"

// Config says where state lies and how much of it there may be. Sizes are fixed
// when state is first made; a process with other sizes makes new state beside
// and moves the enforcement points over once it has a ruleset.
type Config struct {
	// Host is this host's name, for log lines.
	Host string
	// PinDir is a folder in a bpffs, of this agent alone. Where no bpffs is
	// mounted, Open mounts one. Default: DefaultPinDir.
	PinDir string
	// FlowEntries bounds the flows remembered at a time, 128 bytes each. When
	// there is no room for another, flows that are over make it, then those that
	// nobody answered, then the one that was idle for longest, if for more than
	// five minutes. Where none of these is left, the new flow is refused and
	// counted (ReasonTableFull), and those that are there go on. Default 131,072.
	FlowEntries int
	// FlowsPerPort bounds the flows that one enforcement point may hold while
	// there are others, so that no workload takes the table from the rest: beyond,
	// or a little beyond, only flows of its own make room for another. Default: half of FlowEntries.
	FlowsPerPort int
	// PeerEntries bounds the host addresses of a ruleset, PrefixEntries its other
	// prefixes, RuleEntries its rules after port ranges are split into blocks,
	// RefusedEntries its refused identities, EndingEntries its decisions that end
	// by themselves, LimitEntries those that limit flows (their rate, or that
	// they come whole), NameEntries its patterns of DNS names, RankEntries the decisions
	// that Kubernetes' policies rank among those that accept names. Rows cost memory when used.
	// Defaults 131,072, 32,768, 262,144, 16,384, 16,384, 4,096, 16,384 and 16,384.
	PeerEntries, PrefixEntries, RuleEntries, RefusedEntries, EndingEntries, LimitEntries, NameEntries, RankEntries int
	// QuotaEntries bounds the pairs of ends that are remembered to have begun flows
	// lately where decisions have a rate, 120 bytes each. One that is forgotten too
	// early may begin a quarter of a second's worth of flows more. Default 16,384.
	QuotaEntries int
	// NameLeast is how long an address may be used at least that a workload was told a
	// name has, whatever the answer's TTL: nobody connects at the moment of the answer.
	// Default 30 s.
	NameLeast time.Duration
	// EventBytes sizes the ring buffer between kernel and Run; a power of two.
	// An event takes 72 bytes. Default 4 MiB.
	EventBytes int
	// Pickup is how long after its attachment an enforcement point takes TCP
	// packets that open no flow for packets of older connections and judges them
	// as such. Default 2 h 15 min: a connection with TCP keep-alive at its
	// default of 2 h has shown itself by then.
	Pickup time.Duration
	// AnswersPerSecond bounds the resets and ICMP errors that an enforcement point
	// sends to whom it rejects; a second's worth may come at once. Beyond, refusals
	// are silent and counted. Default 1,000.
	AnswersPerSecond int
	// DirectDelivery hands packets of established flows between two workloads of
	// this host straight from one to the other, past the host's own stack, where the
	// host would route or bridge them there anyway. It is faster than no enforcement
	// at all. Off by default, since what else the host does to forwarded packets no
	// longer sees them: its firewall (one that tracks connections may take what comes
	// back to it, when routes change, for strangers), captures on its links, and the
	// links' transmit counters.
	DirectDelivery bool
	Logger         *slog.Logger
	loads          loader                  // nil but in tests
	before         func(step string) error // a test may make a step fail
}

// Validate names all faults at once.
func (c Config) Validate() error {
	var faults []error
	bounded := func(what string, n int) {
		if n < 0 || n > 1<<26 {
			faults = append(faults, fmt.Errorf("%s %d is not between 1 and %d (0: the default)", what, n, 1<<26))
		}
	}
	for table, n := range c.entries() {
		bounded("entries for "+table, *n)
	}
	bounded("AnswersPerSecond", c.AnswersPerSecond)
	if c.EventBytes != 0 && (c.EventBytes < 4096 || c.EventBytes&(c.EventBytes-1) != 0) {
		faults = append(faults, fmt.Errorf("EventBytes %d is not a power of two of at least 4096", c.EventBytes))
	}
	if c.NameLeast < 0 || c.NameLeast > mostNamed {
		faults = append(faults, fmt.Errorf("an address under a name is kept %s: that is not between 0 and %s", c.NameLeast, mostNamed))
	}
	if c.Pickup < 0 {
		faults = append(faults, fmt.Errorf("the time for picking up connections, %s, is negative", c.Pickup))
	}
	slices.SortFunc(faults, func(a, b error) int { return compareText(a.Error(), b.Error()) })
	return errors.Join(faults...)
}

// entries are the bounds of tables, by the names that an operator gives them sizes by.
func (c *Config) entries() map[string]*int {
	return map[string]*int{
		"flows": &c.FlowEntries, "flows-per-port": &c.FlowsPerPort, "addresses": &c.PeerEntries, "prefixes": &c.PrefixEntries,
		"rules": &c.RuleEntries, "refused": &c.RefusedEntries, "endings": &c.EndingEntries, "limits": &c.LimitEntries,
		"quotas": &c.QuotaEntries, "names": &c.NameEntries, "ranks": &c.RankEntries,
	}
}

// Resize returns the configuration with other bounds of tables, by the names that the
// agent's option --table-entries and faults of [Dataplane.Apply] have. Names that there
// are not, and sizes beyond what can be, are an error.
func (c Config) Resize(entries map[string]int) (Config, error) {
	known := c.entries()
	for _, table := range slices.Sorted(maps.Keys(entries)) {
		n, ok := known[table]
		if !ok {
			return c, fmt.Errorf("there is no table %q: there are %s", table, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if *n = entries[table]; *n < 1 {
			return c, fmt.Errorf("%d entries for %s: a table has at least one", *n, table)
		}
	}
	return c, c.Validate()
}

func (c Config) withDefaults() Config {
	orElse := func(n *int, fallback int) {
		if *n == 0 {
			*n = fallback
		}
	}
	orElse(&c.FlowEntries, 1<<17)
	orElse(&c.FlowsPerPort, c.FlowEntries/2)
	orElse(&c.PeerEntries, 1<<17)
	orElse(&c.PrefixEntries, 1<<15)
	orElse(&c.RuleEntries, 1<<18)
	orElse(&c.RefusedEntries, 1<<14)
	orElse(&c.EndingEntries, 1<<14)
	orElse(&c.LimitEntries, 1<<12)
	orElse(&c.RankEntries, 1<<14)
	orElse(&c.QuotaEntries, 1<<14)
	orElse(&c.NameEntries, 1<<14)
	orElse(&c.AnswersPerSecond, 1000)
	orElse(&c.EventBytes, 1<<22)
	if c.PinDir == "" {
		c.PinDir = DefaultPinDir
	}
	if c.Pickup == 0 {
		c.Pickup = 2*time.Hour + 15*time.Minute
	}
	if c.NameLeast == 0 {
		c.NameLeast = 30 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Dataplane is the kernel side of one agent.
type Dataplane struct {
	cfg     Config
	log     *slog.Logger
	mounted string   // where Open had to mount a bpffs; else ""
	lock    *os.File // the PinDir, held
	pins    *pins

	objects *bpf.KernelObjects
	barrier *barrier
	nameKey nameKey // of the ids of names
	flows   *flowTable
	mapped  sync.RWMutex // guards flows, which goes with Close
	ending  sync.Mutex   // guards the list of flows to end in the kernel; taken last
	wiring  *wiring      // nil without DirectDelivery

	asking    sync.Mutex // held by one question at a time, before mu; guards the next two
	asker     *asker
	askerEnds *time.Timer

	// mu guards what follows, and the order of changes to maps.
	mu             sync.Mutex
	content        *content              // of the ruleset brought in last; nil: another process brought it
	lists          lists                 // of that ruleset
	stale          [slots]*changes       // rows in which a slot differs from it
	empty          *changes              // rows without a version that could not be deleted
	count          [tables]int           // rows of each table
	settled        bool                  // no packet looks at what nothing counts on
	page           []bpf.KernelOrder     // room for orders
	orders         []byte                // where the kernel reads them
	steps, ordered int                   // calls of the kernel to change rows, and rows changed
	preemptible    bool                  // see await
	ports          map[uint32]Attachment // attached, by ifindex
	wires          map[uint32]Wire       // by the ifindex inside
	steering       bpf.KernelSteering
	departed       bool                    // workloads may have gone of which something is still known
	live           uint64                  // flows at the last sweep
	full           time.Time               // when their table was last told to be nearly full
	before         func(step string) error // a test may make a step of a change fail
	moves          []move                  // links of an older layout, to be moved once there is a ruleset
	inherited      bool                    // what that layout knows was taken over, as far as it could be
	inheritedAt    *uint32                 // the beat at which all its flows were begun to be taken over; nil: they were not
	aheadSince     time.Time               // when a higher generation was found to be in force there; zero: never
	closed         bool
}

// Attachment is an enforcement point: a port of the ruleset on a real interface.
// A Port without Identity is attached as unknown: nothing vouches for it.
type Attachment struct {
	Ifindex uint32
	Port    bocage.Port
	// Closed has everything refused at a port without Identity, as it would be for a
	// workload that is enforced: it may be one. Else such a port is observed.
	Closed bool
}

// Inspection is where the inspection engine's two links end on the host. Packets
// to a workload enter at Outside and leave at Inside, packets from it the other
// way round. While not Up, the profile of a flow decides what becomes of it.
type Inspection struct {
	Outside, Inside uint32
	Up              bool
}

// DecoyPort is where the decoys' link ends on the host, and the decoys' own MAC.
// The zero DecoyPort is none: what would meet a decoy is dropped.
type DecoyPort struct {
	Ifindex uint32
	MAC     net.HardwareAddr
}

// Open loads the programs, or takes over what an earlier process left, losing no
// packet. Only one process at a time may have a PinDir open.
func Open(cfg Config) (*Dataplane, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open dataplane: %w", err)
	}
	d := &Dataplane{cfg: cfg.withDefaults(), ports: make(map[uint32]Attachment), wires: make(map[uint32]Wire), before: cfg.before}
	d.log = d.cfg.Logger.With("host", d.cfg.Host)
	if err := d.open(); err != nil {
		d.release()
		if d.mounted == d.cfg.PinDir {
			unmount(d.mounted)
		}
		return nil, fmt.Errorf("open dataplane in %s: %w", d.cfg.PinDir, err)
	}
	return d, nil
}

// begin takes hold of the folder, and looks at what lies there.
func (d *Dataplane) begin() (spec *ebpf.CollectionSpec, err error) {
	if d.mounted, err = ensureBPFFS(d.cfg.PinDir); err != nil {
		return nil, err
	}
	if d.mounted != "" {
		d.log.Info("mounted bpffs", "dir", d.mounted)
	}
	if d.lock, err = lockDir(d.cfg.PinDir); err != nil {
		return nil, err
	}
	if spec, err = loadSpec(d.cfg); err != nil {
		return nil, err
	}
	if d.pins, err = openPins(d.cfg.PinDir, spec, d.step); err != nil {
		return nil, err
	}
	d.pins.loads = d.cfg.loads
	if d.pins.broken != "" {
		d.log.Warn("state has lost pins and is made anew: it stays in force until a ruleset is applied", "map", d.pins.broken)
	}
	return spec, nil
}

func (d *Dataplane) open() error {
	spec, err := d.begin()
	if err != nil {
		return err
	}
	if d.objects, err = d.pins.load(spec); err != nil {
		return err
	}
	if d.flows, err = mapFlows(d.objects.Flows, spec); err != nil {
		return err
	}
	if d.nameKey, err = readNameKey(d.objects.Seeds); err != nil {
		return err
	}
	if d.barrier, err = newBarrier(); err != nil {
		return err
	}
	if d.cfg.DirectDelivery {
		if d.wiring, err = newWiring(); err != nil {
			return err
		}
	}
	if d.orders, err = mapMemory(d.objects.Orders, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return fmt.Errorf("map orders: %w", err)
	}
	d.page, d.preemptible = make([]bpf.KernelOrder, 0, orders), isPreemptible()
	if err := d.pins.swapPrograms(d.objects); err != nil {
		return err
	}
	if d.moves, err = d.pins.foreign(); err != nil {
		return err
	}
	if err := d.recall(); err != nil {
		return err
	}
	if len(d.moves) == 0 {
		return d.pins.removeForeign()
	}
	d.log.Info("state of another layout is in force until a ruleset is applied", "links", len(d.moves))
	return nil
}

// recall reads back what an earlier process set.
func (d *Dataplane) recall() error {
	if err := d.objects.Steering.Lookup(uint32(0), &d.steering); err != nil {
		return fmt.Errorf("read steering: %w", err)
	}
	attached, err := d.pins.links()
	if err != nil {
		return err
	}
	for _, m := range d.moves { // moving was cut short: the rest still goes by the other layout
		attached = append(attached, m.pinnedLink)
	}
	directions, wired := make(map[uint32]int), make(map[uint32]bool)
	for _, l := range attached {
		switch l.program {
		case programTo, programFrom:
			directions[l.ifindex]++
		case programAcross:
			wired[l.ifindex] = true
		}
	}
	d.departed = true
	for ifindex, n := range directions {
		port, closed, err := d.readPort(ifindex)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		if err == nil && n == 2 { // else attaching was cut short, and is to be done again
			d.ports[ifindex] = Attachment{Ifindex: ifindex, Port: port, Closed: closed}
		}
	}
	gone := func(ifindex uint32) bool { return directions[ifindex] == 0 && !wired[ifindex] }
	goneAddress := func(k bpf.KernelPortAddress) bool { return gone(k.Ifindex) }
	if err := d.restoreGone(gone); err != nil {
		return err
	}
	return errors.Join(clearRows(d.objects.Ports, gone), clearRows(d.objects.PortAddresses, goneAddress),
		clearRows(d.objects.Residents, goneAddress), clearRows(d.objects.Crossings, gone), d.recallWires())
}

// Attached lists the enforcement points by interface, those of an earlier
// process included. Of these only what the kernel knows is filled in.
func (d *Dataplane) Attached() []Attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]Attachment, 0, len(d.ports))
	for _, a := range d.ports {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b Attachment) int { return int(a.Ifindex) - int(b.Ifindex) })
	return all
}

// Close ends this process's part; enforcement stays. Run must have ended.
func (d *Dataplane) Close() error {
	d.asking.Lock()
	d.dropAsker()
	d.asking.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.release()
}

func (d *Dataplane) release() error {
	var errs []error
	if d.barrier != nil {
		errs = append(errs, d.barrier.Close())
	}
	if d.wiring != nil {
		d.wiring.close()
	}
	if d.pins != nil {
		d.pins.release()
	}
	d.mapped.Lock() // a sweep may be reading the table
	defer d.mapped.Unlock()
	if d.flows != nil {
		errs = append(errs, d.flows.close())
		d.flows = nil
	}
	if d.orders != nil {
		errs = append(errs, unix.Munmap(d.orders))
		d.orders = nil
	}
	if d.objects != nil {
		errs = append(errs, d.objects.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
