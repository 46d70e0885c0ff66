package bocage

import (
	"fmt"
	"strings"
)

// Verdict is what policy says of a flow and what the dataplane did to a packet.
// The numbers are part of the contract with the eBPF programs: never reused.
type Verdict uint8

// Verdicts. Refusals grow in strength from drop over reject to decoy.
const (
	VerdictNone    Verdict = 0
	VerdictAllow   Verdict = 1 // passed on
	VerdictInspect Verdict = 2 // allowed, and steered through the inspection engine
	VerdictDrop    Verdict = 3 // refused in silence
	VerdictDecoy   Verdict = 4 // refused, and the source meets a decoy at the target's address
	VerdictReject  Verdict = 5 // refused with a TCP RST or an ICMP unreachable
)

var verdictNames = []string{"none", "allow", "inspect", "drop", "decoy", "reject"}

func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict(%d)", uint8(v))
}

// Allowed reports whether the flow may reach its destination.
func (v Verdict) Allowed() bool { return v == VerdictAllow || v == VerdictInspect }

// MarshalText writes the verdict's name.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads a verdict's name.
func (v *Verdict) UnmarshalText(text []byte) error {
	for i, name := range verdictNames {
		if name == string(text) {
			*v = Verdict(i)
			return nil
		}
	}
	return fmt.Errorf("verdict %q is not one of %s", text, strings.Join(verdictNames, ", "))
}

// ReasonCode says which kind of fact decided. The numbers are part of the
// contract with the eBPF programs: never reused.
type ReasonCode uint8

// Reasons. From ReasonSpoofed on, the enforcement point decides by itself,
// without a rule, and the decision id is zero.
const (
	ReasonNone            ReasonCode = 0
	ReasonRule            ReasonCode = 1  // an application contract or a grant
	ReasonDefaultDeny     ReasonCode = 2  // nothing declares this flow
	ReasonGuardrail       ReasonCode = 3  // a guardrail refuses it
	ReasonQuarantine      ReasonCode = 4  // one end is quarantined, by a person or by a threat condition
	ReasonThreat          ReasonCode = 6  // a response to a threat condition refuses it
	ReasonKubernetes      ReasonCode = 7  // a NetworkPolicy or ClusterNetworkPolicy decided
	ReasonNoRuleset       ReasonCode = 5  // the enforcement point has no ruleset yet
	ReasonSpoofed         ReasonCode = 16 // the source address or MAC is not the port's
	ReasonMalformed       ReasonCode = 17 // the headers cannot be what they claim
	ReasonFragment        ReasonCode = 18 // a fragment whose first piece was not seen or not allowed, or that says again what another has said
	ReasonIdentityUnknown ReasonCode = 19 // nothing vouches for the interface
	ReasonInvalidState    ReasonCode = 20 // a packet that cannot open a flow and belongs to none
	ReasonTableFull       ReasonCode = 21 // no room for another flow
	ReasonInspectionDown  ReasonCode = 22 // the duty to inspect could not be kept
	ReasonDarkAddress     ReasonCode = 23 // somebody asked for an address that nobody has
	ReasonControl         ReasonCode = 24 // ARP, neighbour discovery: passed once anti-spoofing agreed
	ReasonRelated         ReasonCode = 25 // an ICMP error that belongs to an allowed flow
	// ReasonProtocolMismatch means that the flow does not speak the protocol that its
	// decision requires (Duties.Verify). The reason carries the id of that decision.
	ReasonProtocolMismatch ReasonCode = 26
	// ReasonRateLimited means that the flow came too early for the rate that its decision
	// owes (see Limit). The reason carries the id of that decision.
	ReasonRateLimited ReasonCode = 27
	// ReasonFragmented means that the packet is fragmented and its decision does not allow
	// that (Duties.Whole). Only the first fragment carries the id of that decision.
	ReasonFragmented ReasonCode = 28
)

var reasonNames = map[ReasonCode]string{
	ReasonNone: "none", ReasonRule: "rule", ReasonDefaultDeny: "default-deny", ReasonGuardrail: "guardrail",
	ReasonQuarantine: "quarantine", ReasonThreat: "threat", ReasonKubernetes: "kubernetes", ReasonNoRuleset: "no-ruleset", ReasonSpoofed: "spoofed",
	ReasonMalformed: "malformed", ReasonFragment: "fragment", ReasonIdentityUnknown: "identity-unknown",
	ReasonInvalidState: "invalid-state", ReasonTableFull: "table-full", ReasonInspectionDown: "inspection-down",
	ReasonDarkAddress: "dark-address", ReasonControl: "control", ReasonRelated: "related", ReasonProtocolMismatch: "protocol-mismatch",
	ReasonRateLimited: "rate-limited", ReasonFragmented: "fragmented",
}

func (r ReasonCode) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// MarshalText writes the reason's name.
func (r ReasonCode) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a reason's name.
func (r *ReasonCode) UnmarshalText(text []byte) error {
	for code, name := range reasonNames {
		if name == string(text) {
			*r = code
			return nil
		}
	}
	return fmt.Errorf("reason %q is unknown", text)
}

// Reason says why a flow got its verdict, so that it can be traced to a
// declaration: Decision names an entry of the generation's Ruleset.Decisions.
type Reason struct {
	Code     ReasonCode `json:"code"`
	Decision DecisionID `json:"decision,omitempty"`
	// Would is the verdict that an enforcing scope would have given. It differs
	// from the verdict only where both ends are merely observed.
	Would Verdict `json:"would,omitempty"`
}
