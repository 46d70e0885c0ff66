// Package simulate answers what policy decides, with no data center at hand:
// single flows by the million, the whole matrix of who reaches whom, what can be
// reached from somewhere hop by hop, and whether PolicyTests hold.
//
// It promises the verdict, the reason and the author that the enforcement points
// would have: it reads the compiled Ruleset through an index of its own, which
// is tested to agree with Ruleset.Decide for every flow, and for another moment
// than the ruleset's it compiles the same objects for that moment. Its answers
// do not depend on whether a Scope enforces: that they say apart.
//
// It never reads a clock, a file or the network, and changes nothing.
package simulate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Simulator answers questions about one compiled ruleset. Many may ask it at once.
type Simulator struct {
	in    compile.Input
	rs    *bocage.Ruleset
	index *index
	peers *peers

	workloads []workload // those that take effect, sorted by name
	byName    map[string]int32
	ambiguous map[string]bool // names without a namespace that several workloads have
	hosts     map[string][]netip.Addr
	rejected  map[string]string // workloads that take no effect, with the reason

	others     map[string][]netip.Addr
	gone       map[string]string
	bystanders Bystanders

	near    func() *near
	moments *moments
	advice  *advice
	place   func(bocage.Ref) (file string, line int)
}

// workload is one with an identity that the ruleset knows.
type workload struct {
	name   string
	object *bocage.Workload
	ends   []End // one for each address, in the order of its declaration
	weight int
}

// New prepares to answer questions about a ruleset that was compiled from the input.
func New(in compile.Input, rs *bocage.Ruleset) *Simulator {
	s := newSimulator(in, rs)
	s.moments = newMoments(in, len(rs.Peers))
	return s
}

// Compile compiles the input and prepares to answer questions about what comes
// of it.
func Compile(in compile.Input) (*Simulator, compile.Output) {
	out := compile.Compile(in)
	s := newSimulator(in, out.Ruleset())
	s.reject(out.Findings())
	s.moments = newMoments(in, len(out.Ruleset().Peers))
	s.moments.keep(s, in.Now, out.Expires)
	return s, out
}

// Ruleset is what it answers from.
func (s *Simulator) Ruleset() *bocage.Ruleset { return s.rs }

func newSimulator(in compile.Input, rs *bocage.Ruleset) *Simulator {
	s := &Simulator{in: in, rs: rs, index: newIndex(rs), byName: make(map[string]int32, len(in.Workloads)), ambiguous: map[string]bool{},
		hosts: make(map[string][]netip.Addr, len(in.Hosts)), rejected: map[string]string{}, place: placeOfSource, advice: &advice{}}
	s.peers = newPeers(rs, s.index)
	s.near = sync.OnceValue(func() *near { return newNear(in) })
	s.addWorkloads()
	for _, h := range in.Hosts {
		s.hosts[h.Name] = h.Spec.Addresses
	}
	return s
}

// addWorkloads lists the workloads that are in the ruleset under their own name.
func (s *Simulator) addWorkloads() {
	s.workloads = make([]workload, 0, len(s.in.Workloads))
	for _, object := range s.in.Workloads {
		w := workload{name: object.NamespacedName(), object: object}
		w.weight, _ = object.Weight()
		for _, address := range object.Spec.Addresses {
			if end := s.peers.find(address); end.peer != none && s.rs.Peers[end.peer].Workload == w.name && s.rs.Peers[end.peer].Identity == object.Status.Identity {
				w.ends = append(w.ends, end)
			}
		}
		if len(w.ends) > 0 {
			s.workloads = append(s.workloads, w)
		}
	}
	slices.SortFunc(s.workloads, func(a, b workload) int { return strings.Compare(a.name, b.name) })
	s.workloads = slices.CompactFunc(s.workloads, func(a, b workload) bool { return a.name == b.name })
	for i := range s.workloads {
		s.byName[s.workloads[i].name] = int32(i)
		bare := s.workloads[i].object.Name
		if _, twice := s.byName[bare]; twice {
			s.ambiguous[bare] = true
		}
		s.byName[bare] = int32(i)
	}
}

// reject remembers why workloads take no effect.
func (s *Simulator) reject(findings []compile.Finding) {
	for _, f := range findings {
		if f.Rejected && f.Object.Kind == "Workload" {
			s.rejected[f.Object.Namespace+"/"+f.Object.Name] = f.Message
		}
	}
}

// Names has probes mean more than workloads and hosts by a name: others by the
// addresses given, and nobody by the names and addresses that are gone, with the
// reason. It is to be called before anything is asked.
func (s *Simulator) Names(others map[string][]netip.Addr, gone map[string]string) {
	s.others, s.gone = others, gone
}

