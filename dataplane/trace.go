package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Question is a packet that somebody asks about: a whole frame, at an enforcement
// point, in a direction.
type Question struct {
	Ifindex uint32
	// From says that the workload behind the interface sends it; of a wire, that it
	// comes in inside.
	From  bool
	Frame []byte
}

// Passage is what the programs would do with a packet, and how they came to it.
type Passage struct {
	Port Attachment
	// Outcome is what becomes of it.
	Outcome Outcome
	// Verdict is what the programs do, Would what an enforcing scope would do.
	Verdict, Would bocage.Verdict
	Reason         bocage.ReasonCode
	Decision       bocage.DecisionID
	Profile        uint16
	// Source and Destination are who is at the packet's ends, or at the flow's whose
	// row was found.
	Source, Destination           bocage.Identity
	SourceGroup, DestinationGroup bocage.Group
	// Reversed says that the packet answers: the flow was opened the other way.
	Reversed bool
	// Admitted is what admission said, Tracked what the table of flows said.
	Admitted Admission
	Tracked  Tracking
	// Judged says that the ruleset was asked, Refused that an end is in the refused
	// set, Shape which of its kinds of rule hit (1 is the most specific; 0: none, so
	// the default), Ended how many decisions had ended and gave way.
	Judged, Refused bool
	// Named says that a name allows the flow, by which its source knows where it goes.
	Named                               bool
	Shape, Ended                        int
	SourceEnforces, DestinationEnforces bool
	// Limited says that it begins a flow that is counted, Excess that it is one too many.
	Limited, Excess bool
	// Differs says that the candidate in shadow decides its reach otherwise.
	Differs bool
	// Target is the link that it is sent to, where that is not its own.
	Target uint32
	// Generation is in force; 0 is none.
	Generation uint64
}

// Outcome is what becomes of a packet.
type Outcome string

// Outcomes.
const (
	Passes   Outcome = "passes"   // on to whatever comes next on its way
	Dropped  Outcome = "dropped"  // in silence
	Answered Outcome = "answered" // refused with a reset or an ICMP error
	Steered  Outcome = "steered"  // to the inspection engine
	Diverted Outcome = "diverted" // to a decoy
)

// Admission is what anti-spoofing says.
type Admission string

// Tracking is what the table of flows says.
type Tracking string

// What both say; empty is that they were not asked.
const (
	AdmittedOn      Admission = "on"
	AdmittedControl Admission = "control"
	AdmittedSpoofed Admission = "spoofed"
	AdmittedAside   Admission = "aside"
	AdmittedUnknown Admission = "unknown"

	TrackedMiss    Tracking = "miss"    // no flow: it is judged
	TrackedStale   Tracking = "stale"   // a flow that was judged by something else: again
	TrackedHit     Tracking = "hit"     // a flow whose verdict holds
	TrackedAgainst Tracking = "against" // it would open a flow that lives, the other way
)

// asked are maps that the programs of a question read where they enforce. All
// others a question has for itself, with a copy of what it needs to see, so that
// there is nothing of the enforcement points that it could write to.
func asked(o *bpf.KernelObjects) map[string]*ebpf.Map {
	shared := mapsOf(o)
	maps.DeleteFunc(shared, func(name string, _ *ebpf.Map) bool { return !isAsked(name) })
	return shared
}

func isAsked(name string) bool {
	switch name {
	case "active", "rulesets", "peers", "prefixes", "groups", "cells", "refused_identities", "successions", "limits", "names", "rankings", "learned",
		"port_addresses", "topology", "steering", "seeds", "shares":
		return true
	}
	return false
}

// Trace asks the programs what they would do with a packet, on the maps that they
// go by, and leaves no trace of it: no counter, flow, event, refusal, question,
// fragment or learned address. It loads the programs once more for that, which
// takes some tenths of a second, and keeps them for a while; or takes those that Load
// left.
func (d *Dataplane) Trace(q Question) (Passage, error) {
	passage, err := d.trace(q)
	if err != nil {
		return passage, fmt.Errorf("trace a packet at interface %d: %w", q.Ifindex, err)
	}
	return passage, nil
}

