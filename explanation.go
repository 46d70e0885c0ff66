package bocage

import "time"

// Explanation answers why a flow gets its verdict, down to the object and the
// field, and what the smallest change would be.
type Explanation struct {
	Flow        Flow    `json:"flow"`
	Source      Peer    `json:"sourcePeer"`
	Destination Peer    `json:"destinationPeer"`
	Generation  uint64  `json:"generation"`
	Verdict     Verdict `json:"verdict"`
	Reason      Reason  `json:"reason"`
	// Decider is the object and field that decided.
	Decider Ref `json:"decider"`
	// Layers lists what each author said: contracts, grants, the tiers of
	// Kubernetes, guardrails, what is protected, threats, quarantine, disposition,
	// scope.
	Layers []Layer `json:"layers"`
	// Duties are those of an allowed flow, with their authors.
	Duties []Duty `json:"duties,omitempty"`
	// Missing is the smallest change that would turn the verdict, if one exists.
	Missing string `json:"missing,omitempty"`
}

// Layer is one author's say.
type Layer struct {
	Name   string `json:"name"`
	By     []Ref  `json:"by,omitempty"`
	Result string `json:"result"`
}

// Duty is an obligation with its author.
type Duty struct {
	Duty string `json:"duty"`
	By   Ref    `json:"by"`
}

// Edge counts the flows seen from one workload to a service of another, or to
// an outside prefix: what policy is suggested from and replayed on.
type Edge struct {
	Source          string   `json:"source"`      // namespace/name, or an address
	Destination     string   `json:"destination"` // namespace/name, or an address
	Protocol        Protocol `json:"protocol"`
	DestinationPort uint16   `json:"destinationPort"`
	Flows           int64    `json:"flows"`
	Replied         int64    `json:"replied"` // flows that the destination answered
	// Spoken is what its flows were heard to speak, all of them; other if some spoke
	// something else or were not listened to, unknown if none said anything.
	Spoken AppProtocol `json:"spoken,omitempty"`
	First  time.Time   `json:"first"`
	Last   time.Time   `json:"last"`
}