// Locate has answers name places by the given function instead of by the
// objects' source annotations, which know where an object begins but not where
// each of its fields stands. It is to be called before anything is asked.
func (s *Simulator) Locate(place func(bocage.Ref) (file string, line int)) { s.place = place }

// Workloads lists the names of the workloads that take effect, sorted.
func (s *Simulator) Workloads() []string {
	names := make([]string, len(s.workloads))
	for i := range s.workloads {
		names[i] = s.workloads[i].name
	}
	return names
}

// Find looks an address up.
func (s *Simulator) Find(address netip.Addr) End { return s.peers.find(address) }

// Resolve finds the ends that are meant by "namespace/name" of a workload, by
// the name alone if only one has it, by the name of a Host, or by an address.
// A workload has an end for each of its addresses.
func (s *Simulator) Resolve(name string) ([]End, error) {
	if !strings.ContainsRune(name, '/') {
		// An address may look like a name, never the other way round.
		if address, err := netip.ParseAddr(name); err == nil {
			if address.Zone() != "" {
				return nil, fmt.Errorf("%s has a zone, which means something on one host only: leave out %%%s", name, address.Zone())
			}
			end := s.peers.find(address)
			if len(s.gone) > 0 && s.workloadAt(end) == nil {
				if why, gone := s.gone[end.Address.String()]; gone {
					return nil, errors.New(why)
				}
			}
			return []End{end}, nil
		}
	}
	if i, ok := s.byName[name]; ok && !s.ambiguous[name] {
		return s.workloads[i].ends, nil
	}
	addresses, other := s.others[name]
	if !other {
		addresses, other = s.hosts[name]
	}
	if len(addresses) > 0 {
		ends := make([]End, len(addresses))
		for i, address := range addresses {
			ends[i] = s.peers.find(address)
		}
		return ends, nil
	}
	if why, gone := s.gone[name]; gone {
		return nil, errors.New(why)
	}
	switch why, rejected := s.rejected[name]; {
	case other:
		return nil, fmt.Errorf("%s has no addresses: name one", name)
	case name == "":
		return nil, fmt.Errorf("is empty: name a workload as namespace/name, or an address")
	case rejected:
		return nil, fmt.Errorf("workload %s takes no effect: %s", name, why)
	case s.ambiguous[name]:
		return nil, fmt.Errorf("%q is the name of several workloads: write namespace/%s", name, name)
	default:
		return nil, fmt.Errorf("%q is neither an address nor a workload that was declared", name)
	}
}

// Ends picks two ends of one family of addresses, the first that there are.
func Ends(from, to []End) (End, End, bool) {
	pairs, n := pairsOf(from, to)
	return pairs[0].from, pairs[0].to, n > 0
}

// Decide gives a flow its verdict and the reason, as Ruleset.Decide does for
// flows between the ends' addresses. It allocates nothing.
func (s *Simulator) Decide(from, to End, protocol bocage.Protocol, port uint16, at time.Time) (bocage.Verdict, bocage.Reason) {
	return s.between(from.who, to.who, protocol, port, at)
}

// DecideFlow gives a flow its verdict and the reason, as Ruleset.Decide does. It
// allocates nothing.
func (s *Simulator) DecideFlow(f bocage.Flow) (bocage.Verdict, bocage.Reason) {
	c := s.peers.classes()
	return s.between(c.who(f.Source), c.who(f.Destination), f.Protocol, f.DestinationPort, f.At)
}

func (s *Simulator) between(from, to who, protocol bocage.Protocol, port uint16, at time.Time) (bocage.Verdict, bocage.Reason) {
	ix := s.index
	for _, n := range [2]int32{from.refusal, to.refusal} {
		if n == 0 {
			continue
		}
		if r := &ix.refusals[n-1]; r.until.IsZero() || at.Before(r.until) {
			return bocage.VerdictDrop, bocage.Reason{Code: bocage.ReasonQuarantine, Decision: r.decision, Would: bocage.VerdictDrop}
		}
	}
	d := &ix.decisions[ix.at(ix.cell(from.group, to.group, protocol, port), at)]
	reason := bocage.Reason{Code: d.code, Decision: d.id, Would: d.verdict}
	if d.verdict.Allowed() || ix.enforced[from.group] || ix.enforced[to.group] {
		return d.verdict, reason
	}
	return bocage.VerdictAllow, reason
}

// decision is what the ruleset says of a decision; the zero Decision if nothing.
func (s *Simulator) decision(id bocage.DecisionID) bocage.Decision {
	if i := s.index.numbers[id]; i > 0 {
		return s.rs.Decisions[i-1]
	}
	return bocage.Decision{}
}
