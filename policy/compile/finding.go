package compile

import (
	"cmp"
	"fmt"

	"bocage.dev/bocage"
)

// Finding is something that the author of an object should know, which only
// shows beside the other objects.
type Finding struct {
	// Object is the object and the field concerned.
	Object bocage.Ref
	// Reason is one CamelCase word, as conditions carry it.
	Reason string
	// Message says what is so, and what to change.
	Message string
	// Rejected says that the field, or the whole object if it names none, takes
	// no effect as it stands.
	Rejected bool
}

// Reasons of findings.
const (
	Invalid             = "Invalid"             // not valid by itself
	UnknownApplication  = "UnknownApplication"  // a service that nobody declares
	UnknownInterface    = "UnknownInterface"    // a service without that interface
	UnknownProfile      = "UnknownProfile"      // an InspectionProfile that does not exist
	UnknownWorkload     = "UnknownWorkload"     // a workload that does not exist
	UnknownZone         = "UnknownZone"         // a zone that nobody declares
	UnknownGuardrail    = "UnknownGuardrail"    // an exception to a guardrail that is not there
	UnknownAddressGroup = "UnknownAddressGroup" // addresses that nobody lists
	NotAdmitted         = "NotAdmitted"         // an exception to a guardrail that admits none
	TooLong             = "TooLong"             // an exception that would last longer than its guardrail admits
	NotApproved         = "NotApproved"         // waits for a second person
	NotBegun            = "NotBegun"            // an exception whose time is yet to come
	Contradiction       = "Contradiction"       // a guardrail leaves nothing of what another says
	RefusedInPart       = "RefusedInPart"       // guardrails refuse a part of what another grants
	NeverSpoken         = "NeverSpoken"         // protocols that no flow can speak together, or not over this transport
	DutyRecorded        = "DutyRecorded"        // a duty that enforcement points do not keep themselves
	HostTaken           = "HostTaken"           // a host that stands in another zone
	PeerMissing         = "PeerMissing"         // half of a contract: the other side has not declared its own
	NoWorkloads         = "NoWorkloads"         // selects nothing today
	NothingMatches      = "NothingMatches"      // no cell can ever be meant
	AddressTaken        = "AddressTaken"        // an address that an older workload has
	InterfaceTaken      = "InterfaceTaken"      // an interface that an older workload has
	NoIdentity          = "NoIdentity"          // a workload without a number of its own
	NotPlaced           = "NotPlaced"           // a workload without an enforcement point
	InInventory         = "InInventory"         // an external prefix that is a workload's address
	NotEnforced         = "NotEnforced"         // an automated quarantine where scopes only observe
	NothingToDo         = "NothingToDo"         // declares less than its level allows
	PortTaken           = "PortTaken"           // a decoy whose port wears another face already
	SignatureTwice      = "SignatureTwice"      // two profiles number different signatures alike
	TooMany             = "TooMany"             // more than the numbers that exist
	Expired             = "Expired"             // its time is over
)

// findings collects while the compiler runs.
type findings []Finding

func (f *findings) reject(object bocage.Ref, reason, format string, args ...any) {
	*f = append(*f, Finding{object, reason, fmt.Sprintf(format, args...), true})
}

func (f *findings) note(object bocage.Ref, reason, format string, args ...any) {
	*f = append(*f, Finding{object, reason, fmt.Sprintf(format, args...), false})
}

func compareRefs(a, b bocage.Ref) int {
	switch {
	case a.Kind != b.Kind:
		return cmp.Compare(a.Kind, b.Kind)
	case a.Namespace != b.Namespace:
		return cmp.Compare(a.Namespace, b.Namespace)
	case a.Name != b.Name:
		return cmp.Compare(a.Name, b.Name)
	case a.Field != b.Field:
		return cmp.Compare(a.Field, b.Field)
	default:
		return cmp.Compare(a.Source, b.Source)
	}
}

// Ref points at a field of an object, or at the whole with an empty field.
func Ref(kind string, object bocage.Resource, field string) bocage.Ref {
	meta := object.Meta()
	return bocage.Ref{Kind: kind, Namespace: meta.Namespace, Name: meta.Name, Field: field,
		Source: meta.Annotations[bocage.SourceAnnotation]}
}
