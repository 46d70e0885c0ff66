package bocage

import (
	"net/netip"
	"time"
)

// Explanation answers why a flow gets its verdict, down to the object and the
// field, and what the smallest change would be.
type Explanation struct {
	Flow        Flow   `json:"flow"`
	Source      Peer   `json:"sourcePeer"`
	Destination Peer   `json:"destinationPeer"`
	Generation  uint64 `json:"generation"`
	// Name is the DNS name by which the source knows the destination; of a recorded
	// flow, the pattern by which it was open. Empty: by none.
	Name DomainName `json:"name,omitempty"`
	// Anywhere says that the destination is wherever the name is, and its address one
	// that stands for all of which nothing narrower than everything outside is declared.
	Anywhere bool `json:"anywhere,omitempty"`
	// Elsewhere is what the same flow gets where more is declared of the address, and
	// where the source does not know it by the name: as far as that is something else.
	Elsewhere []Elsewhere `json:"elsewhere,omitempty"`
	Verdict   Verdict     `json:"verdict"`
	Reason    Reason      `json:"reason"`
	// Families is what the flow gets in each family of addresses, as in SimulateAnswer,
	// where it was asked about by names and that is not the same.
	Families map[string]string `json:"families,omitempty"`
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

// Elsewhere is what a flow gets that has a name for its destination, at some of the
// addresses which that may have.
type Elsewhere struct {
	// Addresses are those outside that have the name then, More how many prefixes are
	// left out. None: any that the source does not know by the name.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	More      int            `json:"more,omitempty"`
	Verdict   Verdict        `json:"verdict"`
	Reason    Reason         `json:"reason"`
	Decider   Ref            `json:"decider"`
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
