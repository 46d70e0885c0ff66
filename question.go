package bocage

import (
	"encoding/json"
	"time"
)

// ExplainQuery asks why a flow gets its verdict. Ends are "namespace/name" of a
// workload or an address.
type ExplainQuery struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Port is the destination port; 0 for protocols without ports.
	Port     uint16   `json:"port,omitempty"`
	Protocol Protocol `json:"protocol"`
	// At is the moment to decide for; zero is now.
	At time.Time `json:"at,omitzero"`
}

// FlowsQuery asks for flows that enforcement points reported. Empty parts match
// everything.
type FlowsQuery struct {
	// From and To are "namespace/name" of a workload, "namespace/" for all of a
	// namespace, an address or a prefix.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Port is the destination port.
	Port     uint16   `json:"port,omitempty"`
	Protocol Protocol `json:"protocol,omitempty"`
	// Verdict picks what was done; VerdictNone picks every verdict.
	Verdict Verdict `json:"verdict,omitempty"`
	// WouldRefuse picks flows that passed only because their scope observes.
	WouldRefuse bool `json:"wouldRefuse,omitempty"`
	// Since is the oldest event wanted; zero means from now on when following,
	// else everything that is kept.
	Since time.Time `json:"since,omitzero"`
	// Follow keeps the answer open and adds events as they arrive.
	Follow bool `json:"follow,omitempty"`
	// Limit is the largest number of records; 0 is no limit.
	Limit int `json:"limit,omitempty"`
}

// FlowRecord is a flow event with the names that people know.
type FlowRecord struct {
	FlowEvent
	// Host is where the enforcement point stands.
	Host string `json:"host"`
	// SourceAddress and DestinationAddress are those of the flow.
	SourceAddress      string `json:"sourceAddress"`
	DestinationAddress string `json:"destinationAddress"`
	// SourceWorkload and DestinationWorkload are namespace/name; empty for an
	// end that is no workload.
	SourceWorkload      string `json:"sourceWorkload,omitempty"`
	DestinationWorkload string `json:"destinationWorkload,omitempty"`
	// Decider names the object and field that decided, as a Ref prints it.
	Decider string `json:"decider,omitempty"`
}

// HuntResult is the answer to a question to the flow history.
type HuntResult struct {
	Columns []string `json:"columns"`
	Rows    [][]any  `json:"rows"`
	// Truncated says that there were more rows than were asked for.
	Truncated bool `json:"truncated,omitempty"`
}

// SuggestResult is policy drawn from what was seen, for people to review.
type SuggestResult struct {
	Applications []*Application `json:"applications"`
	// Review lists what was seen and left out, because it is rare, unanswered or
	// ambiguous.
	Review []Edge `json:"review,omitempty"`
}

// PlanResult says what declarations would change, before they do.
type PlanResult struct {
	// Faults are those of the declarations together with what is in force. With
	// any, the rest is empty.
	Faults Faults `json:"faults,omitempty"`
	// Findings are remarks that block nothing, such as a missing half of a contract.
	Findings Faults `json:"findings,omitempty"`
	// Digest names the candidate's content.
	Digest string `json:"digest,omitempty"`
	// Proofs are the candidate's; one that does not hold would block it.
	Proofs []Proof `json:"proofs,omitempty"`
	// Reach lists the cells whose verdict changes.
	Reach []ReachChange `json:"reach,omitempty"`
	// Replayed is the number of recorded edges that the candidate was run on.
	Replayed int `json:"replayed,omitempty"`
	// NewlyRefused and NewlyAllowed are recorded edges whose verdict changes.
	NewlyRefused []Edge `json:"newlyRefused,omitempty"`
	NewlyAllowed []Edge `json:"newlyAllowed,omitempty"`
}

// ReachChange is a set of cells that a plan opens, closes or gives other duties.
type ReachChange struct {
	From     string    `json:"from"` // the groups' names
	To       string    `json:"to"`
	Protocol Protocol  `json:"protocol"`
	Ports    PortRange `json:"ports"`
	Before   Verdict   `json:"before"`
	After    Verdict   `json:"after"`
	// By is the object and field that decides afterwards.
	By Ref `json:"by"`
}

// ApplyResult is what became of objects that were applied together: all of them
// or none.
type ApplyResult struct {
	DryRun bool `json:"dryRun,omitempty"`
	// Faults are those of all objects. With any, nothing was applied.
	Faults  Faults          `json:"faults,omitempty"`
	Objects []AppliedObject `json:"objects,omitempty"`
}

// AppliedObject is what became of one.
type AppliedObject struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Outcome is created, configured or unchanged.
	Outcome string `json:"outcome"`
	// Object is the outcome itself.
	Object json.RawMessage `json:"object"`
}
