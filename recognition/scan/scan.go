// Package scan recognises who looks for services: scans of one target's ports,
// sweeps of many addresses, and both.
//
//	evidence    "scan"; by a workload it is decisive, by an outside address it is not
//	ATT&CK      T1046 Network Service Discovery, T1018 Remote System Discovery (one port, many addresses)
//	roles       attacker: the source; victims: the targets, the first 32 in order of their numbers
//	state       about 660 bytes for each source with refused contacts, 56 for each
//	            pair of source and target (see Config for how many: 18 MB by
//	            default), and 8 kB for each of at most 1,024 sources that touched
//	            more than 16 ports; victims and records of a source are bounded
//
// It is a sequential test (Wald; Jung et al., "Fast portscan detection using
// sequential hypothesis testing", 2004): a sum of log-likelihood ratios over
// distinct targets, with no window and no rate, so a slow scan weighs as much as
// a fast one. What counts is contact with services that policy never offered to
// the source; attempts count for nothing, so that a client which retries one
// refused service for ever stays where it began.
//
// Each weight is the base-10 logarithm of how much more often a scanner than a
// benign client reaches one more of the thing. A benign client whose policy is
// missing knows what it wants: one or two ports of each of its services, each a
// few replicas. So a target's first two ports are free and each further one weighs
// 0.5 (0.1 for ephemeral ports, where passive FTP and RPC live); live addresses
// beyond four weigh 0.06 (a monitor that scrapes 50 workloads before its policy is
// there is no scanner); unassigned private addresses beyond four 0.15; addresses
// on its own network where nobody answers, beyond two, 0.35 (whoever keeps a stale
// list knows few; those that a workload had lately are for the caller to leave
// out); the public Internet next to nothing on the ports where its clients go. The sum is a function of sets, so the order of events does not
// matter. Weights are set by reasoning from the shares of the project's
// measurements (99.4 % of attack flows touch what was never offered, 1 % of
// benign ones), not calibrated on a site; the threshold of 3 is a likelihood
// ratio of 1,000.
//
// Contacts that were merely observed (the scope does not enforce), and allowed
// ones that nobody answered, are summed apart and weigh half. Replies that lost
// their connection (a low source port towards an ephemeral one) are not contacts.
// A source's sums start again a day after they began.
package scan

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/evidence"
	"bocage.dev/bocage/recognition/table"
)

// Kind is the kind of evidence.
const Kind = "scan"

// Weights and limits; the package comment gives their reasons.
const (
	threshold = 3.0
	maxWeight = 5.0
	// An outside address proves little about who is behind it.
	maxOutsideWeight = 1.5

	weightPort       = 0.5
	weightEphemeral  = 0.1
	weightLive       = 0.06
	weightUnassigned = 0.15
	weightDark       = 0.35
	weightPublic     = 0.02
	weightPublicUse  = 0.002
	weightVariety    = 0.1 // each different port beyond eight, over all targets, but for ephemeral ones

	freePorts      = 2
	freeAddresses  = 4
	freeDark       = 2
	freeVariety    = 8
	ephemeral      = 32768 // Linux' first, net.ipv4.ip_local_port_range
	pairPorts      = 18    // beyond them a pair says nothing new
	fewPorts       = 16    // kept in the source's entry
	maxDetails     = 1024
	forget         = 24 * time.Hour
	softWeight     = 0.5
	halfLife       = time.Hour
	bitsOfEstimate = 1024
)

// Config bounds the detector's memory. The zero value works.
type Config struct {
	Sources int // sources with refused contacts; 16,384 by default
	Pairs   int // pairs of source and target; 131,072 by default
}

// Detector folds flow events into evidence. It is not safe for concurrent use.
type Detector struct {
	sources *table.Table[source]
	pairs   *table.Table[pair]
	details int // in use, of maxDetails
	key     []byte
	records []evidence.Record
}

// source is what is known of one that makes refused contacts.
type source struct {
	begun   int64 // arrival of its first contact, ns; 0: new
	epoch   uint32
	flagged bool
	sums    [2]sums // refused; observed or unanswered
	// attempts counts contacts, repeated ones too, for people.
	attempts int
	first    time.Time
	last     time.Time
	victims  []evidence.Party
	records  []dated
}

type dated struct {
	at     time.Time
	record evidence.Record
}

