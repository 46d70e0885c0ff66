package bocage

import (
	"net/netip"
	"time"
)

// Explanation says why a flow gets its verdict, down to the object and the field, and the
// smallest change that would reverse it.
type Explanation struct {
	Flow        Flow   `json:"flow"`
	Source      Peer   `json:"sourcePeer"`
	Destination Peer   `json:"destinationPeer"`
	Generation  uint64 `json:"generation"`
	// Name is the DNS name by which the source knows the destination; for a recorded flow,
	// the pattern of the name that opened it. Empty: none.
	Name DomainName `json:"name,omitempty"`
	// Anywhere says that only a name was asked about. Then the destination's address stands
	// for every external address about which nothing specific is declared.
	Anywhere bool `json:"anywhere,omitempty"`
	// Elsewhere is what the flow gets, if that differs, at addresses about which more is
	// declared, and at addresses that the source does not know by the name.
	Elsewhere []Elsewhere `json:"elsewhere,omitempty"`
	Verdict   Verdict     `json:"verdict"`
	Reason    Reason      `json:"reason"`
	// Families is what the flow gets in each address family, if it was asked about by
	// workload names and the families differ (see SimulateAnswer).
	Families map[string]string `json:"families,omitempty"`
	// Decider is the object and field that decided.
	Decider Ref `json:"decider"`
	// Layers lists what each author said: contracts, grants, the tiers of
	// Kubernetes, guardrails, what is protected, threats, quarantine, disposition,
	// scope.
	Layers []Layer `json:"layers"`
	// Duties are those of an allowed flow, with their authors.
	Duties []Duty `json:"duties,omitempty"`
	// Missing is the smallest change that would reverse the verdict, if one exists.
	Missing string `json:"missing,omitempty"`
}

// Elsewhere is what a flow to a DNS name gets at some of the addresses that the name may
// have.
type Elsewhere struct {
	// Addresses are these addresses, More is how many prefixes are left out. None: any
	// address that the source does not know by the name.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	More      int            `json:"more,omitempty"`
	Verdict   Verdict        `json:"verdict"`
	Reason    Reason         `json:"reason"`
	Decider   Ref            `json:"decider"`
}

// Layer is the result of one author's declarations.
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
	// Spoken is the protocol that all its flows were recognised to speak; other if they
	// differ or some were not observed, unknown if none sent anything recognisable.
	Spoken AppProtocol `json:"spoken,omitempty"`
	First  time.Time   `json:"first"`
	Last   time.Time   `json:"last"`
}