func (d *Dataplane) trace(q Question) (Passage, error) {
	d.asking.Lock()
	defer d.asking.Unlock()
	port, program, ok := d.pointAt(q)
	if !ok {
		return Passage{}, errors.New("it is no enforcement point: bocage doctor agent lists them")
	}
	asker, err := d.ready()
	if err != nil {
		return Passage{}, err
	}
	returned, err := asker.programs[program].Run(&ebpf.RunOptions{Data: q.Frame, Context: packetContext{Ifindex: q.Ifindex}})
	if err != nil {
		return Passage{}, fmt.Errorf("run the programs: %w", err)
	}
	told, err := asker.told()
	if err != nil {
		return Passage{}, fmt.Errorf("read the steps: %w", err)
	}
	passage, err := d.passage(port, returned, told, q.From)
	passage.Generation = d.Generation()
	return passage, err
}

// HardwareAddresses tells those of an enforcement point's two sides: the
// workload's, as declared or learned, and the host's own. What is not known is all
// zeros.
func (d *Dataplane) HardwareAddresses(ifindex uint32) (workload, own net.HardwareAddr, err error) {
	var row bpf.KernelPort
	if err := d.objects.Ports.Lookup(ifindex, &row); err != nil {
		return nil, nil, fmt.Errorf("read port %d: %w", ifindex, err)
	}
	return row.Mac[:], row.HostMac[:], nil
}

// pointAt finds an enforcement point and the program that a question is for. Of a
// wire, each end has one for what comes in there.
func (d *Dataplane) pointAt(q Question) (at Attachment, program string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at, ok = d.ports[q.Ifindex]; ok {
		program = programTo
		if q.From {
			program = programFrom
		}
		return at, program, true
	}
	for _, w := range d.wires {
		if q.Ifindex == w.Inside || q.Ifindex == w.Outside {
			return Attachment{Ifindex: q.Ifindex, Port: bocage.Port{Interface: w.Name}}, programAcross, q.From == (q.Ifindex == w.Inside)
		}
	}
	return at, "", false
}

// askerLife is how long the programs of questions are kept after the last one.
const askerLife = time.Minute

// ready returns programs for a question, which see what the enforcement points
// would see now; asking is held.
func (d *Dataplane) ready() (*asker, error) {
	if d.asker == nil {
		var err error
		if d.asker, err = d.newAsker(); err != nil {
			return nil, fmt.Errorf("load the programs: %w", err)
		}
		d.askerEnds = time.AfterFunc(askerLife, func() {
			d.asking.Lock()
			defer d.asking.Unlock()
			d.dropAsker()
		})
	}
	d.askerEnds.Reset(askerLife)
	live, own := mapsOf(d.objects), d.asker.maps
	err := errors.Join(
		copyRows[uint32, bpf.KernelPort](live["ports"], own["ports"]),
		copyRows[bpf.KernelPortAddress, bpf.KernelResident](live["residents"], own["residents"]),
		copyRows[uint32, bpf.KernelBucket](live["flows"], own["flows"]),
		copyRows[uint32, bpf.KernelGuide](live["guides"], own["guides"]),
		copyRows[uint32, bpf.KernelHolding](live["holdings"], own["holdings"]),
		copyRows[bpf.KernelFragmentKey, bpf.KernelFragment](live["fragments"], own["fragments"]),
		copyRows[bpf.KernelQuotaKey, bpf.KernelQuota](live["quotas"], own["quotas"]),
		copyRows[uint32, bpf.KernelPressure](live["pressure"], own["pressure"]),
		copyRows[uint32, bpf.KernelHearings](live["hearings"], own["hearings"]),
		copyRows[bpf.KernelQuestion, bpf.KernelAsked](live["questions"], own["questions"]),
		clearRows(own["refusals"], func(bpf.KernelRefusalKey) bool { return true }),
		clearRows(own["folded"], func(bpf.KernelRefusalKey) bool { return true }),
		d.asker.forget(),
	)
	if err != nil {
		return nil, err
	}
	return d.asker, nil
}

// dropAsker lets go of the programs of questions; asking is held.
func (d *Dataplane) dropAsker() {
	if d.asker != nil {
		d.askerEnds.Stop()
		d.asker.close()
		d.asker = nil
	}
}

func (d *Dataplane) newAsker() (*asker, error) {
	spec, err := loadSpec(d.cfg)
	if err != nil {
		return nil, err
	}
	if err := seed(spec, d.objects.Seeds, nil); err != nil {
		return nil, err
	}
	a, err := leftAsker(filepath.Join(d.pins.programsDir(spec), askerDir), d.cfg, d.objects)
	if err != nil || a != nil {
		return a, err
	}
	if mayLoad() != nil {
		return nil, errors.New("those that were left for questions are not pinned any more, or are others: restart the agent (systemctl restart bocage-agent), which has them loaded again; enforcement goes on meanwhile")
	}
	return loadAsker(d.cfg, d.objects)
}