// sums counts distinct things, for one class of contact.
type sums struct {
	pairs      float64 // of the pairs' own weights
	targets    int     // pairs
	live       int
	unassigned int
	dark       int
	public     float64
	ports      int
	high       int // of ports, those that are ephemeral
	few        [fewPorts]port
	many       *[65536 / 64]uint64
	addresses  [bitsOfEstimate / 64]uint64
}

// port is a port of a protocol: 0 is none.
type port uint32

func portOf(protocol bocage.Protocol, n uint16) port { return port(protocol)<<16 | port(n) | 1<<31 }

type pair struct {
	count uint8
	ports [pairPorts]uint16
}

// New makes a detector.
func New(c Config) *Detector {
	if c.Sources == 0 {
		c.Sources = 16384
	}
	if c.Pairs == 0 {
		c.Pairs = 131072
	}
	d := &Detector{}
	d.sources = table.New(c.Sources, func(s *source) bool { return s.flagged }, d.free)
	d.pairs = table.New[pair](c.Pairs, nil, nil)
	return d
}

// Evicted counts what the bounded memory had to forget. After that, counts of
// addresses may be too high, by as much as an estimate allows.
func (d *Detector) Evicted() (sources, pairs uint64) {
	return d.sources.Evicted(), d.pairs.Evicted()
}

// Flow folds one event; arrived is when the log took it. Evidence about the
// event's source is given to emit, again with each further contact; its slices hold
// until emit returns.
func (d *Detector) Flow(e *bocage.FlowEvent, arrived time.Time, record evidence.Record, emit func(evidence.Item)) {
	class, ok := contact(e)
	if !ok {
		return
	}
	from, to := evidence.Ends(e)
	if from.IsZero() || to.IsZero() {
		return
	}
	now := arrived.UnixNano()
	d.key = from.Append(d.key[:0])
	s, fresh := d.sources.Touch(d.key, now)
	if fresh || now-s.begun > int64(forget) {
		d.restart(s, now)
	}
	d.count(s, &s.sums[class], class, e, to, now)
	s.note(e, to, record)

	weight := s.weight()
	if weight < threshold && !s.flagged {
		return
	}
	s.flagged = true
	d.records = d.records[:0]
	for _, r := range s.records {
		d.records = append(d.records, r.record)
	}
	emit(s.item(from, weight, d.records, d.pairs.Evicted() > 0))
}

// Classes of contact.
const (
	refused = 0
	soft    = 1
)

// contact tells whether the event is a contact with what was not offered.
func contact(e *bocage.FlowEvent) (class int, ok bool) {
	if backscatter(e) {
		return 0, false
	}
	switch e.Kind {
	case bocage.EventRefused:
		switch e.Reason {
		case bocage.ReasonDarkAddress: // nobody answered, whether policy asks or not
			return refused, true
		case bocage.ReasonDefaultDeny, bocage.ReasonGuardrail:
		case bocage.ReasonMalformed: // flags that no stack sends: the null, FIN and Xmas scans
			return refused, e.Protocol == bocage.ProtocolTCP && e.DestinationPort != 0
		default: // quarantine above all: its refusals say nothing about the source
			return 0, false
		}
		if e.Verdict.Allowed() {
			return soft, true
		}
		return refused, true
	case bocage.EventEnd:
		return soft, e.Verdict.Allowed() && !e.Replied && e.Protocol == bocage.ProtocolTCP
	default:
		return 0, false
	}
}

// backscatter is a reply whose connection was forgotten, and group traffic, which
// is addressed to nobody.
func backscatter(e *bocage.FlowEvent) bool {
	if e.Direction == bocage.DirectionFrom && (e.Remote.IsMulticast() || e.Remote == netip.AddrFrom4([4]byte{255, 255, 255, 255})) {
		return true
	}
	return e.Protocol.HasPorts() && e.SourcePort != 0 && e.SourcePort < ephemeral && e.DestinationPort >= ephemeral
}

// restart forgets a source's sums, after a day or for a new source in its place.
func (d *Detector) restart(s *source, now int64) {
	d.free(s)
	*s = source{begun: now, epoch: uint32(now / int64(time.Second))}
}

// free gives a source's detail maps back.
func (d *Detector) free(s *source) {
	for i := range s.sums {
		if s.sums[i].many != nil {
			d.details--
		}
	}
}

