package bocage

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Ruleset is compiled policy: everything that an enforcement point needs to
// decide on its own. The policy room makes it, and it is immutable afterwards.
// Two replicas that compile the same objects produce equal rulesets.
type Ruleset struct {
	// Generation numbers the ruleset. An agent never goes back.
	Generation uint64 `json:"generation"`
	// Digest is the SHA-256, in hex, of the canonical inputs; it names the
	// generation's content wherever it was compiled. In the ruleset of a host it is
	// ContentDigest: that of all other fields except Generation and ConfirmBy.
	Digest string `json:"digest"`
	// Host is the host whose part this is; empty for the whole ruleset.
	Host string `json:"host,omitempty"`
	// Peers maps addresses to identities and groups, sorted by Prefix. Longest prefix wins.
	Peers []Peer `json:"peers"`
	// Groups describes each group that Peers name, sorted by number.
	Groups []GroupInfo `json:"groups"`
	// Names are the patterns of DNS names that rules have as their destination, sorted by
	// name.
	Names []Name `json:"names,omitempty"`
	// Rules are the cells that differ from the default, in the order of
	// CompareRules. Ranges of equal From, To and Protocol never overlap.
	Rules []Rule `json:"rules"`
	// Namings stand for the rules from many groups to many names, in the order of
	// CompareNamings. A pair of a group and a name is in one of them at most. A host's
	// ruleset has these rules among its Rules instead.
	Namings []Naming `json:"namings,omitempty"`
	// Apart are the pairs that are excluded from the Naming that has both their groups:
	// for them only Rules count. Sorted.
	Apart []GroupPair `json:"apart,omitempty"`
	// Reasons give a more precise reason, and disposition (drop or reject), to cells that
	// rules with a wildcard, or the default, refuse anyway. They are rules between classes
	// of groups (GroupInfo.Sender and Receiver), so that a guardrail between two halves of
	// a site does not become a rule for every pair. They are looked up after the exact
	// pairs. They never change whether a cell is allowed.
	Reasons []Rule `json:"reasons,omitempty"`
	// Decisions explains every id that rules and refusals carry, sorted by id.
	Decisions []Decision `json:"decisions"`
	// Default is the decision for cells that no rule covers.
	Default DecisionID `json:"default"`
	// Refused identities are checked before any rule: quarantine. Sorted by identity.
	Refused []Refusal `json:"refused,omitempty"`
	// Profiles are the inspection profiles that decisions name, sorted by number.
	Profiles []Profile `json:"profiles,omitempty"`
	// Newcomers are the enforcing scopes that may concern interfaces of Host whose workload
	// is not known yet.
	Newcomers []Newcomers `json:"newcomers,omitempty"`
	// Ports are the enforcement points of Host, sorted by interface.
	Ports []Port `json:"ports,omitempty"`
	// Wires are the inline enforcement points, sorted by host and name.
	Wires []Wire `json:"wires,omitempty"`
	// Decoys are those that refused flows may meet, sorted by name.
	Decoys []DecoyPlacement `json:"decoys,omitempty"`
	// ConfirmBy is when the agent goes back to the ruleset before, by itself,
	// unless a controller has confirmed this one. Zero: it needs no confirmation.
	ConfirmBy time.Time `json:"confirmBy,omitzero"`

	indexOnce sync.Once
	index     *rulesetIndex
	like      *rulesetIndex // of a ruleset that shares lists with this one, or nil
}

// Kinds of signed envelope (see the identity package).
const (
	SignedRuleset   = "ruleset"   // a Ruleset of one host as JSON, compressed by gzip if it is large
	SignedCandidate = "candidate" // the same, to evaluate in shadow and never to enforce
	SignedConfirm   = "confirm"   // the JSON of a Confirmation
	SignedBatch     = "batch"
)

// Confirmation tells agents that a person has confirmed a generation.
type Confirmation struct {
	Generation uint64 `json:"generation"`
}

