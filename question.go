package bocage

import (
	"encoding/json"
	"time"
)

// ExplainQuery asks why a flow gets its verdict. Ends are "namespace/name" of a
// workload or an address.
type ExplainQuery struct {
	From string `json:"from"`
	// To may be a DNS name, too. It stands for an external address with this name about
	// which nothing specific is declared.
	To string `json:"to"`
	// Name is a DNS name by which the source knows the address To.
	Name string `json:"name,omitempty"`
	// Port is the destination port; 0 for protocols without ports.
	Port     uint16   `json:"port,omitempty"`
	Protocol Protocol `json:"protocol"`
	// At is the moment to decide for; zero is now.
	At time.Time `json:"at,omitzero"`
	// Generation is a kept generation to decide under; 0 is the one in force.
	Generation uint64 `json:"generation,omitempty"`
	// Decision is the one that a recorded event carries: the answer says what it was. 0 is
	// none.
	Decision DecisionID `json:"decision,omitempty"`
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
	// Greeting is what the TLS client asked for, if the record is of that kind.
	Greeting *Greeted `json:"greeting,omitempty"`
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
	// Applications are new ones, and declared ones with what they lack.
	Applications []*Application `json:"applications"`
	// Review lists what was seen and left out, because it is rare, unanswered or
	// ambiguous; Why says so of each.
	Review []Edge   `json:"review,omitempty"`
	Why    []string `json:"why,omitempty"`
	// Declared counts the edges that policy allows already, Covered those that it
	// would allow with the suggestion.
	Declared int `json:"declared,omitempty"`
	Covered  int `json:"covered,omitempty"`
	// Unseen counts the pairs of workloads, for each port, that the suggestion would allow
	// although no such flow was recorded, because members of one application are treated
	// alike.
	Unseen int64 `json:"unseen,omitempty"`
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
	// Enforced are the workloads whose refused flows would be dropped from now on, Observed
	// those whose would only be reported: because of changed Scopes.
	Enforced []string `json:"enforced,omitempty"`
	Observed []string `json:"observed,omitempty"`
	// Quarantined are the workloads that would be cut off from now on, Released those that
	// would no longer be.
	Quarantined []string `json:"quarantined,omitempty"`
	Released    []string `json:"released,omitempty"`
	// Times are the changes that begin later or end, by the time in which they hold: at every
	// moment at which something that is declared begins or ends, what is in force is compared
	// with the plan. What holds now and ends is listed above as well.
	Times []PlannedTime `json:"times,omitempty"`
	// Uncompared counts such moments that were left out, for there are too many.
	Uncompared int `json:"uncompared,omitempty"`
	// Replayed is the number of recorded edges that the candidate was run on.
	Replayed int `json:"replayed,omitempty"`
	// NewlyRefused and NewlyAllowed are recorded edges whose verdict changes.
	NewlyRefused []PlannedEdge `json:"newlyRefused,omitempty"`
	NewlyAllowed []PlannedEdge `json:"newlyAllowed,omitempty"`
	// DutyChanged are recorded edges that stay allowed and owe something else.
	DutyChanged []PlannedEdge `json:"dutyChanged,omitempty"`
	// Unused lists contracts of the planned objects that no recorded flow used.
	Unused []Ref `json:"unused,omitempty"`
	// Recorded is the time that the replayed flows cover.
	Recorded Span `json:"recorded,omitzero"`
	// Tests are the PolicyTests of the candidate that fail.
	Tests []TestResult `json:"tests,omitempty"`
	// Cut are administrators' live sessions that the candidate would cut: hosts do
	// not put it in force unless the risk is accepted.
	Cut []CutSession `json:"cut,omitempty"`
}

// PlannedTime is what a plan changes in a stretch of time, and neither before nor after.
type PlannedTime struct {
	// Begins is zero of what holds now already, Ends of what holds for good.
	Begins time.Time `json:"begins,omitzero"`
	Ends   time.Time `json:"ends,omitzero"`
	// The rest is as in PlanResult.
	Reach       []ReachChange `json:"reach,omitempty"`
	Enforced    []string      `json:"enforced,omitempty"`
	Observed    []string      `json:"observed,omitempty"`
	Quarantined []string      `json:"quarantined,omitempty"`
	Released    []string      `json:"released,omitempty"`
}