// count adds what is distinct about the event to the sums.
func (d *Detector) count(s *source, sum *sums, class int, e *bocage.FlowEvent, to evidence.Party, now int64) {
	d.key = binary.LittleEndian.AppendUint32(append(d.key, byte(class)), s.epoch)
	d.key = to.Append(d.key)
	p, fresh := d.pairs.Touch(d.key, now)
	if fresh {
		sum.address(e, to)
	}
	if e.Reason == bocage.ReasonDarkAddress {
		return // a question for an address is no contact with a port
	}
	p.add(sum, e.DestinationPort, e.Protocol)
	if sum.port(portOf(e.Protocol, e.DestinationPort), d.details < maxDetails) {
		d.details++
	}
}

// address counts a target that is new.
func (s *sums) address(e *bocage.FlowEvent, to evidence.Party) {
	s.targets++
	switch {
	case e.Reason == bocage.ReasonDarkAddress:
		s.dark++
	case to.Member():
		s.live++
	case to.Address.IsPrivate() || to.Address.IsLinkLocalUnicast():
		s.unassigned++
	default:
		s.public += publicWeight(e)
	}
	var key [32]byte
	h := mix(to.Append(key[:0])) % bitsOfEstimate
	s.addresses[h/64] |= 1 << (h % 64)
}

// publicWeight is low where clients of the Internet ordinarily go.
func publicWeight(e *bocage.FlowEvent) float64 {
	switch e.DestinationPort {
	case 25, 53, 80, 123, 443, 853:
		return weightPublicUse
	}
	return weightPublic
}

// mix is FNV-1a: the estimate needs spread, not secrecy.
func mix(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h ^ h>>29
}

// add counts a port of the pair and adds its weight to the source's sum.
func (p *pair) add(sum *sums, n uint16, protocol bocage.Protocol) {
	if !protocol.HasPorts() {
		n = uint16(protocol) // several kinds of ICMP are one way to ask
	}
	if int(p.count) == pairPorts || slices.Contains(p.ports[:p.count], n) {
		return
	}
	before := p.weight()
	p.ports[p.count] = n
	p.count++
	sum.pairs += p.weight() - before
}

func (p *pair) weight() float64 {
	low, high := 0, 0
	for _, n := range p.ports[:p.count] {
		if n < ephemeral {
			low++
		} else {
			high++
		}
	}
	return weightPort*float64(max(0, low-freePorts)) + weightEphemeral*float64(high)
}

// port counts a port over all targets. It reports whether it took a detail map,
// for which there must be room; without one, further ports are not counted.
func (s *sums) port(p port, room bool) (took bool) {
	if s.many != nil {
		s.mark(p)
		return false
	}
	if slices.Contains(s.few[:s.ports], p) {
		return false
	}
	if s.ports < fewPorts {
		s.few[s.ports] = p
		s.counted(p)
		return false
	}
	if !room {
		return false
	}
	s.many, s.ports, s.high = new([65536 / 64]uint64), 0, 0
	for _, known := range s.few {
		s.mark(known)
	}
	s.mark(p)
	return true
}

// mark sets the port's bit; TCP and UDP share it, which makes the count low.
func (s *sums) mark(p port) {
	word, bit := &s.many[uint16(p)/64], uint64(1)<<(p%64)
	if *word&bit == 0 {
		*word |= bit
		s.counted(p)
	}
}

func (s *sums) counted(p port) {
	s.ports++
	if uint16(p) >= ephemeral {
		s.high++
	}
}

func (s *sums) weight() float64 {
	return s.pairs +
		weightLive*float64(max(0, s.live-freeAddresses)) +
		weightUnassigned*float64(max(0, s.unassigned-freeAddresses)) +
		weightDark*float64(max(0, s.dark-freeDark)) + s.public +
		weightVariety*float64(max(0, s.ports-s.high-freeVariety))
}

// count is the number of targets; holes says that the pairs' memory has some, so
// that the count may be too high and is held to a linear-counting estimate.
func (s *sums) count(holes bool) int {
	if !holes {
		return s.targets
	}
	empty := bitsOfEstimate
	for _, word := range s.addresses {
		empty -= bits.OnesCount64(word)
	}
	estimate := bitsOfEstimate * math.Log(bitsOfEstimate/math.Max(1, float64(empty)))
	return min(s.targets, int(1.1*estimate)+8)
}