// Peer binds a prefix to an identity and its group.
type Peer struct {
	Prefix   netip.Prefix `json:"prefix"`
	Identity Identity     `json:"identity"`
	Group    Group        `json:"group"`
	// Host is where an enforcement point stands in front of this peer; empty
	// for addresses outside, which have none.
	Host string `json:"host,omitempty"`
	// Workload is the peer's namespace/name, for people; empty for prefixes.
	Workload string `json:"workload,omitempty"`
}

// GroupInfo describes a group.
type GroupInfo struct {
	Group Group `json:"group"`
	// Enforce says that flows from or to the group are refused when policy
	// refuses them; otherwise refusals are only reported (see Scope).
	Enforce bool `json:"enforce"`
	// Name is what the members have in common, for people.
	Name string `json:"name"`
	// Sender and Receiver are the classes that Reasons use for this group as a source and
	// as a destination; zero: Reasons do not concern it. GroupWorld is its own class.
	Sender   Group `json:"sender,omitempty"`
	Receiver Group `json:"receiver,omitempty"`
}

// Rule gives every flow from one group to another, within a protocol and a
// range of destination ports, a decision. GroupAny and ProtocolAny are wildcards.
type Rule struct {
	From     Group      `json:"from"`
	To       Group      `json:"to"`
	Protocol Protocol   `json:"protocol"`
	Ports    PortRange  `json:"ports"`
	Decision DecisionID `json:"decision"`
}

// Decision is a verdict with its reason, its duties and its authors.
type Decision struct {
	ID      DecisionID `json:"id"`
	Verdict Verdict    `json:"verdict"`
	Code    ReasonCode `json:"code"`
	// Profile is the inspection profile of VerdictInspect; 0 otherwise.
	Profile uint16 `json:"profile,omitempty"`
	// Final says of a refusal with ReasonKubernetes that a policy forbids the cell.
	// Otherwise policies only do not allow it, and a DNS name may: see DecideNamed.
	Final bool `json:"final,omitempty"`
	// Ranks are, for a decision towards a name, the place of the rule that accepts it; for
	// a refusal, the place before which such rules have precedence over it (see Yields).
	Ranks Ranks `json:"ranks,omitzero"`
	// Log asks to record every flow of the cell in full detail.
	Log bool `json:"log,omitempty"`
	// Duties are all that an allowed flow owes, those of Profile and Log included;
	// nil if there is none.
	Duties *Duties `json:"duties,omitempty"`
	// Until ends the decision in the enforcement points themselves, with every
	// controller dead: from then on Then decides. Zero: it has no end.
	Until time.Time  `json:"until,omitzero"`
	Then  DecisionID `json:"then,omitempty"`
	// By lists the objects and fields that decided: the decider first, then those that
	// added duties, then the exceptions without which a guardrail would have refused the
	// cell or added a duty.
	By []Ref `json:"by,omitempty"`
}

// Refusal cuts an identity off, both directions, established flows included.
type Refusal struct {
	Identity Identity   `json:"identity"`
	Decision DecisionID `json:"decision"`
	// Until ends the refusal in the dataplane itself, with every controller
	// dead; zero means until it is lifted.
	Until time.Time `json:"until,omitzero"`
}

// Profile is an InspectionProfile as the enforcement points need it.
type Profile struct {
	Number uint16 `json:"number"` // 1 to 4094: it travels as a VLAN id
	Name   string `json:"name"`
	// FailOpen says what becomes of steered flows while the engine is down:
	// passed on uninspected and reported, or refused.
	FailOpen   bool   `json:"failOpen,omitempty"`
	Signatures string `json:"signatures"`
}