// Empty reports whether nothing changes.
func (t PlannedTime) Empty() bool {
	return len(t.Reach)+len(t.Enforced)+len(t.Observed)+len(t.Quarantined)+len(t.Released) == 0
}

// PlannedEdge is a recorded edge whose verdict or duties a plan changes.
type PlannedEdge struct {
	Edge
	// By decides afterwards; Owner is the Application whose owner to ask.
	By    Ref    `json:"by"`
	Owner string `json:"owner,omitempty"`
	// Before and After are the duties, where those change.
	Before []string `json:"before,omitempty"`
	After  []string `json:"after,omitempty"`
}

// Span is a time with its two ends.
type Span struct {
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// TestResult is the result of one case of a PolicyTest.
type TestResult struct {
	Test   string `json:"test"` // namespace/name
	Case   string `json:"case"` // its name, or cases[N]
	Passed bool   `json:"passed"`
	// Flow is the flow that was decided; of a case about many, the one that fails.
	Flow   string `json:"flow,omitempty"`
	Want   string `json:"want"`
	Got    string `json:"got"`
	By     Ref    `json:"by,omitzero"`
	Source string `json:"source,omitempty"`
	// Because is the case's own reason.
	Because string `json:"because,omitempty"`
}

// Families of addresses, by the names that answers have for them.
const (
	FamilyIPv4 = "IPv4"
	FamilyIPv6 = "IPv6"
)

// SimulateProbe asks for one decision without any data center.
type SimulateProbe struct {
	From string `json:"from"` // namespace/name of a workload, or an address
	// To is likewise; or a DNS name, which stands for an external address with this name
	// about which nothing specific is declared.
	To string `json:"to"`
	// Name is a DNS name by which the source knows the address To.
	Name string `json:"name,omitempty"`
	Port uint16 `json:"port,omitempty"`
	// Protocol is TCP unless said otherwise.
	Protocol string    `json:"protocol,omitempty"`
	At       time.Time `json:"at,omitzero"`
}

// SimulateAnswer is the decision on one probe.
type SimulateAnswer struct {
	SimulateProbe
	Verdict string `json:"verdict"` // allow or deny
	// Disposition is allow or inspect for an allowed flow; drop, reject or decoy for a
	// refused one.
	Disposition string   `json:"disposition"`
	Duties      []string `json:"duties"`
	Reason      string   `json:"reason"`
	// Decision is the object and the field that decided; empty for default deny.
	Decision SimulateDecision `json:"decision"`
	// Missing is the smallest change that would reverse the verdict, if one exists.
	Missing string `json:"missing,omitempty"`
	// Enforced says that a scope enforces what is refused; otherwise an
	// enforcement point would only report it.
	Enforced bool `json:"enforced"`
	// Families is set if both ends have addresses of both families and the families get
	// different results. It has, by the name of the family, allow or deny, with the
	// disposition or the duties if only those differ. All other fields are about the first
	// family that the ends have in common, in the order of the source's addresses.
	Families map[string]string `json:"families,omitempty"`
	// Error says why the probe could not be decided. Then nothing else is set than what
	// was asked.
	Error string `json:"error,omitempty"`
	// Line is where a probe begins that could not be read, and Asked what it is, as it
	// was written, if it is JSON.
	Line  int             `json:"line,omitempty"`
	Asked json.RawMessage `json:"asked,omitempty"`
}

// SimulateDecision is a Ref with the file and the line in fields of their own.
type SimulateDecision struct {
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Field     string `json:"field,omitempty"`
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`
}

// ReachMatrix is who reaches whom.
type ReachMatrix struct {
	// Workloads are the rows and columns, as namespace/name, sorted.
	Workloads []string `json:"workloads"`
	// Cells are the allowed ones, for each pair with something allowed.
	Cells []ReachCell `json:"cells"`
}

// ReachCell is what one workload may open to another.
type ReachCell struct {
	From  string     `json:"from"`
	To    string     `json:"to"`
	Ports []ReachSet `json:"ports"`
}

// ReachSet is an interval of ports with one decision.
type ReachSet struct {
	// Family is set if the two have addresses of both families and these differ in what is
	// open.
	Family   string    `json:"family,omitempty"`
	Protocol Protocol  `json:"protocol"`
	Ports    PortRange `json:"ports"`
	Duties   []string  `json:"duties,omitempty"`
	By       []Ref     `json:"by,omitempty"`
}

// BlastQuery asks what can be reached from somewhere, hop by hop.
type BlastQuery struct {
	// From is "namespace/name" of a workload, "namespace/" for all of a namespace,
	// or an address.
	From string `json:"from"`
	// Hops is how far to look; 0 is to the end.
	Hops int `json:"hops,omitempty"`
	// Uninspected leaves out flows that the inspection engine sees.
	Uninspected bool `json:"uninspected,omitempty"`
	// Lasting asks for what can be reached once quarantines and threat conditions are
	// over, as a guardrail's blast radius counts it.
	Lasting bool `json:"lasting,omitempty"`
	// LeastWeight is what a workload counts at least, as in BlastRadius.
	LeastWeight int `json:"leastWeight,omitempty"`
	// Generation is the generation to ask, one in force, on its way or kept back; 0 is the
	// one in force.
	Generation uint64 `json:"generation,omitempty"`
}

// WarningPolicy is the agent that the HTTP warnings name which say that policy is held.
const WarningPolicy = "policy"

// BlastResult is what can be reached.
type BlastResult struct {
	From    []string      `json:"from"`
	Total   int           `json:"total"` // workloads there are
	Weight  int           `json:"weight"`
	Reached []BlastTarget `json:"reached"`
}

// BlastTarget is one workload that can be reached, with a shortest way.
type BlastTarget struct {
	Workload string   `json:"workload"`
	Hops     int      `json:"hops"`
	Path     []string `json:"path"`
}

// RolloutRequest is a person's request about the newest generation.
type RolloutRequest struct {
	// Action is confirm (keep what is in force; or, after a rollback, let what is declared
	// come into force again), rollback (go back to Generation, or to the one before),
	// promote (end the present stage now), or accept-risk (let rulesets cut administrators'
	// sessions on Hosts for Seconds).
	Action     string `json:"action"`
	Generation uint64 `json:"generation,omitempty"`
	// Hosts and Seconds belong to accept-risk.
	Hosts   []string `json:"hosts,omitempty"`
	Seconds int64    `json:"seconds,omitempty"`
}

// ReachChange is a set of cells that a plan opens, closes or gives other duties.
type ReachChange struct {
	From     string    `json:"from"` // the groups' names
	To       string    `json:"to"`
	Protocol Protocol  `json:"protocol"`
	Ports    PortRange `json:"ports"`
	Before   Verdict   `json:"before"`
	After    Verdict   `json:"after"`
	// BeforeDuties and AfterDuties are what is owed, as Duties.List names it.
	BeforeDuties []string `json:"beforeDuties,omitempty"`
	AfterDuties  []string `json:"afterDuties,omitempty"`
	// By is the object and field that decides afterwards.
	By Ref `json:"by"`
}

// ApplyResult is the result of applying objects together. If one of them is not valid,
// nothing is written. Otherwise they are written in one transaction, or in several if they
// are too many for one.
type ApplyResult struct {
	DryRun bool `json:"dryRun,omitempty"`
	// Faults are those of all objects, or why a transaction failed. If Objects is empty,
	// nothing was applied.
	Faults  Faults          `json:"faults,omitempty"`
	Objects []AppliedObject `json:"objects,omitempty"`
}

// OutcomePending is the outcome of valid objects that were not written.
const OutcomePending = "pending"

// AppliedObject is the result of applying one object.
type AppliedObject struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Outcome is created, configured or unchanged; pending if its transaction failed, or
	// was not tried after one that failed.
	Outcome string `json:"outcome"`
	// Note says what it waits for, if it does not take effect yet.
	Note string `json:"note,omitempty"`
	// Object is the outcome itself.
	Object json.RawMessage `json:"object,omitempty"`
}