// told reads the steps that the programs took, and forget has them begin with none.
func (a *asker) told() (told bpf.KernelTrace, err error) {
	value, err := a.maps[steps].LookupBytes(uint32(0))
	if err == nil {
		_, err = binary.Decode(value[a.stepsAt:], binary.NativeEndian, &told)
	}
	return told, err
}

func (a *asker) forget() error {
	value, err := a.maps[steps].LookupBytes(uint32(0))
	if err == nil {
		_, err = binary.Encode(value[a.stepsAt:], binary.NativeEndian, bpf.KernelTrace{})
	}
	if err != nil {
		return err
	}
	return a.maps[steps].Put(uint32(0), value)
}

// copyRows copies what programs write and a question must see as it is. Where rows
// come and go meanwhile some may be missed, as a packet may come before or after.
func copyRows[K comparable, V any](from, to *ebpf.Map) error {
	if to.Type() != ebpf.Array {
		if err := clearRows(to, func(K) bool { return true }); err != nil {
			return err
		}
	}
	const batch = 256
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := from.BatchLookup(&cursor, keys, values, nil)
		over := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !over {
			return fmt.Errorf("copy %s: %w", from, err)
		}
		if n > 0 {
			if _, err := to.BatchUpdate(keys[:n], values[:n], nil); err != nil {
				return fmt.Errorf("copy %s: %w", from, err)
			}
		}
		if over {
			return nil
		}
	}
}

// packetContext is struct __sk_buff as far as a question fills it in.
type packetContext struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TcIndex                                  uint32
}

// passage makes words of what the programs wrote down.
func (d *Dataplane) passage(port Attachment, returned uint32, told bpf.KernelTrace, from bool) (Passage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := Passage{
		Port: port, Verdict: bocage.Verdict(told.Verdict), Would: bocage.Verdict(told.Would), Reason: bocage.ReasonCode(told.Reason),
		Decision: bocage.DecisionID(told.Decision), Profile: told.Profile,
		Source: bocage.Identity(told.Source), Destination: bocage.Identity(told.Destination),
		SourceGroup: bocage.Group(told.SourceGroup), DestinationGroup: bocage.Group(told.DestinationGroup),
		Reversed: told.Tracked != 0 && told.Original == 0, Judged: told.Judged != 0, Refused: told.Refused != 0, Named: told.Named != 0,
		Shape: int(told.Shape), Ended: int(told.Successions),
		SourceEnforces: told.Enforces&1 != 0, DestinationEnforces: told.Enforces&2 != 0, Differs: told.Differs != 0,
		Limited: told.Limited != 0, Excess: told.Limited == 2,
	}
	if int(told.Admitted) < len(admissions) {
		p.Admitted = admissions[told.Admitted]
	}
	const judge = 3 // ACT_JUDGE, and one
	switch {
	case told.Tracked == 0:
	case told.Tracked == judge+1 && told.Row == 0:
		p.Tracked = TrackedMiss
	case told.Tracked == judge+1:
		p.Tracked = TrackedStale
	case p.Reason == bocage.ReasonInvalidState:
		p.Tracked = TrackedAgainst
	default:
		p.Tracked = TrackedHit
	}
	switch {
	case told.Act == actSteer:
		p.Outcome, p.Target = Steered, d.steering.Outside
		if from {
			p.Target = d.steering.Inside
		}
	case told.Act == actDivert:
		p.Outcome, p.Target = Diverted, d.steering.Decoy
	case p.Verdict == bocage.VerdictReject:
		p.Outcome, p.Target = Answered, port.Ifindex
	case returned == tcxDrop:
		p.Outcome = Dropped
	default:
		p.Outcome = Passes
	}
	if p.Outcome != Passes && p.Outcome != Dropped && returned != tcxRedirect {
		return p, fmt.Errorf("the programs returned %d where they say %s: this is a fault of theirs", int32(returned), p.Outcome)
	}
	return p, nil
}

// What programs return, and what they do (enforce.h).
const (
	tcxDrop     = 2
	tcxRedirect = 7
	actSteer    = 1
	actDivert   = 2
)

var admissions = [...]Admission{"", AdmittedOn, AdmittedControl, AdmittedSpoofed, AdmittedAside, AdmittedUnknown, AdmittedControl}