// weight sums both classes.
func (s *source) weight() float64 {
	return s.sums[refused].weight() + softWeight*s.sums[soft].weight()
}

// note keeps what people want to see: when, whom, and the earliest records.
func (s *source) note(e *bocage.FlowEvent, to evidence.Party, record evidence.Record) {
	s.attempts++
	if s.first.IsZero() || e.Time.Before(s.first) {
		s.first = e.Time
	}
	if e.Time.After(s.last) {
		s.last = e.Time
	}
	if i, found := slices.BinarySearchFunc(s.victims, to, evidence.Party.Compare); !found && i < evidence.MaxVictims {
		if len(s.victims) == evidence.MaxVictims {
			s.victims = s.victims[:evidence.MaxVictims-1]
		}
		s.victims = slices.Insert(s.victims, i, to)
	}
	if n := len(s.records); n == evidence.MaxRecords && !e.Time.Before(s.records[n-1].at) {
		return
	}
	i, _ := slices.BinarySearchFunc(s.records, dated{e.Time, record}, func(a, b dated) int {
		switch {
		case !a.at.Equal(b.at):
			return a.at.Compare(b.at)
		case a.record.Before(b.record):
			return -1
		default:
			return 1
		}
	})
	s.records = slices.Insert(s.records, i, dated{e.Time, record})
	s.records = s.records[:min(len(s.records), evidence.MaxRecords)]
}

// item makes the evidence. Its slices are the detector's: see Flow.
func (s *source) item(from evidence.Party, weight float64, records []evidence.Record, holes bool) evidence.Item {
	facts := s.facts(holes)
	item := evidence.Item{
		Kind: Kind, Stage: evidence.StageReconnaissance, Technique: "T1046",
		Severity: evidence.Low, Answer: evidence.AnswerNone,
		Weight: min(weight, maxOutsideWeight), HalfLife: halfLife,
		Attacker: from, Victims: s.victims, Records: records,
		Time: s.last, First: s.first, Total: s.attempts, Facts: facts,
	}
	if facts.Ports == 1 && facts.Addresses > 1 {
		item.Technique = "T1018"
	}
	if from.Member() {
		item.Severity, item.Answer = evidence.Medium, evidence.AnswerWatch
		item.Weight, item.Decisive = min(weight, maxWeight), true
	}
	return item
}

// Facts is what a scan looked at.
type Facts struct {
	Addresses, Dark, Ports int
	Port                   uint16 // the one, if Ports is 1
	Protocol               bocage.Protocol
	Observed               bool // nothing was refused: the scope observes
}

func (s *source) facts(holes bool) Facts {
	hard, weak := &s.sums[refused], &s.sums[soft]
	f := Facts{
		Addresses: max(hard.count(holes), weak.count(holes)),
		Dark:      max(hard.dark, weak.dark),
		Ports:     max(hard.ports, weak.ports),
		Observed:  hard.targets == 0,
	}
	if f.Ports == 1 {
		one := hard.few[0] | weak.few[0]
		f.Port, f.Protocol = uint16(one), bocage.Protocol(one>>16&0x7fff)
	}
	return f
}

func (f Facts) String() string {
	var text string
	switch {
	case f.Ports == 0:
		text = fmt.Sprintf("looked for %s around {victims}", plural(f.Addresses, "address"))
	case f.Addresses <= 1:
		text = fmt.Sprintf("scanned %s of {victims}", plural(f.Ports, "port"))
	case f.Ports == 1 && f.Protocol.HasPorts():
		text = fmt.Sprintf("asked %s of {victims} for port %s/%d", plural(f.Addresses, "address"), f.Protocol, f.Port)
	case f.Ports == 1:
		text = fmt.Sprintf("asked %s of {victims} for an answer by %s", plural(f.Addresses, "address"), f.Protocol)
	default:
		text = fmt.Sprintf("scanned %s and %s of {victims}", plural(f.Addresses, "address"), plural(f.Ports, "port"))
	}
	if f.Dark > 0 {
		text += fmt.Sprintf(" (%d unused)", f.Dark)
	}
	if f.Observed {
		text += ", which is observed and not refused"
	}
	return text
}

func plural(n int, word string) string {
	switch {
	case n == 1:
		return "1 " + word
	case word[len(word)-1] == 's':
		return fmt.Sprintf("%d %ses", n, word)
	default:
		return fmt.Sprintf("%d %ss", n, word)
	}
}