// Port is one enforcement point: the host's side of a workload's interface.
type Port struct {
	Interface string       `json:"interface"`
	Identity  Identity     `json:"identity"`
	Group     Group        `json:"group"`
	Workload  string       `json:"workload"` // namespace/name
	MAC       string       `json:"mac,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	// Instance identifies what is behind the interface (see WorkloadSpec.Instance). If it
	// is set, the host gives the identity to the interface only if that is still behind
	// it: another workload may have an interface of the same name by now.
	Instance string `json:"instance,omitempty"`
}

// DecoyPlacement is a Decoy as the hosts that run it need it.
type DecoyPlacement struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
	Banner   string `json:"banner,omitempty"`
	// For are the addresses for which the decoy answers; none: any. Decoys that share a
	// port differ in it.
	For []netip.Prefix `json:"for,omitempty"`
}

// Ref names the object and the field that decided something.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Field     string `json:"field,omitempty"`
	// Source is the file and line that the object came from, if it is known.
	Source string `json:"source,omitempty"`
}

func (r Ref) String() string {
	s := r.Kind + " "
	if r.Namespace != "" {
		s += r.Namespace + "/"
	}
	s += r.Name
	if r.Field != "" {
		s += " " + r.Field
	}
	if r.Source != "" {
		s += " (" + r.Source + ")"
	}
	return s
}

// CompareRules orders rules from the most to the least specific, which is the
// order in which Decide and the eBPF programs look them up: exact pairs, then
// any source, then any destination, then any pair; within a pair the exact
// protocol before any protocol.
func CompareRules(a, b Rule) int {
	switch { // rulesets have millions of rules: cmp.Or would compare all of it every time
	case a.rank() != b.rank():
		return cmp.Compare(a.rank(), b.rank())
	case a.From != b.From:
		return cmp.Compare(a.From, b.From)
	case a.To != b.To:
		return cmp.Compare(a.To, b.To)
	case a.Protocol != b.Protocol:
		return cmp.Compare(a.Protocol, b.Protocol)
	case a.Ports.First != b.Ports.First:
		return cmp.Compare(a.Ports.First, b.Ports.First)
	case a.Ports.Last != b.Ports.Last:
		return cmp.Compare(a.Ports.Last, b.Ports.Last)
	default:
		return cmp.Compare(a.Decision, b.Decision)
	}
}

func (r Rule) rank() int {
	rank := 0
	if r.From == GroupAny {
		rank += 2
	}
	if r.To == GroupAny {
		rank += 4
	}
	if r.Protocol == ProtocolAny {
		rank++
	}
	return rank
}

// Decide gives a flow its verdict and the reason. It is the model of the
// dataplane: pure, total, and independent of any state but the ruleset and the
// flow's own moment. An address that no peer covers belongs to the world.
//
// A refusal takes effect if either end's group enforces; quarantine always does.
// Reason.Would carries the verdict before that.
func (r *Ruleset) Decide(f Flow) (Verdict, Reason) {
	source, destination := r.Lookup(f.Source), r.Lookup(f.Destination)
	return r.decide(source, destination, f)
}

func (r *Ruleset) decide(source, destination Peer, f Flow) (Verdict, Reason) {
	ix := r.indexed()
	for _, id := range []Identity{source.Identity, destination.Identity} {
		if refusal, ok := ix.refused.find()[id]; ok && (refusal.Until.IsZero() || f.At.Before(refusal.Until)) {
			return VerdictDrop, Reason{Code: ReasonQuarantine, Decision: refusal.Decision, Would: VerdictDrop}
		}
	}
	decision := ix.at(ix.cell(source.Group, destination.Group, f.Protocol, f.DestinationPort, r.Default), f.At)
	reason := Reason{Code: decision.Code, Decision: decision.ID, Would: decision.Verdict}
	groups := ix.groups.find()
	if decision.Verdict.Allowed() || groups[source.Group].Enforce || groups[destination.Group].Enforce {
		return decision.Verdict, reason
	}
	return VerdictAllow, reason
}

// Lookup tells who has an address.
func (r *Ruleset) Lookup(address netip.Addr) Peer {
	ix := r.indexed().peers.find()
	address = address.Unmap()
	for _, bits := range ix.lengths(address) {
		prefix, err := address.Prefix(bits)
		if err != nil {
			continue
		}
		if peer, ok := ix.peers[prefix]; ok {
			return peer
		}
	}
	return Peer{Identity: IdentityWorld, Group: GroupWorld}
}

// Decision returns the decision with the given id, or false.
func (r *Ruleset) Decision(id DecisionID) (Decision, bool) {
	d, ok := r.indexed().decisions.find()[id]
	return d, ok
}

// Copy returns an equal ruleset whose fields may be set before its first use. It shares
// the lists with the original: their elements must not be changed.
func (r *Ruleset) Copy() *Ruleset {
	return &Ruleset{
		Generation: r.Generation, Digest: r.Digest, Host: r.Host, Peers: r.Peers, Groups: r.Groups, Names: r.Names, Rules: r.Rules, Namings: r.Namings, Apart: r.Apart, Reasons: r.Reasons,
		Decisions: r.Decisions, Default: r.Default, Refused: r.Refused, Profiles: r.Profiles, Ports: r.Ports, Wires: r.Wires, Newcomers: r.Newcomers, Decoys: r.Decoys, ConfirmBy: r.ConfirmBy,
		like: r.indexed(),
	}
}

// WithRefusals returns the ruleset with the refusals of another one added, where those
// last longer than its own. It only tightens: an agent that goes back to an older ruleset
// keeps the newer quarantines.
func (r *Ruleset) WithRefusals(of *Ruleset) *Ruleset {
	refused := make(map[Identity]Refusal, len(r.Refused)+len(of.Refused))
	for _, refusal := range r.Refused {
		refused[refusal.Identity] = refusal
	}
	taken := make(map[DecisionID]bool, len(r.Decisions))
	for _, d := range r.Decisions {
		taken[d.ID] = true
	}
	decisions, moved := slices.Clone(r.Decisions), map[DecisionID]DecisionID{}
	for _, refusal := range of.Refused {
		old, is := refused[refusal.Identity]
		if is && (old.Until.IsZero() || !refusal.Until.IsZero() && !refusal.Until.After(old.Until)) {
			continue
		}
		id, known := moved[refusal.Decision]
		if !known {
			d, _ := of.Decision(refusal.Decision)
			own, _ := r.Decision(refusal.Decision)
			id = refusal.Decision
			if !own.sameAs(d) {
				for taken[id] || id == 0 {
					id++
				}
				d.ID = id
				decisions, taken[id] = append(decisions, d), true
			}
			moved[refusal.Decision] = id
		}
		refusal.Decision = id
		refused[refusal.Identity] = refusal
	}
	slices.SortFunc(decisions, func(a, b Decision) int { return cmp.Compare(a.ID, b.ID) })
	out := r.Copy()
	out.Decisions, out.Refused = decisions, nil
	for _, refusal := range refused {
		out.Refused = append(out.Refused, refusal)
	}
	slices.SortFunc(out.Refused, func(a, b Refusal) int { return cmp.Compare(a.Identity, b.Identity) })
	return out
}

// sameAs reports whether two decisions about a refused identity say the same.
func (d Decision) sameAs(other Decision) bool {
	return d.ID == other.ID && d.Verdict == other.Verdict && d.Code == other.Code && d.Log == other.Log && slices.Equal(d.By, other.By)
}

// MostSuccessors bounds the length of a chain of Decision.Then.
const MostSuccessors = 8

// at returns the decision that counts at a moment: it follows Then past decisions that
// have ended.
func (ix *rulesetIndex) at(id DecisionID, moment time.Time) Decision {
	decisions := ix.decisions.find()
	decision := decisions[id]
	for range MostSuccessors {
		if decision.Until.IsZero() || moment.Before(decision.Until) {
			break
		}
		decision = decisions[decision.Then]
	}
	return decision
}
